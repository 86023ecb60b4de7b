"""The numbers of each training step, as `metrics.jsonl` keeps them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from adpa_cli.report import text

FILE_NAME = "metrics.jsonl"
_NOT_CURVES = {"step", "epoch", "lr", "seconds", "time", "at", "tokens", "of", "rows", "tokens_per_device", "padding"}
_ASIDE = "grad_norm"
"""Numbers that begin so are told in other places, and come last."""
_FIRST = ("loss", "advantage", "entropy", "length")

Curves = Mapping[str, Sequence[float | None]]


def read(folder: Path) -> dict[str, list[float | None]]:
    """Every number of every step by name, None where a step has none; empty without the file.

    Lines that are no JSON object (a file cut off by a crash) are skipped.
    """
    try:
        lines = (folder / FILE_NAME).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    steps = []
    for line in lines:
        try:
            step = json.loads(line)
        except ValueError:
            continue
        if isinstance(step, dict):
            steps.append(text.flat(step))
    names = dict.fromkeys(
        name for step in steps for name, value in step.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    )  # fmt: skip
    return {name: [_number(step.get(name)) for step in steps] for name in names}


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def lines(curves: Curves, width: int, count: int = 4) -> list[str]:
    """`name  first curve last`: the loss first, then up to `count` - 1 other numbers that change."""
    names = [name for name in curves if name not in _NOT_CURVES and name.rpartition(".")[2] not in _NOT_CURVES]
    names.sort(key=_place)
    varied = [name for name in names if name == "loss" or len(set(curves[name]) - {None}) > 1]
    items = [f"{name} {_curve(curves[name])}" for name in varied[:count]]
    return text.wrap("curves", items, width, "    ") if items else []


def _place(name: str) -> int:
    begin = name.partition("/")[0]
    return _FIRST.index(begin) if begin in _FIRST else len(_FIRST) + begin.startswith(_ASIDE)


def _curve(every: Sequence[float | None]) -> str:
    values = [value for value in every if value is not None]  # some are measured on some steps only
    tenth = max(1, len(values) // 10)
    first, last = text.mean(values[:tenth]), text.mean(values[-tenth:])
    return f"{text.number(first)} {text.sparkline(values)} {text.number(last)}"
