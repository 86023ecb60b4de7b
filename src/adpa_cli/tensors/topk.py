"""Whole rows of logits, as `output.Head.rows` gives them: their k likeliest tokens and the mass elsewhere.

V vocabulary, K ids, J asked ids. Logits and log-probs in nats, at least float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from adpa_cli.tensors.sums import NEVER, set_logsumexp

GROUP = 32
"""Neighbouring ids of which the greatest logit stands for all, in the first round of `top_ids`."""
LOW_BITS = 2**32 - 1


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
