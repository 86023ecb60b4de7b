"""The one module that trains: a language model whose forward ends in selected log-probs.

The head is called inside `forward` because weights that processes share out are whole only there. With it may go a
critic, as reinforcement learning needs it: a model's body with one number instead of a vocabulary at the end.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from adpa_cli.engine.arithmetic import computing_head
from adpa_cli.engine.layout.batch import Batch
from adpa_cli.engine.layout.row_layout import Packer, RowLayout, answer_states, in_order
from adpa_cli.engine.models import body_and_head, output_head
from adpa_cli.spec import Dtype
from adpa_cli.tensors.head import selected_logps
from adpa_cli.tensors.output import Stats


class Student(nn.Module):
    """`model` with weights that are float32 where they train; `dtype` is what it computes in (autocast when bfloat16).

    With a `critic` both are trained as one; the critic is no part of the student's artifact.
    """

    def __init__(self, model: PreTrainedModel, dtype: Dtype, critic: Critic | None = None) -> None:
        super().__init__()
        self.model = model
        self.critic = critic
        self.dtype: Dtype = dtype
        self.packer: Packer | None = None
        """How batches for it are packed, if they are."""

    def forward(
        self, layouts: Sequence[RowLayout], ids: Tensor, stats: bool = False, drawn: tuple[RowLayout, ...] = ()
    ) -> tuple[Tensor, Tensor, Stats | None, Tensor | None]:
        """Log-probs [N,J] at `ids` [N,J], and the log of the mass outside them [N]; with `stats` what they are like.

        Last the critic's values [M] at the positions of the `drawn` layouts, if there are any. All float32.
        """
        body, head = body_and_head(self.model)[0], output_head(self.model)
        each = [answer_states(body, layout, self.dtype).float() for layout in layouts]
        with computing_head(self.dtype, ids.device):
            states = in_order(each, layouts)
            selected = selected_logps(
                states, head.weight, ids, head.bias, stats=stats, scale=head.scale, softcap=head.softcap
            )
        values = self.critic(drawn) if self.critic is not None and drawn else None
        return selected.logps, selected.rest, selected.stats, values

    def at_answers(self, batch: Batch) -> Tensor:
        """The log-prob [N] of each answer token of a batch."""
        logps: Tensor = self(batch.layouts, batch.ids)[0]
        return logps[:, 0]


class Critic(nn.Module):
    """A decoder `body` and its scalar head `score` [1,H], which has no bias, as those of sequence classifiers."""

    def __init__(self, body: nn.Module, score: nn.Linear, dtype: Dtype) -> None:
        super().__init__()
        self.body, self.score = body, score
        self.dtype: Dtype = dtype

    def forward(self, layouts: tuple[RowLayout, ...]) -> Tensor:
        """The number [N], float32, at every position that the layouts name, in the order of their `where`."""
        return scalars(self.body, self.score, layouts, self.dtype)

    def at_answers(self, batch: Batch) -> Tensor:
        """The value [N] before each answer token of a batch."""
        values: Tensor = self(batch.layouts)
        return values


def scalars(body: nn.Module, score: nn.Module, layouts: Sequence[RowLayout], dtype: Dtype) -> Tensor:
    """What the head `score` makes of the states of `body` at the positions [N] of `layouts`: float32 [N], in order."""
    states = [answer_states(body, layout, dtype).float() for layout in layouts]
    values: Tensor = score(in_order(states, layouts))[:, 0]
    return values


def critic_of(model: PreTrainedModel, dtype: Dtype) -> Critic:
    """A critic that begins with a copy of the model's body, and values everything at 0; both have one set of the
    weights that are frozen."""
    body, weight, _ = body_and_head(model)
    frozen: dict[int, Any] = {id(tensor): tensor for tensor in body.parameters() if not tensor.requires_grad}
    score = nn.Linear(weight.shape[1], 1, bias=False, device=weight.device, dtype=torch.float32)
    nn.init.zeros_(score.weight)
    return Critic(copy.deepcopy(body, frozen), score, dtype)
