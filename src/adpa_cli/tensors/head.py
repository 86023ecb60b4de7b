"""Log-probs of a few chosen tokens per position, straight from hidden states, without the [N,V] logits.

Two sweeps over tiles of the vocabulary: the first is an online logsumexp, the second makes the gradients, each tile of
the weight's gradient written once. Between them products of hidden states and weight are kept in the memory of that
gradient and within a budget (`tiles.Kept`); the others are computed again. A frozen head needs no second sweep:
the first one gathers the mean of the weight's rows under the softmax outside the chosen ids, which is all that the
gradient of hidden states needs beside the rows of the chosen ids themselves.

N positions, H hidden size, V vocabulary, J chosen ids per position. All log-probs in nats.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from adpa_cli.tensors.output import Head, Stats
from adpa_cli.tensors.sums import NEVER, distinct, finite, folded, set_logsumexp
from adpa_cli.tensors.sweeps import Sweep
from adpa_cli.tensors.tiles import Kept, kept_bytes, rows_inside, tile_shape


@dataclass(frozen=True)
class Selected:
    """`logps` [N,J] full-softmax log-probs at the ids; `rest` [N] log of the mass outside them, -inf when none is;
    `stats` None unless asked for."""

    logps: Tensor
    rest: Tensor
    stats: Stats | None = None


def selected_logps(
    hidden: Tensor,
    weight: Tensor,
    ids: Tensor,
    bias: Tensor | None = None,
    *,
    stats: bool = False,
    budget: int | None = None,
    tile: tuple[int, int] | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
) -> Selected:
    """Full-softmax log-probs at `ids` and the log of the mass outside the *set* of those ids, with exact gradients.

    `hidden` [N,H], `weight` [V,H], `bias` [V], `ids` [N,J] int64; an id may repeat, and -1 is an absent id: log-prob 0,
    no gradient. `scale` and `softcap` as in `Head`. Products run in the autocast dtype, else in hidden's; the softmax
    is float32 (float64 for float64). `budget` is the most bytes of logits kept for the backward beside the gradients;
    it and `tile` (rows, columns) follow from the sizes.
    """
    rows, vocabulary = hidden.shape[0], weight.shape[0]
    budget = kept_bytes(rows, vocabulary) if budget is None else budget
    shape = tile or tile_shape(rows, vocabulary, hidden.device.type)
    kind = hidden.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
    plan = Plan(dtype, shape, budget, scale, softcap)
    if not torch.is_grad_enabled():  # a Function knows what requires a gradient, not whether one will be asked for
        hidden, weight, bias = hidden.detach(), weight.detach(), None if bias is None else bias.detach()
    apply: Any = _SelectedLogps.apply
    logps, rest, *about = apply(hidden, weight, bias, ids, plan, stats)
    return Selected(logps, rest, Stats(*about) if stats else None)


@dataclass(frozen=True)
class Plan:
    """Dtype of the products, most rows and columns of a tile, bytes kept beside the gradients; scale and cap."""

    dtype: torch.dtype
    tile: tuple[int, int]
    budget: int
    scale: float
    softcap: float | None


class _SelectedLogps(torch.autograd.Function):
    """Autocast is switched off inside and every operand cast by hand, so that any device type is served alike."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, ids: Tensor, plan: Plan, stats: bool
    ) -> tuple[Tensor, ...]:
        head = Head(weight, bias, plan.scale, plan.softcap)
        kept, mean = _between(hidden, weight, plan, *ctx.needs_input_grad[:3])
        with torch.autocast(hidden.device.type, enabled=False):
            chosen, sums = Sweep(hidden.to(plan.dtype), head, ids.contiguous(), plan.tile, kept).gather(stats, mean)
            outside = sums.outside()
            total = torch.logaddexp(outside, set_logsumexp(ids, chosen))
        logps = torch.where(ids < 0, 0.0, chosen - total[:, None])
        ctx.save_for_backward(hidden, weight, bias, ids, logps, outside, total, mean, *kept.beside.values())
        ctx.plan, ctx.gradient, ctx.rows, ctx.beside = plan, kept.gradient, kept.rows, tuple(kept.beside)
        about = sums.stats(chosen, ids, total) if stats else ()
        ctx.mark_non_differentiable(*about)
        return logps, outside - total, *about

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_logps: Tensor, grad_rest: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, ids, logps, outside, total, mean, *beside = ctx.saved_tensors
        plan: Plan = ctx.plan
        head = Head(weight, bias, plan.scale, plan.softcap)
        inside = (outside - total).exp()
        grad_logps = grad_logps.masked_fill(ids < 0, 0.0)
        grad_rest = grad_rest.masked_fill(outside == NEVER, 0.0)
        grad_total = grad_logps.sum(1) + grad_rest
        # Over the outside, dz = exp(z - outside) * push: one exponential, and no exp(-rest), which overflows.
        push = grad_rest - grad_total * inside
        values = (folded(ids, grad_logps) - grad_total[:, None] * logps.exp()) * head.slope(logps + total[:, None])
        with torch.autocast(hidden.device.type, enabled=False):
            if mean is not None:
                of_chosen = _rows_of(weight, ids, values)
                return (of_chosen.addcmul_(mean, push[:, None]).to(hidden.dtype), *[None] * 5)
            # The gradient's memory is handed out once: a second backward computes again what it held.
            kept = Kept(plan.dtype, ctx.gradient, ctx.rows, beside=dict(zip(ctx.beside, beside, strict=True)))
            ctx.gradient = None
            sweep = Sweep(hidden.to(plan.dtype), head, ids.contiguous(), plan.tile, kept)
            grads = sweep.pull(values.contiguous(), finite(outside), push, ctx.needs_input_grad[:3])
        of_hidden, of_weight, of_bias = grads
        of_hidden = None if of_hidden is None else of_hidden.to(hidden.dtype)
        return of_hidden, of_weight, None if of_bias is None else of_bias.to(bias.dtype), None, None, None


def _between(
    hidden: Tensor, weight: Tensor, plan: Plan, need_hidden: bool, need_weight: bool, need_bias: bool
) -> tuple[Kept, Tensor | None]:
    """What the first sweep leaves to the second: memory for products, or for the mean of a frozen head's rows."""
    rows = len(hidden)
    fits = rows * len(weight) * plan.dtype.itemsize <= plan.budget
    if need_weight:
        inside = rows_inside(weight, plan.dtype, rows, plan.budget)
        return Kept(plan.dtype, torch.empty_like(weight) if inside else None, inside, plan.budget), None
    if need_bias or (need_hidden and fits):
        return Kept(plan.dtype, budget=plan.budget), None
    wide = torch.promote_types(plan.dtype, torch.float32)
    return Kept(plan.dtype), torch.zeros_like(hidden, dtype=wide) if need_hidden else None


def _rows_of(weight: Tensor, ids: Tensor, values: Tensor) -> Tensor:
    """[N,H]: rows of `weight` [V,H] at the distinct `ids` [N,J], weighted with `values` [N,J] and summed."""
    once = values.masked_fill(~distinct(ids), 0.0)
    rows = F.embedding_bag(ids.clamp_min(0), weight, per_sample_weights=once.to(weight.dtype), mode="sum")
    return rows.to(values.dtype)
