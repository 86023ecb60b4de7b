"""The one module that is prepared for training: a language model whose forward ends in selected log-probs.

The head is called inside `forward` because wrappers that shard parameters gather them only there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from adpa_cli.engine.batch import Piece
from adpa_cli.engine.models import Dtype, body_and_head, hidden_states
from adpa_cli.tensors.head import selected_logps


class Student(nn.Module):
    """`model` with float32 weights; `dtype` is what it computes in (autocast when bfloat16)."""

    def __init__(self, model: PreTrainedModel, dtype: Dtype) -> None:
        super().__init__()
        self.model = model
        self.dtype: Dtype = dtype
        self._no_split_modules: Any = getattr(model, "_no_split_modules", None)

    def get_input_embeddings(self) -> nn.Module:
        """The inner model's embeddings; sharding wrappers ask for them."""
        return self.model.get_input_embeddings()

    def get_output_embeddings(self) -> Any:
        """The inner model's head."""
        inner: Any = self.model
        return inner.get_output_embeddings()

    def tie_weights(self) -> None:
        """Tie the inner model's head to its embeddings where its configuration says so."""
        self.model.tie_weights()

    def forward(
        self, pieces: Sequence[Piece], ids: Tensor, stats: bool = False
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Log-probs [N,J] at `ids` [N,J], and the log of the mass outside them [N]; with `stats` the log of Σ p² [N].

        All float32. Padding is on the right, where a causal model cannot see it, so there is no attention mask.
        """
        found = [
            hidden_states(self.model, piece.input_ids, None, dtype=self.dtype)[piece.rows, piece.columns].float()
            for piece in pieces
        ]
        hidden = torch.cat(found)[torch.cat([piece.where for piece in pieces]).argsort()]
        _, weight, bias = body_and_head(self.model)
        selected = selected_logps(hidden, weight, ids, bias, stats=stats)
        return selected.logps, selected.rest, selected.log_sum_squares
