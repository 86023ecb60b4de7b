"""From unreduced values to the part of the loss that a micro-batch adds, given the sizes of the global batch."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Reduction = Literal["seqmean", "tokmean", "seqsum"]


def reduce(
    values: Tensor, mask: Tensor, reduction: Reduction = "seqmean", *, batch_rows: int, batch_tokens: int
) -> Tensor:
    """One scalar; over the micro-batches of a step these add up to the global reduction, however it was split.

    `values` [B,T] per token or [B] per example; `mask` [B,T] bool. `batch_rows` and `batch_tokens` are the rows and the
    unmasked tokens of this part in the global batch. `seqmean`: mean over rows of each row's token mean; `tokmean`:
    mean over all tokens; `seqsum`: mean over rows of each row's sum. [B] values: mean over rows. An empty row adds 0.
    """
    if values.dim() == 1:
        return values.sum() / batch_rows
    kept = torch.where(mask, values, 0.0)
    if reduction == "tokmean":
        return kept.sum() / max(batch_tokens, 1)
    sums = kept.sum(1)
    if reduction == "seqmean":
        sums = sums / mask.sum(1).clamp_min(1)
    return sums.sum() / batch_rows
