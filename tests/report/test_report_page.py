"""The report: which models it compares, the numbers behind its figures, and that its page is one quiet file."""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import re
import statistics
import sys
from pathlib import Path
from typing import Any

import pytest

from adpa_cli.errors import AdpaError, UsageError
from adpa_cli.report.curves import Curve
from adpa_cli.report.differences import Rows
from adpa_cli.report.html import graph
from adpa_cli.report.html.figures import MOST_TICKS, VARIABLES, Series, _ticks, as_csv, lines, points, wide
from adpa_cli.report.html.measured import compared, normal, over_seeds, table
from adpa_cli.report.html.report import Report, write
from adpa_cli.report.html.sweeps import along_training, binned, by_setting, grouped, training_curves
from adpa_cli.report.page import FILE_NAME
from adpa_cli.stages.eval import SCORES
from adpa_cli.store.manifest import Manifest
from adpa_cli.store.store import Store
from support.cli_samples import write_rows
from support.store_samples import DATA, MODEL, make, new_store, place, recipe

PROMPTS = [f"{n:016x}" for n in range(40)]


def cell(store: Store, steps: int = 20, **values: Any) -> Manifest:
    """A training with curves, as a sweep made it from one start."""
    start = store.get(recipe("sft").ref) or make(store, "sft")
    inputs = {"model": f"artifact:{start.id}", "data": DATA}
    request = {"command": "distill", "values": {"student": "tiny", **values}}
    number = len(list(store.folders("distill")))
    made = place(store, recipe("distill", inputs, **values), 100.0 + number, metrics={"what": "dckd"},
                 made={"at": f"2026-01-01T00:{number // 60:02}:{number % 60:02}Z", "command": f"adpa distill {values}",
                       "seconds": 2.0, "request": request})  # fmt: skip
    rows = [{"step": n, "loss": 1 / n, "length/rollout": 9 + n % 5} for n in range(1, steps + 1)]
    write_rows(store.root / made.ref / FILE_NAME, rows)
    return made


def evaluated(store: Store, model: Manifest | str, rewards: list[float], sources: Any = None) -> Manifest:
    """An evaluation with a reward for each prompt."""
    content = model if isinstance(model, str) else f"artifact:{model.id}"
    value, half = statistics.fmean(rewards), 0.1
    scores = {"mean_reward": {"value": value, "low": value - half, "high": value + half, "n": len(rewards)}}
    metrics = {"suite": "s", "data": "d", "scorer": "r", "scores": scores, "measured": {"data": "d"}}
    one = recipe("eval", {"model": content}, suite="s", key=[content, *rewards[:2]])
    made = place(store, one, 200.0, metrics=metrics, sources=sources or {})
    kept = {"rows": {"mean_reward": dict(zip(PROMPTS, rewards, strict=False))}, "prompts": {}}
    (store.root / made.ref / SCORES).write_text(json.dumps(kept))
    return made


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return new_store(tmp_path)


def sweep(store: Store, gammas: tuple[float, ...] = (0.5, 1, 2), seeds: int = 2) -> list[Manifest]:
    """Cells whose mean reward is γ + 0.1 × seed, and their start with a mean of 0.5."""
    cells = [cell(store, method="adpa", gamma=gamma, seed=seed) for gamma in gammas for seed in range(seeds)]
    for made in cells:
        values = made.made["request"]["values"]
        mean = values["gamma"] + 0.1 * values["seed"]
        evaluated(store, made, [mean + (n % 2 - 0.5) / 10 for n in range(40)])
    start = store.get(recipe("sft").ref)
    assert start is not None
    evaluated(store, start, [0.5 + (n % 4 - 1.5) / 10 for n in range(40)])
    return cells


def test_models_are_told_apart_by_what_was_typed(store: Store) -> None:
    cells = sweep(store)
    store.tag("chosen", cells[1].id)
    found = compared(store, cells)
    assert [model.name for model in found.asked][:3] == ["gamma=0.5 seed=0", "chosen", "gamma=1 seed=0"]
    assert list(found.keys) == ["gamma", "seed"]
    assert [(model.name, model.role) for model in found.models[6:]] == [("start", "start")]
    assert found.base.name == "start"
    same = compared(store, [cell(store, method="dpo"), cell(store, method="dpo", tag="x")])
    assert len({model.name for model in same.asked}) == 2


def test_an_evaluation_stands_for_its_model(store: Store) -> None:
    one = cell(store, method="dpo")
    made = evaluated(store, one, [0.5] * 40)
    assert [model.ref for model in compared(store, [made, one]).asked] == [one.ref]
    with pytest.raises(UsageError, match="is no model"):
        compared(store, [make(store, "rollout", {"model": MODEL})])


def test_the_best_and_what_differs_from_the_start(store: Store) -> None:
    rows = table(compared(store, sweep(store)))
    (best,) = [model.name for model, (score,) in rows if score is not None and score.is_best]
    assert best == "gamma=2 seed=1"
    words = {model.name: score for model, (score,) in rows}
    assert words["gamma=2 seed=1"].words == "2.100 ±0.100"
    assert (words["gamma=2 seed=1"].more, words["gamma=2 seed=1"].mark) == ("+1.600", "▲")
    assert (words["gamma=0.5 seed=0"].more, words["gamma=0.5 seed=0"].mark) == ("+0.000", "")
    assert words["start"].more == ""


def test_the_normal_interval_of_a_difference() -> None:
    """Two rows of one prompt count as one: differences 1 and 3 of p, 2 of q, by hand."""
    ours = Rows({"a": 1.0, "b": 3.0, "c": 2.0, "d": 9.0}, {})
    theirs = Rows({"a": 0.0, "b": 0.0, "c": 0.0}, {"a": "p", "b": "p", "c": "q"})
    found = normal(ours, theirs)
    assert found is not None
    assert (found.value, found.n, found.p) == (2.0, 3, 0.0)
    assert (found.low, found.high) == (2.0, 2.0)
    spread = normal(Rows({"a": 1.0, "b": 0.0}, {}), Rows({"a": 0.0, "b": 0.0}, {}))
    assert spread is not None
    assert spread.high - spread.value == pytest.approx(1.96 * math.sqrt(0.25 + 0.25) / 2)
    assert normal(Rows({"a": 1.0}, {}), Rows({}, {})) is None


def test_means_over_seeds(store: Store) -> None:
    spread = statistics.stdev([2.0, 2.1])
    assert over_seeds(compared(store, sweep(store)))[-1] == ("gamma=2", 2, [f"2.050 ± {spread:.3f}"])


def test_scores_by_a_setting(store: Store) -> None:
    (figure,) = by_setting(compared(store, sweep(store)))
    head, *rows = figure.numbers
    assert head == ["gamma γ", "gamma", "gamma low", "gamma high"]
    assert [row[:2] for row in rows] == [[g, pytest.approx(g + 0.05)] for g in (0.5, 1.0, 2.0)]
    assert rows[0][3] - rows[0][1] == pytest.approx(statistics.stdev([0, 0.1]))
    assert by_setting(compared(store, sweep(new_store(store.root.parent / "other"), (1, 2)))) == []


def test_scores_along_a_training(store: Store) -> None:
    one = cell(store, method="adpa")
    for step, reward in ((10, 0.2), (20, 0.4)):
        content = f"model:{step:064x}"
        facts = {content: {"name": f"{one.ref}@{step}", "point_of": one.ref}}
        evaluated(store, content, [reward] * 40, facts)
    (figure,) = along_training(compared(store, [one]))
    assert [row[:2] for row in figure.numbers[1:]] == [[10, pytest.approx(0.2)], [20, pytest.approx(0.4)]]
    assert figure.title == "mean reward along the training"


def test_curves_of_many_models_share_few_colours_and_steps(store: Store) -> None:
    cells = [cell(store, 300, method="adpa", gamma=g, seed=s) for g in (1, 2, 3) for s in range(4)]
    found = compared(store, cells)
    colours = grouped(found, found.asked)
    assert {label for label, _ in colours.values()} == {"gamma=1", "gamma=2", "gamma=3"}
    loss = training_curves(found)[0]
    assert len(loss.numbers) - 1 <= 80
    assert len(loss.numbers[0]) == 13


def test_a_curve_is_averaged_on_steps_that_others_share() -> None:
    curve = Curve(list(range(1, 801)), [float(n) for n in range(800)])
    found = binned(curve, 1, 801)
    assert found.values == [pytest.approx(4.5 + 10 * n) for n in range(80)]
    assert found.steps[:2] == [6, 16]
    assert binned(Curve([1, 2], [0, 1]), 1, 801) == Curve([1, 2], [0, 1])


def test_a_figure_has_the_colours_of_its_page_and_escapes_what_it_is_called() -> None:
    series = [Series("_a <b> $x$", [1, 2, 3], [1, 2, 3], [(0, 2)] * 3, 0), Series("c", [1, 2], [1, math.nan], colour=9)]
    for figure in (lines("f", '"T" <x>', series, "step", "loss"), points("p", "P", [Series("a", [1], [2])], "x", "y")):
        assert not any(colour in figure.inline for colour in VARIABLES)
        assert "var(--s1)" in figure.inline
        assert any(colour in figure.svg for colour in VARIABLES)
        assert not re.findall(r"<script|https?://(?!www\.w3\.org)", figure.inline)
        assert "<b>" not in figure.inline
    assert figure.inline == points("p", "P", [Series("a", [1], [2])], "x", "y").inline


def test_labels_of_a_logarithmic_axis_have_room() -> None:
    near = [2.0, *(1 + n / 1000 for n in range(200)), 64.0]
    ticks = _ticks(near)
    assert ticks[0] == 1
    assert {2.0, 64.0} <= {*ticks}
    assert all(after / before >= 64 ** (1 / MOST_TICKS) for before, after in itertools.pairwise(ticks))
    assert _ticks([5e-6, 2e-5, 1e-4]) == [5e-6, 2e-5, 1e-4]
    svg = lines("f", "F", [Series("a", [0.3061234, 1], [1, 2])], "x", "y", log=True).svg
    assert ">0.306<" in svg


def test_the_numbers_behind_a_figure() -> None:
    rows = wide("x", [Series("a", [1, 2], [3, 4]), Series("b", [2], [5], [(4, 6)], name="b2")])
    assert rows == [["x", "a", "b2", "b2 low", "b2 high"], [1, 3, None, None, None], [2, 4, 5, 4, 6]]
    assert as_csv([["a,b", None], [0.123456789, 1]]) == '"a,b",\n0.123457,1\n'


def test_lineage_goes_from_left_to_right(store: Store) -> None:
    cells = sweep(store)
    artifacts = {manifest.id: manifest for manifest in store.artifacts()}
    found = graph.graph(cells, artifacts)
    xs = {placed.node.key: placed.x for placed in found.nodes}
    assert all(xs[parent] < placed.x for placed in found.nodes for parent in placed.node.parents)
    assert len({(placed.x, placed.y) for placed in found.nodes}) == len(found.nodes)
    assert len(found.members) == 7
    assert {node.node.text for node in found.nodes if not node.node.members} == {"d" * 12, "a" * 12}
    many = [cell(store, method="dpo", gamma=0, seed=seed) for seed in range(50)]
    merged = graph.graph(many, {manifest.id: manifest for manifest in store.artifacts()})
    assert {placed.node.title for placed in merged.nodes} >= {"50 × distill"}
    assert len(merged.members) == 51


def test_a_page_of_sixty_cells_is_small_and_asks_for_nothing(store: Store, tmp_path: Path) -> None:
    cells = sweep(store, tuple(n / 10 for n in range(1, 31)))
    for made in cells:
        rows = [{"step": n, "loss": math.sin(n), "sft": 1 / n, "length/rollout": n} for n in range(1, 251)]
        write_rows(store.root / made.ref / FILE_NAME, rows)
    (page,) = write(store, cells, tmp_path / "r.html")
    assert page.stat().st_size < 3_000_000
    shown = page.read_text(encoding="utf-8")
    assert "default-src 'none'" in shown
    assert not re.findall(r'(?:src|href)="(?!#|data:)', shown.replace("xlink:href", ""))
    assert shown.count("gamma=3 seed=1") > 3


def test_a_folder_has_every_figure_and_table(store: Store, tmp_path: Path) -> None:
    cells = sweep(store)
    files = {path.name: path for path in write(store, cells, tmp_path / "out")}
    assert {"report.html", "scores.csv", "lineage.csv", "steps.csv", "curve-loss.svg", "curve-loss.csv"} <= files.keys()
    assert {path.suffix for path in files.values()} == {".html", ".csv", ".svg"}
    scores = list(csv.DictReader(io.StringIO(files["scores.csv"].read_text())))
    assert {(row["id"], row["seed"]) for row in scores[:2]} == {(made.ref, str(n)) for n, made in enumerate(cells[:2])}
    steps = list(csv.DictReader(io.StringIO(files["steps.csv"].read_text())))
    assert len(steps) == 6 * 2 * 20


def test_without_the_library_one_line_says_what_to_install(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(AdpaError, match="is not installed") as refused:
        write(store, [cell(store, method="dpo")], tmp_path / "r.html")
    assert refused.value.hint == "pip install matplotlib"
    assert not (tmp_path / "r.html").exists()


def test_a_model_that_nobody_measured_has_a_report_too(store: Store) -> None:
    shown = Report(store, [make(store, "sft")]).page()
    assert "Lineage" in shown
    assert '<h2 id="scores">' not in shown
