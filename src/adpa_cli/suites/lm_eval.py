"""`lm-eval`: any tasks of lm-evaluation-harness. Its numbers are the harness's own; intervals are ours.

A metric that is a mean over documents has the 95 % interval of a bootstrap over these, and its rows are kept, so that
models are compared document by document. Of a group the documents of each task are drawn anew, and every row weighs
what it adds to the group's mean.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adpa_cli.errors import DataError
from adpa_cli.statistics import bootstrap
from adpa_cli.suites import Figures, Inputs, Suite

TASKS = "_tasks.json"
"""In the work folder: what the names of the command stand for."""
DONE = "_done"
"""The folder in it with a file for each finished task, by its name."""
PLAIN = "none"
"""How the harness calls it where no filter is between a reply and its metric."""


@dataclass(frozen=True)
class Result:
    """What is kept of a task: the harness's numbers by `METRIC,FILTER`, what each document adds to those that are
    means, and how many documents there are."""

    numbers: Mapping[str, float]
    rows: Mapping[str, Sequence[float]]
    documents: int


@dataclass(frozen=True)
class Part:
    """A task as a part of a mean: the number of each of its documents, and the weight of its mean."""

    task: str
    rows: Sequence[float]
    weight: float


def finished(folder: Path) -> list[dict[str, Any]]:
    """What was kept of each finished task, in the order of their names."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted((folder / DONE).glob("*.json"))]


def results(folder: Path) -> dict[str, Result]:
    """The numbers of every finished task, by its name."""
    return {each["task"]: Result(each["numbers"], each["rows"], each["documents"]) for each in finished(folder)}


def groups(folder: Path) -> Mapping[str, Mapping[str, Any]]:
    """The groups among the tasks, by name, with what is in each and how it is averaged."""
    found: Mapping[str, Mapping[str, Any]] = json.loads((folder / TASKS).read_text(encoding="utf-8"))["groups"]
    return found


def tasks_in(name: str, known: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The tasks that a name stands for, through groups in groups."""
    return [task for child in known[name]["children"] for task in tasks_in(child, known)] if name in known else [name]


def mean_score(parts: Sequence[Part], spec: Any, value: float | None = None) -> dict[str, Any]:
    """The weighted mean of the means of some tasks with its interval: the documents of each task are drawn anew.

    `value` is the mean as the harness has added it up, where it has.
    """
    import numpy as np

    count = sum(len(part.rows) for part in parts)
    if len(parts) == 1:
        found = bootstrap(parts[0].rows, (), spec.bootstrap, spec.seed)
        low, high, mean = found["low"], found["high"], found["value"]
    else:
        drawn, means = np.random.Generator(np.random.PCG64(spec.seed)), np.zeros(spec.bootstrap)
        for part in parts:
            rows = np.asarray(part.rows, dtype=np.float64)
            for n in range(spec.bootstrap):
                means[n] += part.weight * rows[drawn.integers(0, len(rows), len(rows))].mean()
        low, high = (float(end) for end in np.percentile(means, [2.5, 97.5]))
        mean = sum(part.weight * float(np.mean(part.rows)) for part in parts)
    shares = all(0 <= number <= 1 for part in parts for number in part.rows)
    return {"value": mean if value is None else value, "low": low, "high": high, "n": count, "share": shares}


def weighed(parts: Sequence[Part]) -> dict[str, float]:
    """By task and number of the document what each adds to a weighted mean: their plain mean is that one."""
    count = sum(len(part.rows) for part in parts)
    return {
        f"{part.task}/{n}": part.weight * number * count / len(part.rows)
        for part in parts
        for n, number in enumerate(part.rows)
    }


def parts_of(tasks: Sequence[str], key: str, found: Mapping[str, Result], is_weighted: bool = False) -> list[Part]:
    """The tasks that have a mean called `METRIC,FILTER`, with equal weights, or weighted by their documents.

    Raises DataError where none has it.
    """
    having = [task for task in tasks if key in found[task].rows]
    if not having:
        raise DataError(
            f"no task of {', '.join(tasks[:3])} gives {key.replace(',', ' with the filter ')}",
            "check the metrics listed in the tasks' files, or measure them with --suite lm-eval",
        )
    total = sum(len(found[task].rows[key]) for task in having)
    shares = {task: len(found[task].rows[key]) / total if is_weighted else 1 / len(having) for task in having}
    return [Part(task, found[task].rows[key], shares[task]) for task in having]


def figures(inputs: Inputs, spec: Any, folder: Path) -> Figures:
    """Every metric of every name that was asked for: `TASK.METRIC`, with the filter behind it where there is one."""
    found, known = results(folder), groups(folder)
    scores: dict[str, dict[str, Any]] = {}
    rows: dict[str, dict[str, float]] = {}
    for name in spec.tasks:
        for task in [name] if name not in known or known[name].get(AVERAGED) else tasks_in(name, known):
            own = _of_group(task, found, known, spec) if task in known else _of_task(task, found[task], spec)
            for metric, (score, numbers) in own.items():
                scores[metric] = score
                rows |= {metric: numbers} if numbers else {}
    return Figures(scores, rows)


AVERAGED = "aggregate_metric_list"
"""What the harness calls it that says how a group is averaged."""
Scored = dict[str, tuple[dict[str, Any], dict[str, float]]]
"""By metric the score, and what each document adds to it."""


def _metric(task: str, key: str) -> str:
    metric, _, filtered = key.partition(",")
    return f"{task}.{metric}" if filtered == PLAIN else f"{task}.{metric}.{filtered}"


def _of_task(task: str, result: Result, spec: Any) -> Scored:
    scored: Scored = {}
    for key, number in result.numbers.items():
        part = [Part(task, result.rows[key], 1.0)] if key in result.rows else []
        score = mean_score(part, spec, number) if part else {"value": number, "n": result.documents}
        scored[_metric(task, key)] = score, weighed(part)
    return scored


def _of_group(name: str, found: Mapping[str, Result], known: Mapping[str, Mapping[str, Any]], spec: Any) -> Scored:
    """What the harness makes of a group: it weighs tasks by their documents unless the group says otherwise."""
    from adpa_cli.hub.lm_tasks import harness

    tasks, scored = tasks_in(name, known), Scored()
    for entry in known[name][AVERAGED]:
        is_weighted = bool(entry.get("weight_by_size", True))
        having = {key for task in tasks for key in found[task].numbers if key.partition(",")[0] == entry["metric"]}
        for key in sorted(having):
            of = [found[task] for task in tasks if key in found[task].numbers]
            mean = harness("api.metrics").aggregate_subtask_metrics
            value = float(mean([r.numbers[key] for r in of], [r.documents for r in of], is_weighted))
            if all(key in result.rows for result in of):
                parts = parts_of(tasks, key, found, is_weighted)
                scored[_metric(name, key)] = mean_score(parts, spec, value), weighed(parts)
            else:
                scored[_metric(name, key)] = {"value": value, "n": sum(r.documents for r in of)}, {}
    return scored


SUITE = Suite("lm-eval", 10, figures, tasks={})
