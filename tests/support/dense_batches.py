"""Random batches for the tests of methods: views of a dense softmax, made without the package's own tensor code."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from adpa_cli.methods import Experience, Method, Need, Signal, View


@dataclass(frozen=True)
class Inputs:
    """One part of a batch: logits [B,T,V] of the student (a leaf) and of the teachers; labels, mask, end [B,T]."""

    logits: Tensor
    aligned: Tensor
    reference: Tensor
    start: Tensor
    labels: Tensor
    mask: Tensor
    end: Tensor

    def apply(self, change) -> Inputs:
        """Every tensor changed alike; the student's logits are a leaf again."""
        out = Inputs(*(change(getattr(self, f.name)) for f in dataclasses.fields(self)))
        return dataclasses.replace(out, logits=out.logits.detach().clone().requires_grad_())


def random_inputs(seed: int, rows=4, time=6, vocabulary=9, dtype=torch.float64, scale=1.5) -> Inputs:
    """Answers of different lengths after prompts of different lengths; the last row is cut and has no end token."""
    g = torch.Generator().manual_seed(seed)
    logits, aligned, reference, start = (
        (torch.randn(rows, time, vocabulary, generator=g, dtype=torch.float64) * scale).to(dtype) for _ in range(4)
    )
    labels = torch.randint(0, vocabulary, (rows, time), generator=g)
    first = torch.randint(0, 2, (rows, 1), generator=g)
    last = torch.randint(2, time, (rows, 1), generator=g)
    place = torch.arange(time)[None]
    end = place == last
    end[-1] = False
    return Inputs(logits.requires_grad_(), aligned, reference, start, labels, (place >= first) & (place <= last), end)


def log_mass_outside(logps: Tensor, ids: Tensor) -> Tensor:
    """Log of the mass of [...,V] log-probs outside the ids [...,J], -inf when there is none."""
    inside = torch.zeros_like(logps, dtype=torch.bool).scatter(-1, ids, True)
    full = inside.all(-1)
    mass = logps.masked_fill(inside & ~full[..., None], -math.inf).logsumexp(-1)
    return torch.where(full, -math.inf, mass)


def signal_of(x: Inputs, k: int, reference: bool) -> tuple[Signal, Tensor]:
    """What a capture with k ids stores, in full precision, and the ids [B,T,k]."""
    aligned, ref = x.aligned.log_softmax(-1), x.reference.log_softmax(-1)
    top = aligned.topk(k, dim=-1)
    label = x.labels[..., None]
    seen = torch.cat([top.indices, label], -1)
    own = [top.values, aligned.gather(-1, label)[..., 0], log_mass_outside(aligned, seen)]
    if not reference:
        return Signal(*own, weights=top.values.softmax(-1)), top.indices  # as if drawn; a top k has no use for them
    theirs = ref.topk(k, dim=-1)
    pair = (
        top.values - ref.gather(-1, top.indices),
        (top.indices[..., None] == theirs.indices[..., None, :]).any(-1),
        theirs.values[..., -1],
        ref.gather(-1, label)[..., 0],
        log_mass_outside(ref, seen),
    )
    return Signal(*own, *pair), top.indices


def view_of(x: Inputs, need: Need, k: int) -> View:
    """The student on that part as a method sees it."""
    logps = x.logits.log_softmax(-1)
    label = x.labels[..., None]
    here = logps.gather(-1, label)[..., 0]
    reward = (x.aligned.mean(-1) * x.mask).sum(1) if need.reward else None
    start = x.start.log_softmax(-1).gather(-1, label)[..., 0] if need.start else None
    squares = (2 * logps.detach()).logsumexp(-1) if need.stats else None
    if not need.signal:
        plain = View(here, x.mask, x.end, start_logps=start, log_sum_squares=squares, reward=reward)
        return dataclasses.replace(plain, **drawn_online(x, here)) if need.online else plain
    signal, ids = signal_of(x, k, "reference" in need.signal)
    rest = log_mass_outside(logps, torch.cat([ids, label], -1))
    return View(here, x.mask, x.end, logps.gather(-1, ids), rest, (ids == label).any(-1), signal, start, squares)


def drawn_online(x: Inputs, here: Tensor) -> dict[str, Tensor | Experience]:
    """A critic's numbers, and an experience of a policy near the student, of moderate size."""
    values, near, gained, earned = (
        torch.tanh(logits[..., 0]) for logits in (x.aligned, x.reference, x.start, x.aligned - x.start)
    )
    return {"values": values, "experience": Experience(here.detach() + 0.3 * near, values - 0.1 * near, gained, earned)}


def reduced(values: Tensor, mask: Tensor, reduction: str) -> Tensor:
    """The reductions of a whole batch, row by row, as their definitions read."""
    if values.dim() == 1:
        return values.mean()
    rows = [v[m] for v, m in zip(values, mask, strict=True)]
    if reduction == "tokmean":
        return torch.cat(rows).mean()
    return torch.stack([r.mean() if reduction == "seqmean" else r.sum() for r in rows]).mean()


def loss_of(method: Method, params, inputs: dict[str, Inputs], k: int = 4) -> Tensor:
    """The loss of a whole batch."""
    views = {need.part: view_of(inputs[need.part], need, k) for need in method.needs_for(params)}
    terms = method.terms(views, params)
    return sum(t.weight * reduced(t.values, views[t.part].mask, t.reduction) for t in terms)


def batch_for(method: Method, params, seed: int = 0, **sizes) -> dict[str, Inputs]:
    """Random inputs for every part that the method needs."""
    return {need.part: random_inputs(seed + i, **sizes) for i, need in enumerate(method.needs_for(params))}


def value_and_gradients(
    method: Method, params, inputs: dict[str, Inputs], k: int = 4
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss and its gradient for the student's logits of each part."""
    loss = loss_of(method, params, inputs, k)
    leaves = [x.logits for x in inputs.values()]
    return loss.detach(), dict(zip(inputs, torch.autograd.grad(loss, leaves, materialize_grads=True), strict=True))
