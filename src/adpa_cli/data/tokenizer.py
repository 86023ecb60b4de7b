"""The tokenizer of a model folder, read from `tokenizer.json` as it stands.

Libraries that rebuild a tokenizer by the name of its class drop what `tokenizer.json` says, such as its own
pre-tokenizer, and then cut texts into other ids without a word. Here the ids are always those of
`tokenizers.Tokenizer.from_file`. A folder without `tokenizer.json` (a SentencePiece model, or GPT-2's two files) is
converted by the transformers library.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from adpa_cli.errors import AdpaError, NotFound

FILE = "tokenizer.json"
CONFIG = "tokenizer_config.json"
NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""The tokens that a configuration names, as chat templates call them."""
OTHER_FORMATS = ("tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
SAVED_CLASS = "PreTrainedTokenizerFast"
"""A class of transformers 4 and 5 alike that takes `tokenizer.json` as it is."""
HINT = "put the tokenizer's files (tokenizer.json, tokenizer_config.json) beside the model"


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer with what its configuration says of it.

    `core` is a `tokenizers.Tokenizer`; `config` is tokenizer_config.json; `source` the text of tokenizer.json, None
    where it was converted.
    """

    core: Any
    config: Mapping[str, Any]
    source: bytes | None = None

    @staticmethod
    def of(folder: Path) -> Tokenizer:
        """The tokenizer in a folder. Raises NotFound where there is none, AdpaError where it cannot be read."""
        config = named_config(folder)
        path = folder / FILE
        if not path.is_file():
            if not any((folder / name).is_file() for name in OTHER_FORMATS):
                known = ", ".join((FILE, *OTHER_FORMATS))
                raise NotFound(f"{folder} has no tokenizer: none of {known} is there", HINT)
            return Tokenizer(_converted(folder), config)
        from tokenizers import Tokenizer as Core

        source = path.read_bytes()
        try:
            core = Core.from_str(source.decode("utf-8"))
        except Exception as error:  # the library raises nothing more special
            raise AdpaError(f"the tokenizer in {folder} does not load: {path.name}: {error}", HINT) from error
        return Tokenizer(core, config, source)

    def __post_init__(self) -> None:
        self.core.no_padding()  # a file may ask for both, and no row here wants either
        self.core.no_truncation()

    def ids(self, text: str) -> list[int]:
        """Token ids of a text, in which special tokens are parsed and to which none is added."""
        return list(self.core.encode(text, add_special_tokens=False).ids)

    def plain_ids(self, text: str) -> list[int]:
        """Token ids of a text in which the names of special tokens are text as any other."""
        with self._specials_as_text():
            return self.ids(text)

    def decode(self, ids: Sequence[int], special: bool = False) -> str:
        """The text of some ids, with or without the special tokens."""
        return str(self.core.decode(list(ids), skip_special_tokens=not special))

    def id_of(self, token: str) -> int | None:
        """The id of a token; None where the vocabulary lacks it."""
        found: int | None = self.core.token_to_id(token)
        return found

    def token_of(self, id_: int) -> str | None:
        """The token of an id; None where the vocabulary has no such id."""
        found: str | None = self.core.id_to_token(id_)
        return found

    @cached_property
    def vocabulary(self) -> Mapping[str, int]:
        """Every token with its id."""
        return dict(self.core.get_vocab(with_added_tokens=True))

    @cached_property
    def added(self) -> Mapping[str, bool]:
        """Every token that is parsed before the text is cut, longest first, and whether it is a special one."""
        tokens = self.core.get_added_tokens_decoder().values()
        return {token.content: bool(token.special) for token in sorted(tokens, key=lambda t: -len(t.content))}

    @cached_property
    def specials(self) -> tuple[str, ...]:
        """The special tokens, longest first: the names of these are never parsed in what people write."""
        return tuple(token for token, special in self.added.items() if special)

    @cached_property
    def named(self) -> Mapping[str, str]:
        """The tokens that the configuration names, such as `bos_token`."""
        return {name: text for name in NAMED if (text := token_text(self.config.get(name)))}

    def named_id(self, name: str) -> int | None:
        """The id of a token that the configuration names, such as `pad_token`; None without one."""
        return self.id_of(self.named[name]) if name in self.named else None

    @cached_property
    def begins_with_bos(self) -> bool:
        """Whether a text that is encoded with special tokens begins with the BOS token."""
        bos = self.named_id("bos_token")
        asked = self.config.get("add_bos_token")
        written = bos is not None and self.core.encode("a", add_special_tokens=True).ids[:1] == [bos]
        return written if asked is None or bos is None else bool(asked)

    def saved_files(self, template: str, end: str) -> dict[str, bytes]:
        """The files of this tokenizer under a chat template that ends answers with `end`, by name.

        Any version of transformers loads them, and gets these ids.
        """
        config = {**self.config, "eos_token": end, "tokenizer_class": SAVED_CLASS}
        config.setdefault("clean_up_tokenization_spaces", False)
        for name in ("chat_template", "auto_map", "tokenizer_file", "name_or_path", "backend", "processor_class"):
            config.pop(name, None)
        return {
            FILE: self.source if self.source is not None else self.core.to_str(pretty=True).encode(),
            CONFIG: (json.dumps(config, indent=2, ensure_ascii=False, sort_keys=True) + "\n").encode(),
            "chat_template.jinja": template.encode(),
        }

    @contextmanager
    def _specials_as_text(self) -> Iterator[None]:
        self.core.encode_special_tokens = True
        try:
            yield
        finally:
            self.core.encode_special_tokens = False


def named_config(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json of a folder, with the tokens that only special_tokens_map.json names."""
    config = _json(folder / CONFIG)
    for name, token in _json(folder / "special_tokens_map.json").items():
        if name in NAMED and not config.get(name):
            config[name] = token
    return config


def token_text(token: Any) -> str:
    """A token as a configuration has it: a text, or an object with one; "" for none."""
    return str(token.get("content", "") if isinstance(token, dict) else token or "")


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise AdpaError(f"{path} is no JSON: {error}", "fetch the folder again") from error
    return copy.deepcopy(value) if isinstance(value, dict) else {}


def _converted(folder: Path) -> Any:
    """The tokenizer of a folder in another format, as `tokenizers` has it."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        return tokenizer.backend_tokenizer
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError, AttributeError) as error:
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise AdpaError(f"the tokenizer in {folder} cannot be converted to {FILE}: {said}", HINT) from error
