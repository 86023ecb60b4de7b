"""The k likeliest tokens per position, straight from hidden states, tile by tile and the same on every run."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from adpa_cli.tensors.head import NEVER, compute_dtype, spans, tile_logits, tile_shape

LOW_BITS = 2**32 - 1


@dataclass(frozen=True)
class TopK:
    """`logps` [N,k] float32 full-softmax log-probs, descending; `ids` [N,k] int64; `lse` [N] of the logits."""

    logps: Tensor
    ids: Tensor
    lse: Tensor


@torch.no_grad()
def head_topk(
    hidden: Tensor,
    weight: Tensor,
    k: int,
    bias: Tensor | None = None,
    *,
    tile: tuple[int, int] | None = None,
) -> TopK:
    """Top k of softmax(hidden @ weight.T + bias) in nats; k is cut to V, equal logits go to the lower id.

    `hidden` [N,H], `weight` [V,H], `bias` [V]. A logit that is not finite shows as an `lse` that is not.
    """
    dtype = compute_dtype(hidden)
    rows_step, columns_step = tile or tile_shape(hidden.shape[0], weight.shape[0])
    k = min(k, weight.shape[0])
    parts = []
    with torch.autocast(hidden.device.type, enabled=False):
        for rows in spans(hidden.shape[0], rows_step):
            best = hidden.new_empty((rows.stop - rows.start, 0), dtype=torch.int64)
            lse = hidden.new_full((rows.stop - rows.start,), NEVER, dtype=torch.float32)
            for span in spans(weight.shape[0], columns_step):
                logits = tile_logits(hidden[rows], weight[span], None if bias is None else bias[span], dtype).float()
                lse = torch.logaddexp(lse, logits.logsumexp(1))
                keys = torch.cat([best, sort_keys(logits, span.start)], dim=1)
                best = keys.topk(min(k, keys.shape[1]), dim=1).values
            parts.append((_logits(best) - lse[:, None], LOW_BITS - (best & LOW_BITS), lse))
    if not parts:
        return TopK(
            *(
                hidden.new_empty(shape, dtype=kind)
                for shape, kind in (((0, k), torch.float32), ((0, k), torch.int64), ((0,), torch.float32))
            )
        )
    return TopK(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


def sort_keys(logits: Tensor, start: int) -> Tensor:
    """One int64 per logit [n,columns] that sorts by value, then by lower id; none are equal, so topk has no choice."""
    ids = torch.arange(start, start + logits.shape[1], device=logits.device)
    # Adding 0 turns -0.0 into 0.0. The bits of a float sort as it does, once those of a negative one are flipped.
    bits = (logits + 0.0).view(torch.int32).long()
    return (torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits) << 32) + (LOW_BITS - ids)


def _logits(keys: Tensor) -> Tensor:
    """The float32 logits back from their keys."""
    high = keys >> 32
    return torch.where(high < 0, high ^ 0x7FFFFFFF, high).to(torch.int32).view(torch.float32)
