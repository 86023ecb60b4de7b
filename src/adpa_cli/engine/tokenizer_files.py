"""The files of a tokenizer beside a model that is saved, from which transformers gives the ids of tokenizer.json.

transformers 5 rebuilds the tokenizers of some types of models by class, and those then cut texts otherwise than
tokenizer.json says. Such a folder gets a class of its own.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoTokenizer, __version__

from adpa_cli.data.tokenizer import Tokenizer
from adpa_cli.errors import AdpaError
from adpa_cli.hub.model_folder import ModelFolder
from adpa_cli.hub.portable import edit_settings, write_settings

LOAD_ERRORS = (
    OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError, SafetensorError, StrictDataclassError
)  # fmt: skip
"""What transformers, huggingface_hub and safetensors raise on a folder that is not a usable model."""

AS_SAVED = "tokenizer_as_saved"
AS_SAVED_CODE = '''"""The tokenizer of this folder is tokenizer.json as it stands, whatever the type of the model."""

from transformers import PreTrainedTokenizerFast


class AsSaved(PreTrainedTokenizerFast):
    """For programs that run the code of a folder; others read tokenizer.json by themselves."""
'''
AUTO_MAP = {"AutoTokenizer": [None, f"{AS_SAVED}.AsSaved"]}
"""A tokenizer that a folder brings itself is not rebuilt by the type of the model, also where its code does not run."""
SAMPLE = (
    "Hello, world!  It's 1234567 o'clock:\n\n\tdef f(x):\n    return x + 22  # don't\r\n"
    "na\u00efve e\u0301 \ufb01 \u4f60\u597d \U0001f600 \u0416\u0434\u0438 https://a.b/c?d=1&e=2 "
    "<b>CamelCase</b> ... \u00a0end "
)


def save_tokenizer(tokenizer: Tokenizer, folder: Path, template_text: str, end_token: str) -> None:
    """Write the files of a tokenizer beside a config.json. Raises as `keep_ids` does."""
    for name, content in tokenizer.saved_files(template_text, end_token).items():
        (folder / name).write_bytes(content)
    keep_ids(folder, tokenizer)


def keep_ids(folder: Path, tokenizer: Tokenizer) -> None:
    """See to it that transformers gives the ids of `tokenizer` for a folder with its files.

    Raises AdpaError where a class of its own does not help.
    """
    ours = _ids(tokenizer.ids, lambda text: list(tokenizer.core.encode(text).ids), tokenizer)
    if _loaded_ids(folder, tokenizer)[0] == ours:
        return
    (folder / f"{AS_SAVED}.py").write_text(AS_SAVED_CODE, encoding="utf-8")
    edit_settings(folder / "tokenizer_config.json", {"auto_map": AUTO_MAP})
    theirs, fault = _loaded_ids(folder, tokenizer)
    if theirs != ours:
        at = next((n for n, pair in enumerate(zip(theirs, ours, strict=False)) if pair[0] != pair[1]), 0)
        raise AdpaError(
            f"transformers {__version__} does not read the tokenizer as tokenizer.json has it, so what is saved would "
            f"be misread: from token {at + 1} on "
            + (fault or f"it gives {theirs[at : at + 8]}, tokenizer.json {ours[at : at + 8]}"),
            "use a model whose tokenizer.json is that of its model_type, or another version of transformers",
        )


def check_saved_tokenizer(folder: Path, template_text: str, end_token: str) -> None:
    """Raise AdpaError where a model that is trained from `folder` could not be saved with the same ids."""
    raw = ModelFolder.of(folder).raw_config
    with tempfile.TemporaryDirectory() as place:
        config = {**(raw.get("text_config") or raw), "transformers_version": __version__}
        write_settings(Path(place) / "config.json", {key: v for key, v in config.items() if key != "auto_map"})
        save_tokenizer(ModelFolder.of(folder).tokenizer, Path(place), template_text, end_token)


Ids = Callable[[str], list[int]]


def _ids(plain: Ids, surrounded: Ids, tokenizer: Tokenizer) -> list[int]:
    """The ids of a text of many kinds with the first special tokens in it, without and with what is put around it."""
    return [*plain(SAMPLE + " a ".join(list(tokenizer.added)[:64])), *surrounded("a")]


def _loaded_ids(folder: Path, tokenizer: Tokenizer) -> tuple[list[int], str]:
    """The ids of the same texts by what transformers makes of a folder; none, and why, where it makes nothing."""
    try:
        loaded: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        plain = functools.partial(loaded.encode, add_special_tokens=False)
        return _ids(plain, loaded.encode, tokenizer), ""
    except LOAD_ERRORS as error:
        return [], f"it does not load: {first_line(error)}"


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or its name."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0]
