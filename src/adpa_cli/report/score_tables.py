"""Scores side by side: what a distillation and a grid end with."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from adpa_cli.report import text
from adpa_cli.report.scores import ACCURACY, REWARD, WIN, Score, scores, value_words
from adpa_cli.stages import Node
from adpa_cli.store.store import Store

SEEDS = ("seed", "seed-all")
DIGITS = 3
"""Of what is no share, behind the point."""
Column = tuple[str, str, str, str]
"""What was measured: (metric, suite, data, scorer). Numbers of two kinds never share a column."""


@dataclass(frozen=True)
class Line:
    """One cell of a grid, or (with a `name`, and without settings) another model that was measured with them."""

    settings: Mapping[str, str]
    ref: str
    scores: tuple[Score, ...]
    tags: tuple[str, ...] = ()
    name: str = ""
    note: str = ""
    """What is said behind its id, e.g. failed."""


def screen(lines: Sequence[Line], width: int) -> str:
    """The table for `width` columns; below it the means where cells differ in a seed only."""
    width = max(width, 60)
    columns = list(dict.fromkeys(score.kind[:4] for line in lines for score in line.scores))
    varying = differing([line.settings for line in lines if not line.name])
    tagged = any(line.tags for line in lines)
    head = ("", *map(str.upper, varying), *_titles(columns), *["TAG"] * tagged, "ID")
    rows = []
    for n, line in enumerate(lines, 1):
        settings = (line.settings.get(key, "") for key in varying)
        numbers = {score.kind[:4]: score.words(DIGITS) for score in reversed(line.scores)}
        cells = (numbers.get(column, "") for column in columns)
        tags = [" ".join(line.tags)] * tagged
        rows.append((line.name or str(n), *settings, *cells, *tags, f"{line.ref}  {line.note}".rstrip()))
    shown = text.table(head, rows, width)
    kept = [key for key in varying if key not in SEEDS]
    over_seeds = _means(lines, columns, kept)
    if over_seeds:
        shown += ["", *text.table(("over seeds", *map(str.upper, kept), *_titles(columns)), over_seeds, width)]
    notes = ["± half of a 95 % interval"] if columns else []
    notes += ["over seeds: mean ± standard deviation"] if over_seeds else []
    return "\n".join([*shown, "; ".join(notes)]).rstrip("\n")


def differing(settings: Sequence[Mapping[str, str]]) -> list[str]:
    """The keys that do not have one value in all of them, in the order in which they come."""
    keys = dict.fromkeys(key for each in settings for key in each)
    return [key for key in keys if len({each.get(key) for each in settings}) > 1]


def _titles(columns: Sequence[Column]) -> list[str]:
    metrics = [column[0] for column in columns]
    return [
        _title(metric) + (f" on {data or suite}" if metrics.count(metric) > 1 else "")
        for metric, suite, data, _ in columns
    ]


def _title(metric: str) -> str:
    return metric.replace("_", " ").upper()


def _means(lines: Sequence[Line], columns: Sequence[Column], kept: Sequence[str]) -> list[tuple[str, ...]]:
    """(name and number of seeds, settings, mean ± standard deviation …) of the lines that differ in a seed only."""
    groups: dict[tuple[str, ...], list[Line]] = {}
    for line in lines:
        if line.scores:
            key = (line.name, *(line.settings.get(name, "") for name in kept))
            groups.setdefault(key, []).append(line)
    return [
        (f"{name} {len(members)} seeds".strip(), *settings, *(_mean(members, column) for column in columns))
        for (name, *settings), members in groups.items()
        if len(members) > 1
    ]


def _mean(lines: Sequence[Line], column: Column) -> str:
    same = [score for line in lines for score in line.scores if score.kind[:4] == column]
    values = [score.value for score in same]
    if len(values) < 2:
        return ""
    return value_words(statistics.fmean(values), statistics.stdev(values), same[0].is_share, DIGITS)


def results(store: Store, evals: Sequence[Node]) -> str:
    """One row per evaluated model, in the plan's order; ± is half of the 95 % interval."""
    measured = [(node, scores(manifest)) for node in evals if (manifest := store.get(node.label))]
    if not measured:
        return "nothing was measured"
    every = [score for _, numbers in measured for score in numbers]
    metrics = [metric for metric in (REWARD, WIN, ACCURACY) if any(score.metric == metric for score in every)]
    rows = []
    for node, numbers in measured:
        cells = {score.metric: score.words(DIGITS) for score in numbers}
        model = node.inputs["model"]
        name = node.what.removeprefix(f"{node.spec.suite} of ")
        rows.append((name, *(cells.get(m, "") for m in metrics), "" if isinstance(model, tuple) else model.label))
    size = max(score.n or 0 for score in every)
    judged = "win rate against start in %, 50 = nothing gained" if WIN in metrics else "accuracy in %"
    table = text.table(("MODEL", *map(_title, metrics), "ID"), rows, 10**6)
    return "\n".join([f"held-out prompts: {size}; {judged}; ± half of a 95 % interval", *table])
