"""Intervals and tests for numbers that belong to prompts: those of one prompt are drawn, and change sides, together.

A group is the prompt of a number; without groups every number is its own. Nothing here is worth importing numpy for
until it is called.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

RESAMPLES = 2000
FLIPS = 20_000
"""Draws of signs where all combinations are more."""
ROUNDING = 1e-9
"""Of the greatest sum: two sums that differ by less are equal."""
T_QUANTILES = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
    2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
"""The 97.5 % points of Student's t for 1, 2, … degrees of freedom; the last one is used for more."""


def bootstrap(values: Any, groups: Sequence[str] = (), resamples: int = RESAMPLES, seed: int = 0) -> dict[str, float]:
    """Mean of `values` [n], its 95 % percentile interval (`low`, `high`) over resamples of the groups, and `n`."""
    import numpy as np

    sums, counts = _grouped(values, groups)
    picks = np.random.Generator(np.random.PCG64(seed)).integers(0, len(sums), (resamples, len(sums)))
    low, high = np.percentile(sums[picks].sum(1) / counts[picks].sum(1), [2.5, 97.5])
    mean = float(np.asarray(values, dtype=np.float64).mean())
    return {"value": mean, "low": float(low), "high": float(high), "n": len(values)}


def crossed_interval(table: Any) -> tuple[float, float, float]:
    """Mean of `table` [seeds, prompts], and the ends of its 95 % interval for other seeds and other prompts.

    The variances of the means by seed and by prompt add up, which counts what they share twice (Owen 2007), so that the
    interval is never narrower than it should be; few seeds widen it by Student's t. Of one seed it is unbounded.
    """
    import numpy as np

    values = np.asarray(table, dtype=np.float64)
    mean, seeds = float(values.mean()), len(values)
    if seeds == 1:
        return mean, -math.inf, math.inf
    by_row, by_column = (values.mean(axis) for axis in (1, 0))
    variance = sum(float(each.var(ddof=1)) / len(each) for each in (by_row, by_column) if len(each) > 1)
    half = T_QUANTILES[min(seeds - 1, len(T_QUANTILES)) - 1] * math.sqrt(variance)
    return mean, mean - half, mean + half


def sign_flip_p(differences: Any, groups: Sequence[str] = (), seed: int = 0) -> float:
    """The share of all ways to swap the sides of the groups whose mean difference is at least as far from 0, two-sided.

    All ways are counted where they are at most FLIPS, else so many are drawn, and the one that was found counts too.
    """
    import numpy as np

    sums = _grouped(differences, groups)[0]
    sums = sums[sums != 0]
    found = abs(float(sums.sum())) - ROUNDING * float(np.abs(sums).sum())
    if 2 ** len(sums) <= FLIPS:
        ways = np.arange(2 ** len(sums))[:, None] >> np.arange(len(sums)) & 1
        return float((np.abs((1 - 2 * ways) @ sums) >= found).mean()) if len(sums) else 1.0
    drawn = np.random.Generator(np.random.PCG64(seed))
    rows = max(1, (1 << 24) // len(sums))
    extreme = 0
    for start in range(0, FLIPS, rows):
        signs = 1 - 2 * drawn.integers(0, 2, (min(rows, FLIPS - start), len(sums)), dtype=np.int8)
        extreme += int((np.abs(signs.astype(np.float64) @ sums) >= found).sum())
    return (extreme + 1) / (FLIPS + 1)


def holm(ps: Sequence[float]) -> list[float]:
    """The p values of several tests, adjusted so that one of them errs as often as a single test (Holm 1979)."""
    adjusted = [0.0] * len(ps)
    least = 0.0
    for rank, place in enumerate(sorted(range(len(ps)), key=lambda place: ps[place])):
        least = max(least, min(1.0, (len(ps) - rank) * ps[place]))
        adjusted[place] = least
    return adjusted


def _grouped(values: Any, groups: Sequence[str]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(sum, count) of the values of each group, in the order in which the groups are met."""
    import numpy as np

    numbers = np.asarray(values, dtype=np.float64)
    if not groups:
        return numbers, np.ones(len(numbers))
    places = {group: place for place, group in enumerate(dict.fromkeys(groups))}
    members = np.array([places[group] for group in groups], dtype=np.int64)
    sums, counts = (np.bincount(members, weights).astype(np.float64) for weights in (numbers, None))
    return sums, counts
