"""The advantage of the paper's section 4.1, and its size against the step it is stored with."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from adpa_cli.signal.rows import Floats, SignalRows, finite_or_zero, pair_of


def advantage(rows: SignalRows) -> Floats:
    """[T, K] nats: aligned - max(reference, the reference's k-th): Gao et al. 2025, Eq. 10, floor of section 4.1.

    Raises DataError when the rows have no reference teacher.
    """
    difference, _, kth, *_ = pair_of(rows)
    result: Floats = np.minimum(difference, finite_or_zero(rows.logps) - kth[:, None])
    return result


def rms_advantage(answers: Iterable[SignalRows]) -> float:
    """Root mean square of the advantage in nats, every id of every token weighted alike; 0 without tokens.

    Ids without mass, under either teacher's floor, are left out.
    """
    total, count = 0.0, 0
    for rows in answers:
        values = advantage(rows).astype(np.float64)
        values = values[np.isfinite(values) & np.isfinite(rows.logps)]
        total += float(np.square(values).sum())
        count += values.size
    return math.sqrt(total / count) if count else 0.0
