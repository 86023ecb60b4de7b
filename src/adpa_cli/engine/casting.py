"""The weights of a model folder in another dtype, rewritten tensor by tensor: to the nearest number, or at random.

Only what products of the layers read is rounded at random; embeddings, head, norms and biases go to the nearest.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Literal

import torch
from safetensors import safe_open
from torch import Tensor

from adpa_cli.disk import atomic
from adpa_cli.engine.update import Way, folder_weights, nearest
from adpa_cli.errors import AdpaError
from adpa_cli.hub.model_folder import INDEX, WHOLE, header
from adpa_cli.hub.portable import edit_settings
from adpa_cli.tensors.rounding import stochastic

Rounding = Literal["nearest", "stochastic"]
KINDS: Mapping[str, str] = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
"""The dtypes that weights are written in, and what safetensors files call them."""
WIDER: Mapping[str, str] = {"float16": "bfloat16", "bfloat16": "float32"}
"""The dtype that holds what is beyond the range of another."""
_CHUNK = 1 << 20


def noise_names(folder: Path) -> dict[str, str]:
    """By what name the noise of each weight is drawn that is rounded at random: its name within the layers.

    It is the one by which inference in float16 rounds the weights that it holds, so that both round alike.
    """
    return {name: key for key, name in folder_weights(folder).of_products.items()}


def roundings(dtype: str, folder: Path) -> dict[str, Way]:
    """What both roundings make of the weights of products in the layers of the model in a folder."""
    wanted, names = getattr(torch, dtype), noise_names(folder)
    return {"nearest": nearest(wanted), "stochastic": lambda name, values: stochastic(values, wanted, names[name])}


@torch.no_grad()
def cast_weights(folder: Path, dtype: str, rounding: Rounding = "nearest") -> int:
    """Write the float tensors of every safetensors file of a model folder in `dtype`, and say so in its config.

    Returns how many weights changed. One tensor is in memory at a time, and equal weights give equal bytes. Raises
    AdpaError, naming the tensor, for a weight beyond the range of `dtype`.
    """
    at_random = noise_names(folder) if rounding == "stochastic" else {}
    total = changed = 0
    for path in sorted(folder.glob("*.safetensors")):
        size, of_file = _cast_file(path, dtype, at_random)
        total, changed = total + size, changed + of_file
    edit_settings(folder / "config.json", {"dtype": dtype, "torch_dtype": dtype})
    edit_settings(folder / INDEX, {"metadata": {"total_size": total}})
    return changed


def _cast_file(path: Path, dtype: str, at_random: Mapping[str, str]) -> tuple[int, int]:
    """Rewrite one file; the bytes of its tensors, and how many weights changed."""
    size = changed = 0
    with safe_open(path, "pt") as opened, atomic(path) as out:
        entries = _entries(path, dtype)
        _write_header(out, opened.metadata() or {}, entries)
        for name, entry in entries.items():
            values: Tensor = opened.get_tensor(name).reshape(-1)
            for at in range(0, len(values), _CHUNK):
                part = values[at : at + _CHUNK]
                written = _cast(name, part, dtype, at_random.get(name), at) if entry["dtype"] == KINDS[dtype] else part
                changed += int((written != part).sum()) if written is not part else 0
                out.write(written.view(torch.uint8).numpy().data)
                size += written.nbytes
    return size, changed


def _cast(name: str, values: Tensor, dtype: str, noise: str | None, start: int) -> Tensor:
    """Part of a tensor in `dtype`, from the place `start` on; at random where `noise` is the name to draw that by.

    Raises AdpaError for values beyond its range.
    """
    wanted = getattr(torch, dtype)
    if values.dtype == wanted:
        return values
    written = values.to(wanted) if noise is None else stochastic(values, wanted, noise, start)
    if not written.isfinite().all():
        largest, limit = float(values.abs().max()), torch.finfo(wanted).max
        raise AdpaError(
            f"the tensor {name} has a weight of {largest:.6g}, and the largest {dtype} is {limit:.6g}",
            f"use a dtype with a wider range: --dtype {WIDER.get(dtype, 'float32')}",
        )
    return written


def _entries(path: Path, dtype: str) -> dict[str, dict[str, Any]]:
    """The header of a file of weights as it is in `dtype`: wider numbers first, so that each stands aligned."""
    stored = {name: dict(entry) for name, entry in header(path).items()}
    for entry in stored.values():
        start, end = entry.pop("data_offsets")
        entry["bytes"], count = end - start, torch.Size(entry["shape"]).numel()
        if entry["dtype"] in WHOLE:
            entry["dtype"], entry["bytes"] = KINDS[dtype], count * getattr(torch, dtype).itemsize
        entry["width"] = entry["bytes"] / max(1, count)
    place, entries = 0, {}
    for name, entry in sorted(stored.items(), key=lambda item: (-item[1]["width"], item[0])):
        entries[name] = {
            "dtype": entry["dtype"], "shape": entry["shape"], "data_offsets": [place, place + entry["bytes"]]
        }  # fmt: skip
        place += entry["bytes"]
    return entries


def _write_header(out: BinaryIO, metadata: Mapping[str, str], entries: Mapping[str, Any]) -> None:
    """What stands before the tensors of a safetensors file: the length of a JSON object, and the object."""
    whole = {"__metadata__": {"format": metadata.get("format", "pt")}, **entries}
    text = json.dumps(whole, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    out.write(struct.pack("<Q", len(text)) + text)
