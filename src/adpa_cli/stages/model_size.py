"""How large a model is, read off its config.json and the headers of its weights: no tensor is loaded."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from adpa_cli.errors import AdpaError
from adpa_cli.stages.graph import External, Input, Node
from adpa_cli.stages.lineage import folder_of
from adpa_cli.store.store import Store

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "float64": 8, "float8_e4m3fn": 1, "int8": 1}
HEADER_OF_TENSOR = 120  # bytes of a safetensors header for each tensor
BESIDE = ("tokenizer*", "special_tokens_map*", "added_tokens*", "merges.txt", "vocab.*", "config.json")


@dataclass(frozen=True)
class ModelSize:
    """A decoder: `parameters` counted once where they are tied, `beside` the bytes of the other files.

    `inner` is the width of the feed-forward layer, `keys` that of the keys of one layer.
    """

    parameters: int
    hidden: int
    layers: int
    inner: int
    keys: int
    vocabulary: int
    tied: bool = True
    tensors: int = 0
    beside: int = 0

    @property
    def body(self) -> int:
        """Parameters that every token passes through: all but embeddings and head."""
        return max(0, self.parameters - self.head * (1 if self.tied else 2))

    @property
    def head(self) -> int:
        """Parameters of the head."""
        return self.vocabulary * self.hidden

    @property
    def checkpoint(self) -> int:
        """Bytes of the folder that training writes: float32 weights, tokenizer, configuration."""
        return 4 * self.parameters + HEADER_OF_TENSOR * self.tensors + self.beside


def model_size(item: Input, store: Store) -> ModelSize:
    """The size of a model, built or not: training changes none. Raises AdpaError where its config.json says too little.

    A hub model whose weights are not here yet is as large as its files say.
    """
    folder = folder_of(item, store)
    shape = _shape(folder)
    if shape.parameters:
        return shape
    while isinstance(item, Node):
        below = item.inputs["model"]
        if isinstance(below, tuple):
            break
        item = below
    known = item.size if isinstance(item, External) else 0
    if not known:
        raise AdpaError(f"{item.label} has no weights to measure")
    return replace(shape, parameters=int((known - shape.beside) / BYTES.get(_dtype(_config(folder)), 2)))


@functools.lru_cache(maxsize=32)
def _shape(folder: Path) -> ModelSize:
    config = _config(folder)
    try:
        hidden = int(_first(config, "hidden_size", "n_embd", "d_model"))
        layers = int(_first(config, "num_hidden_layers", "n_layer", "num_layers"))
        heads = int(_first(config, "num_attention_heads", "n_head"))
        vocabulary = int(config["vocab_size"])
    except KeyError as error:
        raise AdpaError(f"{folder.name}/config.json does not tell {error}") from None
    inner = config.get("intermediate_size") or config.get("n_inner") or 4 * hidden
    keys = int(config.get("num_key_value_heads") or heads) * int(config.get("head_dim") or hidden // heads)
    tied = bool(config.get("tie_word_embeddings", True))
    shapes = weight_shapes(folder)
    if tied:
        shapes.pop("lm_head.weight", None)
    parameters = sum(_product(shape) for shape in shapes.values())
    beside = {path for pattern in BESIDE for path in folder.glob(pattern) if path.is_file()}
    return ModelSize(
        parameters, hidden, layers, int(inner), keys, vocabulary, tied, len(shapes),
        sum(path.stat().st_size for path in beside),
    )  # fmt: skip


def weight_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor by name, from the headers of the safetensors files; empty where a file is not here."""
    index = folder / "model.safetensors.index.json"
    paths = [folder / "model.safetensors"]
    if not paths[0].exists() and index.exists():
        names = json.loads(index.read_bytes())["weight_map"].values()
        paths = [folder / name for name in sorted(set(names))]
    elif not paths[0].exists():
        paths = sorted(folder.glob("*.safetensors"))
    if not all(path.exists() for path in paths):
        return {}
    found: dict[str, tuple[int, ...]] = {}
    for path in paths:
        with path.open("rb") as handle:
            header = json.loads(handle.read(int.from_bytes(handle.read(8), "little")))
        found |= {name: tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}
    return found


def _product(shape: tuple[int, ...]) -> int:
    total = 1
    for side in shape:
        total *= side
    return total


def _config(folder: Path) -> Mapping[str, Any]:
    config: dict[str, Any] = json.loads((folder / "config.json").read_bytes())
    return {**config, **config.get("text_config", {})}


def _first(config: Mapping[str, Any], *names: str) -> Any:
    for name in names:
        if config.get(name) is not None:
            return config[name]
    raise KeyError(names[0])


def _dtype(config: Mapping[str, Any]) -> str:
    return str(config.get("dtype") or config.get("torch_dtype") or "bfloat16")
