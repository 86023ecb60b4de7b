"""The one module that is prepared for training: a language model whose forward ends in selected log-probs.

The head is called inside `forward` because wrappers that shard parameters gather them only there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from adpa_cli.engine.critic import Critic
from adpa_cli.engine.heads import output_head
from adpa_cli.engine.models import Dtype, body_and_head, computing
from adpa_cli.engine.pieces import Packer, Piece, in_order, piece_states
from adpa_cli.tensors.head import selected_logps
from adpa_cli.tensors.logits import Stats


class Student(nn.Module):
    """`model` with float32 weights; `dtype` is what it computes in (autocast when bfloat16).

    With a `critic` both are trained as one; the critic is no part of the student's artifact.
    """

    def __init__(self, model: PreTrainedModel, dtype: Dtype, critic: Critic | None = None) -> None:
        super().__init__()
        self.model = model
        self.critic = critic
        self.dtype: Dtype = dtype
        self.packer: Packer | None = None
        """How batches for it are packed, if they are."""
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
        self, pieces: Sequence[Piece], ids: Tensor, stats: bool = False, drawn: tuple[Piece, ...] = ()
    ) -> tuple[Tensor, Tensor, Stats | None, Tensor | None]:
        """Log-probs [N,J] at `ids` [N,J], and the log of the mass outside them [N]; with `stats` what they are like.

        Last the critic's values [M] at the positions of the `drawn` pieces, if there are any. All float32.
        """
        body, head = body_and_head(self.model)[0], output_head(self.model)
        found = [piece_states(body, piece, self.dtype).float() for piece in pieces]
        with computing(self.dtype, ids.device):
            states = in_order(found, pieces)
            selected = selected_logps(
                states, head.weight, ids, head.bias, stats=stats, scale=head.scale, softcap=head.softcap
            )
        values = self.critic(drawn) if self.critic is not None and drawn else None
        squares, entropy = selected.log_sum_squares, selected.entropy
        about = None if squares is None or entropy is None else Stats(squares, entropy)
        return selected.logps, selected.rest, about, values
