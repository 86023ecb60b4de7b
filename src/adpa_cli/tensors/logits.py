"""How large a gradient is at the logits, from the selected log-probs alone: the [N,V] gradient is never formed.

N positions, V vocabulary, J chosen ids per position.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from adpa_cli.tensors.sums import NEVER, distinct, folded


class Stats(NamedTuple):
    """What the whole softmax of a position is like, [N] each: log of Σ p², and the entropy in nats; no gradient."""

    log_sum_squares: Tensor
    entropy: Tensor


def logit_grad_squares(
    ids: Tensor, logps: Tensor, rest: Tensor, log_sum_squares: Tensor, grad_logps: Tensor, grad_rest: Tensor
) -> Tensor:
    """‖dL/dz‖² [N], float64, of a loss L of `logps` [N,J] and `rest` [N] with respect to the logits z [N,V].

    `ids` [N,J], `logps`, `rest` and `log_sum_squares` as `selected_logps` takes and gives them; `grad_logps` [N,J] and
    `grad_rest` [N] are dL/dlogps and dL/drest. With S their sum, R the mass outside the ids and g_k the sum of the
    gradients at id k (an id may repeat, -1 is an absent one): dz_k = g_k - p_k S at the ids, dz_j = p_j (g_rest/R - S)
    elsewhere, so the square is Σ_ids (g_k - p_k S)² + (g_rest - R S)² (Σ_all p² - Σ_ids p²)/R².
    """
    none = rest == NEVER
    pulled = grad_rest.double().masked_fill(none, 0.0)
    given = grad_logps.double().masked_fill(ids < 0, 0.0)
    total = given.sum(1) + pulled
    again = ~distinct(ids)
    p = logps.double().exp().masked_fill(again, 0.0)
    inside = (folded(ids, given).masked_fill(again, 0.0) - p * total[:, None]).square().sum(1)
    mass = rest.double().exp()
    # Σp² is at most (Σp)²; where the outside is small the difference of two sums that agree in most digits is noise.
    spread = (log_sum_squares.double().exp() - p.square().sum(1)) / mass.square()
    outside = (pulled - mass * total).square() * spread.clamp(0.0, 1.0)
    return inside + outside.masked_fill(none, 0.0)
