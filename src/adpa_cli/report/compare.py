"""`adpa show A B …`: what differs, one column for each artifact, and by how much their scores do, row by row."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from adpa_cli.report import text
from adpa_cli.report.differences import Difference, corrected, paired, rows_of
from adpa_cli.report.lineage import content_name, what
from adpa_cli.report.scores import Column, Score, best_of, best_words, by_model, distinct_names, scores_of
from adpa_cli.store.manifest import Manifest
from adpa_cli.store.store import Store

LABEL = 44
"""Columns of a row's name in a table."""
Rows = Mapping[str, Sequence[Any]]
_BESIDES = {
    "what", "watch", "say", "notes", "scores", "suite", "data", "scorer", "measured", "speed", "memory", "update",
}  # fmt: skip


@dataclass(frozen=True)
class Apart:
    """By how much a model differs from that of column `base`, in the metric of a `score` of that one."""

    difference: Difference
    score: Score
    base: int

    def words(self) -> str:
        mean, low, high = self.difference.words(self.score.is_share, 2)
        return f"{mean} ({low} to {high})"

    @property
    def style(self) -> str:
        return self.difference.style(self.score.direction)


@dataclass(frozen=True)
class Comparison:
    """Row name -> one value for each artifact (None where it has none), of the rows in which they differ.

    `settings` are how they were made, `results` what was measured: numbers, then a `Score` or an `Apart` each.
    """

    manifests: Sequence[Manifest]
    tags: Sequence[Sequence[str]]
    settings: Rows
    results: Rows
    scored: Sequence[Sequence[Score]]

    @property
    def refs(self) -> list[str]:
        return [manifest.ref for manifest in self.manifests]

    @property
    def rows(self) -> dict[str, list[Any]]:
        """All rows with their values as text where they are scores."""
        return {name: list(map(_plain, values)) for name, values in {**self.settings, **self.results}.items()}


def collect(store: Store, manifests: Sequence[Manifest]) -> Comparison:
    """Compare artifacts.

    Scores stand in one row only where all agrees that `Score` names; then come their differences, paired row by row.
    """
    artifacts = store.artifacts(lambda error: None)
    by_id, measured = {other.id: other for other in artifacts}, by_model(artifacts)
    scored = [scores_of(manifest, measured) for manifest in manifests]
    titles = _names(scored)
    settings = _differing([_settings(manifest, by_id) for manifest in manifests])
    metrics = _differing([_metrics(manifest) for manifest in manifests])
    numbers = _differing([_numbers(column, titles) for column in scored])
    apart = differences(store, scored, titles)
    named = store.tags().items()
    tags = [[tag for tag, artifact in named if artifact == manifest.id] for manifest in manifests]
    return Comparison(manifests, tags, settings, metrics | numbers | apart, scored)


def _differing(columns: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    names = dict.fromkeys(name for column in columns for name in column)
    rows = {name: [column.get(name) for column in columns] for name in names}
    return {name: values for name, values in rows.items() if len({json.dumps(_plain(v)) for v in values}) > 1}


def _plain(value: Any) -> Any:
    return value.words() if isinstance(value, Score | Apart) else value


def _settings(manifest: Manifest, by_id: Mapping[str, Manifest]) -> dict[str, Any]:
    facts: dict[str, Any] = {"stage": manifest.stage, "what": what(manifest)}
    facts |= {key.removeprefix("params."): value for key, value in text.flat(manifest.spec).items()}
    return facts | {f"from {role}": _input(manifest, value, by_id) for role, value in manifest.inputs.items()}


def _metrics(manifest: Manifest) -> dict[str, Any]:
    return text.flat({key: value for key, value in manifest.metrics.items() if key not in _BESIDES})


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


def _numbers(scored: Sequence[Score], names: Mapping[Column, str]) -> dict[str, Score]:
    numbers: dict[str, Score] = {}
    for score in scored:
        numbers.setdefault(names[score.kind], score)  # the newest of its kind comes first
    return numbers


def differences(
    store: Store, columns: Sequence[Sequence[Score]], names: Mapping[Column, str]
) -> dict[str, list[Apart | None]]:
    """Row name -> for each model its difference to the first one that was measured alike (None for that one).

    Scores are compared only where all agrees that `Score` names. Where two were measured
    on different halves of the held-out prompts, they are compared on the prompts of both, and the row says so.
    """
    newest = [{score.question: score for score in reversed(column)} for column in columns]
    rows: dict[str, list[Apart | None]] = {}
    for question in dict.fromkeys(score.question for column in columns for score in column):
        places = [place for place, by_question in enumerate(newest) if question in by_question]
        first = newest[places[0]][question]
        if first.is_of_data:
            continue
        is_alike = len({newest[place][question].prompts for place in places}) == 1
        base = rows_of(store.folder(first.ref), first.metric)
        row: list[Apart | None] = [None] * len(columns)
        for place in places[1:]:
            folder = store.folder(newest[place][question].ref)
            found = paired(rows_of(folder, first.metric), base)
            row[place] = None if found is None else Apart(found, first, places[0])
        if any(row):
            common = "" if is_alike else ", on the prompts that both answered"
            base_name = f"column {places[0] + 1}" if places[0] else "the first"
            rows[f"difference from {base_name}: {names[first.kind]}{common}"] = row
    return rows


def screen(found: Comparison, width: int, is_coloured: bool = False) -> str:
    """The comparison for a terminal: a table where it fits, else one block of lines for each row.

    A column is named by the tag of its artifact where there is one; settings stand apart from what was measured.
    """
    if not found.settings and not found.results:
        return "These do not differ in what they were made from, nor in what was measured.\n"
    names = [tags[0] if tags else ref for tags, ref in zip(found.tags, found.refs, strict=True)]
    metrics = {name: values for name, values in found.results.items() if not _is_scored(values)}
    scored = {name: found.results[name] for name in _in_pairs(name for name in found.results if name not in metrics)}
    parts = [("settings", found.settings), ("metrics", metrics), ("scores", scored)]
    ids = [("id", *found.refs)] if names != found.refs else []
    blocks = [(title, _cells(rows, is_coloured)) for title, rows in parts if rows]
    lines = _table(blocks, ids, names, width) or _listed(blocks, ids, names, width)
    return "\n".join(text.cut(line, width) for line in lines) + "\n"


def _is_scored(values: Sequence[Any]) -> bool:
    return any(isinstance(value, Score | Apart) for value in values)


def _in_pairs(names: Iterable[str]) -> list[str]:
    """Each score before what differs in it: a difference is named by its score, behind a colon."""
    every = list(names)
    first = {name: place for place, name in enumerate(every)}
    return sorted(every, key=lambda name: (first.get(name.partition(": ")[2], first[name]), first[name]))


Block = tuple[str, Sequence[tuple[str, ...]]]


def _cells(rows: Rows, is_coloured: bool) -> list[tuple[str, ...]]:
    cells = []
    for name, values in rows.items():
        best = best_of(value for value in values if isinstance(value, Score))
        words, mark, score = name.partition(": ")
        label = f"  {words}" if mark and score in rows else name
        cells.append((label, *(_cell(value, best, is_coloured) for value in values)))
    return cells


def _cell(value: Any, best: Score | None, is_coloured: bool) -> str:
    """A value; the best of several scores, and what is clearly better or worse than the first, stand out."""
    if isinstance(value, Score):
        return best_words(value, best, is_coloured)
    shown = text.cut(text.number(_plain(value)), 40)
    return text.styled(shown, value.style, is_coloured) if isinstance(value, Apart) else shown


def _table(blocks: Sequence[Block], ids: Sequence[tuple[str, ...]], names: Sequence[str], width: int) -> list[str]:
    """One table; nothing where an id or a name would not be whole, or two labels became one."""
    # A long text beside short numbers is cut before the columns are given up; the label keeps what tells it apart.
    whole = [*names, *(ref for _, *refs in ids for ref in refs)]
    each = max((width - LABEL) // len(names) - 2, *map(text.width_of, whole))
    rows: list[tuple[str, ...]] = [*ids]
    for title, cells in blocks:
        rows += [(title, *[""] * len(names))] if len(blocks) > 1 else []
        indent = "  " * (len(blocks) > 1)
        short = [(text.cut(indent + name, LABEL), *(text.cut(v, each) for v in values)) for name, *values in cells]
        if len({name for name, *_ in short}) < len({name for name, *_ in cells}):
            return []
        rows += short
    lines = text.table(("differs in", *names), rows, 10**6, floor=LABEL)
    return lines if max(map(text.width_of, lines)) <= width else []


def _listed(blocks: Sequence[Block], ids: Sequence[tuple[str, ...]], names: Sequence[str], width: int) -> list[str]:
    lines = [f"{name} = {ref}" for _, *refs in ids for name, ref in zip(names, refs, strict=True) if name != ref]
    for title, cells in blocks:
        lines += [f"── {title}"] if len(blocks) > 1 else []
        for name, *values in cells:
            block = [(f"  {column}", value) for column, value in zip(names, values, strict=True)]
            lines += [name, *text.table(("", ""), block, width, flexible=1)[1:]]
    return lines


def tsv(found: Comparison) -> str:
    """The same, uncut, with the ids in the first line."""
    return text.tsv([("", *found.refs), *((name, *map(text.cell, values)) for name, values in found.rows.items())])


def record(found: Comparison) -> dict[str, Any]:
    """The same as JSON: every score, and each difference with its p."""
    places = [
        (place, value) for row in found.results.values() for place, value in enumerate(row) if isinstance(value, Apart)
    ]
    apart = corrected({n: value.difference for n, (_, value) in enumerate(places)})
    return {
        "artifacts": [
            {"id": made.id, "ref": made.ref, "what": what(made), "tags": list(tags)}
            for made, tags in zip(found.manifests, found.tags, strict=True)
        ],
        "settings": {name: list(values) for name, values in found.settings.items()},
        "metrics": {
            name: list(values) for name, values in found.results.items() if not _is_scored(values)
        },
        "scores": [[score.record() for score in column] for column in found.scored],
        "differences": [
            one.record(value.score.metric, found.refs[place], found.refs[value.base], p_holm)
            for (place, value), (one, p_holm) in zip(places, apart.values(), strict=True)
        ],
    }  # fmt: skip
