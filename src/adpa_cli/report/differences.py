"""By how much two evaluations differ, row by row: the numbers of every row stay with the figures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from adpa_cli.stages.eval import SCORES
from adpa_cli.statistics import bootstrap, sign_flip_p

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


def rows_of(folder: Path, metric: str) -> Rows:
    """The rows of a metric of the evaluation in `folder`; none where that was not kept, as by older versions."""
    try:
        kept = json.loads((folder / SCORES).read_bytes())
        return Rows(kept["rows"].get(metric, {}), kept["prompts"])
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return Rows({}, {})


def paired(ours: Rows, theirs: Rows) -> Difference | None:
    """Ours - theirs over the rows that both have; None without such rows."""
    rows = sorted(ours.numbers.keys() & theirs.numbers.keys())
    if not rows:
        return None
    values = [ours.numbers[row] - theirs.numbers[row] for row in rows]
    prompts = [theirs.prompts.get(row, row) for row in rows]
    mean = bootstrap(values, prompts)
    return Difference(mean["value"], mean["low"], mean["high"], sign_flip_p(values, prompts), len(rows))
