"""The output head of a language model: the logits that it makes of hidden states, and gradients at these logits.

How large a gradient is at the logits follows from the selected log-probs alone, so the [N,V] gradient is never formed.

N positions, H hidden size, V vocabulary, J chosen ids per position. Logits in nats.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from adpa_cli.sizes import GPU_LOGIT_CELLS, LOGIT_CELLS
from adpa_cli.tensors.sums import NEVER, distinct, folded
from adpa_cli.tensors.tiles import spans


@dataclass(frozen=True)
class Head:
    """Logits are `softcap * tanh(x / softcap)` of x = `scale` * (states @ weight.T + bias); x without a `softcap`.

    `weight` [V,H], `bias` [V].
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    def part(self, columns: slice) -> Head:
        """The head of some tokens."""
        return Head(self.weight[columns], None if self.bias is None else self.bias[columns], self.scale, self.softcap)

    def logits(self, products: Tensor, out: Tensor) -> Tensor:
        """Logits of `products` [N,V] (states @ weight.T), written to `out` [N,V], which may be `products` itself."""
        if products is not out:
            out.copy_(products)
        if self.bias is not None:
            out += self.bias
        if self.scale != 1.0:
            out *= self.scale
        if self.softcap is not None:
            out.div_(self.softcap).tanh_().mul_(self.softcap)
        return out

    @property
    def straight(self) -> bool:
        """Whether logits grow as products do."""
        return self.scale == 1.0 and self.softcap is None

    def slope(self, logits: Tensor) -> Tensor | float:
        """d logits / d products, of `logits` in any shape."""
        if self.softcap is None:
            return self.scale
        return (logits / self.softcap).square_().neg_().add_(1.0).mul_(self.scale)

    @torch.no_grad()
    def rows(self, hidden: Tensor, *, step: int = 0) -> Iterator[tuple[slice, Tensor]]:
        """(slice of N, logits [n,V] of hidden[slice]); at most `step` rows at a time, 0: from the sizes.

        `hidden` [N,H]. Products are float32, or float64 for float64. There is one product per row and one buffer for
        all, which the logits are a view of: the caller may write on them, and they are gone when the next come.
        """
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        step = step or tile_rows(self.weight.shape[0], hidden.device)
        weight = self.weight.to(dtype).T
        buffer = hidden.new_empty((min(step, len(hidden)), weight.shape[1]), dtype=dtype)
        with torch.autocast(hidden.device.type, enabled=False):
            for span in spans(len(hidden), step):
                products = buffer[: span.stop - span.start]
                torch.mm(hidden[span].to(dtype), weight, out=products)
                yield span, self.logits(products, products)


def tile_rows(vocabulary: int, device: torch.device) -> int:
    """Rows of logits held at once by `Head.rows`, from the sizes alone."""
    return max(1, (LOGIT_CELLS if device.type == "cpu" else GPU_LOGIT_CELLS) // vocabulary)


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
