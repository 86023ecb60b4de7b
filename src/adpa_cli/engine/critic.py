"""A model's body with one number instead of a vocabulary at the end: the critic of reinforcement learning."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from adpa_cli.engine.models import Dtype, body_and_head
from adpa_cli.engine.pieces import Piece, in_order, piece_states


class Critic(nn.Module):
    """A decoder `body` and its scalar head `score` [1,H], which has no bias, as those of sequence classifiers."""

    def __init__(self, body: nn.Module, score: nn.Linear, dtype: Dtype) -> None:
        super().__init__()
        self.body, self.score = body, score
        self.dtype: Dtype = dtype

    def forward(self, pieces: tuple[Piece, ...]) -> Tensor:
        """The number [N], float32, at every position that the pieces name, in the order of their `where`."""
        return scalars(self.body, self.score, pieces, self.dtype)


def scalars(body: nn.Module, score: nn.Module, pieces: Sequence[Piece], dtype: Dtype) -> Tensor:
    """What the head `score` makes of the states of `body` at the positions [N] of `pieces`: float32 [N], in order."""
    found = [piece_states(body, piece, dtype).float() for piece in pieces]
    values: Tensor = score(in_order(found, pieces))[:, 0]
    return values


def critic_of(model: PreTrainedModel, dtype: Dtype) -> Critic:
    """A critic that begins with a copy of the model's body, and values everything at 0."""
    body, weight, _ = body_and_head(model)
    score = nn.Linear(weight.shape[1], 1, bias=False, device=weight.device, dtype=torch.float32)
    nn.init.zeros_(score.weight)
    return Critic(copy.deepcopy(body), score, dtype)
