"""A model in float32 of which one layer is in memory at a time: what fewer bits are compared with.

The layers are read from the file as they are used, so that it takes no more memory than the model does in two bytes a
weight. Embedding, head and norms stay.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from adpa_cli.engine.frozen import Place, Skeleton
from adpa_cli.engine.models import body_of, load, skeleton_of

Within = Mapping[str, tuple[str, str]]
"""(path within a layer, attribute) of tensors, by their names in the file."""


def load_layerwise(folder: Path, device: str, scalar: bool = False) -> PreTrainedModel:
    """The causal language model in `folder`, or with `scalar` the classifier of one output, in float32, frozen, in eval
    mode.

    Where the folder does not name its tensors as the model does it is loaded whole. Raises as `load` does.
    """
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    if scalar:
        config.num_labels = 1
    skeleton = skeleton_of(folder, config, "float32", scalar)
    if skeleton is None:
        return load(folder, device=device, scalar=scalar)
    model, layers = skeleton.model, _layers(body_of(skeleton.model))
    within = [_within(layer, skeleton.places) for layer in layers]
    skeleton.fill(skeleton.places.keys() - {name for places in within for name in places}, "float32", device)
    model.tie_weights()
    for module in model.modules():  # the tensors that no file holds, such as frequencies of positions
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else buffer.to(device)
    for layer, places in zip(layers, within, strict=True):
        _forget(places, layer)
        # Hooks that named the model would keep it alive when it is no longer used.
        layer.register_forward_pre_hook(functools.partial(_read, folder, places, device))
        layer.register_forward_hook(functools.partial(_forget, places))
    ready: PreTrainedModel = model.train(False).requires_grad_(False)
    return ready


def _layers(body: nn.Module) -> list[nn.Module]:
    """The layers of a decoder, one after the other, none of which is in another."""
    found = [module for module in body.modules() if isinstance(module, GradientCheckpointingLayer)]
    inside = {id(part) for layer in found for part in layer.modules() if part is not layer}
    return [layer for layer in found if id(layer) not in inside]


def _within(layer: nn.Module, places: Mapping[str, Place]) -> Within:
    """The tensors of a layer among those of a model."""
    paths = {id(module): path for path, module in layer.named_modules()}
    return {
        name: (paths[id(place.module)], place.attribute) for name, place in places.items() if id(place.module) in paths
    }


def _places(layer: nn.Module, within: Within) -> dict[str, Place]:
    return {name: Place(layer.get_submodule(path), attribute) for name, (path, attribute) in within.items()}


def _read(folder: Path, within: Within, device: str, layer: nn.Module, _args: Any) -> None:
    Skeleton(layer, folder, _places(layer, within)).fill(within, "float32", device)


def _forget(within: Within, layer: nn.Module, *_of_hook: Any) -> None:
    for place in _places(layer, within).values():
        place.put(torch.empty(0))
