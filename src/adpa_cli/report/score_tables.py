"""Scores side by side: what a distillation and a grid end with."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from adpa_cli.report import text
from adpa_cli.report.scores import Score
from adpa_cli.stages import Node
from adpa_cli.store.store import Store

SEEDS = ("seed", "seed-all")
Column = tuple[str, str, str, str]


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
    columns = _columns(lines)
    varying = differing([line.settings for line in lines if not line.name])
    tagged = ("TAG",) if any(line.tags for line in lines) else ()
    head = ("", *map(str.upper, varying), *_titles(columns), *tagged, "ID")
    rows = []
    for n, line in enumerate(lines, 1):
        settings = (line.settings.get(key, "") for key in varying)
        tags = (" ".join(line.tags),) if tagged else ()
        rows.append(
            (line.name or str(n), *settings, *_scores(line, columns), *tags, f"{line.ref}  {line.note}".rstrip())
        )
    shown = _table(head, rows, width)
    over_seeds = _means(lines, columns, [key for key in varying if key not in SEEDS])
    if over_seeds:
        head = ("over seeds", *(key.upper() for key in varying if key not in SEEDS), *_titles(columns))
        shown += ["", *_table(head, over_seeds, width)]
    said = ["± half of a 95 % interval"] if columns else []
    said += ["over seeds: mean ± standard deviation"] if over_seeds else []
    return "\n".join([*shown, "; ".join(said)]).rstrip("\n")


def differing(settings: Sequence[Mapping[str, str]]) -> list[str]:
    """The keys that do not have one value in all of them, in the order in which they come."""
    keys = dict.fromkeys(key for each in settings for key in each)
    return [key for key in keys if len({each.get(key) for each in settings}) > 1]


def _columns(lines: Sequence[Line]) -> list[Column]:
    """What was measured: (metric, suite, data, scorer). Numbers of two kinds never share a column."""
    return list(dict.fromkeys(_kind(score) for line in lines for score in line.scores))


def _kind(score: Score) -> Column:
    return score.metric, score.suite, score.data, score.scorer


def _titles(columns: Sequence[Column]) -> list[str]:
    metrics = [column[0] for column in columns]
    return [
        metric.replace("_", " ").upper() + (f" on {data or suite}" if metrics.count(metric) > 1 else "")
        for metric, suite, data, _ in columns
    ]


def _scores(line: Line, columns: Sequence[Column]) -> tuple[str, ...]:
    cells = []
    for column in columns:
        score = next((score for score in line.scores if _kind(score) == column), None)
        if score is None:
            cells.append("")
            continue
        half = None if score.low is None or score.high is None else (score.high - score.low) / 2
        cells.append(_number(score.value, half, score.is_share))
    return tuple(cells)


def _number(value: float, spread: float | None, is_share: bool) -> str:
    scale, digits = (100.0, 1) if is_share else (1.0, 3)
    behind = "" if spread is None else f" ±{scale * spread:.{digits}f}"
    return f"{scale * value:.{digits}f}{behind}"


def _means(lines: Sequence[Line], columns: Sequence[Column], kept: Sequence[str]) -> list[tuple[str, ...]]:
    """(name and number of seeds, settings, mean ± standard deviation …) of the lines that differ in a seed only."""
    groups: dict[tuple[str, ...], list[Line]] = {}
    for line in lines:
        if line.scores:
            key = (line.name, *(line.settings.get(name, "") for name in kept))
            groups.setdefault(key, []).append(line)
    rows = []
    for (name, *settings), members in groups.items():
        if len(members) < 2:
            continue
        cells = []
        for column in columns:
            found = [score for line in members for score in line.scores if _kind(score) == column]
            values = [score.value for score in found]
            several = len(values) > 1
            cells.append(
                _number(statistics.fmean(values), statistics.stdev(values), found[0].is_share) if several else ""
            )
        rows.append((f"{name} {len(members)} seeds".strip(), *settings, *cells))
    return rows


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> list[str]:
    return text.table(head, rows, max(width, 60), expendable=())


COLUMNS = (
    ("mean_reward", "MEAN REWARD", 1.0, 3),
    ("win_rate", "WIN RATE", 100.0, 1),
    ("reward_accuracy", "REWARD ACCURACY", 100.0, 1),
)


def results(store: Store, evals: Sequence[Node]) -> str:
    """One row per evaluated model, in the plan's order; ± is half of the 95 % interval."""
    found = [(node, manifest.metrics["scores"]) for node in evals if (manifest := store.get(node.label))]
    if not found:
        return "nothing was measured"
    shown = [column for column in COLUMNS if any(column[0] in scores for _, scores in found)]
    rows = [("MODEL", *(title for _, title, _, _ in shown), "ID")]
    for node, scores in found:
        model = node.inputs["model"]
        cells = tuple(_cell(scores.get(key), scale, digits) for key, _, scale, digits in shown)
        name = node.what.removeprefix(f"{node.spec.suite} of ")
        rows.append((name, *cells, "" if isinstance(model, tuple) else model.label))
    size = max(score["n"] for _, scores in found for score in scores.values())
    widths = [max(map(text.width_of, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(text.pad(cell, width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    won = any(key == "win_rate" for key, *_ in shown)
    judged = "win rate against start in %, 50 = nothing gained" if won else "accuracy in %"
    return "\n".join([f"held-out prompts: {size}; {judged}; ± half of a 95 % interval", *map(str.rstrip, lines)])


def _cell(score: Any, scale: float, digits: int) -> str:
    if score is None:
        return ""
    half = (score["high"] - score["low"]) / 2 * scale
    return f"{score['value'] * scale:.{digits}f} ±{half:.{digits}f}"
