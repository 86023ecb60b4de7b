"""A model in float32 of which one layer is in memory at a time: what fewer bits are compared with.

The layers are read from the file as they are used, so that it takes no more memory than the model does in two bytes a
weight. Embedding, head and norms stay.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from adpa_cli.engine.frozen import Skeleton
from adpa_cli.engine.models import body_of, load, skeleton_of


def load_layerwise(folder: Path, device: str, scalar: bool = False) -> PreTrainedModel:
    """The causal language model in `folder`, or with `scalar` the classifier of one output, in float32, frozen, in eval
    mode.

    Where the folder does not name its tensors as the model does it is loaded whole. Raises as `load` does.
    """
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    if scalar:
        config.num_labels = 1
    skeleton = skeleton_of(folder, config, scalar)
    if skeleton is None:
        return load(folder, device=device, scalar=scalar)
    model, layers = skeleton.model, _layers(body_of(skeleton.model))
    own = {id(module): number for number, layer in enumerate(layers) for module in layer.modules()}
    names: list[list[str]] = [[] for _ in layers]
    rest: list[str] = []
    for name, place in skeleton.places.items():
        (names[own[id(place.module)]] if id(place.module) in own else rest).append(name)
    skeleton.fill(rest, "float32", device)
    model.tie_weights()
    for module in model.modules():  # the tensors that no file holds, such as frequencies of positions
        for name in module._non_persistent_buffers_set:
            module._buffers[name] = module._buffers[name].to(device)
    for layer, mine in zip(layers, names, strict=True):
        _forget(skeleton, mine)
        layer.register_forward_pre_hook(functools.partial(_read, skeleton, mine, device))
        layer.register_forward_hook(functools.partial(_forget, skeleton, mine))
    ready: PreTrainedModel = model.train(False).requires_grad_(False)
    return ready


def _layers(body: nn.Module) -> list[nn.Module]:
    """The layers of a decoder, one after the other, none of which is in another."""
    found = [module for module in body.modules() if isinstance(module, GradientCheckpointingLayer)]
    inside = {id(part) for layer in found for part in layer.modules() if part is not layer}
    return [layer for layer in found if id(layer) not in inside]


def _read(skeleton: Skeleton, names: Sequence[str], device: str, _layer: nn.Module, _args: Any) -> None:
    skeleton.fill(names, "float32", device)


def _forget(skeleton: Skeleton, names: Sequence[str], *_of_hook: Any) -> None:
    for name in names:
        skeleton.places[name].put(torch.empty(0))
