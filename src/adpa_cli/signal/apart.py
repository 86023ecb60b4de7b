"""How far what is stored of an answer is from what a teacher says of it now."""

from __future__ import annotations

import numpy as np

from adpa_cli.signal.rows import Floats, SignalRows, SignalSpec, finite_or_zero, pair_of

EXACT = 1 / 1024
"""What counts as a step, in nats, where the values are stored exactly: more than the noise of floating point."""


def steps_apart(stored: SignalRows, now: SignalRows, spec: SignalSpec) -> float:
    """The greatest distance between stored (`raw`) and newly computed values of an answer, in quantisation steps.

    An id that only one side has counts by how far its log-prob is from the least of the other: near ties may swap.
    Infinite for another answer.
    """
    if stored.label_ids.tolist() != now.label_ids.tolist() or stored.ids.shape != now.ids.shape:
        return np.inf
    step, pair_step = spec.step or EXACT, spec.difference_step or EXACT
    found = [_far(stored.label_logps, now.label_logps, step), _far(stored.rest_logps, now.rest_logps, step)]
    for t in range(len(now)):
        _, mine, theirs = np.intersect1d(stored.ids[t], now.ids[t], return_indices=True)
        found.append(_far(stored.logps[t, mine], now.logps[t, theirs], step))
        if len(mine) < stored.ids.shape[1]:
            found += [_alone(stored, now, t, step), _alone(now, stored, t, step)]
        if spec.has_reference:
            found.append(_far(pair_of(stored)[0][t, mine], pair_of(now)[0][t, theirs], pair_step))
    if spec.has_reference:
        found += [_far(a, b, pair_step) for a, b in zip(_beside(stored), _beside(now), strict=True)]
    return max(found, default=0.0)


def _beside(rows: SignalRows) -> list[Floats]:
    """What is stored of the reference beside the ids: its k-th, and aligned - reference of the label and the rest."""
    _, _, kth, label, rest = pair_of(rows)
    return [kth, finite_or_zero(rows.label_logps) - label, finite_or_zero(rows.rest_logps) - rest]


def _alone(one: SignalRows, other: SignalRows, t: int, step: float) -> float:
    """How far the ids that only `one` has at token t are above the least log-prob of the `other`, in steps."""
    lacking = ~np.isin(one.ids[t], other.ids[t])
    return float(np.max(one.logps[t, lacking] - other.logps[t].min(), initial=0.0)) / step


def _far(stored: Floats, now: Floats, step: float) -> float:
    with np.errstate(invalid="ignore"):
        apart = np.where(stored == now, 0.0, np.abs(stored.astype(np.float64) - now))
    return float(np.max(apart, initial=0.0)) / step
