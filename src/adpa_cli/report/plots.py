"""Curves as text: lines of braille dots with axes, for terminals of 60 columns and more. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from adpa_cli.report import text
from adpa_cli.report.curves import Curve

ROWS = 12
"""Lines of a plot between its title and its axis."""
NARROW, WIDEST = 60, 200
BESIDE = 140
"""Columns from which two plots stand side by side."""
BRAILLE = 0x2800
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""The bit of each dot of a braille sign, by row and column in it."""
_COLOURS = (36, 33, 32, 35, 34, 31)
"""ANSI colours of several curves, those first that are told apart best."""
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def screen(
    trainings: Mapping[str, Mapping[str, Curve]], names: Sequence[str], labels: Sequence[str], width: int,
    colour: bool = False, braille: bool = True,
) -> str:  # fmt: skip
    """The numbers `names` of some trainings, a plot for each; several trainings, which `labels` tell apart, lie over
    each other.

    Without `braille` the dots are asterisks, which every encoding has.
    """
    width = min(max(width, NARROW), WIDEST)
    each = (width - 3) // 2 if width >= BESIDE and len(names) > 1 else width
    drawn = [_plot(name, trainings, each, colour, braille) for name in names]
    lines = _legend(labels, width, colour) if len(trainings) > 1 else []
    pairs = [drawn[n : n + 2] for n in range(0, len(drawn), 2)] if each < width else [[one] for one in drawn]
    for pair in pairs:
        lines += [(" " * 3).join(row).rstrip() for row in zip(*pair, strict=True)] + [""]
    return "\n".join(lines).rstrip("\n") + "\n"


def _painted(line: str, series: int, colour: bool) -> str:
    return f"\x1b[{_COLOURS[series % len(_COLOURS)]}m{line}\x1b[0m" if colour else line


def _legend(labels: Sequence[str], width: int, colour: bool) -> list[str]:
    lines = [text.cut(f"{LETTERS[n % len(LETTERS)]}  {label}", width) for n, label in enumerate(labels)]
    return [*(_painted(line, n, colour) for n, line in enumerate(lines)), ""]


def _plot(
    name: str, trainings: Mapping[str, Mapping[str, Curve]], width: int, colour: bool, braille: bool
) -> list[str]:
    """One plot: ROWS + 3 lines of `width` columns at most, colours not counted."""
    own = {n: curves[name] for n, curves in enumerate(trainings.values()) if name in curves}
    values = [value for curve in own.values() for value in curve.values if math.isfinite(value)]
    steps = [step for curve in own.values() for step in curve.steps]
    if not values:
        return [text.pad(line, width) for line in (f"{name}   no finite values", *[""] * (ROWS + 2))]
    low, high = min(values), max(values)
    span = (high - low) or abs(high) or 1.0
    low, high = (low, high) if high > low else (low - span / 2, high + span / 2)
    ticks = {0: high, ROWS // 2: (high + low) / 2, ROWS - 1: low}
    words = {row: text.number(value) for row, value in ticks.items()}
    margin = max(map(text.width_of, words.values()))
    columns = width - margin - 2 - 2 * (len(trainings) > 1)
    first, last = min(steps), max(steps)
    cells, owner = _cells(own, columns, (first, last), (low, high))
    lines = [text.pad(text.cut(_title(name, own), width), width)]
    for row in range(ROWS):
        drawn = [_cell(cells[row][c], owner[row][c], colour and len(trainings) > 1, braille) for c in range(columns)]
        end = _ends(own, row, (low, high), colour) if len(trainings) > 1 else ""
        lines.append(f"{text.pad(words.get(row, ''), margin, right=True)} │{''.join(drawn)}{end}")
    ends = f"step {first:g}", f"{last:g}"
    axis = ends[0] + ends[1].rjust(columns - len(ends[0]))
    return [*lines, " " * (margin + 1) + "└" + "─" * columns, text.pad(" " * (margin + 2) + axis, width)]


def _title(name: str, own: Mapping[int, Curve]) -> str:
    """The name, and of a single curve its ends: the means of the first and of the last tenth."""
    if len(own) != 1:
        return name
    (curve,) = own.values()
    tenth = max(1, len(curve.values) // 10)
    return f"{name}   {text.number(text.mean(curve.values[:tenth]))} → {text.number(text.mean(curve.values[-tenth:]))}"


def _cells(
    own: Mapping[int, Curve], columns: int, across: tuple[float, float], along: tuple[float, float]
) -> tuple[list[list[int]], list[list[int]]]:
    """(bits of the dots, number of the curve that drew there last) of every cell, row by row."""
    cells = [[0] * columns for _ in range(ROWS)]
    owner = [[0] * columns for _ in range(ROWS)]
    wide, high = 2 * columns - 1, 4 * ROWS - 1
    for number, curve in own.items():
        drawn = curve.averaged(2 * columns)
        dots = [
            (round((x - across[0]) / ((across[1] - across[0]) or 1) * wide),
             round((along[1] - y) / (along[1] - along[0]) * high))
            for x, y in zip(drawn.steps, drawn.values, strict=True) if math.isfinite(y)
        ]  # fmt: skip
        for (x, y), (to_x, to_y) in zip(dots, [*dots[1:], *dots[-1:]], strict=True):
            parts = max(abs(to_x - x), abs(to_y - y), 1)
            for part in range(parts + 1):
                column, row = (round(a + (b - a) * part / parts) for a, b in ((x, to_x), (y, to_y)))
                cells[row // 4][column // 2] |= _DOTS[row % 4][column % 2]
                owner[row // 4][column // 2] = number
    return cells, owner


def _cell(bits: int, number: int, colour: bool, braille: bool) -> str:
    if not bits:
        return " "
    return _painted(chr(BRAILLE + bits) if braille else "*", number, colour)


def _ends(own: Mapping[int, Curve], row: int, along: tuple[float, float], colour: bool) -> str:
    """The letter of the curve that ends at the height of a row; of several the first, and a plus sign."""
    at = [
        number for number, curve in own.items()
        if math.isfinite(curve.values[-1])
        and round((along[1] - curve.values[-1]) / (along[1] - along[0]) * (4 * ROWS - 1)) // 4 == row
    ]  # fmt: skip
    if not at:
        return "  "
    return _painted(LETTERS[at[0] % len(LETTERS)], at[0], colour) + ("+" if len(at) > 1 else " ")


def tsv(trainings: Mapping[str, Mapping[str, Curve]], names: Sequence[str]) -> str:
    """Every point as a line under a header: label, number, step, value."""
    rows = [
        (label, name, f"{step:g}", value)
        for label, curves in trainings.items() for name in names if name in curves
        for step, value in zip(curves[name].steps, curves[name].values, strict=True)
    ]  # fmt: skip
    return text.tsv([("artifact", "number", "step", "value"), *rows])


def record(trainings: Mapping[str, Mapping[str, Curve]], names: Sequence[str]) -> dict[str, object]:
    """The same as JSON."""
    return {
        label: {name: {"steps": list(c.steps), "values": list(c.values)} for name, c in curves.items() if name in names}
        for label, curves in trainings.items()
    }
