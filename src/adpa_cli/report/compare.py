"""`adpa show A B …`: only what differs, one column for each artifact."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from adpa_cli.errors import AdpaError
from adpa_cli.report import text
from adpa_cli.report.lineage import source
from adpa_cli.report.listing import what
from adpa_cli.report.scores import by_model, differences, scores
from adpa_cli.store.manifest import Manifest
from adpa_cli.store.store import Store

LABEL = 44
"""Columns of a row's name in a table."""
Rows = Mapping[str, Sequence[Any]]

_BESIDES = {"what", "watch", "say", "notes", "scores", "suite", "data", "scorer", "speed", "memory"}


def collect(store: Store, manifests: Sequence[Manifest]) -> dict[str, list[Any]]:
    """Row name -> one value for each artifact (None where it has none), of the rows in which they differ.

    Scores stand in one row only when suite, data, scorer and opponent are the same; then come their differences, paired
    row by row.
    """
    unreadable: list[AdpaError] = []
    artifacts = store.artifacts(unreadable.append)
    by_id, scored = {other.id: other for other in artifacts}, by_model(artifacts)
    columns = [_facts(manifest, by_id) | _numbers(manifest, scored) for manifest in manifests]
    names = dict.fromkeys(name for column in columns for name in column)
    rows = {name: [column.get(name) for column in columns] for name in names}
    apart = {name: values for name, values in rows.items() if len({json.dumps(value) for value in values}) > 1}
    return apart | differences(store, [scores(manifest) or scored.get(manifest.id, ()) for manifest in manifests])


def _facts(manifest: Manifest, by_id: Mapping[str, Manifest]) -> dict[str, Any]:
    facts: dict[str, Any] = {"stage": manifest.stage, "what": what(manifest)}
    spec = text.flat(manifest.spec)
    facts |= {key.removeprefix("params."): value for key, value in spec.items()}
    facts |= {f"from {role}": _input(manifest, value, by_id) for role, value in manifest.inputs.items()}
    rest = {key: value for key, value in manifest.metrics.items() if key not in _BESIDES}
    return facts | text.flat(rest)


def _input(manifest: Manifest, value: str | list[str], by_id: Mapping[str, Manifest]) -> str:
    names = []
    for content in [value] if isinstance(value, str) else value:
        kind, _, digest = content.partition(":")
        if kind == "artifact":
            names.append(by_id[digest].ref if digest in by_id else digest[:12])
        else:
            names.append(f"{source(manifest.sources.get(content, {}), digest)} ({digest[:8]})")
    return ", ".join(names)


def _numbers(manifest: Manifest, scored: Mapping[str, Sequence[Any]]) -> dict[str, str]:
    found: dict[str, str] = {}
    for score in scores(manifest) or scored.get(manifest.id, ()):
        against = f" against {score.against}" if score.against else ""
        suite = f" [{score.suite}]" if score.suite else ""
        found.setdefault(f"{score.label}{against}{suite}", score.text)  # the newest of its kind comes first
    return found


def screen(rows: Rows, refs: Sequence[str], width: int) -> str:
    """The comparison for a terminal: a table where it fits, else one block of lines for each row."""
    if not rows:
        return "no difference in what they are made from or what was measured\n"
    cells = [(name, *(text.cut(text.brief(value), 40) for value in values)) for name, values in rows.items()]
    # A long text beside short numbers is cut before the columns are given up; the label keeps what tells it apart.
    each = max((width - LABEL) // len(refs) - 2, *map(text.width_of, refs))
    short = [(text.cut(name, LABEL), *(text.cut(value, each) for value in values)) for name, *values in cells]
    lines = text.table(("differs in", *refs), short, 10**6, floor=LABEL)
    if max(map(text.width_of, lines)) > width:
        lines = [
            line
            for name, *values in cells
            for line in (
                name,
                *text.table(
                    ("", ""), [(f"  {ref}", value) for ref, value in zip(refs, values, strict=True)], width, flexible=1
                )[1:],
            )
        ]
    return "\n".join(text.cut(line, width) for line in lines) + "\n"


def tsv(rows: Rows, refs: Sequence[str]) -> str:
    """The same, uncut, with the ids in the first line."""
    plain = [[value if isinstance(value, str) else json.dumps(value) for value in values] for values in rows.values()]
    return text.tsv([("", *refs), *((name, *values) for name, values in zip(rows, plain, strict=True))])


def record(rows: Rows, refs: Sequence[str]) -> dict[str, Any]:
    """The same as JSON."""
    return {"artifacts": list(refs), "differences": {name: list(values) for name, values in rows.items()}}
