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
    if reduction == "tokmean":
        return torch.where(mask, values, 0.0).sum() / max(batch_tokens, 1)
    return over_answer(values, mask, mean=reduction == "seqmean").sum() / batch_rows


def over_answer(values: Tensor, mask: Tensor, *, mean: bool) -> Tensor:
    """Sum or mean of `values` [B,T] over the positions of `mask` [B,T] bool of each row, [B]; 0 for an empty row."""
    sums = torch.where(mask, values, 0.0).sum(1)
    return sums / mask.sum(1).clamp_min(1) if mean else sums
