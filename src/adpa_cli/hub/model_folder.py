"""What a model folder says of itself: its shape, vocabulary, chat template, end token and context.

This is the one reader of such folders. It loads no tensor: shapes are in the headers of the weight files. Of an adapter
the configuration and the weights are those of its base, and so is of the rest what it does not bring itself.
"""

from __future__ import annotations

import functools
import json
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from adpa_cli.data.tokenizer import NAMED, Tokenizer, token_text
from adpa_cli.errors import AdpaError, DataError
from adpa_cli.hub.adapter_folder import FETCH, AdapterFolder, file_states
from adpa_cli.sizes import ModelSize
from adpa_cli.spec import Quantise
from adpa_cli.store.identity import ADAPTER, has_tokenizer

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "float64": 8, "float8_e4m3fn": 1, "int8": 1}
BESIDE = ("tokenizer*", "special_tokens_map*", "added_tokens*", "merges.txt", "vocab.*", "config.json")
EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight", "tok_embeddings.weight")
OTHER_PARTS = ("vision", "visual", "audio", "projector", "image", "connector", "merger")
TEXT_KEYS = {"vocab_size", "max_position_embeddings", "hidden_size", "num_hidden_layers", "num_attention_heads"}
CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_sequence_length", "n_ctx")
INDEX = "model.safetensors.index.json"
GENERATION = "generation_config.json"
NARROW = {"F16", "BF16"}
WHOLE = ("F64", "F32", "F16", "BF16")
"""Numbers that weights are read from, as safetensors files call them."""
IN_LAYERS = re.compile(r"(?:^|\.)([a-z_]+\.\d+\..+)$")
"""Names of tensors of layers, which have numbers, with their names within the layers: what stands before those differs
between folders."""
POINTER = b"version https://git-lfs"
"""What stands in a file of a cloned repository whose content was not fetched."""
Fact = TypeVar("Fact")


def told_by(file: str) -> Callable[[Callable[[ModelFolder], Fact]], cached_property[Fact]]:
    """A fact that is read once; DataError where a file says it in another form than such files do."""

    def fact(read: Callable[[ModelFolder], Fact]) -> cached_property[Fact]:
        @functools.wraps(read)
        def checked(folder: ModelFolder) -> Fact:
            try:
                return read(folder)
            except (TypeError, ValueError, KeyError, IndexError, AttributeError, ArithmeticError) as error:
                what = read.__name__.replace("_", " ")
                raise DataError(f"{folder.path / file} does not state its {what}: {error}", FETCH) from error

        return cached_property(checked)

    return fact


@dataclass(frozen=True)
class TokenIds:
    """The ids of a tokenizer: how many there are, the last one that a text can have, and those of control tokens.

    Special tokens that neither the chat template writes nor the configuration names never stand in a row here.
    """

    count: int
    last: int
    last_token: str
    controls: frozenset[int]


@dataclass(frozen=True)
class ModelFolder:
    """A model folder; each of its facts is read when it is asked for the first time."""

    path: Path
    adapter: AdapterFolder | None = None

    @staticmethod
    def of(path: Path) -> ModelFolder:
        """The folder at a path: the same object as long as no file in it changes, nor in the base of an adapter."""
        adapter = AdapterFolder.of(path)
        files = file_states(path) + (file_states(adapter.base) if adapter else ())
        return _folder(path, files)

    @cached_property
    def whole(self) -> ModelFolder:
        """The folder with the configuration and the weights: of an adapter its base, else the same."""
        return ModelFolder.of(self.adapter.base) if self.adapter else self

    @cached_property
    def raw_config(self) -> Mapping[str, Any]:
        """config.json as it stands. Raises DataError where it is no JSON object."""
        return self.whole._json("config.json")

    @cached_property
    def raw_generation(self) -> Mapping[str, Any]:
        """generation_config.json as it stands; empty without one."""
        return self._json(GENERATION) or self.whole._json(GENERATION)

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """config.json; what it says of the part that reads text counts as said of the whole.

        Of such a part the hub's folders often say little more than what is unusual: the rest is what transformers
        takes for its kind.
        """
        raw = self.raw_config
        part = raw.get("text_config")
        if not isinstance(part, dict):
            return raw
        if not set(part) >= TEXT_KEYS:
            part = {**_defaults(self.whole.path), **part}
        return {**raw, **part, **{k: raw[k] for k in ("vocab_size",) if k in raw}}

    @property
    def has_text_part(self) -> bool:
        """Whether the model has several parts, one of which reads text."""
        return isinstance(self.raw_config.get("text_config"), dict)

    @property
    def quantise(self) -> Quantise | None:
        """How the weights of an adapter's base were stored in its training; None for whole weights."""
        return self.adapter.quantise if self.adapter else None

    @property
    def is_classifier(self) -> bool:
        """Whether it gives numbers for a text, as reward models do, and no tokens."""
        if self.adapter and (task := self.adapter.config.get("task_type")):
            return bool(task == "SEQ_CLS")
        return any("ForSequenceClassification" in str(made_as) for made_as in self.config.get("architectures") or ())

    @property
    def unused_adapter(self) -> str | None:
        """The model that an adapter beside whole weights was trained on, "" where it does not say; None without one."""
        if self.adapter or not (self.path / ADAPTER).is_file():
            return None
        return str(self._json(ADAPTER).get("base_model_name_or_path") or "")

    @told_by("config.json")
    def vocabulary(self) -> int:
        """How many ids the model can predict. Raises AdpaError where that is not said."""
        return int(self._first("vocab_size"))

    @told_by("config.json")
    def context(self) -> int | None:
        """The most tokens that it takes, where it says so."""
        return next((int(self.config[key]) for key in CONTEXT_KEYS if self.config.get(key)), None)

    @property
    def weight_bytes(self) -> int:
        """Bytes of one weight as the configuration gives its dtype."""
        return BYTES.get(str(self.config.get("dtype") or self.config.get("torch_dtype") or "bfloat16"), 2)

    @cached_property
    def texts(self) -> ModelFolder:
        """The folder with the tokenizer: of an adapter that brings none its base, else the same."""
        return self if self.adapter is None or has_tokenizer(os.listdir(self.path)) else self.whole

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer, read anew. Raises NotFound where there is none, AdpaError where it cannot be read."""
        return Tokenizer.of(self.texts.path)

    @cached_property
    def rows(self) -> int:
        """For how many ids the model has an embedding: by its weights where they are here, else as it says."""
        found = (shape[0] for name, shape in self.shapes.items() if name.endswith(EMBEDDINGS) and len(shape) == 2)
        return next(found, None) or self.vocabulary

    @told_by("generation_config.json")
    def stop_ids(self) -> tuple[int, ...]:
        """The ids at which generation ends, by generation_config.json, else by config.json.

        Ids that the model lacks, or that stand for ordinary text, are none.
        """
        said = self.raw_generation.get("eos_token_id")
        if said is None:
            said = self.raw_config.get("eos_token_id", self.config.get("eos_token_id"))
        ids = [said] if isinstance(said, int) else said if isinstance(said, list) else []
        whole = [id_ for id_ in ids if isinstance(id_, int) and not isinstance(id_, bool) and 0 <= id_ < self.rows]
        controls = self.tokens.controls if self.tokens else frozenset(whole)
        return tuple(dict.fromkeys(id_ for id_ in whole if id_ in controls))

    @told_by("tokenizer.json")
    def tokens(self) -> TokenIds | None:
        """The ids of the tokens of tokenizer.json; None for a tokenizer in another format. Raises DataError."""
        if self.texts is not self:
            return self.texts.tokens
        if not (self.path / "tokenizer.json").is_file():
            return None
        raw = self._json("tokenizer.json")
        if not isinstance(raw.get("model"), dict):
            raise DataError(f"{self.path / 'tokenizer.json'} is not a tokenizer: it has no model", FETCH)
        vocabulary = raw["model"].get("vocab") or {}
        words = vocabulary if isinstance(vocabulary, dict) else {entry[0]: n for n, entry in enumerate(vocabulary)}
        added = {entry["content"]: entry for entry in raw.get("added_tokens") or ()}
        template, named = "\n".join(self._templates[1].values()), set(self.named.values())
        written = {t: e["id"] for t, e in added.items() if not e.get("special") or t in named or t in template}
        usable = {**{token: id_ for token, id_ in words.items() if token not in added}, **written}
        last = max(usable, key=usable.__getitem__, default="")
        controls = {entry["id"] for entry in added.values()} | {words[token] for token in named if token in words}
        ids = [*words.values(), *(entry["id"] for entry in added.values())]
        return TokenIds(1 + max(ids, default=-1), usable.get(last, -1), last, frozenset(controls))

    @property
    def token_ids(self) -> int | None:
        """One more than the greatest id of a fast tokenizer; None for a tokenizer in another format."""
        return self.tokens.count if self.tokens else None

    @cached_property
    def named(self) -> Mapping[str, str]:
        """The tokens that the tokenizer names, as chat templates call them."""
        return {name: token for name in NAMED if (token := self.token(name))}

    def token(self, name: str) -> str:
        """A token that the tokenizer names, such as `bos_token`; "" where it does not."""
        files = ("tokenizer_config.json", "special_tokens_map.json")
        return next((token for file in files if (token := token_text(self.texts._json(file).get(name)))), "")

    @cached_property
    def end_token(self) -> str:
        """The token that the tokenizer names as the end of text. Raises DataError when it names none."""
        if token := self.token("eos_token"):
            return token
        raise DataError(
            f"the tokenizer in {self.path} has no end token (eos_token)", "add eos_token to tokenizer_config.json"
        )

    @property
    def template(self) -> str:
        """The chat template; "" without one."""
        return self.template_file[1]

    @property
    def template_file(self) -> tuple[str, str]:
        """(the file that has the chat template, the template), both "" without one.

        Of several templates with names it is the one that is called default. Raises DataError where none is.
        """
        where, named = self._templates
        if named and "default" not in named:
            raise DataError(
                f"{self.path.name} has chat templates for some uses ({where}: {', '.join(named)}), and none by default",
                "save the template you want as a file and name it: --template FILE",
            )
        return where, named.get("default", "")

    @told_by("tokenizer_config.json")
    def _templates(self) -> tuple[str, Mapping[str, str]]:
        """(the file that has the chat templates, these by name), ("", {}) without one."""
        separate = self.path / "chat_template.jinja"
        if separate.exists():
            return separate.name, {"default": self._text(separate)}
        for name in ("chat_template.json", "tokenizer_config.json"):
            template: Any = self._json(name).get("chat_template")
            if isinstance(template, list):
                template = {entry["name"]: entry["template"] for entry in template}
            if template:
                named = template if isinstance(template, dict) else {"default": template}
                return name, {str(use): str(text) for use, text in named.items()}
        more = self.path / "additional_chat_templates"
        uses = {path.stem: self._text(path) for path in sorted(more.glob("*.jinja"))}
        if not uses and self.adapter:
            return self.whole._templates
        return (more.name, uses) if uses else ("", {})

    def _text(self, path: Path) -> str:
        try:
            return path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"{path} is not UTF-8: {error.reason}", FETCH) from error

    @told_by("config.json")
    def size(self) -> ModelSize:
        """The size of the model; `parameters` is 0 where its weights are not here. Raises AdpaError."""
        if self.adapter:
            return self.whole.size
        config = self.config
        hidden = int(self._first("hidden_size", "n_embd", "d_model"))
        layers = int(self._first("num_hidden_layers", "n_layer", "num_layers"))
        heads = int(self._first("num_attention_heads", "n_head"))
        inner = config.get("intermediate_size") or config.get("n_inner") or 4 * hidden
        of_head = int(config.get("head_dim") or hidden // heads)
        tied = bool(config.get("tie_word_embeddings", True))
        shapes = {name: shape for name, shape in self.shapes.items() if not (tied and name.endswith("lm_head.weight"))}
        beside = {path for pattern in BESIDE for path in self.path.glob(pattern) if path.is_file()}
        tokenizer = self.path / "tokenizer.json"
        return ModelSize(
            parameters=sum(map(math.prod, shapes.values())),
            hidden=hidden,
            layers=layers,
            inner=int(inner),
            keys=int(config.get("num_key_value_heads") or heads) * of_head,
            width=heads * of_head,
            vocabulary=self.vocabulary,
            tied=tied,
            tensors=len(shapes),
            beside=sum(path.stat().st_size for path in beside),
            tokenizer=tokenizer.stat().st_size if tokenizer.exists() else 0,
            stored=2 if self.stored and self.stored <= NARROW else 4 if self.stored else self.weight_bytes,
        )

    @cached_property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of every tensor by name, of a model of several parts in the one that reads text; empty where a file
        of weights is not here."""
        return {name: tuple(entry["shape"]) for name, entry in self._tensors.items()}

    @cached_property
    def files(self) -> Mapping[str, Path]:
        """The file that has each tensor of `shapes`."""
        return {name: entry["file"] for name, entry in self._tensors.items()}

    @cached_property
    def stored(self) -> frozenset[str]:
        """The kinds of numbers in which the matrices are stored, as safetensors files call them."""
        return frozenset(str(entry["dtype"]) for entry in self._tensors.values() if len(entry["shape"]) > 1)

    @property
    def packed(self) -> tuple[str, str] | None:
        """(name, dtype) of a weight that is stored in other numbers than a model computes with; None without one."""
        named = ((name, str(entry.get("dtype"))) for name, entry in self._tensors.items())
        return next(((n, dtype) for n, dtype in named if "weight" in n.rpartition(".")[2] and dtype not in WHOLE), None)

    @told_by(INDEX)
    def _tensors(self) -> Mapping[str, Any]:
        if self.adapter:
            return self.whole._tensors
        paths = [self.path / "model.safetensors"]
        if not paths[0].exists() and (self.path / INDEX).exists():
            paths = [self.path / name for name in sorted(set(self._json(INDEX)["weight_map"].values()))]
        elif not paths[0].exists():
            paths = sorted(self.path.glob("*.safetensors"))
        found: dict[str, Any] = {}
        for path in paths if all(path.exists() for path in paths) else ():
            found |= {name: {**entry, "file": path} for name, entry in header(path).items()}
        return {name: entry for name, entry in found.items() if not self.has_text_part or _reads_text(name)}

    def _json(self, name: str) -> Mapping[str, Any]:
        path = self.path / name
        content = path.read_bytes() if path.exists() else b"{}"
        if content.startswith(POINTER):
            raise not_fetched(path)
        try:
            value = json.loads(content)
        except ValueError as error:
            raise DataError(f"{path} is not valid JSON: {error}", FETCH) from error
        if not isinstance(value, dict):
            raise DataError(f"{path} is not a JSON object", FETCH)
        return value

    def _first(self, *names: str) -> Any:
        for name in names:
            if self.config.get(name) is not None:
                return self.config[name]
        raise AdpaError(f"{self.path.name}/config.json does not state {names[0]!r}")


@functools.lru_cache(maxsize=32)
def _folder(path: Path, files: tuple[Any, ...]) -> ModelFolder:
    return ModelFolder(path, AdapterFolder.of(path))


def not_fetched(path: Path) -> DataError:
    """The error of a file of which a cloned repository has the pointer and not the content."""
    return DataError(
        f"{path} was not downloaded: it is only a pointer of Git LFS", "download it, in that folder: git lfs pull"
    )


def header(path: Path) -> Mapping[str, Any]:
    """What a safetensors file says of its tensors, by name. Raises DataError for a damaged file."""
    size = path.stat().st_size
    with path.open("rb") as handle:
        begin = handle.read(len(POINTER))
        if begin == POINTER:
            raise not_fetched(path)
        length = int.from_bytes(begin[:8], "little")
        handle.seek(8)
        try:
            header: Any = json.loads(handle.read(length)) if length <= size else None
            tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
            needed = 8 + length + max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path} is not a safetensors file: its header cannot be read", FETCH) from error
    if size < needed:
        raise DataError(f"{path} is incomplete: it has {size} of {needed} bytes", FETCH)
    return tensors


def _reads_text(name: str) -> bool:
    """Whether a tensor of a model of several parts belongs to the one that reads text."""
    return not any(part in name for part in OTHER_PARTS)


@functools.lru_cache(maxsize=8)
def _defaults(path: Path) -> Mapping[str, Any]:
    """What transformers takes for the part of a model that reads text where config.json does not say."""
    from transformers import AutoConfig

    try:
        whole: Any = AutoConfig.from_pretrained(path, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError, AttributeError):
        return {}
    return dict(whole.get_text_config().to_dict())
