"""From what a judge said of two answers to each prompt to a win rate, its error, its biases and its length control.

P(win) is the probability, 0 to 1, that the judge prefers the measured model's answer. A prompt that was judged in both
orders counts once, with the mean of the two. All figures are shares of 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

LEAST_SIDE = 0.2
"""Share of the prompts that must have the longer answer on each side, or a length-controlled win rate extrapolates."""
STEPS, CLOSE = 50, 1e-10
"""Of Newton's method: the most that are taken, and how far the last one may still go."""
TYPICAL_SD = 0.4
"""Standard deviation of P(win) over prompts: about that of published annotations of AlpacaEval, where it is 0.395."""
FARTHEST = 30.0
"""Where a coefficient is held in a fit that has no finite optimum; the logistic function is 0 or 1 there."""


@dataclass(frozen=True)
class Judged:
    """P(win) of one prompt with the measured model's answer shown first, and with it shown second; None where that was
    not judged. `chars` are the lengths of the two answers, the measured model's first."""

    id: str
    first: float | None
    second: float | None
    chars: tuple[int, int]
    is_identical: bool = False
    """Whether both answers are one text, of which nobody was asked."""

    @property
    def win(self) -> float:
        """Mean P(win) over the orders; one half where both answers are one text."""
        orders = [p for p in (self.first, self.second) if p is not None]
        return 0.5 if self.is_identical else sum(orders) / len(orders)

    @property
    def bias(self) -> float | None:
        """How much more than one half the answer that is shown first wins; None where one order was not judged. It is
        0.5 under a judge that always names the first one."""
        return None if self.first is None or self.second is None else (self.first - self.second) / 2

    @property
    def is_consistent(self) -> bool | None:
        """Whether both orders have one winner; None where one was not judged."""
        return None if self.first is None or self.second is None else _winner(self.first) == _winner(self.second)


def _winner(p: float) -> int:
    return (p > 0.5) - (p < 0.5)


def judged_prompts(rows: Iterable[Mapping[str, Any]]) -> list[Judged]:
    """The prompts that the rows of an artifact of judgements are of; those without any verdict are not among them.

    A verdict is P(the answer shown first is better), and the measured model's is shown first in order 1.
    """
    orders: dict[str, dict[int, float]] = {}
    about: dict[str, Mapping[str, Any]] = {}
    for row in rows:
        if row.get("identical") or row["verdict"] is not None:
            about.setdefault(row["id"], row)
            orders.setdefault(row["id"], {})[row["order"]] = row.get("verdict", 0.5)
    return [
        Judged(
            name, given.get(1), 1 - given[2] if 2 in given else None, tuple(about[name]["chars"]),
            bool(about[name].get("identical")),
        )
        for name, given in orders.items()
    ]  # fmt: skip


def standard_error(values: Sequence[float]) -> float | None:
    """The sample's standard deviation over √n; None for fewer than two values."""
    import statistics  # which brings decimals along

    return statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else None


def lc_win_rate(judged: Sequence[Judged], resamples: int, seed: int) -> dict[str, Any]:
    """The win rate at equal length: P(win) = σ(a + b·tanh(Δ/sd)) is fitted by its likelihood and read at Δ = 0.

    Δ is how many characters longer the measured model's answer is, and sd its standard deviation over the prompts. The
    interval is of a bootstrap over prompts. `sides` are the shares of prompts where the measured model's answer is the
    longer one and the shorter one; without LEAST_SIDE on each, Δ = 0 lies at the edge of what was seen or beyond it,
    and the figure is not `supported`. After Dubois et al. 2024, without their term for the difficulty of instructions.
    """
    import numpy as np

    wins = np.array([each.win for each in judged])
    more = np.array([float(each.chars[0] - each.chars[1]) for each in judged])
    sides = {"longer": float((more > 0).mean()), "shorter": float((more < 0).mean())}
    spread = more.std()
    lengths = np.tanh(more / spread) if spread else np.zeros(len(more))
    ones = np.ones((1, len(wins)))
    value = float(_sigmoid(_intercepts(wins, lengths, ones))[0])
    draws = np.random.Generator(np.random.PCG64(seed)).integers(0, len(wins), (resamples, len(wins)))
    counts = np.stack([np.bincount(draw, minlength=len(wins)) for draw in draws]).astype(np.float64)
    low, high = np.percentile(_sigmoid(_intercepts(wins, lengths, counts)), [2.5, 97.5])
    return {
        "value": value, "low": float(low), "high": float(high), "n": len(wins),
        "supported": min(sides.values()) >= LEAST_SIDE, "sides": sides,
    }  # fmt: skip


def _intercepts(wins: Floats, lengths: Floats, counts: Floats) -> Floats:
    """[m] the intercept of the logistic fit of `wins` [n] on `lengths` [n], for each row of `counts` [m, n], which says
    how often each prompt is drawn. By Newton's method for all rows at once."""
    import numpy as np

    a, b = np.zeros(len(counts)), np.zeros(len(counts))
    for _ in range(STEPS):
        p = _sigmoid(a[:, None] + b[:, None] * lengths)
        rest, weight = counts * (wins - p), counts * p * (1 - p)
        ga, gb = rest.sum(1), rest @ lengths
        haa, hab, hbb = weight.sum(1), weight @ lengths, weight @ lengths**2
        haa, hbb = haa + CLOSE, hbb + CLOSE  # a fit without an optimum, and answers of one length, still have a step
        determinant = haa * hbb - hab**2
        da, db = (hbb * ga - hab * gb) / determinant, (haa * gb - hab * ga) / determinant
        moved = (
            np.clip(a + np.clip(da, -2, 2), -FARTHEST, FARTHEST),
            np.clip(b + np.clip(db, -2, 2), -FARTHEST, FARTHEST),
        )
        is_done = max(np.abs(moved[0] - a).max(), np.abs(moved[1] - b).max()) < CLOSE
        a, b = moved
        if is_done:
            break
    return a


def _sigmoid(values: Floats) -> Floats:
    import numpy as np

    result: Floats = 1 / (1 + np.exp(-values))
    return result


def detectable(prompts: int) -> float | None:
    """The difference of win rates that a test at 5 % finds with a power of 80 %: 2.8·sd/√n; None without prompts."""
    return 2.8 * TYPICAL_SD / prompts**0.5 if prompts else None
