"""`adpa show A B …`: what differs, one column for each artifact, and by how much their scores do, row by row."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from adpa_cli.report import text
from adpa_cli.report.differences import Difference, paired, rows_of
from adpa_cli.report.lineage import content_name, what
from adpa_cli.report.scores import Column, Score, by_model, distinct_names, scores_of
from adpa_cli.store.manifest import Manifest
from adpa_cli.store.store import Store

LABEL = 44
"""Columns of a row's name in a table."""
Rows = Mapping[str, Sequence[Any]]

_BESIDES = {
    "what",
    "watch",
    "say",
    "notes",
    "scores",
    "suite",
    "data",
    "scorer",
    "measured",
    "speed",
    "memory",
    "update",
}


def collect(store: Store, manifests: Sequence[Manifest]) -> dict[str, list[Any]]:
    """Row name -> one value for each artifact (None where it has none), of the rows in which they differ.

    Scores stand in one row only where all agrees that `Score` names; then come their differences, paired row by row.
    """
    artifacts = store.artifacts(lambda error: None)
    by_id, measured = {other.id: other for other in artifacts}, by_model(artifacts)
    scored = [scores_of(manifest, measured) for manifest in manifests]
    titles = _names(scored)
    columns = [
        _facts(manifest, by_id) | _numbers(column, titles) for manifest, column in zip(manifests, scored, strict=True)
    ]
    names = dict.fromkeys(name for column in columns for name in column)
    rows = {name: [column.get(name) for column in columns] for name in names}
    differing = {name: values for name, values in rows.items() if len({json.dumps(value) for value in values}) > 1}
    return differing | differences(store, scored, titles)


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


def _names(columns: Sequence[Sequence[Score]]) -> dict[Column, str]:
    """The name of each kind of numbers, which no other kind has."""
    first = {score.kind: score for column in reversed(columns) for score in reversed(column)}
    return distinct_names({kind: score.full_label for kind, score in first.items()}, first)


def _numbers(scored: Sequence[Score], names: Mapping[Column, str]) -> dict[str, str]:
    numbers: dict[str, str] = {}
    for score in scored:
        numbers.setdefault(names[score.kind], score.words())  # the newest of its kind comes first
    return numbers


def differences(
    store: Store, columns: Sequence[Sequence[Score]], names: Mapping[Column, str]
) -> dict[str, list[str | None]]:
    """Row name -> for each model its difference to the first one that was measured alike (None for that one).

    Scores are compared only where all agrees that `Score` names. Shares are in percent points. Where two were measured
    on different halves of the held-out prompts, they are compared on the prompts of both, and the row says so.
    """
    newest = [{score.question: score for score in reversed(column)} for column in columns]
    rows: dict[str, list[str | None]] = {}
    for question in dict.fromkeys(score.question for column in columns for score in column):
        places = [place for place, by_question in enumerate(newest) if question in by_question]
        first = newest[places[0]][question]
        if first.is_of_data:
            continue
        is_alike = len({newest[place][question].prompts for place in places}) == 1
        base = rows_of(store.folder(first.ref), first.metric)
        row: list[str | None] = [None] * len(columns)
        for place in places[1:]:
            folder = store.folder(newest[place][question].ref)
            row[place] = _words(paired(rows_of(folder, first.metric), base), first.is_share)
        if any(row):
            common = "" if is_alike else ", on the prompts that both answered"
            base_name = f"column {places[0] + 1}" if places[0] else "the first"
            rows[f"difference from {base_name}: {names[first.kind]}{common}"] = row
    return rows


def _words(difference: Difference | None, is_share: bool) -> str | None:
    if difference is None:
        return None
    mean, low, high = difference.words(is_share, 2)
    return f"{mean} ({low} to {high})"


def screen(rows: Rows, refs: Sequence[str], width: int) -> str:
    """The comparison for a terminal: a table where it fits, else one block of lines for each row."""
    if not rows:
        return "These do not differ in what they were made from, nor in what was measured.\n"
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
