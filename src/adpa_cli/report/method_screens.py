"""The methods at a terminal, in a pipe and as records. Pure functions of a `catalogue.Entry` and a width."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from adpa_cli.report.catalogue import Entry, settings

INDENT = 10
"""Columns before the text of a labelled paragraph."""


def listed(entries: Sequence[Entry], width: int) -> str:
    """Every method in a few lines: what it is, loss, what it reads, parameters and source."""
    column = max(len(one.name) for one in entries) + 2
    lines: list[str] = []
    for one in entries:
        lines += _flow(one.name, one.summary, width, column)
        lines += _flow("", f"loss {one.formula}", width, column)
        lines += _flow("", f"reads {needs(one)}", width, column)
        if one.parameters:
            lines += _flow("", f"set {', '.join(f'{p.name}={p.default}' for p in one.parameters)}", width, column)
        lines += _flow("", f"from {one.source}", width, column)
    return "\n".join([*lines, "adpa methods NAME tells more."])


def page(one: Entry, width: int) -> str:
    """One method in full."""
    lines = _flow(one.name, one.summary, width, max(INDENT, len(one.name) + 2))
    lines += _flow("source", one.source, width)
    lines += _flow("loss", one.formula, width)
    for label, words in zip(_labels("needs"), [*map(_need, one.needs), *one.variants], strict=False):
        lines += _flow(label, words, width)
    for number, (stage, what) in enumerate(one.stages, 1):
        lines += _flow("builds" if number == 1 else "", f"{number} {stage}: {what}", width)
    lines += _flow("", "then its evaluation, unless --no-eval; what exists is used", width)
    if one.parameters:
        lines += ["", "--set KEY=VALUE", *_parameters(one, width), ""]
    for name, values in one.presets.items():
        lines += _flow("preset", f"{name}: {', '.join(settings(values))}", width)
    if one.family:
        lines += _flow("tiny", f"sets {', '.join(settings(one.family))}", width)
    for label, (option, words) in zip(_labels("readings"), one.readings.items(), strict=False):
        lines += _flow(label, f"{option}: {_plain(words)}", width)
    for label, words in zip(_labels("notes"), one.notes, strict=False):
        lines += _flow(label, _plain(words), width)
    return "\n".join([*lines, *_flow("try", one.example, width)])


def needs(one: Entry) -> str:
    """All needs in brief: answers, whose signal on them, and what else."""
    answers, signal, other = one.columns
    return " · ".join(filter(None, (answers, signal and f"signal {signal}", other)))


def record(one: Entry) -> dict[str, Any]:
    """One method as a JSON object."""
    found = dataclasses.asdict(one)
    return {
        **found, "example": one.example,
        "columns": dict(zip(("answers", "signal", "other"), one.columns, strict=True)),
        "needs": [{"answers": answers, "asked": asked} for answers, asked in one.needs],
        "stages": [{"stage": stage, "makes": what} for stage, what in one.stages],
    }  # fmt: skip


def list_rows(entries: Sequence[Entry]) -> list[tuple[str, ...]]:
    """Name, what it is, source, loss, needs and parameters with what they may be."""
    return [
        (
            one.name, one.summary, one.source, one.formula, needs(one),
            ", ".join(f"{p.name}={p.default}" + (f" ({p.limits})" if p.limits else "") for p in one.parameters),
        )
        for one in entries
    ]  # fmt: skip


def page_rows(one: Entry) -> Iterator[tuple[str, ...]]:
    """One method, a fact a line, its kind first."""
    yield from (("method", one.name), ("what", one.summary), ("source", one.source), ("loss", one.formula))
    yield from (("needs", *pair) for pair in one.needs)
    yield from (("variant", words) for words in one.variants)
    yield from (("builds", *pair) for pair in one.stages)
    yield from (("parameter", p.name, p.default, p.origin, p.limits, p.doc) for p in one.parameters)
    yield from (("preset", name, *settings(values)) for name, values in one.presets.items())
    if one.family:
        yield "tiny", *settings(one.family)
    yield from (("reading", *pair) for pair in one.readings.items())
    yield from (("note", words) for words in one.notes)
    yield "example", one.example


def _parameters(one: Entry, width: int) -> Iterator[str]:
    """Name, default, origin and limits in columns, the meaning below."""
    columns = [max(len(row[i]) for row in map(_cells, one.parameters)) for i in range(3)]
    for p in one.parameters:
        cells = "  ".join(f"{cell:<{size}}" for cell, size in zip(_cells(p), columns, strict=True))
        yield from _flow("", f"{cells}  {p.limits}".rstrip(), width, 2)
        yield from _flow("", p.doc, width, 6)


def _cells(p: Any) -> tuple[str, str, str]:
    return p.name, p.default, f"[{p.origin}]"


def _need(pair: tuple[str, str]) -> str:
    return " with ".join(filter(None, pair))


def _plain(words: str) -> str:
    """Without the marks of Markdown."""
    return words.replace("`", "")


def _labels(label: str) -> Iterator[str]:
    """The label once, then nothing for ever."""
    yield label
    while True:
        yield ""


def _flow(label: str, words: str, width: int, indent: int = INDENT) -> list[str]:
    """Words behind a label, wrapped under themselves; their inner spaces stay."""
    return textwrap.wrap(
        f"{label:<{indent}}{words}", max(width, 40), subsequent_indent=" " * indent, break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip
