"""What a model folder says of itself: its shape, vocabulary, chat template, end token and context.

This is the one reader of such folders. It loads no tensor: shapes are in the headers of the weight files.
"""

from __future__ import annotations

import functools
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from adpa_cli.errors import AdpaError, DataError
from adpa_cli.sizes import ModelSize

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "float64": 8, "float8_e4m3fn": 1, "int8": 1}
BESIDE = ("tokenizer*", "special_tokens_map*", "added_tokens*", "merges.txt", "vocab.*", "config.json")
CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_sequence_length", "n_ctx")


@dataclass(frozen=True)
class ModelFolder:
    """A model folder; each of its facts is read when it is asked for the first time."""

    path: Path

    @staticmethod
    def of(path: Path) -> ModelFolder:
        """The folder at a path: the same object as long as no file in it changes."""
        with os.scandir(path) as entries:
            files = sorted((entry.name, *_state(entry)) for entry in entries)
        return _folder(path, tuple(files))

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """config.json; what it says of the part that reads text counts as said of the whole."""
        config: dict[str, Any] = json.loads((self.path / "config.json").read_bytes())
        return {**config, **config.get("text_config", {}), **{k: config[k] for k in ("vocab_size",) if k in config}}

    @property
    def vocabulary(self) -> int:
        """How many ids the model can predict."""
        return int(self.config["vocab_size"])

    @property
    def context(self) -> int | None:
        """The most tokens that it takes, where it says so."""
        return next((int(self.config[key]) for key in CONTEXT_KEYS if self.config.get(key)), None)

    @property
    def weight_bytes(self) -> int:
        """Bytes of one weight as the configuration gives its dtype."""
        return BYTES.get(str(self.config.get("dtype") or self.config.get("torch_dtype") or "bfloat16"), 2)

    @cached_property
    def token_ids(self) -> int | None:
        """One more than the greatest id of a fast tokenizer; None for a tokenizer in another format."""
        path = self.path / "tokenizer.json"
        if not path.exists():
            return None
        raw = json.loads(path.read_bytes())
        vocabulary = raw["model"].get("vocab", {})
        ids = list(vocabulary.values()) if isinstance(vocabulary, dict) else list(range(len(vocabulary)))
        return 1 + max([*ids, *(entry["id"] for entry in raw.get("added_tokens") or ())], default=-1)

    def token(self, name: str) -> str:
        """A token that tokenizer_config.json names, such as `bos_token`; "" where it does not."""
        return _text(self._json("tokenizer_config.json").get(name))

    @cached_property
    def end_token(self) -> str:
        """The token that the tokenizer names as the end of text. Raises DataError when it names none."""
        for name in ("tokenizer_config.json", "special_tokens_map.json"):
            if token := _text(self._json(name).get("eos_token")):
                return token
        raise DataError(
            f"the tokenizer in {self.path} names no end token (eos_token)", "add eos_token to tokenizer_config.json"
        )

    @cached_property
    def template(self) -> tuple[str, str] | None:
        """(chat template, end token), or None when it has no template."""
        separate = self.path / "chat_template.jinja"
        if separate.exists():
            template: Any = separate.read_text(encoding="utf-8")
        else:
            template = self._json("tokenizer_config.json").get("chat_template")
        if isinstance(template, list):
            template = {entry["name"]: entry["template"] for entry in template}.get("default")
        return (str(template), self.end_token) if template else None

    @cached_property
    def size(self) -> ModelSize:
        """The size of the model; `parameters` is 0 where its weights are not here. Raises AdpaError."""
        config = self.config
        try:
            hidden = int(self._first("hidden_size", "n_embd", "d_model"))
            layers = int(self._first("num_hidden_layers", "n_layer", "num_layers"))
            heads = int(self._first("num_attention_heads", "n_head"))
            vocabulary = self.vocabulary
        except KeyError as error:
            raise AdpaError(f"{self.path.name}/config.json does not tell {error}") from None
        inner = config.get("intermediate_size") or config.get("n_inner") or 4 * hidden
        of_head = int(config.get("head_dim") or hidden // heads)
        tied = bool(config.get("tie_word_embeddings", True))
        shapes = {name: shape for name, shape in self.shapes.items() if not (tied and name == "lm_head.weight")}
        beside = {path for pattern in BESIDE for path in self.path.glob(pattern) if path.is_file()}
        tokenizer = self.path / "tokenizer.json"
        return ModelSize(
            parameters=sum(map(math.prod, shapes.values())),
            hidden=hidden,
            layers=layers,
            inner=int(inner),
            keys=int(config.get("num_key_value_heads") or heads) * of_head,
            width=heads * of_head,
            vocabulary=vocabulary,
            tied=tied,
            tensors=len(shapes),
            beside=sum(path.stat().st_size for path in beside),
            tokenizer=tokenizer.stat().st_size if tokenizer.exists() else 0,
        )

    @cached_property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of every tensor by name; empty where a file of weights is not here."""
        index = self.path / "model.safetensors.index.json"
        paths = [self.path / "model.safetensors"]
        if not paths[0].exists() and index.exists():
            names = json.loads(index.read_bytes())["weight_map"].values()
            paths = [self.path / name for name in sorted(set(names))]
        elif not paths[0].exists():
            paths = sorted(self.path.glob("*.safetensors"))
        shapes: dict[str, tuple[int, ...]] = {}
        for path in paths if all(path.exists() for path in paths) else ():
            with path.open("rb") as handle:
                header = json.loads(handle.read(int.from_bytes(handle.read(8), "little")))
            shapes |= {name: tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}
        return shapes

    def _json(self, name: str) -> Mapping[str, Any]:
        path = self.path / name
        value: dict[str, Any] = json.loads(path.read_bytes()) if path.exists() else {}
        return value

    def _first(self, *names: str) -> Any:
        for name in names:
            if self.config.get(name) is not None:
                return self.config[name]
        raise KeyError(names[0])


@functools.lru_cache(maxsize=32)
def _folder(path: Path, files: tuple[Any, ...]) -> ModelFolder:
    return ModelFolder(path)


def _state(entry: os.DirEntry[str]) -> tuple[int, int]:
    """What changes with a file, or with the file that a link leads to."""
    try:
        stat = entry.stat()
    except OSError:  # a link that leads nowhere
        return 0, 0
    return stat.st_size, stat.st_mtime_ns


def _text(token: Any) -> str:
    """A token as tokenizer_config.json has it: a text, or an object with one."""
    return str(token.get("content", "") if isinstance(token, dict) else token or "")
