"""`adpa show A B …`: what differs, one column for each artifact, and by how much their scores do, row by row."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adpa_cli.data.examples import win
from adpa_cli.report import text
from adpa_cli.report.answer_rows import SCORES
from adpa_cli.report.lineage import content_name, what
from adpa_cli.report.scores import REWARD, WIN, Score, by_model, scores_of
from adpa_cli.stages.eval import bootstrap
from adpa_cli.store.manifest import Manifest
from adpa_cli.store.store import Store
from adpa_cli.suites import EvalSpec

LABEL = 44
"""Columns of a row's name in a table."""
Rows = Mapping[str, Sequence[Any]]
Table = Mapping[str, float]
Difference = tuple[float, float, float]
"""A mean with the bounds of its 95 % interval."""

_BESIDES = {"what", "watch", "say", "notes", "scores", "suite", "data", "scorer", "speed", "memory", "update"}


def collect(store: Store, manifests: Sequence[Manifest]) -> dict[str, list[Any]]:
    """Row name -> one value for each artifact (None where it has none), of the rows in which they differ.

    Scores stand in one row only when suite, data, scorer and opponent are the same; then come their differences, paired
    row by row.
    """
    artifacts = store.artifacts(lambda error: None)
    by_id, measured = {other.id: other for other in artifacts}, by_model(artifacts)
    scored = [scores_of(manifest, measured) for manifest in manifests]
    columns = [_facts(manifest, by_id) | _numbers(column) for manifest, column in zip(manifests, scored, strict=True)]
    names = dict.fromkeys(name for column in columns for name in column)
    rows = {name: [column.get(name) for column in columns] for name in names}
    differing = {name: values for name, values in rows.items() if len({json.dumps(value) for value in values}) > 1}
    return differing | differences(store, scored)


def _facts(manifest: Manifest, by_id: Mapping[str, Manifest]) -> dict[str, Any]:
    facts: dict[str, Any] = {"stage": manifest.stage, "what": what(manifest)}
    facts |= {key.removeprefix("params."): value for key, value in text.flat(manifest.spec).items()}
    facts |= {f"from {role}": _input(manifest, value, by_id) for role, value in manifest.inputs.items()}
    return facts | text.flat({key: value for key, value in manifest.metrics.items() if key not in _BESIDES})


def _input(manifest: Manifest, value: str | list[str], by_id: Mapping[str, Manifest]) -> str:
    names = []
    for content in [value] if isinstance(value, str) else value:
        kind, _, digest = content.partition(":")
        name = content_name(content, manifest.sources, by_id.get)
        names.append(name if kind == "artifact" else f"{name} ({digest[:8]})")
    return ", ".join(names)


def _numbers(scored: Sequence[Score]) -> dict[str, str]:
    numbers: dict[str, str] = {}
    for score in scored:
        numbers.setdefault(score.full_label, score.words())  # the newest of its kind comes first
    return numbers


def differences(store: Store, columns: Sequence[Sequence[Score]]) -> dict[str, list[str | None]]:
    """Row name -> for each model its difference to the first one that was measured alike (None for that one).

    Scores are compared only within one suite, data set, scorer and opponent. Shares are in percent points. Where
    two were measured on different halves of the held-out prompts, they are compared on the prompts of both, and the row
    says so.
    """
    newest = [{score.question: score for score in reversed(column)} for column in columns]
    rows: dict[str, list[str | None]] = {}
    for kind in dict.fromkeys(score.question for column in columns for score in column):
        places = [place for place, by_kind in enumerate(newest) if kind in by_kind]
        first = newest[places[0]][kind]
        is_alike = len({newest[place][kind].prompts for place in places}) == 1
        base = values(store.folder(first.ref), first.metric)
        prompts = _figures(store.folder(first.ref)).get("prompts", {})
        row: list[str | None] = [None] * len(columns)
        for place in places[1:]:
            folder = store.folder(newest[place][kind].ref)
            row[place] = _words(paired(values(folder, first.metric), base, prompts), first.is_share)
        if any(row):
            common = "" if is_alike else ", on the prompts of both"
            rows[f"more than column {places[0] + 1}: {first.full_label}{common}"] = row
    return rows


def values(folder: Path, metric: str) -> dict[str, float]:
    """What each row added to a metric of the evaluation in `folder`; empty where that was not kept."""
    figures = _figures(folder)
    if metric not in (REWARD, WIN):
        return {row: win(margin) for row, margin in figures.get("margins", {}).items()}
    ours: Table = figures.get("rewards", {})
    if metric == REWARD:
        return dict(ours)
    theirs: Table = figures.get("against", {})
    return {row: win(ours[row] - theirs[row]) for row in ours.keys() & theirs.keys()}


def _figures(folder: Path) -> dict[str, Any]:
    """What an evaluation kept of every row; empty where it cannot be read."""
    try:
        figures: dict[str, Any] = json.loads((folder / SCORES).read_bytes())
    except (OSError, ValueError):
        return {}
    return figures


def paired(ours: Table, theirs: Table, prompts: Mapping[str, str] | None = None) -> Difference | None:
    """Mean of ours - theirs over the rows that both have, with its 95 % percentile interval; None without such rows.

    Rows of one prompt, which `prompts` names by row, are drawn together; a row without one is its own prompt.
    """
    rows = sorted(ours.keys() & theirs.keys())
    if not rows:
        return None
    usual = EvalSpec(template="", end="")  # for its number of resamples and its seed
    mean = bootstrap([ours[row] - theirs[row] for row in rows], usual, [(prompts or {}).get(row, row) for row in rows])
    return mean["value"], mean["low"], mean["high"]


def _words(difference: Difference | None, is_share: bool) -> str | None:
    if difference is None:
        return None
    scale, digits = (100, 1) if is_share else (1, 2)
    mean, low, high = (f"{scale * number:+.{digits}f}" for number in difference)
    return f"{mean} ({low} to {high})"


def screen(rows: Rows, refs: Sequence[str], width: int) -> str:
    """The comparison for a terminal: a table where it fits, else one block of lines for each row."""
    if not rows:
        return "no difference in what they are made from or what was measured\n"
    cells = [(name, *(text.cut(text.number(value), 40) for value in values)) for name, values in rows.items()]
    # A long text beside short numbers is cut before the columns are given up; the label keeps what tells it apart.
    each = max((width - LABEL) // len(refs) - 2, *map(text.width_of, refs))
    short = [(text.cut(name, LABEL), *(text.cut(value, each) for value in values)) for name, *values in cells]
    lines = text.table(("differs in", *refs), short, 10**6, floor=LABEL)
    if max(map(text.width_of, lines)) > width or len({name for name, *_ in short}) < len(short):
        lines = []
        for name, *values in cells:
            block = [(f"  {ref}", value) for ref, value in zip(refs, values, strict=True)]
            lines += [name, *text.table(("", ""), block, width, flexible=1)[1:]]
    return "\n".join(text.cut(line, width) for line in lines) + "\n"


def tsv(rows: Rows, refs: Sequence[str]) -> str:
    """The same, uncut, with the ids in the first line."""
    plain = [[value if isinstance(value, str) else json.dumps(value) for value in values] for values in rows.values()]
    return text.tsv([("", *refs), *((name, *values) for name, values in zip(rows, plain, strict=True))])


def record(rows: Rows, refs: Sequence[str]) -> dict[str, Any]:
    """The same as JSON."""
    return {"artifacts": list(refs), "differences": {name: list(values) for name, values in rows.items()}}
