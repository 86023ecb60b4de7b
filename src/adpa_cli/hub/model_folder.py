"""What a model folder says of itself: its shape, vocabulary, chat template, end token and context.

No tensor is loaded.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adpa_cli.errors import AdpaError, DataError
from adpa_cli.sizes import ModelSize


def folder_template(folder: Path) -> tuple[str, str] | None:
    """(chat template, end token) of a model folder, or None when it has no template."""
    config_path = folder / "tokenizer_config.json"
    config = json.loads(config_path.read_text(encoding="utf-8")) if config_path.exists() else {}
    separate = folder / "chat_template.jinja"
    template = separate.read_text(encoding="utf-8") if separate.exists() else config.get("chat_template")
    if isinstance(template, list):
        named = {entry["name"]: entry["template"] for entry in template}
        template = named.get("default")
    if not template:
        return None
    return str(template), end_token(folder)


def end_token(folder: Path) -> str:
    """The token that a folder's tokenizer names as the end of text. Raises DataError when it names none."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        path = folder / name
        token = json.loads(path.read_text(encoding="utf-8")).get("eos_token") if path.exists() else None
        if token:
            return str(token["content"] if isinstance(token, dict) else token)
    raise DataError(
        f"the tokenizer in {folder} names no end token (eos_token)", "add eos_token to tokenizer_config.json"
    )


BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "float64": 8, "float8_e4m3fn": 1, "int8": 1}

BESIDE = ("tokenizer*", "special_tokens_map*", "added_tokens*", "merges.txt", "vocab.*", "config.json")


@functools.lru_cache(maxsize=32)
def folder_size(folder: Path) -> ModelSize:
    """The size of the model in a folder; `parameters` is 0 where its weights are not here. Raises AdpaError."""
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


def weight_bytes(folder: Path) -> int:
    """Bytes of one weight as the configuration gives its dtype."""
    config = _config(folder)
    return BYTES.get(str(config.get("dtype") or config.get("torch_dtype") or "bfloat16"), 2)


def vocabulary(folder: Path) -> int:
    """How many ids the model in `folder` can predict."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return int(config["vocab_size"] if "vocab_size" in config else config["text_config"]["vocab_size"])
