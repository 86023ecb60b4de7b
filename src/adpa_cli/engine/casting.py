"""The weights of a model folder in another dtype, rewritten tensor by tensor: to the nearest number, or at random.

Only what products of the layers read is rounded at random; embeddings, head, norms and biases go to the nearest.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Literal

import torch
from safetensors import safe_open
from torch import Tensor

from adpa_cli.disk import atomic
from adpa_cli.engine.models import edit_json
from adpa_cli.engine.update import Way, folder_weights, nearest
from adpa_cli.errors import AdpaError
from adpa_cli.hub.model_folder import INDEX, WHOLE
from adpa_cli.tensors.rounding import stochastic

Rounding = Literal["nearest", "stochastic"]
KINDS: Mapping[str, str] = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
"""The dtypes that weights are written in, and what safetensors files call them."""
WIDER: Mapping[str, str] = {"float16": "bfloat16", "bfloat16": "float32"}
"""The dtype that holds what is beyond the range of another."""


def roundings(dtype: str) -> dict[str, Way]:
    """What both roundings make of a weight of a product in a layer."""
    wanted = getattr(torch, dtype)
    return {"nearest": nearest(wanted), "stochastic": lambda name, values: stochastic(values, wanted, name)}


@torch.no_grad()
def cast_weights(folder: Path, dtype: str, rounding: Rounding = "nearest") -> int:
    """Write the float tensors of every safetensors file of a model folder in `dtype`, and say so in its config.

    Returns how many weights changed. One tensor is in memory at a time, and equal weights give equal bytes. Raises
    AdpaError, naming the tensor, for a weight beyond the range of `dtype`.
    """
    at_random = set(folder_weights(folder).of_products.values()) if rounding == "stochastic" else set()
    total = changed = 0
    for path in sorted(folder.glob("*.safetensors")):
        size, of_file = _cast_file(path, dtype, at_random)
        total, changed = total + size, changed + of_file
    edit_json(folder / "config.json", {"dtype": dtype, "torch_dtype": dtype})
    edit_json(folder / INDEX, {"metadata": {"total_size": total}})
    return changed


def _cast_file(path: Path, dtype: str, at_random: Container[str]) -> tuple[int, int]:
    """Rewrite one file; the bytes of its tensors, and how many weights changed."""
    size = changed = 0
    with safe_open(path, "pt") as opened, atomic(path) as out:
        entries = _entries(path, dtype)
        _write_header(out, opened.metadata() or {}, entries)
        for name, entry in entries.items():
            values: Tensor = opened.get_tensor(name)
            written = _cast(name, values, dtype, name in at_random) if entry["dtype"] == KINDS[dtype] else values
            changed += int((written != values).sum()) if written is not values else 0
            out.write(written.contiguous().reshape(-1).view(torch.uint8).numpy().data)
            size += written.nbytes
    return size, changed


def _cast(name: str, values: Tensor, dtype: str, at_random: bool) -> Tensor:
    """A tensor in `dtype`. Raises AdpaError for values beyond its range."""
    wanted = getattr(torch, dtype)
    if values.dtype == wanted:
        return values
    written = stochastic(values, wanted, name) if at_random else values.to(wanted)
    if not written.isfinite().all():
        largest, limit = float(values.abs().max()), torch.finfo(wanted).max
        raise AdpaError(
            f"the tensor {name} holds weights of up to {largest:.6g}, and {dtype} ends at {limit:.6g}",
            f"take a dtype of wider range: --dtype {WIDER.get(dtype, 'float32')}",
        )
    return written


def _entries(path: Path, dtype: str) -> dict[str, dict[str, Any]]:
    """The header of a file of weights as it is in `dtype`: wider numbers first, so that each stands aligned."""
    with path.open("rb") as opened:
        header = json.loads(opened.read(struct.unpack("<Q", opened.read(8))[0]))
    header.pop("__metadata__", None)
    for entry in header.values():
        start, end = entry.pop("data_offsets")
        entry["bytes"], count = end - start, torch.Size(entry["shape"]).numel()
        if entry["dtype"] in WHOLE:
            entry["dtype"], entry["bytes"] = KINDS[dtype], count * getattr(torch, dtype).itemsize
        entry["width"] = entry["bytes"] / max(1, count)
    place, entries = 0, {}
    for name, entry in sorted(header.items(), key=lambda item: (-item[1]["width"], item[0])):
        entries[name] = {
            "dtype": entry["dtype"], "shape": entry["shape"], "data_offsets": [place, place + entry["bytes"]]
        }  # fmt: skip
        place += entry["bytes"]
    return entries


def _write_header(out: BinaryIO, metadata: Mapping[str, str], entries: Mapping[str, Any]) -> None:
    """What stands before the tensors of a safetensors file: the length of a JSON object, and the object."""
    header = {"__metadata__": {"format": metadata.get("format", "pt")}, **entries}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    out.write(struct.pack("<Q", len(text)) + text)
