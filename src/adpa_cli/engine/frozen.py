"""Frozen models: the weights of a body's products are held in two bytes, as the products read them.

For bfloat16 they are the nearest numbers, which is what autocast makes of float32 ones for each product. For float16
and tf32 the normal numbers of float16 stay, which are nearly all weights that were published in bfloat16, and others
are rounded at random without bias: an update that is smaller than half a step is there in the mean. The noise is a
function of a weight's name in the unfused checkpoint and of its place, the same for two models that are compared, so
that what rounding does to both cancels in their difference.

Tensors are read one by one, straight onto the device, where the file names them as the model does.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from safetensors import safe_open
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from adpa_cli.engine.arithmetic import EXPANDED, HELD_IN
from adpa_cli.engine.quantised import QuantisedLinear, quantise_layers
from adpa_cli.errors import AdpaError
from adpa_cli.hub.model_folder import ModelFolder
from adpa_cli.spec import Dtype, Quantise
from adpa_cli.tensors.rounding import stochastic

PRODUCTS = (nn.Linear, Conv1D, nn.Conv1d)
NARROW = 2
"""Bytes of a number that is stored in few bits."""
FUSED = 3
"""Dimensions of the weights of all experts of a layer, which newer versions of transformers keep in one tensor."""
HALVES = {"gate_up_proj": ("gate_proj", "up_proj")}
"""What is one tensor in a layer of experts, and two in a checkpoint."""


@dataclass(frozen=True)
class Place:
    """Where a tensor of a model is: an attribute of a module. `key` names a weight of a product of the body, and is ""
    for other tensors."""

    module: nn.Module
    attribute: str
    key: str = ""

    @property
    def tensor(self) -> Tensor:
        """What is there."""
        found: Tensor = getattr(self.module, self.attribute)
        return found

    def put(self, tensor: Tensor) -> None:
        """Put a frozen parameter, or a buffer, there. Raises AdpaError where processes have a part each of what is
        there: it would come back when they put it together."""
        if is_part(self.module._parameters.get(self.attribute)):
            raise AdpaError(
                f"{self.key or self.attribute} is shared out among processes, and an adapter replaces it",
                "--runtime shard=none",
            )
        if self.attribute in self.module._parameters:
            self.module._parameters[self.attribute] = nn.Parameter(tensor, requires_grad=False)
        else:
            self.module._buffers[self.attribute] = tensor


def is_part(tensor: Tensor | None) -> bool:
    """Whether a tensor is what a process has of one that several share out; importing torch's class of these takes a
    second."""
    return hasattr(tensor, "device_mesh")


def held_places(body: nn.Module, dtype: Dtype) -> Iterator[Place]:
    """The weights, and the biases, of the products of a body, as far as they are held for products in `dtype`.

    Under bfloat16 these are the ones that autocast rounds too, so that a frozen model computes what a training does; it
    leaves experts and routers to the model. Otherwise they are theirs too. A weight that is stored in fewer bits is not
    among them.
    """
    for name, module in body.named_modules():
        for attribute, weight in module._parameters.items():
            if weight is None or (isinstance(module, QuantisedLinear) and attribute == "weight"):
                continue
            if isinstance(module, PRODUCTS) or (dtype != "bfloat16" and _is_own(module, attribute, weight)):
                yield Place(module, attribute, f"{name}.{attribute}")


def _is_own(module: nn.Module, attribute: str, weight: Tensor) -> bool:
    """Whether a module multiplies by a weight of its own: all experts in one tensor, or a router."""
    is_router = attribute == "weight" and weight.dim() == 2 and not isinstance(module, nn.Embedding)
    return is_router or weight.dim() == FUSED


def held(weight: Tensor, key: str, dtype: Dtype) -> Tensor:
    """A weight as it is held for products in `dtype`. Raises AdpaError where it is out of range."""
    if dtype == "bfloat16":
        return weight.to(torch.bfloat16)
    out = torch.empty_like(weight, dtype=HELD_IN[dtype])
    for name, given, kept in _unfused(weight, out, key):
        kept.copy_(stochastic(given, out.dtype, name))
    if not bool(torch.isfinite(out).all()):
        raise AdpaError(
            f"the weight {key} reaches {float(weight.abs().max()):.4g}, and the largest float16 is 65,504",
            "use another dtype: --set STAGE.dtype=float32, or --set STAGE.dtype=bfloat16",
        )
    return out


def _unfused(weight: Tensor, out: Tensor, key: str) -> Iterator[tuple[str, Tensor, Tensor]]:
    """The parts of a weight and of its copy, with the name that each has in an unfused checkpoint."""
    path, _, attribute = key.rpartition(".")
    if weight.dim() != FUSED or attribute == "weight":
        yield key, weight, out
        return
    names = HALVES.get(attribute, (attribute,))
    for expert, (given, kept) in enumerate(zip(weight, out, strict=True)):
        for name, part, copy in zip(names, given.chunk(len(names)), kept.chunk(len(names)), strict=True):
            yield f"{path}.{expert}.{name}.weight", part, copy


def kept_bytes(place: Place, dtype: Dtype) -> int:
    """Bytes of what a model for products in `dtype` keeps at a place."""
    if isinstance(place.module, QuantisedLinear) and place.attribute == "weight":
        return place.module.stored_bytes
    return place.tensor.numel() * (NARROW if place.key and dtype != "float32" else 4)


@torch.no_grad()
def hold(body: nn.Module, dtype: Dtype) -> None:
    """Hold the weights of a body's products, which are loaded, in two bytes."""
    for place in held_places(body, dtype):
        place.put(held(place.tensor, place.key, dtype))


@contextmanager
def expanded(model: nn.Module) -> Iterator[None]:
    """Lets a model hold the weights that it has in float16 as float32 meanwhile, for many products of few rows.

    Around float32 products each would be expanded again for every token. It stays so of a layer that processes share
    out, and send to each other.
    """
    narrow = [
        place for place in held_places(model, "float16")
        if place.tensor.dtype == torch.float16 and not is_part(place.tensor)
    ]  # fmt: skip
    for place in narrow:
        place.put(place.tensor.float())
        setattr(place.tensor, EXPANDED, True)
    try:
        yield
    finally:
        for place in narrow:
            place.put(place.tensor.half())


@dataclass(frozen=True)
class Skeleton:
    """A model without weights, and where each tensor of a folder goes in it: `places` by the name in the file."""

    model: Any
    folder: Path
    places: Mapping[str, Place]

    @classmethod
    def of(
        cls, make: Callable[[], Any], body_of: Callable[[Any], nn.Module], folder: Path, dtype: Dtype,
        quantise: Quantise | None = None, new: Set[str] = frozenset(),
    ) -> Skeleton | None:  # fmt: skip
        """The model that `make` builds, to be held for products in `dtype`, its linear layers as `quantise` says; None
        where the folder does not name its tensors as the model does, and transformers has to load it. Tensors that
        may be `new` are 0 where the folder lacks them."""
        with init_empty_weights(include_buffers=False):
            model = make()
        if quantise:
            quantise_layers(body_of(model), model.config.get_text_config(), quantise, dtype)
        own = _places(model, body_of(model), dtype)
        tied = set(model.all_tied_weights_keys)
        shapes = ModelFolder.of(folder).shapes
        found = {name: full for name in shapes for full in _spellings(name, model.base_model_prefix) if full in own}
        lacking = {name for name, place in own.items() if isinstance(place.tensor, nn.Parameter)} - set(found.values())
        alike = all(tuple(own[full].tensor.shape) == shapes[name] for name, full in found.items())
        for name in lacking & new:
            own[name].put(torch.zeros(own[name].tensor.shape))
        if not alike or lacking - new != tied or len(set(found.values())) < len(found):
            return None
        return cls(model, folder, {name: own[full] for name, full in found.items()})

    @torch.no_grad()
    def fill(self, names: Iterable[str], dtype: Dtype, device: str) -> None:
        """Read some tensors of the file onto a device, those of products as they are held or stored, others in float32.

        Raises AdpaError for values that are not finite, or out of range.
        """
        files = ModelFolder.of(self.folder).files
        for path, group in groupby(sorted(names, key=lambda name: (files[name], name)), key=files.__getitem__):
            with safe_open(path, "pt") as opened:
                for name in group:
                    tensor = opened.get_tensor(name).to(device)
                    if tensor.is_floating_point():
                        check_finite(tensor, name, self.folder)
                    self._keep(self.places[name], tensor, name, dtype)

    def _keep(self, place: Place, tensor: Tensor, name: str, dtype: Dtype) -> None:
        if isinstance(place.module, QuantisedLinear) and place.attribute == "weight":
            place.module.store(tensor, name)
        else:
            place.put(self._as_kept(place, tensor, dtype) if tensor.is_floating_point() else tensor)

    def _as_kept(self, place: Place, tensor: Tensor, dtype: Dtype) -> Tensor:
        """A tensor of the file as the model keeps it. An embedding that is no head stays as it is: looking up is no
        product, and what is looked up becomes float32."""
        if place.key and dtype != "float32":
            return held(tensor, place.key, dtype)
        if tensor.element_size() == NARROW and place.module is self._looked_up:
            place.module.register_forward_hook(_in_float32)
            return tensor
        return tensor.float()

    @cached_property
    def _looked_up(self) -> nn.Module | None:
        """The embedding of a whole model, if it is that alone: no head, and no module that does more than look up."""
        embedding = getattr(self.model, "get_input_embeddings", lambda: None)()
        return embedding if type(embedding) is nn.Embedding and not self.model.all_tied_weights_keys else None

    def filled(self, dtype: Dtype, device: str) -> Any:
        """The whole model."""
        self.fill(self.places, dtype, device)
        self.model.tie_weights()
        return self.model.to(device)


def _in_float32(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
    return output.float()


def check_finite(tensor: Tensor, name: str, folder: Path) -> None:
    """Raise AdpaError for a tensor of a folder that holds values which are no numbers."""
    ends = tensor.aminmax() if tensor.numel() else ()  # which copies nothing, and passes on what is no number
    if not all(bool(torch.isfinite(end)) for end in ends):
        raise AdpaError(
            f"the tensor {name} in {folder} has values that are not finite (infinity or NaN)",
            "download or write the folder again: its weights are damaged, or belong to another model",
        )


def _places(model: nn.Module, body: nn.Module, dtype: Dtype) -> dict[str, Place]:
    """Where the tensors of a model are that its folder holds, by their names."""
    keys = {(id(place.module), place.attribute): place.key for place in held_places(body, dtype)}
    places = {}
    for path, module in model.named_modules():
        stored = [
            *module._parameters,
            *(name for name in module._buffers if name not in module._non_persistent_buffers_set),
        ]
        for attribute in stored:
            if getattr(module, attribute) is not None:
                key = keys.get((id(module), attribute), "")
                places[f"{path}.{attribute}".lstrip(".")] = Place(module, attribute, key)
    return places


def _spellings(name: str, prefix: str) -> tuple[str, ...]:
    """How a model may call a tensor of a file: as the file does, with its own name for the body in front or not, or
    without what the text part of a model of several parts is called."""
    text = re.sub(r"(^|\.)language_model\.", r"\1", name)
    return tuple(dict.fromkeys((name, f"{prefix}.{name}", name.removeprefix(f"{prefix}."), text)))
