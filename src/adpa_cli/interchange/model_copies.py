"""A model folder copied out of the store: as it is, merged into whole weights where it is an adapter, or as an adapter.

What is copied is checked against the manifest where there is one, and written so that transformers 4 and 5 read the
same model.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from adpa_cli.data.tokenizer import CONFIG as SETTINGS
from adpa_cli.data.tokenizer import FILE as TOKENIZER
from adpa_cli.data.tokenizer import Tokenizer, portable_settings
from adpa_cli.disk import sha256_file, share, write_json
from adpa_cli.errors import Corrupt, UsageError
from adpa_cli.hub.adapter_folder import AdapterFolder
from adpa_cli.hub.model_folder import ModelFolder
from adpa_cli.hub.portable import edit_settings, portable_config, write_settings
from adpa_cli.planning.lineage import Trained
from adpa_cli.store import manifest as manifests
from adpa_cli.store.identity import ADAPTER, ADAPTER_BASE, model_files
from adpa_cli.store.manifest import Manifest


def copy_model(model: Trained, folder: Path) -> None:
    """Copy the files that make up a model; an adapter is merged into the weights of its base, in float32.

    Raises Corrupt for a file that is not what its manifest says.
    """
    adapter = AdapterFolder.of(model.folder)
    if adapter is None:
        _copy_files(model, folder)
        _make_portable(folder)
        return
    _check(model.folder, model.manifest, model.label)
    is_artifact = (adapter.base / manifests.FILE_NAME).is_file()
    _check(adapter.base, manifests.read(adapter.base) if is_artifact else None)
    merge_into(model, folder)


def copy_adapter(model: Trained, folder: Path) -> None:
    """Copy an adapter as it is; its base is named by its folder on this machine, or by its name on the hub.

    Raises UsageError for a whole model, Corrupt as `copy_model` does.
    """
    adapter = AdapterFolder.of(model.folder)
    if adapter is None:
        raise UsageError(
            f"--adapter works for adapters only, and {model.label} has whole weights", "leave out --adapter"
        )
    _copy_files(model, folder)
    (folder / ADAPTER_BASE).unlink(missing_ok=True)
    if adapter.quantise:
        write_json(folder / ADAPTER_BASE, {"quantise": adapter.quantise})
    named = adapter.base_name if adapter.is_of_hub else str(adapter.base)
    edit_settings(folder / ADAPTER, {"base_model_name_or_path": named})


def _copy_files(model: Trained, folder: Path) -> None:
    for name in model_files(model.folder):
        shutil.copyfile(model.folder / name, folder / name)
    _check(folder, model.manifest, model.label)


def _check(folder: Path, manifest: Manifest | None, label: str = "") -> None:
    """Raise Corrupt where a file of a model is not what a manifest says; without one nothing is known."""
    if manifest is None:
        return
    for name in model_files(folder):
        known = manifest.files.get(name)
        if known is not None and sha256_file(folder / name) != known["sha256"]:
            named = label or manifest.ref
            raise Corrupt(f"{name} of {named} is damaged", f"see what else is: adpa verify {named}")


def _make_portable(folder: Path) -> None:
    """Rewrite what transformers 4 and 5 would read differently: nothing in a folder that was saved for both."""
    _rewritten(folder / "config.json", lambda config: portable_config(config, {}))
    if not (folder / TOKENIZER).is_file():
        return
    tokenizer = Tokenizer.of(folder)
    if _rewritten(folder / SETTINGS, lambda settings: _portable_tokenizer(settings, tokenizer.vocabulary)):
        from adpa_cli.engine.tokenizer_files import keep_ids

        keep_ids(folder, tokenizer)


def _portable_tokenizer(settings: dict[str, Any], vocabulary: Mapping[str, int]) -> dict[str, Any]:
    kept: dict[str, Any] = {name: settings[name] for name in ("chat_template", "auto_map") if name in settings}
    return {**portable_settings(settings, vocabulary), **kept}


def _rewritten(path: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> bool:
    """Whether a file of JSON had to be changed."""
    before = json.loads(path.read_bytes()) if path.is_file() else {}
    after = change(before)
    if after != before:
        write_settings(path, after)
    return after != before


def merge_into(model: Trained, place: Path) -> None:
    """Write the whole weights of an adapter's model, merged in float32, with the configuration of its base and with its
    own tokenizer; a reward model skips the padding that this names. Raises AdpaError as `engine.models.load` and `save`
    do."""
    from adpa_cli.engine.models import load, save

    tokenizer, template = ModelFolder.of(model.folder).tokenizer, model.template
    merged = load(model.folder, train=True, scalar=model.is_judge)
    padding = tokenizer.named_id("pad_token")
    if model.is_judge and padding is not None:
        merged.config.pad_token_id = padding
    save(merged, tokenizer, place, template.text, template.end, model.folder)
    for path in place.glob("*.safetensors"):
        share(path)
