"""Log-probs of a few chosen tokens per position, straight from hidden states, without the [N,V] logits.

Two sweeps over vocabulary tiles: the forward one is an online logsumexp, the backward one makes the gradients, each
tile of the weight's gradient written once. Logits are kept between the sweeps when they fit the budget.

N positions, H hidden size, V vocabulary, J chosen ids per position. All log-probs in nats.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

KEEP_BYTES = 64 * 2**20
TILE_CELLS = 2**23
TILE_COLUMNS = 2048
NEVER = -float("inf")


@dataclass(frozen=True)
class Selected:
    """`logps` [N,J] full-softmax log-probs at the ids; `rest` [N] log of the mass outside them, -inf when none is.

    `entropy` [N] and `log_sum_squares` [N] (log of the sum of p squared) carry no gradient; None unless asked for.
    """

    logps: Tensor
    rest: Tensor
    entropy: Tensor | None = None
    log_sum_squares: Tensor | None = None


def selected_logps(
    hidden: Tensor,
    weight: Tensor,
    ids: Tensor,
    bias: Tensor | None = None,
    *,
    stats: bool = False,
    budget: int = KEEP_BYTES,
    tile: tuple[int, int] | None = None,
) -> Selected:
    """Full-softmax log-probs at `ids` and the log of the mass outside the *set* of those ids, with exact gradients.

    `hidden` [N,H], `weight` [V,H], `bias` [V], `ids` [N,J] int64; an id may repeat, and -1 is an absent id: log-prob 0,
    no gradient. Products run in the autocast dtype, else in hidden's; the softmax is float32 (float64 for
    float64). `budget` is the most bytes of logits kept for the backward; `tile` (rows, columns) follows from the sizes.
    """
    dtype = compute_dtype(hidden)
    shape = tile or tile_shape(hidden.shape[0], weight.shape[0])
    keep = hidden.shape[0] * weight.shape[0] * 4 <= budget
    apply: Any = _SelectedLogps.apply
    return Selected(*apply(hidden, weight, bias, ids, dtype, shape, keep, stats))


def tile_shape(rows: int, vocabulary: int) -> tuple[int, int]:
    """Rows and columns of one tile of logits, from the sizes alone: all rows if 2,048 columns fit, else fewer rows."""
    columns = min(vocabulary, max(TILE_COLUMNS, TILE_CELLS // max(rows, 1)))
    return min(max(rows, 1), max(1, TILE_CELLS // columns)), columns


def tile_logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Logits of one tile: the product in `dtype`, the result in at least float32."""
    logits = (hidden.to(dtype) @ weight.to(dtype).T).to(torch.promote_types(dtype, torch.float32))
    return logits if bias is None else logits + bias.to(logits.dtype)


def spans(total: int, step: int) -> Iterator[slice]:
    """Consecutive slices of at most `step` that cover `total`."""
    return (slice(start, min(start + step, total)) for start in range(0, total, step))


def compute_dtype(hidden: Tensor) -> torch.dtype:
    """The dtype of the head's products: autocast's where it is on, else that of the hidden states."""
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype


def _columns(ids: Tensor, span: slice) -> Tensor:
    """Where the ids lie in a tile; those that do not lie in it, -1 among them, get the spare column after its end."""
    local = ids - span.start
    width = span.stop - span.start
    return torch.where((local >= 0) & (local < width), local, width)


def set_logsumexp(ids: Tensor, logits: Tensor) -> Tensor:
    """logsumexp of the logits over the distinct ids of each row; -inf for a row without ids."""
    ordered, order = ids.sort(dim=1)
    skip = ordered < 0
    skip[:, 1:] |= ordered[:, 1:] == ordered[:, :-1]
    return logits.gather(1, order).masked_fill(skip, NEVER).logsumexp(1)


class _Stats:
    """Entropy and log of the sum of squares, gathered tile by tile."""

    def __init__(self, like: Tensor) -> None:
        self.total = torch.full_like(like, NEVER)
        self.mean = torch.zeros_like(like)
        self.twice = torch.full_like(like, NEVER)

    def add(self, rows: slice, logits: Tensor) -> None:
        """Take in one tile of logits [rows, columns]."""
        here = logits.logsumexp(1)
        mean = ((logits - here[:, None]).exp() * logits.clamp_min(torch.finfo(logits.dtype).min)).sum(1)
        total = torch.logaddexp(self.total[rows], here)
        self.mean[rows] = self.mean[rows] * (self.total[rows] - total).exp() + mean * (here - total).exp()
        self.twice[rows] = torch.logaddexp(self.twice[rows], (2 * logits).logsumexp(1))
        self.total[rows] = total

    def result(self) -> tuple[Tensor, Tensor]:
        """Entropy [N] and log of the sum of squared probabilities [N]."""
        return self.total - self.mean, self.twice - 2 * self.total


class _SelectedLogps(torch.autograd.Function):
    """Autocast is switched off inside and every operand cast by hand, so that any device type is served alike."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        ids: Tensor,
        dtype: torch.dtype,
        shape: tuple[int, int],
        keep: bool,
        stats: bool,
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        chosen = hidden.new_zeros(ids.shape, dtype=torch.promote_types(dtype, torch.float32))
        outside = chosen.new_full(ids.shape[:1], NEVER)
        gathered = _Stats(outside) if stats else None
        kept = []
        with torch.autocast(hidden.device.type, enabled=False):
            for span in spans(weight.shape[0], shape[1]):
                head = weight[span].to(dtype)
                for rows in spans(ids.shape[0], shape[0]):
                    logits = tile_logits(hidden[rows], head, None if bias is None else bias[span], dtype)
                    if gathered:
                        gathered.add(rows, logits)
                    columns = _columns(ids[rows], span)
                    logits = F.pad(logits, (0, 1), value=NEVER)
                    chosen[rows] = torch.where(columns < head.shape[0], logits.gather(1, columns), chosen[rows])
                    logits.scatter_(1, columns, NEVER)
                    outside[rows] = torch.logaddexp(outside[rows], logits.logsumexp(1))
                    if keep and any(ctx.needs_input_grad[:3]):
                        kept.append(logits)
            total = torch.logaddexp(outside, set_logsumexp(ids, chosen))
        logps = torch.where(ids < 0, 0.0, chosen - total[:, None])
        rest = outside - total
        ctx.save_for_backward(hidden, weight, bias, ids, logps, rest, outside, *kept)
        ctx.dtype, ctx.shape = dtype, shape
        entropy, squares = gathered.result() if gathered else (None, None)
        if gathered:
            ctx.mark_non_differentiable(entropy, squares)
        return logps, rest, entropy, squares

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_logps: Tensor, grad_rest: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, ids, logps, rest, outside, *kept = ctx.saved_tensors
        grad_logps = grad_logps.masked_fill(ids < 0, 0.0)
        grad_rest = grad_rest.masked_fill(rest == NEVER, 0.0)
        total = grad_logps.sum(1) + grad_rest
        pull = total[:, None] * logps.exp()
        # Over the outside, dz = exp(z - outside) * push: one exponential, and no exp(-rest), which overflows.
        push = (grad_rest - total * rest.exp())[:, None]
        shift = torch.where(outside == NEVER, 0.0, outside)[:, None]
        need_hidden, need_weight, need_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.zeros_like(hidden, dtype=logps.dtype) if need_hidden else None
        grad_weight = torch.empty_like(weight) if need_weight else None
        grad_bias = torch.empty_like(bias) if need_bias else None
        tiles = iter(kept)
        with torch.autocast(hidden.device.type, enabled=False):
            for span in spans(weight.shape[0], ctx.shape[1]):
                head = weight[span].to(ctx.dtype)
                weight_sum = torch.zeros_like(head, dtype=logps.dtype)
                bias_sum = weight_sum.new_zeros(head.shape[0])
                for rows in spans(ids.shape[0], ctx.shape[0]):
                    columns = _columns(ids[rows], span)
                    logits = next(tiles, None)
                    if logits is None:
                        logits = tile_logits(hidden[rows], head, None if bias is None else bias[span], ctx.dtype)
                        logits = F.pad(logits, (0, 1), value=NEVER).scatter_(1, columns, NEVER)
                    grad = (logits - shift[rows]).exp_().mul_(push[rows])
                    grad.scatter_add_(1, columns, grad_logps[rows])
                    # An id that repeats is written twice with one value; its gradients were summed just above.
                    grad.scatter_(1, columns, grad.gather(1, columns) - pull[rows])
                    grad = grad[:, :-1]
                    if grad_bias is not None:
                        bias_sum += grad.sum(0)
                    small = grad.to(ctx.dtype)
                    if grad_hidden is not None:
                        grad_hidden[rows] += small @ head
                    if grad_weight is not None:
                        weight_sum += small.T @ hidden[rows].to(ctx.dtype)
                if grad_weight is not None:
                    grad_weight[span] = weight_sum
                if grad_bias is not None:
                    grad_bias[span] = bias_sum
        grad_hidden = None if grad_hidden is None else grad_hidden.to(hidden.dtype)
        return grad_hidden, grad_weight, grad_bias, None, None, None, None, None
