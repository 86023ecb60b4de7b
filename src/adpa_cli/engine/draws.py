"""Sampled support: ids drawn from a teacher's softmax instead of its top k. Anshumann et al. 2025, ACL.

n positions, V vocabulary, S draws with replacement, K = min(S, V).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from adpa_cli.tensors.topk import split, top_ids


@dataclass(frozen=True)
class Draws:
    """How many ids are drawn for each token, and a key for each answer: its noise is a function of key and position."""

    count: int
    keys: Sequence[int]

    def noise(self, lengths: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
        """([N] key, [N] position in its answer) of every token of answers of these lengths."""
        counts = torch.tensor(lengths)
        positions = torch.cat([torch.arange(length) for length in lengths])
        return torch.tensor(self.keys).repeat_interleave(counts).to(device), positions.to(device)


def drawn(logits: Tensor, noise: Tensor) -> Tensor:
    """[n,S] int64 ids of softmax(`logits` [n,V]), one for each number of `noise` [n,S] in (0, 1)."""
    reached = logits.double().softmax(1).cumsum(1)
    # The last sum is 1 but for rounding; scaled to it no draw falls behind the last id, or on one without mass.
    return torch.searchsorted(reached, noise * reached[:, -1:]).clamp_max(logits.shape[1] - 1)


def sampled(
    logits: Tensor, labels: Tensor, known: Tensor, noise: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(ids [n,K], log-probs at them, part of the draws on each, log-probs of `labels` [n], of the mass elsewhere [n]).

    Ids that were drawn come first, then the label, then others, which have no log-prob. Draws of ids that are not
    `known` [V] are lost to the weights, as their terms are to a student that lacks them. `logits` are used up.
    """
    ids = drawn(logits, noise)
    counts = torch.zeros_like(logits).scatter_add_(1, ids, torch.ones_like(noise, dtype=logits.dtype))
    counts.masked_fill_(~known, 0)
    order = counts.scatter_add(1, labels[:, None], torch.full_like(labels[:, None], 0.5, dtype=logits.dtype))
    ids = top_ids(order, noise.shape[1])
    weights = counts.gather(1, ids) / noise.shape[1]
    filler = (weights == 0) & (ids != labels[:, None])
    label = labels[:, None]
    logps, rest = split(logits, torch.cat([label, torch.where(filler, label, ids)], 1))
    return ids, logps[:, 1:].masked_fill(filler, -float("inf")), weights, logps[:, 0], rest
