"""A stage, or a suite, is one file: dropped into its folder it is planned, priced, built, shown and collected."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from adpa_cli import stages, suites
from adpa_cli.estimate.survey import survey
from adpa_cli.planning.planner import Plan
from adpa_cli.planning.resolve_inputs import Names
from adpa_cli.planning.settings import parse_sets, settable
from adpa_cli.running.execute import Show, execute
from adpa_cli.spec import Runtime
from adpa_cli.stages import Node
from adpa_cli.store.store import Store
from support.cli_samples import Cli, Pipeline

STAGE = '''
"""Counts the words of the answers that people preferred."""

from dataclasses import dataclass

from adpa_cli.disk import write_json
from adpa_cli.hub.externals import pairs_of
from adpa_cli.sizes import Disk, Memory
from adpa_cli.stages import Stage


@dataclass(frozen=True)
class CountSpec:
    template: str
    end: str
    least: int = 1
    dtype: str = "float32"
    max_length: int = 128
    limit: int | None = None
    skip_bad_rows: bool = False
    smoke: bool = False


def compute(job, monitor, rank=0, processes=1):
    pairs = pairs_of(job.one("data").where, "train", job.spec["limit"], False).items
    words = [word for pair in pairs for word in pair.chosen.split()]
    write_json(job.folder / "words.json", sorted({word for word in words if words.count(word) >= job.spec["least"]}))
    monitor.progress(1, 1, {})


def finish(job):
    return {"say": ["counted"], "bytes": (job.folder / "words.json").stat().st_size}


def rows(node, lengths):
    return {"chosen": lengths.pairs("train")["chosen"]}


COUNT = Stage(
    "word-count", 10, 1, CountSpec, "scoring", "scores", compute, finish, rows,
    disk=lambda node, load: Disk(8 * load.count), memory=lambda node, load: Memory(1000),
    what=lambda node: f"words of {node.label_of('data')}",
    next_commands=lambda name: [f"wc -w $(adpa path {name})/words.json"], parts=lambda spec: ("chosen",),
)
STAGES = (COUNT,)
'''

SUITE = '''
"""Answers judged by their length."""

from adpa_cli.data.answers import answers_of
from adpa_cli.suites import REWARDS, ROLLOUTS, Suite, reward_figures


def rewards(inputs, spec):
    return {answer.id: float(len(answer.text)) for answer in answers_of(inputs[ROLLOUTS].path)}


SUITE = Suite("length", 99, reward_figures, (ROLLOUTS, REWARDS), rewards=rewards)
'''


@pytest.fixture
def drop_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    """A file in a folder that a package also looks into; the package knows nothing of it afterwards."""
    package: ModuleType
    package, text = request.param
    folder = tmp_path / "more"
    folder.mkdir()
    (folder / "dropped.py").write_text(text)
    every: Any = package.every
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
    every.cache_clear()
    yield str(folder)
    monkeypatch.undo()
    sys.modules.pop(f"{package.__name__}.dropped")
    every.cache_clear()


def quiet(said: list[str]) -> Show:
    return Show(
        start=lambda node, n, of: None, done=lambda node, manifest, fresh: said.append(manifest.ref),
        progress=lambda step, of, numbers: None, note=said.append, stop=lambda: None,
    )  # fmt: skip


@pytest.mark.parametrize("drop_in", [(stages, STAGE)], indirect=True, ids=["stage"])
def test_a_stage_is_one_file(drop_in: str, pipeline: Pipeline, cli: Cli) -> None:
    store = Store.find(pipeline.store)
    assert parse_sets(["word-count.least=3"])[1] == {"word-count": {"least": "3"}}
    assert settable("word-count")["least"] == 1

    declared = stages.every()["word-count"]
    data = Names(store).data((str(pipeline.data),))
    names = Names(store)
    inputs = {"data": data, "model": names.builtin_model("student")}
    node = Node("word-count", declared.spec("", "", limit=20), inputs, "words")
    plan = Plan((node,), ("", ""))

    priced = survey(plan, store, Runtime())
    (cost,) = priced.building
    assert (cost.rows, cost.disk and cost.disk.keeps, cost.memory and cost.memory.device) == (20, 160, 1000)
    assert cost.seconds is not None

    said: list[str] = []
    execute(priced, "adpa word-count", {}, quiet(said))
    assert node.label in said
    assert survey(plan, store, Runtime()).building == ()
    assert "the" in json.loads((store.folder(node.label) / "words.json").read_text())

    assert cli("verify", node.label).out.startswith(node.label)
    page = cli("show", node.label, "--json")
    assert json.loads(page.out)["ref"] == node.label
    assert f"wc -w $(adpa path {node.label})/words.json" in screen_of(store, node.label)
    assert node.label in cli("show", "--all").out
    goes = [row for row in cli("gc", "-n", "--days", "0").rows if row[2] == node.label]
    assert [row[0] for row in goes] == ["goes"]
    assert cli("show", "word-count@latest", "--json").code == 0


def screen_of(store: Store, ref: str) -> str:
    from adpa_cli.report import page

    return page.screen(page.collect(store, store.resolve(ref)), 200, 0.0)


@pytest.mark.parametrize("drop_in", [(suites, SUITE)], indirect=True, ids=["suite"])
def test_a_suite_is_one_file(drop_in: str, pipeline: Pipeline, cli: Cli) -> None:
    model, start = pipeline.made("distill adpa"), pipeline.made("student")
    words = ("eval", model, "--against", start, "--suite", "length", "--data", pipeline.data, "--limit", 8)
    assert any("length of" in row[3] for row in cli(*words, "-n").rows)
    ref = cli(*words).ref
    manifest = Store.find(pipeline.store).resolve(ref)
    assert manifest.spec["suite"] == "length"
    assert f"use one of {', '.join(suites.every())}" in cli.refused(2, "eval", model, "--suite", "width")
    assert list(suites.every())[-1] == "length"
    assert "length" in cli("show", ref).out
