"""Sums over the vocabulary and choices in it: gathered tile by tile, or taken of whole rows of logits.

In the first the chosen ids are left out of the sums and added at the end. Whole rows, as `output.Head.rows` gives them,
are asked for their likeliest ids, for the log-probs at some ids and for the mass elsewhere.

N or n positions, V vocabulary, K likeliest ids, J chosen ids per position, -1 for an absent one. Logits and logs in
nats, at least float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

NEVER = -float("inf")
GROUP = 32
"""Neighbouring ids of which the greatest logit stands for all, in the first round of `top_ids`."""
LOW_BITS = 2**32 - 1


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
        """Log of the sum of squared probabilities [N] and entropy [N], given the logits of all chosen ids [N,J] and the
        logsumexp `total` [N] of all tokens."""
        if self.spread is None or self.squares is None:
            raise ValueError("these sums were gathered without statistics")
        seen = chosen.masked_fill(~distinct(ids), NEVER) - total[:, None]
        below = torch.where(self.top == NEVER, 0.0, self.top - total)
        log_p = self.spread + below * self.total
        mean = below.exp() * log_p + (seen.exp() * seen.masked_fill(seen == NEVER, 0.0)).sum(1)
        return torch.logaddexp(2 * below + self.squares.log(), (2 * seen).logsumexp(1)), -mean


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


def top_ids(logits: Tensor, k: int) -> Tensor:
    """[n,K] int64 ids of the greatest `logits` [n,V], falling; K = min(k, V); of equal ones the lower id comes first.

    The vocabulary is not sorted: the best k groups of neighbours hold the best k ids, for each group before
    the one of an id has an id of its own that comes before that one.
    """
    size = logits.shape[1]
    k = min(k, size)
    whole = size - size % GROUP
    if whole <= 2 * k * GROUP:
        return _best(logits, torch.arange(size, device=logits.device).expand_as(logits), k)
    leaders = logits[:, :whole].view(len(logits), -1, GROUP).amax(2)
    groups = _best(leaders, torch.arange(leaders.shape[1], device=logits.device).expand_as(leaders), k)
    members = groups[:, :, None] * GROUP + torch.arange(GROUP, device=logits.device)
    tail = torch.arange(whole, size, device=logits.device).expand(len(logits), -1)
    ids = torch.cat([members.flatten(1), tail], 1)
    return _best(logits.gather(1, ids), ids, k)


def _best(logits: Tensor, ids: Tensor, k: int) -> Tensor:
    """The `ids` [n,C] of the k greatest `logits` [n,C]."""
    return LOW_BITS - (sort_keys(logits, ids).topk(k, dim=1).values & LOW_BITS)


def sort_keys(logits: Tensor, ids: Tensor) -> Tensor:
    """One int64 per logit [n,C] that sorts by value, then by lower id; none are equal, so topk has no choice."""
    # Adding 0 turns -0.0 into 0.0. The bits of a float sort as it does, once those of a negative one are flipped.
    bits = (logits.float() + 0.0).view(torch.int32).long()
    return (torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits) << 32) + (LOW_BITS - ids)


def split(logits: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """(log-probs [n,J] at `ids`, log of the mass outside the *set* of them [n], -inf when none is); an id may repeat.

    `logits` [n,V], as `Head.rows` gives them, are used up. Adding is stable, subtracting is not: the mass outside is
    summed with the ids struck out.
    """
    chosen = logits.gather(1, ids)
    logits.scatter_(1, ids, NEVER)
    outside = logits.logsumexp(1)
    total = torch.logaddexp(outside, set_logsumexp(ids, chosen))
    return chosen - total[:, None], outside - total
