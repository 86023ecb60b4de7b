"""What a training changed, as the products that read the weights see it.

A product in bfloat16 reads weights of eight bits, so a change of less than half a step of such a number does not exist
for it. Only weights of the layers count: what a product of the body reads is rounded, the embedding and the head are
not. Weights come tensor by tensor from safetensors files, or from a model in memory; a model is never read whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from adpa_cli.engine.adapters import NAME, adapter_layers, adapter_tensors
from adpa_cli.engine.models import load
from adpa_cli.engine.quantised import QuantisedLinear, weight_as_read
from adpa_cli.hub.adapter_folder import AdapterFolder
from adpa_cli.hub.model_folder import IN_LAYERS, ModelFolder
from adpa_cli.sizes import spread

Pair = tuple[str, Tensor, Tensor]
"""The name of a weight, and its values before and after a training."""
Way = Callable[[str, Tensor], Tensor]
"""What a product reads of a weight of that name."""
SAMPLED_TENSORS, SAMPLED_WEIGHTS = 24, 2**16
"""How many tensors a sample has, and about how many weights of each."""
_CHUNK = 2**18


def nearest(dtype: torch.dtype) -> Way:
    """Rounding to the nearest number of a dtype; beyond its range to its greatest."""
    limits = torch.finfo(dtype)
    return lambda name, values: values.float().clamp(limits.min, limits.max).to(dtype)


NEAREST: Mapping[str, Way] = {"bfloat16": nearest(torch.bfloat16), "float16": nearest(torch.float16)}


@dataclass(frozen=True)
class Weights:
    """The weights of a model by name, without their values: `read` gives the first so many rows of one."""

    shapes: Mapping[str, tuple[int, ...]]
    read: Callable[[str, int], Tensor]

    @property
    def of_products(self) -> dict[str, str]:
        """The names of the weights that products of the layers read, by their names within the layers.

        A layer is what has a number in its name. A product reads a matrix, or one for each expert.
        """
        inside = {name: IN_LAYERS.search(name) for name, shape in self.shapes.items() if len(shape) in (2, 3)}
        return {match[1]: name for name, match in inside.items() if match}


def folder_weights(folder: Path) -> Weights:
    """The weights in the safetensors files of a model folder, of one of several parts those that read text; an adapter
    is merged into those of its base, in memory.

    Raises DataError for a damaged file.
    """
    model = ModelFolder.of(folder)
    if model.adapter:
        return model_weights(load(folder, train=True))

    def read(name: str, rows: int) -> Tensor:
        with safe_open(model.files[name], "pt") as opened:
            values: Tensor = opened.get_slice(name)[:rows]
            return values

    return Weights(model.shapes, read)


def model_weights(model: nn.Module) -> Weights:
    """The weights of a model in memory, as they are when they are read."""
    named = dict(model.named_parameters())
    shapes = {name: tuple(weight.shape) for name, weight in named.items()}
    return Weights(shapes, lambda name, rows: named[name].detach()[:rows].cpu())


def pairs(before: Weights, after: Weights, sample: bool = False) -> Iterator[Pair]:
    """The weights of products that both have, one after the other, under the name that they have after.

    They are matched by their names within the layers, for what stands before those differs between folders. A sample
    is some rows of some tensors.
    """
    old, new = before.of_products, after.of_products
    common = [key for key in new if key in old and before.shapes[old[key]] == after.shapes[new[key]]]
    for key in _spread(common) if sample else common:
        rows = _rows(after.shapes[new[key]], sample)
        yield new[key], before.read(old[key], rows), after.read(new[key], rows)


def folder_pairs(before: Path, after: Path) -> Iterator[Pair]:
    """The weights of products of two model folders."""
    return pairs(folder_weights(before), folder_weights(after))


def _spread(names: Sequence[str]) -> list[str]:
    """Some of the names, from all parts of the model."""
    return [names[number] for number in spread(len(names), SAMPLED_TENSORS)]


def _rows(shape: Sequence[int], sample: bool) -> int:
    """How many rows of a tensor are read."""
    return max(1, SAMPLED_WEIGHTS * shape[0] // torch.Size(shape).numel()) if sample else shape[0]


@torch.no_grad()
def measured_update(pairs: Iterable[Pair], ways: Mapping[str, Way] = NEAREST) -> dict[str, Any]:
    """The change of weights from before to after, in any float dtypes, and what is left of it in several ways.

    `rms` is the root of the mean square of the change over that of the weights before. Of each way, `seen` is
    <r(after) - r(before), after - before> / |after - before|^2, where r is its rounding: 1 where it loses nothing, or
    where nothing changed. `differ` is the share of weights that still differ. Empty where there are no weights.
    """
    count, size, change = 0, 0.0, 0.0
    kept, differ = dict.fromkeys(ways, 0.0), dict.fromkeys(ways, 0)
    for name, before, after in pairs:
        rounded = {way: (r(name, before).reshape(-1), r(name, after).reshape(-1)) for way, r in ways.items()}
        old, new = before.reshape(-1), after.reshape(-1)
        count += len(old)
        for at in range(0, len(old), _CHUNK):
            part = slice(at, at + _CHUNK)
            first = old[part].double()
            moved = new[part].double() - first
            size += float(first @ first)
            change += float(moved @ moved)
            for way, (left, right) in rounded.items():
                step = right[part].double() - left[part].double()
                kept[way] += float(step @ moved)
                differ[way] += int(step.count_nonzero())
    if not count:
        return {}
    return {
        "rms": (change / size) ** 0.5 if size else 0.0,
        "seen": {way: value / change if change else 1.0 for way, value in kept.items()},
        "differ": {way: number / count for way, number in differ.items()},
    }


@torch.no_grad()
def adapter_update(model: nn.Module, before: Path, after: Path) -> dict[str, Any]:
    """The change of the adapter of a model from that of one folder, none where it has whole weights, to that of
    another, as `measured_update` tells of weights: of the layers that it is beside. Products see all of it, for it is
    rounded to no weight."""
    folders = [adapter_tensors(adapter) if (adapter := AdapterFolder.of(f)) else {} for f in (before, after)]
    change = size = 0.0
    for name, layer in adapter_layers(model).items():
        down, up = (f"{name}.{part}.weight" for part in ("lora_A", "lora_B"))
        products = [tensors[up] @ tensors[down] for tensors in folders if up in tensors]
        moved = torch.linalg.vector_norm(products[-1] - products[0] if len(products) > 1 else products[-1])
        change += float(layer.scaling[NAME] * moved) ** 2
        size += float(torch.linalg.vector_norm(_weight(layer.base_layer))) ** 2
    rms = (change / size) ** 0.5 if size else 0.0
    return {"rms": rms, "seen": dict.fromkeys(NEAREST, 1.0), "differ": {}}


def _weight(layer: Any) -> Tensor:
    """The weight of a layer in float32, whatever it is stored as."""
    if isinstance(layer, QuantisedLinear):
        shape = layer.out_features, layer.in_features
        return weight_as_read(layer.weight, layer.scales, shape, layer.how, torch.float32)
    weight: Tensor = layer.weight
    return weight.float()


@torch.no_grad()
def share_off_grid(folder: Path, dtype: str) -> float:
    """The share of the weights of products in a folder that are no numbers of `dtype`, on a sample."""
    weights, way = folder_weights(folder), nearest(getattr(torch, dtype))
    off, count = 0, 0
    for name in _spread(list(weights.of_products.values())):
        values = weights.read(name, _rows(weights.shapes[name], True)).float()
        off += int((way(name, values).float() != values).count_nonzero())
        count += values.numel()
    return off / count if count else 0.0
