"""By how much two evaluations differ, row by row: the numbers of every row stay with the figures."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from adpa_cli.report.scores import scaled
from adpa_cli.report.text import BETTER, WORSE
from adpa_cli.stages.eval import SCORES
from adpa_cli.statistics import bootstrap, holm, sign_flip_p

Key = TypeVar("Key")
Table = Mapping[str, float]


@dataclass(frozen=True)
class Rows:
    """What each row added to a metric of an evaluation, and the prompt of each where several rows have one."""

    numbers: Table
    prompts: Mapping[str, str]


@dataclass(frozen=True)
class Difference:
    """The mean difference of two models over the rows that both have, its 95 % percentile interval from resamples of
    the prompts, and the two-sided p of swapping the models at random, prompt by prompt."""

    value: float
    low: float
    high: float
    p: float
    n: int

    def record(self, metric: str, model: str, base: str, p_holm: float) -> dict[str, Any]:
        """The difference as JSON: how much more of a metric `model` has than `base`, both by ref or name."""
        return {"metric": metric, "model": model, "from": base, **asdict(self), "p_holm": p_holm}

    def style(self, direction: int) -> str:
        """That of better or worse, where the interval leaves out zero and the `direction` says which is better."""
        if not direction or self.low <= 0 <= self.high:
            return ""
        return BETTER if self.value * direction > 0 else WORSE

    def words(self, is_share: bool, digits: int) -> tuple[str, str, str]:
        """(value, low, high) with their signs: of a share in percent points, else with so many digits."""
        scale, places = scaled(is_share, digits)
        value, low, high = (f"{scale * number:+.{places}f}" for number in (self.value, self.low, self.high))
        return value, low, high


def rows_of(folder: Path, metric: str) -> Rows:
    """The rows of a metric of the evaluation in `folder`; none where that was not kept, as by older versions."""
    try:
        kept = _kept((folder / SCORES).absolute())
        return Rows(kept["rows"].get(metric, {}), kept["prompts"])
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return Rows({}, {})


@functools.lru_cache(maxsize=4)
def _kept(path: Path) -> Any:
    """What an evaluation kept: one file has all its metrics, which are asked for one by one."""
    return json.loads(path.read_bytes())


def paired(ours: Rows, theirs: Rows) -> Difference | None:
    """Ours - theirs over the rows that both have; None without such rows."""
    rows = sorted(ours.numbers.keys() & theirs.numbers.keys())
    if not rows:
        return None
    values = [ours.numbers[row] - theirs.numbers[row] for row in rows]
    prompts = [theirs.prompts.get(row, row) for row in rows]
    mean = bootstrap(values, prompts)
    return Difference(mean["value"], mean["low"], mean["high"], sign_flip_p(values, prompts), len(rows))


def corrected(found: Mapping[Key, Difference]) -> dict[Key, tuple[Difference, float]]:
    """Each difference with its p, which is corrected for the number of all of them (Holm)."""
    ps = holm([one.p for one in found.values()])
    return {key: (one, p) for (key, one), p in zip(found.items(), ps, strict=True)}
