"""What an adapter folder of peft says of itself, and where the model lies that it was trained on.

An adapter is a few small matrices beside the weights of another model, its base. A folder that adpa wrote has a file
`adapter_base.json` beside `adapter_config.json`, which names the base by its content: a base that is another one by now
is an error. A folder of others names its base as a path, or as a hub name that is looked up in the Hugging Face cache.
"""

from __future__ import annotations

import functools
import os
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

from adpa_cli.data.sources import HUB_ID
from adpa_cli.errors import AdpaError, DataError, NotFound
from adpa_cli.hub.repository import cached_commit, snapshot
from adpa_cli.spec import LowRank, Quantise
from adpa_cli.store import manifest as manifests
from adpa_cli.store.identity import (
    ADAPTER,
    ADAPTER_BASE,
    ADAPTER_SETTINGS,
    HashCache,
    adapter_config,
    adapter_digest,
    file_digest,
    is_adapter,
    json_object,
    model_digest,
    model_files,
)
from adpa_cli.store.store import MARKER, Store

REVISION = "main"
FETCH = "download or write the folder again"
UNREAD = {
    "peft_type", "task_type", "auto_mapping", "base_model_name_or_path", "revision", "inference_mode", "peft_version",
    "lora_dropout", "bias", "modules_to_save", "init_lora_weights", "eva_config", "loftq_config", "corda_config",
    "lora_ga_config", "qalora_group_size", "megatron_core", "velora_config",
}  # fmt: skip
"""What adapter_config.json says of where an adapter comes from, of its training, and of tensors that are in its file as
they are."""
CHANGES_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Ways to begin that take from the weights of the base what they put into the adapter."""
MERGE = "merge it with peft: PeftModel.from_pretrained(BASE, FOLDER).merge_and_unload().save_pretrained('MERGED')"


@dataclass(frozen=True)
class AdapterFolder:
    """An adapter folder: `config` is its adapter_config.json, `made_on` its adapter_base.json, {} without one."""

    path: Path
    config: Mapping[str, Any]
    made_on: Mapping[str, Any]

    @staticmethod
    def of(folder: Path) -> AdapterFolder | None:
        """The adapter in a folder; None for a folder without one, or with whole weights of its own.

        Raises DataError for a damaged file, and for another kind of adapter than LoRA.
        """
        if not (folder / ADAPTER).is_file() or not is_adapter(os.listdir(folder)):
            return None
        config = adapter_config((folder / ADAPTER).read_bytes(), str(folder))
        return AdapterFolder(folder, config, _made_on(folder / ADAPTER_BASE))

    @property
    def rank(self) -> int:
        """The rank of its matrices."""
        return int(self.config["r"])

    @property
    def alpha(self) -> float:
        """What their product is scaled by, times the rank."""
        return float(self.config["lora_alpha"])

    @property
    def targets(self) -> tuple[str, ...]:
        """The ends of the names of the layers that have them, sorted, or the one pattern that these names match."""
        said = self.config.get("target_modules") or ()
        return (said,) if isinstance(said, str) else tuple(sorted(map(str, said)))

    @property
    def low_rank(self) -> LowRank:
        """Its matrices by the settings that make them; the layers as they were asked for, where adpa made it."""
        layers = str(self.made_on.get("targets") or ",".join(self.targets))
        return LowRank(self.rank, self.alpha, layers, self.quantise)

    @cached_property
    def settings(self) -> Mapping[str, Any]:
        """How it computes, as peft's configuration takes it. Raises DataError where that cannot be done beside frozen
        weights, or is not known here."""
        begin = str(self.config.get("init_lora_weights") or "").lower()
        if begin.startswith(CHANGES_THE_BASE):
            raise DataError(
                f"the adapter {self.path} began with init_lora_weights={begin}, which changes the base as well", MERGE
            )
        for key in ("target_modules", "exclude_modules"):
            _check_pattern(self.config.get(key), f"{self.path / ADAPTER}: {key}")
        given = {key for key, value in self.config.items() if value}
        if other := sorted(given - {*ADAPTER_SETTINGS, *UNREAD}):
            raise DataError(f"the adapter {self.path} uses {', '.join(other)}, which is not read here", MERGE)
        read = (*ADAPTER_SETTINGS, "task_type")
        return {key: self.config[key] for key in read if self.config.get(key) is not None}

    @property
    def quantise(self) -> Quantise | None:
        """How the weights of its base were stored when it was trained; None for two or four bytes each."""
        return self.made_on.get("quantise")

    @property
    def content(self) -> str:
        """Its base by content, `artifact:<id>` or `model:<sha256>`: as recorded, else by the folder that is found."""
        return self._recorded or f"model:{self._digest(self.base)}"

    @property
    def _recorded(self) -> str:
        return str(self.made_on.get("content") or "")

    @property
    def base_name(self) -> str:
        """Its base as adapter_config.json names it: a path, or a hub name; "" where it does not."""
        return str(self.config.get("base_model_name_or_path") or "")

    @property
    def revision(self) -> str:
        """The revision of a base of the hub."""
        return str(self.config.get("revision") or REVISION)

    @cached_property
    def base(self) -> Path:
        """The folder of its base, which is what the adapter was trained on where the folder says so by content.

        Raises NotFound for a base that is not on this machine, DataError for one that has changed, or that is an
        adapter itself.
        """
        place = self.local_base
        if place is not None and self._is_base(place):
            return _whole(place, self.path)
        if (other := next(filter(self._is_base, self._elsewhere()), None)) is not None:
            return _whole(other, self.path)
        if place is None or not self._content_of(place):  # of a hub model the small files may be here alone
            raise self._missing()
        raise DataError(
            f"the base of the adapter {self.path} has changed since the adapter was made: {place} is "
            f"{self._content_of(place)[:22]}…, and the adapter was trained on {self._recorded[:22]}…",
            f"put back the base of that time, or train a new adapter on the one that is there: --set lora={self.rank}",
        )

    @property
    def local_base(self) -> Path | None:
        """Where the base lies by its name alone; None where there is nothing. Its content is not looked at."""
        if (folder := self._named_folder) is not None:
            return folder
        if not HUB_ID.fullmatch(self.base_name):
            return None
        commit = cached_commit(self.base_name, self.revision, "model")
        return snapshot(self.base_name, "model", commit) if commit else None

    @property
    def _named_folder(self) -> Path | None:
        """The folder that the base's name is the path of, from the adapter or from the working directory; of an adapter
        in the Hugging Face cache none, for its base is of the hub too."""
        is_cached = self.path.parent.name == "snapshots"
        places = (self.path / self.base_name, Path(self.base_name)) if self.base_name and not is_cached else ()
        return next((Path(os.path.realpath(folder)) for folder in places if folder.is_dir()), None)

    @property
    def is_of_hub(self) -> bool:
        """Whether the base is named as a model of the hub, and not by what it was in a store or in a folder."""
        is_name = HUB_ID.fullmatch(self.base_name) is not None and not self.base_name.startswith(".")
        return is_name and self._named_folder is None and not self._recorded.startswith("artifact:")

    def _is_base(self, folder: Path) -> bool:
        return not self._recorded or self._content_of(folder) == self._recorded

    def _content_of(self, folder: Path) -> str:
        """A folder by its content, in the form of the record; "" for what is no model."""
        try:
            if self._recorded.startswith("artifact:"):
                return f"artifact:{manifests.read(folder).id}"
            return f"model:{self._digest(folder)}"
        except (AdpaError, OSError):
            return ""

    def _digest(self, folder: Path) -> str:
        """That of a model folder. The process remembers it, and so does the store."""
        return _digest_once(folder, file_states(folder), self._store)

    def _elsewhere(self) -> Iterator[Path]:
        """Other folders that may have the base, where its content is known: no name tells that they are right."""
        kind, _, sha = self._recorded.partition(":")
        if kind == "artifact" and self._store is not None and (base := self._store.get(sha)) is not None:
            yield self._store.folder(base.ref)
        if kind == "model" and self._hashes is not None and (known := self._hashes.locate(sha)) is not None:
            yield known
        if kind == "model":
            yield from sorted(Path(str(resources.files("adpa_cli.lab") / "bases")).iterdir())

    @cached_property
    def _store(self) -> Store | None:
        """The store that the folder is in: as an artifact, finished or in the making, or as a step of one."""
        above = Path(os.path.abspath(self.path)).parents
        return next((Store(root) for root in above if (root / MARKER).is_file()), None)

    @property
    def _hashes(self) -> HashCache | None:
        return self._store.hash_cache if self._store else None

    def _missing(self) -> NotFound:
        """The error of a base that is nowhere, with what to type for it."""
        name, config = self.base_name, self.path / ADAPTER
        place = os.path.realpath(self.path / name)
        back = f"put it there again: mv FOLDER {shlex.quote(place)}\n or"
        if not name:
            hint = f"write the model that it was trained on into {config}, as base_model_name_or_path"
            return NotFound(f"the adapter {self.path} does not name its base", hint)
        if self._recorded.startswith("artifact:"):
            hint = "make it again with the command that made it, or bring the whole store along: the base is in it"
            base = f"artifact {self._recorded.removeprefix('artifact:')[:12]} at {place}"
            return NotFound(f"the base of the adapter {self.path}, {base}, is not there", hint)
        if self.is_of_hub:
            revision = f" --revision {self.revision}" if self.revision != REVISION else ""
            hint = f"hf download {name}{revision}\n or, for a folder of yours, write its path into {config}"
            return NotFound(f"the base of the adapter {self.path}, {name}, is not on this machine", hint)
        if self._recorded and self._store is not None:
            seen = f"adpa sft --model FOLDER -n --store {shlex.quote(str(self._store.root))}"
            return NotFound(
                f"the base of the adapter {self.path} is not at {place}",
                f"{back} let this store see once where it lies, for it knows the base by its content: {seen}",
            )
        return NotFound(
            f"the base of the adapter {self.path} is not at {place}",
            f"{back} write where it lies, or its hub name, into {config}, as base_model_name_or_path",
        )

    def digest(self, base: str, cache: HashCache | None = None) -> str:
        """Hex sha256 of the adapter on a base with that digest. Raises as `model_files` does."""
        shas = {name: file_digest(self.path / name, cache) for name in model_files(self.path)}
        sha = adapter_digest(shas, self.config, self.made_on, base)
        if cache is not None:
            cache.put_folder(self.path, sha)
        return sha


def folder_digest(folder: Path, cache: HashCache | None = None) -> str:
    """Hex sha256 of a model folder, of whole weights or of an adapter with its base. Raises as `model_digest` does, and
    as `AdapterFolder.base`."""
    adapter = AdapterFolder.of(folder)
    return model_digest(folder, cache) if adapter is None else adapter.digest(model_digest(adapter.base, cache), cache)


@functools.lru_cache(maxsize=8)
def _digest_once(folder: Path, files: tuple[Any, ...], store: Store | None) -> str:
    return model_digest(folder, store.hash_cache if store else None)


def file_states(folder: Path) -> tuple[Any, ...]:
    """What changes with any file of a folder."""
    with os.scandir(folder) as entries:
        return tuple(sorted((entry.name, *_state(entry)) for entry in entries))


def _state(entry: os.DirEntry[str]) -> tuple[int, int]:
    """What changes with a file, or with the file that a link leads to."""
    try:
        stat = entry.stat()
    except OSError:  # a link that leads nowhere
        return 0, 0
    return stat.st_size, stat.st_mtime_ns


def _check_pattern(said: Any, where: str) -> None:
    """Raise DataError for a text that is no regular expression; names in a list are none."""
    try:
        re.compile(said if isinstance(said, str) else "")
    except re.error as error:
        raise DataError(f"{where} is {said!r}, no pattern: {error}", FETCH) from error


def _whole(base: Path, adapter: Path) -> Path:
    """The same folder. Raises DataError where it is an adapter too."""
    if AdapterFolder.of(base) is None:
        return base
    raise DataError(
        f"the base of the adapter {adapter} is an adapter itself, {base}",
        f"merge the two once: adpa export {base} MERGED; then write MERGED into {adapter / ADAPTER}, as "
        "base_model_name_or_path",
    )


def _made_on(path: Path) -> Mapping[str, Any]:
    return json_object(path.read_bytes(), str(path)) if path.is_file() else {}
