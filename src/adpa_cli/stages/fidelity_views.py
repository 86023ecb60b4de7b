"""The losses of DCKD and ADPA as their methods read them: once from a stored signal, once from the full vocabulary.

Everything in float64; `dense` [T, V + 1] are a teacher's log-probs of V ids and of all others together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from adpa_cli.signal import SignalRows


def kl_and_top(dense: Tensor, rows: SignalRows) -> tuple[float, int]:
    """(KL(teacher || signal) over {ids, label if outside, rest}, summed over tokens; tokens with the same top-1)."""
    import torch

    ids, labels, outside = _ids(rows)
    inside = torch.zeros_like(dense, dtype=torch.bool).scatter(1, ids, True)
    inside[outside, labels[outside]] = True
    label = dense.gather(1, labels[:, None])[:, 0]
    own = [dense.gather(1, ids), _where(outside, label)[:, None], _mass(dense, ~inside)[:, None]]
    stored_label = torch.from_numpy(rows.label_logps).double()
    kept = [
        torch.from_numpy(rows.logps).double(),
        _where(outside, stored_label)[:, None],
        torch.from_numpy(rows.rest_logps).double()[:, None],
    ]
    p, q = torch.cat(own, 1), torch.cat(kept, 1)
    gap = torch.where(p > -math.inf, p - q.clamp(min=-1e4), 0.0)
    top = dense[:, :-1].argmax(1)
    found = torch.cat([ids, labels[:, None]], 1).gather(1, q[:, :-1].argmax(1, keepdim=True))[:, 0]
    return float((p.exp() * gap).sum()), int((top == found).sum())


def gradients(dense: Sequence[Tensor], rows: SignalRows) -> dict[str, tuple[Tensor, Tensor]]:
    """By method, the gradient of its loss for the student's logits [T, V]: from the signal, and from full softmaxes."""
    import torch

    from adpa_cli import methods

    pair = len(dense) > 1
    start = dense[1][:, :-1] if pair else dense[0][:, :-1] / 2
    wanted = [("dckd", "kl_chosen", "chosen", {"dispreferred": False})]
    wanted += [("adpa", "advantage", "rollout", {})] if pair else []
    ids, labels, _ = _ids(rows)
    every = torch.arange(start.shape[1]).expand(len(rows), -1)
    signals = ((ids, _stored(rows)), (every, _full(dense, labels)))
    found: dict[str, tuple[Tensor, Tensor]] = {}
    for name, term, part, params in wanted:
        method, both = methods.load(name), []
        for at, signal in signals:
            logits = start.clone().requires_grad_()
            views: dict[Any, Any] = {"chosen": _view(logits, labels, None, None)}
            views[part] = _view(logits, labels, at, signal)
            (values,) = [t.values for t in method.terms(views, method.params(**params)) if t.name == term]
            both.append(torch.autograd.grad(values.sum(), logits)[0])
        found[name] = both[0], both[1]
    return found


def _view(logits: Tensor, labels: Tensor, ids: Tensor | None, signal: Any) -> Any:
    """A student as a method sees it, at one answer."""
    import torch

    from adpa_cli.methods import View

    logps = logits.log_softmax(-1)
    here = logps.gather(1, labels[:, None])[:, 0]
    mask = torch.ones((1, len(labels)), dtype=torch.bool)
    if ids is None:
        return View(here[None], mask, ~mask)
    outside = torch.ones_like(logps, dtype=torch.bool).scatter(1, torch.cat([ids, labels[:, None]], 1), False)
    rest = _mass(logps, outside)
    known = (ids == labels[:, None]).any(1)
    return View(here[None], mask, ~mask, logps.gather(1, ids)[None], rest[None], known[None], signal)


def _stored(rows: SignalRows) -> Any:
    import torch

    from adpa_cli.engine.batch import SIGNAL_FIELDS
    from adpa_cli.methods import Signal

    def tensor(value: Any) -> Any:
        found = None if value is None else torch.from_numpy(value)[None]
        return found.double() if found is not None and found.is_floating_point() else found

    return Signal(**{name: tensor(getattr(rows, name)) for name in SIGNAL_FIELDS})


def _full(dense: Sequence[Tensor], labels: Tensor) -> Any:
    """The signal of a capture with every id: no floor, nothing outside but ids that the student lacks."""
    import torch

    from adpa_cli.methods import Signal

    aligned, at = dense[0], labels[:, None]
    own = [aligned[:, :-1], aligned.gather(1, at)[:, 0], aligned[:, -1]]
    if len(dense) > 1:
        other = dense[1]
        difference = aligned[:, :-1] - other[:, :-1]
        every = torch.ones_like(difference, dtype=torch.bool)
        own += [difference, every, other[:, :-1].amin(1), other.gather(1, at)[:, 0], other[:, -1]]
    return Signal(*(value[None] for value in own))


def _ids(rows: SignalRows) -> tuple[Tensor, Tensor, Tensor]:
    """[T, K] ids, [T] labels, [T] whether the label is not among the ids."""
    import torch

    ids, labels = torch.from_numpy(rows.ids).long(), torch.from_numpy(rows.label_ids).long()
    return ids, labels, (ids != labels[:, None]).all(1)


def _where(here: Tensor, values: Tensor) -> Tensor:
    """The values where `here`, no mass elsewhere."""
    return values.masked_fill(~here, -math.inf)


def _mass(logps: Tensor, counted: Tensor) -> Tensor:
    """[T] log of the mass of the classes that are counted, -inf without any; its gradient is 0 there."""
    some = counted.any(1)
    found = logps.masked_fill(~counted & some[:, None], -math.inf).logsumexp(1)
    return found.masked_fill(~some, -math.inf)
