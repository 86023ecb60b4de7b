"""Colour comes in addition: where it is shown, what it marks, and that the words are the same without it."""

from __future__ import annotations

import io
import re
import time
from types import SimpleNamespace
from typing import Any

import pytest

from adpa_cli.cli.console import progress
from adpa_cli.cli.console.streams import is_coloured
from adpa_cli.report import compare, evaluation, listing, page, scores, text
from adpa_cli.report.compare import Apart
from adpa_cli.report.differences import Difference
from adpa_cli.report.evaluation import Entry
from adpa_cli.report.scores import Line, Score
from adpa_cli.store.store import Store
from support.cli_samples import Cli, Pipeline

STYLE = re.compile(r"\x1b\[[\d;]*m")
BEST = f"\x1b[{text.BEST}m"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("set_to", "at_terminal", "in_pipe"),
    [({}, True, False), ({"NO_COLOR": "1"}, False, False), ({"FORCE_COLOR": "1"}, True, True),
     ({"FORCE_COLOR": "0", "NO_COLOR": ""}, True, False), ({"TERM": "dumb"}, False, False),
     ({"FORCE_COLOR": "1", "NO_COLOR": "1", "TERM": "dumb"}, True, True)],
    ids=str,
)  # fmt: skip
def test_where_colours_are_shown(
    monkeypatch: pytest.MonkeyPatch, set_to: dict[str, str], at_terminal: bool, in_pipe: bool
) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"TERM": "xterm", **set_to}.items():
        monkeypatch.setenv(name, value)
    assert is_coloured(Terminal()) is at_terminal
    assert is_coloured(io.StringIO()) is in_pipe


def score(metric: str, value: float, ref: str = "eval/1") -> Score:
    return Score(metric, value, value - 0.1, value + 0.1, 99, "s", "d", "", "", ref, 0.0)


def test_the_best_number_of_each_column_stands_out() -> None:
    numbers = [(score("mean_reward", n), score("answer_tokens", n)) for n in (1, 2)]
    lines = [Line({"lr": str(n)}, f"distill/{n}", each) for n, each in enumerate(numbers)]
    shown = scores.screen(lines, 100, is_coloured=True)
    assert STYLE.sub("", shown) == scores.screen(lines, 100)
    assert re.findall(rf"{re.escape(BEST)}(.*?)\x1b", shown) == ["2.000 ±0.100"], "of tokens more is not better"
    entries = [Entry(line.ref, line.ref, (), line.scores) for line in lines]
    table = evaluation.screen(entries, False, 100, is_coloured=True)
    assert STYLE.sub("", table) == evaluation.screen(entries, False, 100)
    assert re.findall(rf"{re.escape(BEST)}(.*?)\x1b", table) == ["2.000 ±0.100"]
    assert BEST not in scores.screen(lines[:1], 100, is_coloured=True), "one alone is not the best"


@pytest.mark.parametrize(
    ("metric", "low", "high", "style"),
    [("mean_reward", 0.1, 0.3, text.BETTER), ("mean_reward", -0.3, -0.1, text.WORSE), ("mean_reward", -0.1, 0.3, ""),
     ("prose.word_perplexity", 0.1, 0.3, text.WORSE), ("answer_tokens", 0.1, 0.3, "")],
)  # fmt: skip
def test_a_clear_difference_is_better_or_worse(metric: str, low: float, high: float, style: str) -> None:
    found = Difference((low + high) / 2, low, high, 0.01, 9)
    assert Apart(found, score(metric, 1.0), 0).style == style


def test_screens_say_the_same_without_colour(pipeline: Pipeline) -> None:
    store = Store.find(pipeline.store)
    made = [store.resolve(pipeline.made(role)) for role in ("distill dckd", "distill adpa")]
    listed, both, one = listing.collect(store), compare.collect(store, made), page.collect(store, made[1])
    for width in (60, 80, 100):
        for plain, coloured in (
            (listing.screen(listed, width, 0.0), listing.screen(listed, width, 0.0, is_coloured=True)),
            (compare.screen(both, width), compare.screen(both, width, True)),
            (page.screen(one, width, 0.0), page.screen(one, width, 0.0, True)),
        ):
            assert STYLE.sub("", coloured) == plain
        tables = f"{listing.screen(listed, width, 0.0)}{compare.screen(both, width, True)}"
        assert not [line for line in tables.splitlines() if text.width_of(line) > width]
        refs = [row.manifest.ref for row in listed.rows]
        table = listing.screen(listed, width, 0.0).splitlines()
        first = [line.split()[0] for line in table]
        assert len([word for word in first if word in refs]) >= listing.SHORT - 2, "ids are whole at every width"
    assert BEST in compare.screen(both, 100, True)


def test_errors_are_red_and_pages_are_coloured_when_asked(
    pipeline: Pipeline, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = pipeline.made("distill adpa")
    words = ("show", ref, pipeline.made("distill dckd"))
    plain, error = cli("show", ref).out, cli("show", "nosuch").err
    table = cli(*words).out
    monkeypatch.setenv("FORCE_COLOR", "1")
    coloured = cli("show", "nosuch").err
    assert coloured.startswith(f"\x1b[{text.WORSE}merror:\x1b[0m ")
    assert STYLE.sub("", coloured) == error
    assert STYLE.sub("", cli("show", ref).out) == plain
    assert cli(*words).out == table, "tab-separated text has no colour"


def test_a_stage_that_says_nothing_shows_that_it_is_at_work(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "TURN_SECONDS", 0.01)
    monkeypatch.setattr(progress, "_can_draw", lambda: True)
    node: Any = SimpleNamespace(label="sft/1", role="student", what="what it makes")
    shown = progress.Screen(quiet=False)
    shown.start(node, 1, 2)
    drawn = ""
    for _ in range(500):
        drawn += capfd.readouterr().err
        if all(f"so far {sign}" in drawn for sign in progress.TURNING):
            break
        time.sleep(0.01)
    assert "[1/2] student: what it makes  0 s so far |" in drawn
    assert all(f"so far {sign}" in drawn for sign in progress.TURNING)
    shown.progress(3, 4, {})
    capfd.readouterr()
    time.sleep(0.1)
    assert re.search(r"\[1/2\] student \S+  3/4 .* [|/\\-]", capfd.readouterr().err)
    shown.close()
    capfd.readouterr()
    time.sleep(0.1)
    assert capfd.readouterr().err == "", "nothing is drawn any more"
