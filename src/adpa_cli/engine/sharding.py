"""One model in several processes: each keeps its part of every weight, gradient and moment (torch's FSDP2).

A decoder layer's weights are whole while it computes; embedding, norm and head are one group, for a tied head is the
embedding, and they are whole from the beginning of the student's forward pass to its end. Gradients are summed, not
averaged, in float32: the loop has divided already. What reads weights outside of a forward pass is given `WholeModel`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from adpa_cli.engine.offload import layers_of
from adpa_cli.engine.ranks import Ranks


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


class SharedModel(nn.Module):
    """A frozen model that processes share out, which they call equally often: each call is a forward pass of all."""

    def __init__(self, model: nn.Module, ranks: Ranks) -> None:
        super().__init__()
        self.model = model
        share_out(self, ranks)

    def forward(self, action: Callable[[], Any]) -> Any:
        """What `action` makes of the model, whose embedding, norm and head are whole meanwhile."""
        return action()


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
