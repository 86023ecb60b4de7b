"""Whole rows of logits, some at a time, straight from hidden states: their k likeliest tokens and the mass elsewhere.

One product per row and one buffer for all of them, so the memory is that of a tile however many rows there are.
N positions, H hidden size, V vocabulary, K ids, J asked ids. Logits and log-probs in nats, at least float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from adpa_cli.tensors.sums import NEVER, set_logsumexp
from adpa_cli.tensors.tiles import spans

TILE_CELLS = 2**23
GPU_CELLS = 8 * TILE_CELLS
"""A GPU needs more rows at a time to be busy: 256 MiB of float32."""
GROUP = 32
"""Neighbouring ids of which the greatest logit stands for all, in the first round of `top_ids`."""
LOW_BITS = 2**32 - 1


@dataclass(frozen=True)
class Head:
    """An output head: `weight` [V,H] and, if there is one, `bias` [V]."""

    weight: Tensor
    bias: Tensor | None = None

    @torch.no_grad()
    def rows(self, hidden: Tensor, where: Tensor, *, step: int = 0) -> Iterator[tuple[slice, Tensor]]:
        """(slice of N, logits [n,V] of hidden[where[slice]]); at most `step` rows at a time, 0: from the sizes.

        `hidden` [P,H], `where` [N]. Products are float32, or float64 for float64. The logits are a view of one buffer:
        the caller may write on them, and they are gone when the next come.
        """
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        step = step or tile_rows(self.weight.shape[0], hidden.device)
        weight = self.weight.to(dtype).T
        buffer = hidden.new_empty((min(step, len(where)), weight.shape[1]), dtype=dtype)
        with torch.autocast(hidden.device.type, enabled=False):
            for span in spans(len(where), step):
                logits = buffer[: span.stop - span.start]
                torch.mm(hidden[where[span]].to(dtype), weight, out=logits)
                if self.bias is not None:
                    logits += self.bias.to(dtype)
                yield span, logits


def tile_rows(vocabulary: int, device: torch.device) -> int:
    """Rows of logits held at once, from the sizes alone."""
    return max(1, (TILE_CELLS if device.type == "cpu" else GPU_CELLS) // vocabulary)


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
