"""Reward models in training: a decoder under the scalar head of transformers' sequence classifiers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from adpa_cli.engine.critic import scalars
from adpa_cli.engine.models import load
from adpa_cli.engine.pieces import Piece
from adpa_cli.engine.schedule import Example
from adpa_cli.engine.score import LabelLogps, at_answers
from adpa_cli.engine.student import Student
from adpa_cli.methods import Part
from adpa_cli.tensors.logits import Stats


class Ranker(Student):
    """A sequence classifier `model` with one output, trained as a student is: it has values, and no log-probs."""

    def forward(
        self, pieces: Sequence[Piece], ids: Tensor, stats: bool = False, drawn: tuple[Piece, ...] = ()
    ) -> tuple[Tensor, Tensor, Stats | None, Tensor | None]:
        """The head's number [N], float32, after each answer token, last; zeros in place of log-probs."""
        after = tuple(replace(piece, columns=piece.columns + 1) for piece in pieces)
        values = scalars(self.model.base_model, _head(self.model), after, self.dtype)
        nothing = torch.zeros_like(values)
        return nothing[:, None].expand(ids.shape), nothing, None, values

    def values_after(
        self, examples: Sequence[Example], parts: Sequence[Part], tokens: int, device: torch.device | str
    ) -> LabelLogps:
        """The head's numbers [T] after the tokens of each answer, by (example id, part); the last is its reward."""

        def last(batch: Any) -> Tensor:
            found: Tensor = self(batch.pieces, batch.ids)[3]
            return found

        self.to(device)
        return at_answers(last, examples, parts, tokens, device)


def load_ranker(folder: Path, tokenizer: Any, end_id: int, device: str) -> PreTrainedModel:
    """The model in `folder` under a scalar head, which is 0 where the folder has none, to be trained.

    Its head reads the last token that is no padding, so `tokenizer` and configuration get a padding token that no
    answer ends with. Raises AdpaError for a model that transformers has no such classifier of.
    """
    model = load(folder, train=True, device=device, scalar=True)
    padding = _padding(tokenizer, end_id)
    model.config.pad_token_id = padding
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(padding)
    return model


def _head(model: PreTrainedModel) -> torch.nn.Linear:
    untyped: Any = model
    head: torch.nn.Linear = untyped.score
    return head


def _padding(tokenizer: Any, end_id: int) -> int:
    known = (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.unk_token_id)
    return next((found for found in known if found not in (None, end_id)), 0 if end_id else 1)
