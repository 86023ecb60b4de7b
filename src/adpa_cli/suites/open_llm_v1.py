"""`open-llm-v1`: the six tasks of the first Open LLM Leaderboard, with its examples, and their mean.

MMLU is the plain mean of its subjects, as the leaderboard had it; beside it stands the harness's own, which weighs
them by their questions. The tasks are those of the harness that is installed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from adpa_cli.suites import Figures, Inputs, Suite
from adpa_cli.suites.lm_eval import Part, groups, mean_score, parts_of, results, tasks_in, weighed

MMLU, SUBJECTS = "mmlu", 57
SHOTS = {"arc_challenge": 25, "hellaswag": 10, "truthfulqa_mc2": 0, MMLU: 5, "winogrande": 5, "gsm8k": 5}
"""Examples before each question."""
METRICS = {
    "arc_challenge": "acc_norm,none", "hellaswag": "acc_norm,none", "truthfulqa_mc2": "acc,none", MMLU: "acc,none",
    "winogrande": "acc,none", "gsm8k": "exact_match,strict-match",
}  # fmt: skip
"""What the leaderboard took of each, with the filter of the replies."""


def figures(inputs: Inputs, spec: Any, folder: Path) -> Figures:
    """The number of each task, by its name, `mean_of_six`, and `mmlu_weighted`."""
    found, known = results(folder), groups(folder)
    parts = {task: parts_of(tasks_in(task, known), key, found) for task, key in METRICS.items()}
    every = [Part(p.task, p.rows, p.weight / len(parts)) for own in parts.values() for p in own]
    weighted = parts_of(tasks_in(MMLU, known), METRICS[MMLU], found, is_weighted=True)
    means = {**parts, "mean_of_six": every, "mmlu_weighted": weighted}
    scores = {
        metric: mean_score(own, spec, _said(own, METRICS.get(metric, ""), found)) for metric, own in means.items()
    }
    count = len(parts[MMLU])
    watch = () if count == SUBJECTS else (f"mmlu has {count} subjects here, and the leaderboard's had {SUBJECTS}",)
    return Figures(scores, {metric: weighed(own) for metric, own in means.items()}, watch=watch)


def _said(parts: list[Part], key: str, found: Any) -> float | None:
    """The number that the harness gives to a single task."""
    return float(found[parts[0].task].numbers[key]) if len(parts) == 1 else None


SUITE = Suite("open-llm-v1", 11, figures, tasks=SHOTS)
