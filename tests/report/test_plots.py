"""Curves in the terminal: where their dots lie, how wide they are, and which numbers are drawn."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from adpa_cli.errors import UsageError
from adpa_cli.report import plots, text
from adpa_cli.report.curves import Curve, curves_of, names_in
from adpa_cli.report.page import FILE_NAME
from adpa_cli.store.store import Store
from support.cli_samples import write_rows
from support.store_samples import make, new_store, place, recipe

LINE = Curve(list(range(1, 101)), [float(n) for n in range(100)])
FALL = Curve(list(range(1, 101)), [99.0 - n for n in range(100)])


def rows_of(screen: str) -> list[str]:
    """What is drawn right of the axis, from the top."""
    return [line.partition("│")[2] for line in screen.splitlines() if "│" in line]


def test_a_line_that_rises_goes_from_the_lower_left_to_the_upper_right() -> None:
    screen = plots.screen({"a": {"loss": LINE}}, ["loss"], ["a"], 80)
    rows = rows_of(screen)
    assert len(rows) == plots.ROWS
    starts = [next(n for n, sign in enumerate(row) if sign.strip()) for row in rows]
    assert starts == sorted(starts, reverse=True)
    assert starts[-1] == 0
    assert text.width_of(rows[0].rstrip()) == max(text.width_of(row.rstrip()) for row in rows)
    assert screen.splitlines()[0].startswith("loss   4.5 → 94.5")
    assert next(line.split()[0] for line in screen.splitlines() if "│" in line) == "99"


@pytest.mark.parametrize("width", [20, 60, 80, 139, 140, 200, 400])
def test_nothing_is_wider_than_the_terminal(width: int) -> None:
    trainings = {"a": {"loss": LINE, "length": FALL}, "b": {"loss": FALL}}
    screen = plots.screen(trainings, ["loss", "length"], ["a  what " * 9, "b"], width)
    most = min(max(width, plots.NARROW), plots.WIDEST)
    assert max(map(text.width_of, screen.splitlines())) <= most


def test_curves_over_each_other_are_told_apart_without_colours() -> None:
    rows = rows_of(plots.screen({"a": {"loss": LINE}, "b": {"loss": FALL}}, ["loss"], ["a", "b"], 80))
    assert rows[0].rstrip().endswith("A")
    assert rows[-1].rstrip().endswith("B")
    same = rows_of(plots.screen({"a": {"loss": LINE}, "b": {"loss": LINE}}, ["loss"], ["a", "b"], 80))
    assert same[0].rstrip().endswith("A+")


def test_colours_change_no_sign() -> None:
    trainings = {"a": {"loss": LINE}, "b": {"loss": FALL}}
    plain, coloured = (plots.screen(trainings, ["loss"], ["a", "b"], 80, colour) for colour in (False, True))
    assert "\x1b[" in coloured
    assert re.sub(r"\x1b\[\d*m", "", coloured) == plain


def test_other_encodings_get_asterisks() -> None:
    screen = plots.screen({"a": {"loss": LINE}}, ["loss"], ["a"], 80, braille=False)
    assert not any("\u2800" <= sign <= "\u28ff" for sign in screen)
    assert sum(row.count("*") for row in rows_of(screen)) > 70


@pytest.mark.parametrize("values", [[2.0], [2.0, 2.0, 2.0], [0.0, 0.0], [math.nan, 1.0, math.inf], [math.nan]])
def test_odd_curves_are_drawn_too(values: list[float]) -> None:
    curve = Curve([float(n) for n in range(len(values))], values)
    assert "loss" in plots.screen({"a": {"loss": curve}, "b": {"loss": LINE}}, ["loss"], ["a", "b"], 80)
    assert "loss" in plots.screen({"a": {"loss": curve}}, ["loss"], ["a"], 80)


def test_a_long_curve_is_averaged() -> None:
    short = LINE.averaged(10)
    assert short.values == [4.5 + 10 * n for n in range(10)]
    assert LINE.averaged(100) is LINE


def steps(folder: Path, *rows: dict[str, float]) -> None:
    write_rows(folder / FILE_NAME, rows)


def test_the_curves_of_a_training(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    points = [{"step": 1, "reward": 0.1}, {"step": 2, "reward": 0.2}]
    training = make(store, "distill", metrics={"selection": {"points": points, "step": 2, "rule": "last"}})
    steps(
        store.folder(training.ref),
        {"step": 1, "lr": 1, "loss": 3, "entropy/chosen": 1},
        {"step": 2, "lr": 1, "loss": 2},
    )
    scores = {"win_rate": {"value": 0.6, "low": 0.5, "high": 0.7, "n": 9}}
    sources = {"model:" + "1" * 64: {"name": f"{training.ref}@2", "point_of": training.ref}}
    with store.build(recipe("eval", {"model": "model:" + "1" * 64}), command="adpa eval") as work:
        evaluation = work.commit({"scores": scores}, sources)
    found = curves_of(store, training, [evaluation])
    assert list(found) == ["loss", "entropy/chosen", "held-out reward", "held-out win rate"]
    assert found["loss"] == Curve([1, 2], [3, 2])
    assert found["entropy/chosen"] == Curve([1], [1])
    assert found["held-out win rate"] == Curve([2], [0.6], [(0.5, 0.7)])
    assert names_in([found], "entropy,reward") == ["entropy/chosen", "held-out reward"]
    assert names_in([found]) == ["loss", "held-out reward"]
    assert names_in([found], "all") == list(found)
    with pytest.raises(UsageError, match="no such number"):
        names_in([found], "los")


def test_what_has_no_steps_is_not_drawn(tmp_path: Path) -> None:
    store: Store = new_store(tmp_path)
    with pytest.raises(UsageError, match="nothing to plot"):
        names_in([curves_of(store, place(store, recipe(), 1.0))])
