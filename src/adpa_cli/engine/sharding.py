"""One model in several processes: each keeps its part of every weight, gradient and moment (torch's FSDP2).

A decoder layer's weights are whole while it computes; embedding, norm and head are one group, for a tied head is the
embedding, and they are whole from the beginning of the student's forward pass to its end. Gradients are summed, not
averaged, in float32: the loop has divided already. What reads weights outside of a forward pass is given `WholeModel`.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from adpa_cli.engine.arithmetic import computing
from adpa_cli.engine.offload import Offload, layers_of
from adpa_cli.engine.quantised import QuantisedLinear
from adpa_cli.engine.ranks import Ranks
from adpa_cli.errors import AdpaError
from adpa_cli.spec import Dtype


def share_out(model: nn.Module, ranks: Ranks) -> None:
    """Leave this process its part of each weight of a model, which must be the same in all of them."""
    mesh = init_device_mesh(ranks.device.type, (ranks.count,))
    for layer in layers_of(model):
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


class Company(Offload):
    """Processes that share out the layers of the frozen models that they load, one model after the other.

    A layer is whole while it and the one before it compute; embedding, norm and head are whole in each of them. Every
    forward pass is one of all: whoever has nothing left to compute keeps the others company with a token of its own.
    """

    def __init__(self, ranks: Ranks, stop: Callable[[], str | None]) -> None:
        super().__init__()
        self.ranks, self.stop = ranks, stop
        self.asked: str | None = None
        """A signal that reached one of them, which all know of before the same forward pass."""
        self._mesh = init_device_mesh(ranks.device.type, (ranks.count,))
        self._works, self._is_needed = True, True
        self._body: Any = None
        self._dtype: Dtype = "float32"

    def is_elsewhere(self, device: str) -> bool:
        """Whether the layers of a model on a device are shared out: all are."""
        return True

    def put(self, layer: nn.Module, device: str) -> None:
        """Leave this process its part of a layer."""
        if any(isinstance(module, QuantisedLinear) for module in layer.modules()):
            raise AdpaError("torch does not share out weights that are stored in few bits", "--runtime shard=none")
        self._forget()
        fully_shard(layer, mesh=self._mesh)

    def begin(self, body: nn.Module, layers: Sequence[nn.Module], dtype: Dtype) -> None:
        """Let each layer fetch the next one while it computes, and processes meet before the first one does."""
        every = _Layers(layers)
        fully_shard(every, mesh=self._mesh)
        for layer, after in itertools.pairwise(layers):
            layer.set_modules_to_forward_prefetch([after])  # type: ignore[operator]  # of FSDPModule
        every()
        layers[0].register_forward_pre_hook(lambda *_: self.agree(), prepend=True)
        self._body, self._dtype = body, dtype

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Let one process after the other have a whole model in memory."""
        for _ in range(self.ranks.rank):
            self.ranks.wait()
        yield
        for _ in range(self.ranks.count - self.ranks.rank):
            self.ranks.wait()

    def accompany(self) -> None:
        """Compute along with the model that was loaded last, until all processes have nothing left to do with it."""
        self._works = False
        ids = torch.zeros(1, 1, dtype=torch.int64, device=self.ranks.device)
        while self._is_needed and self._body is not None:
            with torch.no_grad(), computing(self._dtype, ids.device):
                self._body(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
        self._forget()

    def _forget(self) -> None:
        """Let go of the model that was loaded last; torch's hooks and what they name hold each other."""
        if self._body is not None:
            self._body = None
            gc.collect()

    def agree(self) -> None:
        """Learn of signals that reached any of the processes, and whether one of them works."""
        working = {"working": torch.tensor(float(self._works))}
        sums, asked = self.ranks.agree(working, self.asked or self.stop())
        self.asked, self._is_needed = asked, sums["working"] > 0


class _Layers(nn.ModuleList):
    """All layers of a model, whose call computes nothing: torch looks in it which modules work together."""

    def forward(self) -> None:
        """Nothing."""


def is_sharded(student: nn.Module) -> bool:
    """Whether a student's weights are shared out among processes."""
    return isinstance(student, FSDPModule)


def sum_at_end(student: nn.Module, is_last: bool) -> None:
    """Let processes add up gradients after the last micro-batch of a step, and only then."""
    if isinstance(student, FSDPModule):
        student.set_requires_gradient_sync(is_last)


def clip(weights: list[Tensor], most: float) -> float:
    """Scale the gradients of some weights, whole or parts of them, to a norm of at most `most`; their norm before."""
    norm = nn.utils.clip_grad_norm_(weights, most)
    return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)


@torch.no_grad()
def put(weight: Tensor, whole: Tensor) -> None:
    """Give a weight, or this process's part of it, the values of a `whole` one that every process has."""
    if isinstance(weight, DTensor):
        whole = distribute_tensor(
            whole.to(weight.device, weight.dtype), weight.device_mesh, weight.placements, src_data_rank=None
        )
    weight.copy_(whole)


@dataclass(frozen=True)
class WholeModel:
    """A model that trains, and where its weights are shared out what has the same modules and no weights."""

    model: Any
    ranks: Ranks
    empty: Any = None

    @classmethod
    def of(cls, model: Any, ranks: Ranks, is_shared_out: bool) -> WholeModel:
        """To be made before the weights are shared out."""
        if not is_shared_out:
            return cls(model, ranks)
        none = {
            id(weight): nn.Parameter(torch.empty(0, dtype=weight.dtype), requires_grad=weight.requires_grad)
            for weight in model.parameters()
        }
        return cls(model, ranks, copy.deepcopy(model, none))

    @torch.no_grad()
    def gathered(self) -> Any:
        """The model with the weights of this moment, in the first process; None in others. Every process takes part."""
        if self.empty is None:
            return self.model if self.ranks.is_first else None
        empty = dict(self.empty.named_parameters())
        for name, weight in self.model.named_parameters():
            whole = weight.full_tensor() if isinstance(weight, DTensor) else weight
            if self.ranks.is_first:
                empty[name].data = whole.detach().cpu()
        return self.empty if self.ranks.is_first else None

    def forget(self) -> None:
        """Let go of the weights that were gathered."""
        for weight in self.empty.parameters() if self.empty is not None else ():
            weight.data = weight.data.new_empty(0)
