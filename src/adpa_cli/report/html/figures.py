"""Figures as SVG, drawn by matplotlib: in plain colours for a file, or in those of the page that they stand in."""

from __future__ import annotations

import csv
import importlib
import io
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from adpa_cli.errors import AdpaError

COLOURS = ("#0b62c4", "#b35900", "#1a7f37", "#8250df", "#c4314b", "#0c747d", "#7a5c00", "#57606a")
INK, FAINT = "#1a1d21", "#d5dae0"
VARIABLES = {**{colour: f"var(--s{n})" for n, colour in enumerate(COLOURS, 1)}, INK: "var(--fg)", FAINT: "var(--line)"}
"""Colours of a figure, and the variables of page.css that stand for them in a page."""
DASHES, MARKS = ("-", "--", ":", "-."), ("o", "s", "^", "D")
SIZE = (4.8, 2.9)
"""Inches: at this size letters are as large as those of the text around, on a screen and on a phone."""
MOST_INSIDE, MOST_NAMED = 12, 16
"""Lines whose names have room among them, and lines that a legend names at all."""
MOST_TICKS = 12
"""Labels that have room on a logarithmic axis."""
_IDS = re.compile(r' id="(?:figure|axes|patch|matplotlib|xtick|ytick|line2d|text|legend|[A-Za-z]+Collection)[\w.]*"')
_PLACES = re.compile(r' (?:d|x|y|transform)="[^"]*"')
_LONG = re.compile(r"(\d+\.\d\d)\d+")


@dataclass(frozen=True)
class Series:
    """One line: points by x, with the bounds of their intervals where these are known. Lines of one `colour` (its
    number) belong together; the legend has each `label` once."""

    label: str
    xs: Sequence[float]
    ys: Sequence[float]
    bounds: Sequence[tuple[float, float]] = ()
    colour: int = 0
    name: str = ""
    """What tells it apart from others of its label."""

    @property
    def full_name(self) -> str:
        return self.name or self.label


@dataclass(frozen=True)
class Figure:
    """A figure by the name of its file, with a line below it and the numbers behind it, head first."""

    name: str
    title: str
    caption: str
    svg: str
    numbers: Sequence[Sequence[Any]]

    @property
    def inline(self) -> str:
        """The SVG for a page: in its colours, named for readers who do not see it."""
        drawn = self.svg[self.svg.index("<svg") :]
        drawn = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", drawn, flags=re.DOTALL)
        drawn = re.sub(r"\n\s*", "\n", re.sub(r"font-family: [^;]*; ", "", _IDS.sub("", drawn)))
        for colour, variable in VARIABLES.items():
            drawn = drawn.replace(colour, variable)
        drawn = re.sub(r'<svg ([^>]*?)width="[\d.]+pt" ', r"<svg \1", drawn, count=1)
        drawn = re.sub(r'<svg ([^>]*?)height="[\d.]+pt" ', r"<svg \1", drawn, count=1)
        return drawn.replace("<svg ", f'<svg role="img" aria-label="{_escaped(self.title)}" ', 1)

    @property
    def csv(self) -> str:
        """The numbers behind it."""
        return as_csv(self.numbers)


def as_csv(rows: Sequence[Sequence[Any]]) -> str:
    """A table as comma-separated lines."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([[_cell(value) for value in row] for row in rows])
    return out.getvalue()


def _cell(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else "" if value is None else value


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")


def library() -> Any:
    """matplotlib. Raises AdpaError that says how it is installed."""
    try:
        return importlib.import_module("matplotlib")
    except ImportError as error:
        raise AdpaError("a report is drawn by matplotlib, which is not installed", "pip install matplotlib") from error


def lines(
    name: str, title: str, series: Sequence[Series], across: str, along: str, *, caption: str = "",
    marks: bool = False, log: bool = False,
) -> Figure:  # fmt: skip
    """Lines over a common axis. `marks` draws every point; `log` is of the axis `across`."""
    drawn = [each for each in series if any(math.isfinite(y) for y in each.ys)]
    with _axes(name, across, along) as (axes, saved):
        many = len(drawn) > MOST_INSIDE
        labels = _labels(drawn)
        for each, label in zip(drawn, labels, strict=True):
            colour, dash = COLOURS[each.colour % len(COLOURS)], DASHES[each.colour // len(COLOURS) % len(DASHES)]
            axes.plot(each.xs, each.ys, dash, color=colour, label=label, linewidth=0.7 if many else 1.4,
                      marker="o" if marks else None, markersize=3)  # fmt: skip
            if each.bounds:
                low, high = zip(*each.bounds, strict=True)
                axes.fill_between(each.xs, low, high, color=colour, alpha=0.15, linewidth=0)
        if log:
            axes.set_xscale("log")
            ticks = _ticks({x for each in drawn for x in each.xs})
            axes.set_xticks(ticks, [f"{x:.3g}" for x in ticks], minor=False)
            axes.minorticks_off()
        elif all(float(x).is_integer() for each in drawn for x in each.xs):
            axes.xaxis.get_major_locator().set_params(integer=True)
        if many:
            axes.figure.legend(loc="outside upper left", ncols=4)  # a place among many lines is long to find
        elif len(drawn) - labels.count(None) > 1:
            axes.legend()
    return Figure(name, title, caption, saved[0], wide(across, drawn))


def _ticks(xs: Iterable[float]) -> list[float]:
    """Those of some positive numbers whose labels have room beside each other on a logarithmic axis."""
    ticks: list[float] = []
    every = sorted(xs)
    for x in every:
        if not ticks or math.log(x / ticks[-1]) * MOST_TICKS >= math.log(every[-1] / every[0]):
            ticks.append(x)
    return ticks


def points(name: str, title: str, series: Sequence[Series], across: str, along: str, caption: str = "") -> Figure:
    """One point for each series, whose bounds are vertical."""
    with _axes(name, across, along) as (axes, saved):
        for each, label in zip(series, _labels(series), strict=True):
            colour, mark = COLOURS[each.colour % len(COLOURS)], MARKS[each.colour // len(COLOURS) % len(MARKS)]
            (x,), (y,) = each.xs, each.ys
            for low, high in each.bounds:
                axes.plot([x, x], [low, high], color=colour, linewidth=1)
            axes.plot([x], [y], mark, color=colour, markersize=5, label=label)
        if len(series) > MOST_INSIDE:
            axes.figure.legend(loc="outside upper left", ncols=4)
        else:
            axes.legend()
    rows = [(each.full_name, each.xs[0], each.ys[0], *(each.bounds[0] if each.bounds else ())) for each in series]
    return Figure(name, title, caption, saved[0], [("model", across, along, "low", "high"), *rows])


def _labels(series: Sequence[Series]) -> list[str | None]:
    """What the legend says of each: a label once, and of many labels the first ones."""
    named = list(dict.fromkeys(each.label for each in series))[:MOST_NAMED]
    first = {label: next(n for n, each in enumerate(series) if each.label == label) for label in named}
    return [_plain(each.label) if first.get(each.label) == n else None for n, each in enumerate(series)]


def wide(across: str, series: Sequence[Series]) -> list[list[Any]]:
    """A table with a column for each series, and for its bounds where these are known."""
    columns: list[tuple[str, Mapping[float, float]]] = []
    for each in series:
        columns.append((each.full_name, dict(zip(each.xs, each.ys, strict=True))))
        for n, end in enumerate(("low", "high")) if each.bounds else ():
            ends = {x: bounds[n] for x, bounds in zip(each.xs, each.bounds, strict=True)}
            columns.append((f"{each.full_name} {end}", ends))
    xs = sorted({x for _, column in columns for x in column})
    return [[across, *(name for name, _ in columns)], *([x, *(column.get(x) for _, column in columns)] for x in xs)]


@contextmanager
def _axes(name: str, across: str, along: str) -> Iterator[tuple[Any, list[str]]]:
    """Empty axes, and a list that has the SVG once they are drawn."""
    matplotlib = library()
    style = {
        "svg.fonttype": "none", "svg.hashsalt": name, "font.family": "sans-serif", "font.size": 8,
        "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": FAINT, "axes.labelcolor": INK,
        "xtick.color": FAINT, "ytick.color": FAINT, "xtick.labelcolor": INK, "ytick.labelcolor": INK,
        "text.color": INK, "axes.grid": True, "axes.axisbelow": True, "grid.color": FAINT, "grid.linewidth": 0.5,
        "legend.frameon": False, "legend.fontsize": 7, "figure.facecolor": "none", "axes.facecolor": "none",
        "text.parse_math": False, "axes.formatter.useoffset": False,
    }  # fmt: skip
    saved: list[str] = []
    with matplotlib.rc_context(style):
        figure = importlib.import_module("matplotlib.figure").Figure(figsize=SIZE, layout="constrained")
        axes = figure.add_subplot()
        yield axes, saved
        axes.set_xlabel(_plain(across))
        axes.set_ylabel(_plain(along))
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        drawn = _PLACES.sub(lambda found: _LONG.sub(r"\1", found[0]), buffer.getvalue())
        saved.append(drawn.replace("DejaVu Sans", "system-ui"))


def _plain(text: str) -> str:
    """A text that the library draws as it stands: names that begin with an underscore are left out of its legends."""
    return f" {text}" if text.startswith("_") else text
