"""Views that say the same in another way: what a method reads may come in any order and hold ids without meaning."""

from __future__ import annotations

import dataclasses
import math

import torch

from adpa_cli.methods import Method, View
from support.dense_batches import batch_for, view_of


def shuffled(view: View) -> View:
    """The ids of every position in another order."""
    if view.signal is None:
        return view
    order = torch.randperm(view.signal.logps.shape[-1], generator=torch.Generator().manual_seed(0))
    per_id = {
        f.name: value[..., order]
        for f in dataclasses.fields(view.signal)
        if (value := getattr(view.signal, f.name)) is not None and value.dim() == 3
    }
    return dataclasses.replace(
        view, topk_logps=view.topk_logps[..., order], signal=dataclasses.replace(view.signal, **per_id)
    )


def with_absent_id(view: View) -> View:
    """One more id at every position, one that the student lacks: aligned log-prob -inf, the student's reads 0."""
    if view.signal is None:
        return view

    def more(x: torch.Tensor | None, value: float) -> torch.Tensor | None:
        return None if x is None else torch.cat([torch.full_like(x[..., :1], value), x], -1)

    s = view.signal
    signal = dataclasses.replace(
        s, logps=more(s.logps, -math.inf), difference=more(s.difference, 3.0), in_reference=more(s.in_reference, True)
    )
    return dataclasses.replace(view, topk_logps=more(view.topk_logps, 0.0), signal=signal)


def assert_same_terms(method: Method, params: object, change) -> None:
    """The terms, and the gradient of their sum, are the same after `change` of every view."""
    inputs = batch_for(method, params)
    leaves = [x.logits for x in inputs.values()]
    views = {n.part: view_of(inputs[n.part], n, 4) for n in method.needs_for(params)}
    found = []
    for now in (views, {part: change(view) for part, view in views.items()}):
        terms = method.terms(now, params)
        total = sum(torch.where(views[t.part].mask, t.values, 0.0).sum() if t.values.dim() == 2 else t.values.sum()
                    for t in terms)  # fmt: skip
        grads = torch.autograd.grad(total, leaves, materialize_grads=True, retain_graph=True)
        found.append(([t.values.detach() for t in terms], grads))
    torch.testing.assert_close(found[1], found[0])
