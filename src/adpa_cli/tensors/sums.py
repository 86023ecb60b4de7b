"""Sums over the vocabulary that are gathered tile by tile, the chosen ids left out of them and added at the end.

N positions, J chosen ids per position, -1 for an absent one. Logits and logs in nats.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

NEVER = -float("inf")


@dataclass(frozen=True)
class Sums:
    """Over the tokens seen so far that are not chosen, with e = exp(logit - top): all [N], written in place.

    `top` is the greatest logit, `total` the sum of e, `spread` of e * (logit - top), `squares` of e squared; the last
    two are made only when asked for.
    """

    top: Tensor
    total: Tensor
    spread: Tensor | None
    squares: Tensor | None

    @staticmethod
    def start(like: Tensor, stats: bool) -> Sums:
        """Of no token."""
        spread, squares = (torch.zeros_like(like), torch.zeros_like(like)) if stats else (None, None)
        return Sums(torch.full_like(like, NEVER), torch.zeros_like(like), spread, squares)

    def of(self, rows: slice) -> Sums:
        """Views of some rows."""
        spread, squares = (None if t is None else t[rows] for t in (self.spread, self.squares))
        return Sums(self.top[rows], self.total[rows], spread, squares)

    def outside(self) -> Tensor:
        """logsumexp [N] of the logits that are not chosen; -inf where there are none."""
        return self.top + self.total.log()

    def stats(self, chosen: Tensor, ids: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
        """Entropy [N] and log of the sum of squared probabilities [N], given the logits of all chosen ids [N,J] and the
        logsumexp `total` [N] of all tokens."""
        if self.spread is None or self.squares is None:
            raise ValueError("these sums were gathered without statistics")
        seen = chosen.masked_fill(~distinct(ids), NEVER) - total[:, None]
        below = torch.where(self.top == NEVER, 0.0, self.top - total)
        log_p = self.spread + below * self.total
        mean = below.exp() * log_p + (seen.exp() * seen.masked_fill(seen == NEVER, 0.0)).sum(1)
        return -mean, torch.logaddexp(2 * below + self.squares.log(), (2 * seen).logsumexp(1))


def finite(top: Tensor) -> Tensor:
    """`top` with 0 for -inf, so that it can be subtracted from -inf."""
    return torch.where(top == NEVER, 0.0, top)


def set_logsumexp(ids: Tensor, logits: Tensor) -> Tensor:
    """logsumexp of the logits over the distinct ids of each row; -inf for a row without ids."""
    ordered, order = ids.sort(dim=1)
    skip = ordered < 0
    skip[:, 1:] |= ordered[:, 1:] == ordered[:, :-1]
    return logits.gather(1, order).masked_fill(skip, NEVER).logsumexp(1)


def first_of_each(ids: Tensor) -> Tensor:
    """[N,J]: for each id the place of the first one in its row that equals it."""
    ordered, order = ids.sort(dim=1, stable=True)
    again = torch.zeros_like(ids, dtype=torch.bool)
    again[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    start = torch.arange(ids.shape[1], device=ids.device).masked_fill(again, 0).cummax(1).values
    return torch.empty_like(ids).scatter_(1, order, order.gather(1, start))


def distinct(ids: Tensor) -> Tensor:
    """[N,J]: which ids are there and equal none before them in their row."""
    return (ids >= 0) & (first_of_each(ids) == torch.arange(ids.shape[1], device=ids.device))


def folded(ids: Tensor, values: Tensor) -> Tensor:
    """[N,J]: for each id the sum of the `values` [N,J] of all that equal it in its row."""
    if ids.shape[1] < 2:
        return values
    first = first_of_each(ids)
    return torch.zeros_like(values).scatter_add_(1, first, values).gather(1, first)
