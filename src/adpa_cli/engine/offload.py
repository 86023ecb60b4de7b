"""Frozen models whose layers wait elsewhere, and are on the device one at a time, while they compute.

They wait in the memory of the machine, or in files that are mapped from its disk and have no names, so that they are
gone with the process. Embedding, norm and head stay on the device. What waits are the tensors as the model holds them:
nothing that it computes hangs on where they are.
"""

from __future__ import annotations

import contextlib
import mmap
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from adpa_cli.engine.frozen import Place, Skeleton, kept_bytes
from adpa_cli.errors import AdpaError
from adpa_cli.sizes import size_words
from adpa_cli.spec import Dtype

ALIGNMENT = 64
"""Of tensors in a file, in bytes."""
LESS = "let them wait in memory: --runtime offload=cpu, or use a store on another disk: --store DIR"

Keep = Callable[[Sequence[Tensor]], Sequence[Tensor]]
"""The same tensors where they wait."""


@dataclass(frozen=True)
class Offload:
    """Where layers wait, and the folder in whose filesystem they do if that is the disk."""

    where: Literal["none", "cpu", "disk"] = "none"
    folder: Path = Path()

    def is_elsewhere(self, device: str) -> bool:
        """Whether that is another place than the device: the memory of the machine is none for its CPU."""
        return self.where == "disk" or (self.where == "cpu" and device != "cpu")

    def keep(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """The tensors where they wait. Raises AdpaError for a disk that is full or may not be written."""
        if self.where == "disk":
            return _mapped(tensors, self.folder)
        return [tensor.cpu().pin_memory() if torch.cuda.is_available() else tensor.cpu() for tensor in tensors]

    def put(self, layer: nn.Module, device: str) -> None:
        """Let a layer wait that is in memory."""
        _let_wait(layer, self.keep, device)

    def begin(self, body: nn.Module, layers: Sequence[nn.Module], dtype: Dtype) -> None:
        """Go on once all layers of a body, which computes in `dtype`, were put where they wait."""

    def turn(self) -> contextlib.AbstractContextManager[None]:
        """Around reading a model that is whole in memory until its layers are put elsewhere."""
        return contextlib.nullcontext()


NOWHERE = Offload()
_ASKED: ContextVar[Offload] = ContextVar("offload", default=NOWHERE)


def layers_wait(where: Literal["none", "cpu", "disk"], folder: Path) -> contextlib.AbstractContextManager[None]:
    """Let the layers of the frozen models that are loaded meanwhile wait there."""
    return placing(Offload(where, folder))


@contextlib.contextmanager
def placing(offload: Offload) -> Iterator[None]:
    """Let the layers of the frozen models that are loaded meanwhile be where it says."""
    before = _ASKED.set(offload)
    try:
        yield
    finally:
        _ASKED.reset(before)


def turn() -> contextlib.AbstractContextManager[None]:
    """Around reading a whole model and `unload`, which not all processes that share it out do at once."""
    return _ASKED.get().turn()


def is_asked(device: str) -> bool:
    """Whether layers are to wait elsewhere than on a device."""
    return _ASKED.get().is_elsewhere(device)


def filled(skeleton: Skeleton, body: nn.Module, dtype: Dtype, device: str) -> Any:
    """The model of a skeleton with its weights, a layer after the other put where layers are asked to wait.

    Raises AdpaError as `Skeleton.fill` does, for a model without layers, and for a disk that is full or may not be
    written, before anything is.
    """
    offload = _ASKED.get()
    if not offload.is_elsewhere(device):
        return skeleton.filled(dtype, device)
    layers = _layers_that_wait(body)
    names = [names_within(layer, skeleton) for layer in layers]
    if offload.where == "disk":
        every = [skeleton.places[name] for own in names for name in own]
        _check_room(offload.folder, sum(kept_bytes(place, dtype) for place in every))
    skeleton.fill(skeleton.places.keys() - {name for own in names for name in own}, dtype, device)
    skeleton.model.tie_weights()
    for layer, own in zip(layers, names, strict=True):
        skeleton.fill(own, dtype, device)
        offload.put(layer, device)
    offload.begin(body, layers, dtype)
    return skeleton.model.to(device)


def unload(body: nn.Module, dtype: Dtype, device: str) -> None:
    """Let the layers of a body that is whole in the memory of the machine wait there.

    Raises AdpaError where they are to wait on the disk: no memory has room for them.
    """
    if _ASKED.get().where == "disk":
        raise AdpaError(
            f"offload=disk reads weights one by one, and the files of this {type(body).__name__} use other names than "
            "transformers does, which loads them all at once",
            "keep them in memory instead: --runtime offload=cpu",
        )
    layers = _layers_that_wait(body)
    for layer in layers:
        _ASKED.get().put(layer, device)
    _ASKED.get().begin(body, layers, dtype)


def layers_of(body: nn.Module) -> list[nn.Module]:
    """The layers of a decoder, one after the other, none of which is in another."""
    found = [module for module in body.modules() if isinstance(module, GradientCheckpointingLayer)]
    inside = {id(part) for layer in found for part in layer.modules() if part is not layer}
    return [layer for layer in found if id(layer) not in inside]


def _layers_that_wait(body: nn.Module) -> list[nn.Module]:
    layers = layers_of(body)
    if not layers:
        raise AdpaError(
            f"transformers does not say what the layers of a {type(body).__name__} are, so they have to stay there",
            "--runtime offload=none --runtime shard=none",
        )
    return layers


def names_within(layer: nn.Module, skeleton: Skeleton) -> list[str]:
    """The names in the files of the tensors that belong to a layer."""
    parts = {id(part) for part in layer.modules()}
    return [name for name, place in skeleton.places.items() if id(place.module) in parts]


def visit(
    layer: nn.Module, places: Sequence[Place], bring: Callable[[Sequence[Place]], None], left: Sequence[Tensor]
) -> None:
    """Let some tensors of a layer be there only while it computes: `bring` puts them in their places, and at all other
    times those that are `left` stand there.

    Nothing that is kept names the layer, which would hold it when it is no longer used.
    """
    known = [(weakref.ref(place.module), place.attribute) for place in places]

    def own() -> list[Place]:
        return [Place(module, attribute) for there, attribute in known if (module := there()) is not None]

    def leave(*_: Any) -> None:
        for place, tensor in zip(own(), left, strict=True):
            place.put(tensor)

    layer.register_forward_pre_hook(lambda *_: bring(own()))
    layer.register_forward_hook(leave, always_call=True)  # a layer that ran out of memory would keep what it needs
    leave()


def _let_wait(layer: nn.Module, keep: Keep, device: str) -> None:
    """Let all tensors of a layer wait, and be brought to a device as they are used."""
    places = [
        Place(module, attribute) for module in layer.modules()
        for attribute, tensor in [*module._parameters.items(), *module._buffers.items()]
        if tensor is not None and tensor.numel()
    ]  # fmt: skip
    kept = keep([place.tensor.detach() for place in places])
    # They have the sizes of the tensors, which some ask for, and take no room.
    left = [torch.zeros((), dtype=torch.uint8, device=device).expand(tensor.shape) for tensor in kept]

    def bring(own: Sequence[Place]) -> None:
        for place, tensor in zip(own, kept, strict=True):
            place.put(tensor.to(device, non_blocking=True))

    visit(layer, places, bring, left)


def _mapped(tensors: Sequence[Tensor], folder: Path) -> list[Tensor]:
    """Tensors that are pages of a file without a name in the filesystem of a folder."""
    starts = []
    with _disk_errors(folder), tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        for tensor in tensors:
            starts.append(file.seek(-(-file.tell() // ALIGNMENT) * ALIGNMENT))
            rest: Any = tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy().data
            while rest:  # the kernel takes two gigabytes at a time
                rest = rest[file.write(rest) :]
        pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    return [
        torch.frombuffer(pages, dtype=tensor.dtype, count=tensor.numel(), offset=start).view(tensor.shape)
        for tensor, start in zip(tensors, starts, strict=True)
    ]


def _check_room(folder: Path, needed: int) -> None:
    with _disk_errors(folder):
        free = shutil.disk_usage(folder).free
    if free < needed:
        raise AdpaError(
            f"offload=disk writes {size_words(needed)} of weights into {folder}, whose disk has {size_words(free)} "
            "left; nothing was written",
            f"free some space there, or {LESS}",
        )


@contextlib.contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise AdpaError(
            f"offload=disk cannot write weights into {folder}: {error.strerror}; what was written is removed", LESS
        ) from error
