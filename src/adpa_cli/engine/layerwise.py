"""A model in float32 of which one layer is in memory at a time: what fewer bits are compared with.

The layers are read from the file as they are used, so that it takes no more memory than the model does in two bytes a
weight. Embedding, head and norms stay.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from transformers import AutoConfig, PreTrainedModel

from adpa_cli.engine.adapters import attach_adapter, shape_in
from adpa_cli.engine.frozen import Place, Skeleton
from adpa_cli.engine.lora import SCALAR_HEAD, stored_as
from adpa_cli.engine.models import body_of, load, skeleton_of
from adpa_cli.engine.offload import layers_of, names_within, visit
from adpa_cli.hub.adapter_folder import AdapterFolder
from adpa_cli.spec import Quantise


def load_layerwise(
    folder: Path, device: str, scalar: bool = False, quantise: Quantise | None = None
) -> PreTrainedModel:
    """The causal language model in `folder`, or with `scalar` the classifier of one output, in float32, frozen, in eval
    mode. Of weights that are quantised it reads what is stored of them, as float32; an adapter runs beside its base.

    Where the folder does not name its tensors as the model does it is loaded whole. Raises as `load` does.
    """
    adapter = AdapterFolder.of(folder)
    base = adapter.base if adapter else folder
    config = AutoConfig.from_pretrained(base, trust_remote_code=False, local_files_only=True)
    if scalar:
        config.num_labels = 1
    stored = stored_as(adapter.low_rank if adapter else None, quantise, str(folder))
    new_head = adapter is not None and bool(shape_in(adapter, SCALAR_HEAD))
    skeleton = skeleton_of(base, config, "float32", scalar, stored, new_head)
    if skeleton is None:
        return load(folder, device=device, scalar=scalar, quantise=quantise)
    model, layers = skeleton.model, layers_of(body_of(skeleton.model))
    names = [names_within(layer, skeleton) for layer in layers]
    skeleton.fill(skeleton.places.keys() - {name for own in names for name in own}, "float32", device)
    model.tie_weights()
    for module in model.modules():  # the tensors that no file holds, such as frequencies of positions
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else buffer.to(device)
    if adapter:
        attach_adapter(model, body_of(model), adapter, "float32", device)
    for layer, own in zip(layers, names, strict=True):
        of_file = [name for name in own if skeleton.places[name].tensor.is_meta]  # others came with the adapter
        _read_when_used(layer, of_file, skeleton, device)
    ready: PreTrainedModel = model.train(False).requires_grad_(False)
    return ready


def _read_when_used(layer: nn.Module, names: Sequence[str], skeleton: Skeleton, device: str) -> None:
    """Let the tensors of a layer be read from the file whenever it computes."""
    folder = skeleton.folder

    def read(own: Sequence[Place]) -> None:
        Skeleton(None, folder, dict(zip(names, own, strict=True))).fill(names, "float32", device)

    visit(layer, [skeleton.places[name] for name in names], read, [torch.empty(0)] * len(names))
