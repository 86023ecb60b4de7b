"""`mt-bench`: grades from 1 to 10 that a judge gives to both answers to each question of two turns.

After Zheng et al. 2023: the score is the mean over all graded turns; beside it the means of each turn and category.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adpa_cli.errors import DataError
from adpa_cli.judges.calls import judge_record, read_rows
from adpa_cli.suites import JUDGEMENTS, EvalSpec, Figures, Inputs, Suite, interval

METRIC = "grade"


def figures(inputs: Inputs, spec: EvalSpec, folder: Path) -> Figures:
    """The mean grade, and that of each turn and of each category; both turns of a question are drawn together.

    DataError where no turn has a grade.
    """
    given = inputs[JUDGEMENTS]
    rows = read_rows(given.path)
    graded = [row for row in rows if row["verdict"] is not None]
    if not graded:
        raise DataError(f"{given.label} contains no grade", f"adpa show {given.label}")
    parts: dict[str, dict[str, float]] = {METRIC: {}}
    prompts = {}
    for row in sorted(graded, key=lambda row: (row["turn"], row["category"])):
        name = f"{row['id']} {row['turn']}"
        prompts[name] = row["id"]
        own = [METRIC, f"turn_{row['turn']}_{METRIC}", *([f"{row['category']}_{METRIC}"] if row["category"] else [])]
        for metric in own:
            parts.setdefault(metric, {})[name] = float(row["verdict"])
    scores = {metric: interval(numbers, spec, prompts) for metric, numbers in parts.items()}
    judge = judge_record(given.values, rows)
    return Figures(scores, parts, prompts, {"judge": judge}, _watch(judge))


def _watch(judge: Mapping[str, Any]) -> tuple[str, ...]:
    lost = judge["unparsable"]
    if not lost:
        return ()
    return ("1 turn has no grade and is left out" if lost == 1 else f"{lost:,} turns have no grade and are left out",)


SUITE = Suite("mt-bench", 8, figures, (JUDGEMENTS,), judged="turns", prompts="mt-bench")
