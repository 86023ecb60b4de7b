"""`adpa show REF --row N --html FILE`: whose row it is, what it has, and what it refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from support.cli_samples import Cli, Pipeline


def data_of(path: Path) -> dict[str, Any]:
    """What the script of a page is given of its tokens."""
    (found,) = re.findall(r'class="token-data">(.*?)</script>', path.read_text(encoding="utf-8"), re.DOTALL)
    data: dict[str, Any] = json.loads(found)
    return data


def test_the_page_has_the_prompt_and_the_numbers_of_the_row(cli: Cli, pipeline: Pipeline) -> None:
    for signal in ("signal #1", "signal #2"):
        ref = pipeline.made(signal)
        assert cli("show", ref, "--row", 1, "--html", "row.html").out.strip() == "row.html"
        row = json.loads(cli("show", ref, "--row", 1, "--json").out)
        shown = Path("row.html").read_text(encoding="utf-8")
        assert "The prompt is not shown" not in shown
        tokens = data_of(Path("row.html"))["tokens"]
        assert isinstance(tokens, list)
        names = [name for name, _ in data_of(Path("row.html"))["metrics"]]
        logps = [token["v"][names.index("log-prob")] for token in tokens]
        assert logps == pytest.approx([token["logp"] for token in row["tokens"]], abs=1e-3)


def test_the_row_of_a_model_is_that_of_the_signal_it_learned_from(cli: Cli, pipeline: Pipeline) -> None:
    model, signal = pipeline.made("distill adpa"), pipeline.made("signal #2")
    ran = cli("show", model, "--row", 2)
    assert ran.out == cli("show", signal, "--row", 2).out
    assert f"{model} was trained on {signal}; this is its row 2." in ran.err
    assert cli("show", model, "--row", 2, "--html", "row.html").code == 0
    assert signal in Path("row.html").read_text(encoding="utf-8")
    assert "has no rows" in cli.refused(2, "show", pipeline.made("student"), "--row", 2)


def test_the_log_probs_of_a_student_that_is_the_teacher_are_the_teachers(cli: Cli, pipeline: Pipeline) -> None:
    """Within half a step of the stored values, and half a step for what makes them sum to 1."""
    teacher = pipeline.made("aligned teacher")
    for signal in ("signal #1", "signal #2"):
        words = ("show", pipeline.made(signal), "--row", 2, "--html", "row.html", "--student", teacher)
        assert cli(*words).code == 0
        data = data_of(Path("row.html"))
        names = [name for name, _ in data["metrics"]]
        values = [token["v"] for token in data["tokens"]]
        ours, theirs = ([value[names.index(name)] for value in values] for name in ("student", "log-prob"))
        assert ours == pytest.approx(theirs, abs=0.05)


def test_what_is_refused(cli: Cli, pipeline: Pipeline) -> None:
    signal = pipeline.made("signal #2")
    assert "--html needs --row" in cli.refused(2, "show", signal, "--html", "a.html")
    assert "--student needs --html" in cli.refused(2, "show", signal, "--row", 1, "--student", "tiny")
    assert "does not end with .html" in cli.refused(2, "show", signal, "--row", 1, "--html", "a.png")
    assert "shows the tokens of a teacher signal" in cli.refused(
        2, "show", pipeline.made("rollouts"), "--row", 1, "--html", "a.html"
    )
    assert "several models" in cli.refused(2, "show", signal, "--row", 1, "--html", "a.html", "--student", "tiny")
    assert "rows are numbered 1 to" in cli.refused(3, "show", signal, "--row", 9999, "--html", "a.html")
    assert not Path("a.html").exists()
