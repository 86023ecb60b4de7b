"""The tokenizer of a model folder, read from `tokenizer.json` as it stands.

Libraries that rebuild a tokenizer by the name of its class drop what `tokenizer.json` says, such as its own
pre-tokenizer, and then cut texts into other ids without a word. Here the ids are always those of
`tokenizers.Tokenizer.from_file`. A folder without `tokenizer.json` (a SentencePiece model, or GPT-2's two files) is
converted by the transformers library.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from adpa_cli.data.examples import Message
from adpa_cli.data.rendering import TOKEN_NAMES, dated, render
from adpa_cli.errors import AdpaError, NotFound

FILE = "tokenizer.json"
CONFIG = "tokenizer_config.json"
NAMED = TOKEN_NAMES
OTHER_FORMATS = ("tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
SAVED_CLASS = "PreTrainedTokenizerFast"
"""A class of transformers 4 and 5 alike that takes `tokenizer.json` as it is."""
ABOUT_THE_FILES = (
    "chat_template", "auto_map", "tokenizer_file", "tokenizer_class", "name_or_path", "backend", "processor_class",
    "is_local", "local_files_only", "special_tokens_map_file", "legacy", "use_fast", "sp_model_kwargs", "from_slow",
)  # fmt: skip
"""What a configuration says of the files or of the class that it was loaded by."""
ADDING = ("add_bos_token", "add_eos_token")
OTHER_TOKENIZER = "choose a teacher of the student's family: adpa models"
SHOWN = 3
"""Ids that an error about two vocabularies names."""
MOST_TRIED = 20_000
"""Tokens whose texts are cut to see whether two tokenizers do it alike."""
VARIED = (
    "Hello, world! 12 3456\n\n  naïve 你好 <b>don't</b>", "e\u0301 \ufb01 \u00a0 \U0001f600 Жди",
    "\tif x:\r\n    return\n\n\n", "CamelCase ALLCAPS it'S I'LL 1,234.56 a  b   c ", " leading",
    "https://a.b/c?d=1&e=2 ... -- ___ #1",
)  # fmt: skip
_ONE_AT_A_TIME = threading.Lock()
"""Held while a tokenizer is without its post-processor: rows are also read ahead, in another thread."""
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
                raise NotFound(f"{folder} has no tokenizer: it contains none of {known}", HINT)
            return _converted(folder, config)
        from tokenizers import Tokenizer as Core

        source = path.read_bytes()
        try:
            core = Core.from_str(source.decode("utf-8"))
        except Exception as error:  # the library raises nothing more special
            raise AdpaError(f"the tokenizer in {folder} cannot be loaded: {path.name}: {error}", HINT) from error
        return Tokenizer(core, config, source)

    def __post_init__(self) -> None:
        self.core.no_padding()  # a file may ask for both, and no row here wants either
        self.core.no_truncation()

    def ids(self, text: str) -> list[int]:
        """Token ids of a text, in which special tokens are parsed and to which none is added."""
        (encoding,) = self.core.encode_batch_fast([text], add_special_tokens=False)  # which reckons no offsets
        return list(encoding.ids)

    def ids_and_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids as `ids` gives them, and the characters of the text that each stands for, as (start, end)."""
        # A post-processor may leave the spaces that a token begins or ends with out of its place.
        with _ONE_AT_A_TIME:
            after, self.core.post_processor = self.core.post_processor, None
            try:
                encoding = self.core.encode(text, add_special_tokens=False)
            finally:
                self.core.post_processor = after
        return list(encoding.ids), list(encoding.offsets)

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
    def digest(self) -> str:
        """sha256 of all that decides which ids a text has."""
        source = self.source if self.source is not None else self.core.to_str().encode()
        return hashlib.sha256(source + json.dumps(self.named, sort_keys=True).encode()).hexdigest()

    @cached_property
    def begins_with_bos(self) -> bool:
        """Whether a text that is encoded with special tokens begins with the BOS token, by tokenizer.json.

        `add_bos_token` of the configuration is what some classes once wrote it from, and others never read.
        """
        bos = self.named_id("bos_token")
        return bos is not None and self.core.encode("a", add_special_tokens=True).ids[:1] == [bos]

    def padded_with(self, id_: int) -> Tokenizer:
        """The same tokenizer with another padding token."""
        token = self.token_of(id_)
        return replace(self, config={**self.config, "pad_token": token}) if token is not None else self

    def renamed(self, names: Mapping[str, str]) -> Tokenizer:
        """The same tokenizer in which some added tokens go by other names: their own ones are text as any other.

        Raises AdpaError where a token cannot be renamed.
        """
        from tokenizers import Tokenizer as Core

        content = json.loads(self.core.to_str())
        for token in content["added_tokens"]:
            token["content"] = names.get(token["content"], token["content"])
        core = Core.from_str(json.dumps(_renamed_model(content, names)))
        for old, new in names.items():
            if core.token_to_id(new) != self.id_of(old):
                raise AdpaError(
                    f"a turn contains the special token {old!r}, which this tokenizer cannot encode as text",
                    "skip such rows (--skip-bad-rows), or use a tokenizer that lists it among its added tokens",
                )
        return Tokenizer(core, self.config)

    def saved_files(self, template: str, end: str) -> dict[str, bytes]:
        """The files of this tokenizer under a chat template, "" for none, that ends answers with `end`, by name.

        Transformers 4 and 5 load them and get these ids: tokenizer.json is that of the source, the class is one that
        takes it as it is, and no token is named that would first have to be added to the vocabulary.
        """
        config = portable_settings({**self.config, "eos_token": end}, self.vocabulary)
        return {
            FILE: self.source if self.source is not None else self.core.to_str(pretty=True).encode(),
            CONFIG: (json.dumps(config, indent=2, ensure_ascii=False, sort_keys=True) + "\n").encode(),
            **({"chat_template.jinja": self._asked_alike(template).encode()} if template else {}),
        }

    def _asked_alike(self, template: str) -> str:
        """A template that asks as it was trained with in any server: on one day, and behind a BOS where texts get one.

        Servers put no special token before what a template writes.
        """
        bos = self.named.get("bos_token")
        if bos and self.begins_with_bos:
            asked = render(template, [Message("user", "a")], True, self.named)
            template = template if asked.startswith(bos) else "{{ bos_token }}" + template
        return dated(template)


def compare(teacher: Tokenizer, student: Tokenizer) -> tuple[str, ...]:
    """Remarks on two tokenizers that agree on every id of the student.

    Embeddings may be padded beyond the vocabulary; only the maps are compared. Raises AdpaError that names the first
    ids that differ.
    """
    theirs, ours = ({id_: token for token, id_ in each.vocabulary.items()} for each in (teacher, student))
    different = [id_ for id_ in sorted(ours) if theirs.get(id_) != ours[id_]]
    if different:
        listed = "".join(
            f"\n  id {id_}: teacher {_token(theirs, id_)}, student {_token(ours, id_)}" for id_ in different[:SHOWN]
        )
        message = f"teacher and student differ in {len(different)} of {len(ours)} ids of the vocabulary{listed}"
        raise AdpaError(message, OTHER_TOKENIZER)
    more = sorted(set(theirs) - set(ours))
    if not more:
        return (f"both models have the same vocabulary of {len(ours)} tokens",)
    named = ", ".join(repr(theirs[id_]) for id_ in more[:SHOWN]) + (", …" if len(more) > SHOWN else "")
    return (f"ids that only the teacher has: {len(more)} ({named}); they count as mass outside the stored ids",)


def different_cut(one: Tokenizer, other: Tokenizer) -> str | None:
    """A text that two tokenizers of one vocabulary cut into other tokens; None where none is found.

    Tried are texts of many kinds, and what the tokens of `other` stand for: in these every merge has a part.
    """
    ids = sorted(other.vocabulary.values())
    tokens = (other.decode([id_]) for id_ in ids[:: 1 + len(ids) // MOST_TRIED])
    return next((text for text in (*VARIED, *tokens) if one.ids(text) != other.ids(text)), None)


def _token(names: dict[int, str], id_: int) -> str:
    return repr(names[id_]) if id_ in names else "has none"


def _renamed_model(content: dict[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """A tokenizer.json with other names for some tokens in its model, and without the merges that would make them."""
    model = content["model"]
    vocabulary = model.get("vocab")
    if isinstance(vocabulary, dict):
        model["vocab"] = {names.get(token, token): id_ for token, id_ in vocabulary.items()}
    elif isinstance(vocabulary, list):  # of a Unigram model: pieces with their scores
        model["vocab"] = [[names.get(piece, piece), score] for piece, score in vocabulary]
    if model.get("merges"):
        parts = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
        model["merges"] = [both for both in parts if not {*both, "".join(both)} & names.keys()]
    if isinstance(model.get("unk_token"), str):
        model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
    return content


def named_config(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json of a folder, with the tokens that only special_tokens_map.json names."""
    config = _json(folder / CONFIG)
    for name, token in _json(folder / "special_tokens_map.json").items():
        if name in NAMED and not config.get(name):
            config[name] = token
    return config


def added_tokens(folder: Path) -> list[str]:
    """The tokens that the tokenizer of a folder parses before a text is cut, without reading its vocabulary."""
    path = folder / FILE
    if not path.is_file():
        entries = _json(folder / CONFIG).get("added_tokens_decoder", {}).values()
        return [token_text(entry) for entry in entries]
    text = path.read_text(encoding="utf-8")
    start = re.search(r'"added_tokens"\s*:\s*', text)
    try:
        entries = json.JSONDecoder().raw_decode(text, start.end())[0] if start else []
    except ValueError as error:
        raise AdpaError(f"{path} is not valid JSON: {error}", "download the folder again") from error
    return [token_text(entry) for entry in entries or ()]


def portable_settings(config: Mapping[str, Any], vocabulary: Mapping[str, int]) -> dict[str, Any]:
    """A tokenizer_config.json that transformers 4 and 5 read alike beside a tokenizer.json with that vocabulary.

    What names a token that the vocabulary lacks is left out: it would be added, with an id that the model lacks.
    """
    kept = {name: value for name, value in config.items() if name not in ABOUT_THE_FILES and value is not None}
    for name in (*NAMED, *(name for name in kept if name.endswith("_token") and name not in ADDING)):
        if name in kept and token_text(kept[name]) not in vocabulary:
            del kept[name]
    extra = kept.pop("extra_special_tokens", None)
    if isinstance(extra, dict) and extra:  # names of tokens; transformers 4 takes these and no list
        kept["extra_special_tokens"] = {name: token for name, token in extra.items() if token_text(token) in vocabulary}
    also = [*kept.pop("additional_special_tokens", ()), *(extra if isinstance(extra, list) else ())]
    if special := [token for token in also if token_text(token) in vocabulary]:
        kept["additional_special_tokens"] = special
    decoder = kept.pop("added_tokens_decoder", None) or {}
    if known := {id_: token for id_, token in decoder.items() if vocabulary.get(token_text(token)) == int(id_)}:
        kept["added_tokens_decoder"] = known
    return {"clean_up_tokenization_spaces": False, **kept, "tokenizer_class": SAVED_CLASS}


def token_text(token: Any) -> str:
    """A token as a configuration has it: a text, or an object with one; "" for none."""
    return str(token.get("content", "") if isinstance(token, dict) else token or "")


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise AdpaError(f"{path} is not valid JSON: {error}", "download the folder again") from error
    return copy.deepcopy(value) if isinstance(value, dict) else {}


def _converted(folder: Path, config: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer of a folder in another format, with the tokens that its class names by itself."""
    from transformers import AutoTokenizer

    try:
        loaded: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        own = {name: str(token) for name in NAMED if (token := getattr(loaded, name, None)) is not None}
        return Tokenizer(loaded.backend_tokenizer, {**own, **config})
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError, AttributeError) as error:
        said = " ".join(str(error).split())[:300] or type(error).__name__
        raise AdpaError(f"the tokenizer in {folder} cannot be converted to {FILE}: {said}", HINT) from error
