"""The recipes of the protocol: each plans, tries as many settings for each system, and has the budgets that it claims;
and the page that is made of what they measured."""

from __future__ import annotations

import re
import runpy
import shutil
from collections import Counter
from pathlib import Path

import pytest

from adpa_cli.cli.recipes.grid import read_recipe, requests
from adpa_cli.engine.training.schedule import steps_of
from adpa_cli.estimate.cost import Clock, cost_of
from adpa_cli.machine import Machine
from adpa_cli.spec import Runtime
from adpa_cli.stages import in_order
from adpa_cli.store.manifest import Manifest
from adpa_cli.store.store import Store
from support.cli_samples import Cli, Pipeline

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "recipes" / "protocol-tiny"
EQUAL, HALF = ", equal FLOPs", "DCKD, first half of ADPA+"


@pytest.mark.parametrize(("name", "cells"), [("main", 256), ("methods", 296), ("beyond", 120), ("conditions", 183)])
def test_it_plans(name: str, cells: int, cli: Cli) -> None:
    rows = cli("run", FOLDER / f"{name}.toml", "-n").rows
    assert len(rows) == cells
    assert {row[1] for row in rows} <= {"build", "follows"}


def test_the_real_pair_is_planned_from_folders_of_the_working_directory(pipeline: Pipeline, cli: Cli) -> None:
    model = cli("path", pipeline.made("student")).out.strip()
    for name in ("base", "teacher"):
        shutil.copytree(model, name)
    shutil.copytree(pipeline.data, "pairs")
    text = (FOLDER / "real.toml").read_text(encoding="utf-8")
    Path("real.toml").write_text(text.replace("max_length = 384", "max_length = 256"), encoding="utf-8")
    planned = cli("run", "real.toml", "-n").rows
    assert [row[3].split()[0] for row in planned] == [
        f"row={m}" for m in ["SFT", "DPO", "DCKD", "ADPA", "ADPA+"] for _ in "012"
    ]


@pytest.mark.parametrize("name", ["main", "methods", "beyond"])
def test_every_system_has_as_many_settings_tried_on_prompts_and_seeds_that_are_not_reported(name: str) -> None:
    recipe = read_recipe(str(FOLDER / f"{name}.toml"))
    cells = [cell for cell, _ in requests(recipe)]
    tried = Counter(cell.row.name for cell in cells if cell.row.is_tried)
    assert set(tried.values()) == {8 * 2}
    own = {row.name for row in recipe.rows if not row.measures and not row.is_tried}
    systems = {name for name in own if not name.endswith(EQUAL)} - {"DCKD from the fine-tuned reference", HALF}
    assert {f"{system} (tried)" for system in systems} == set(tried)
    seeds = [
        {cell.settings["seed-all"] for cell in cells if cell.row.is_tried == is_tried} for is_tried in (True, False)
    ]
    assert seeds == [{8, 9}, set(range(8))]
    halves = {cell.settings.get("eval.measure_on") for cell in cells if cell.row.is_tried}
    assert halves == {"validation"}


def test_budgets_are_equal_in_steps_and_in_operations(tmp_path: Path) -> None:
    """Steps of the trainings after the student's fine-tuning; operations of all stages but those of what is given."""
    recipe, store = read_recipe(str(FOLDER / "main.toml")), Store.find_or_empty(tmp_path / "none")
    machine = Machine.here(store.root.parent)
    clock = Clock(store, machine)
    steps, operations = dict[str, float](), dict[str, float]()
    for cell, request in requests(recipe):
        if cell.row.is_tried or cell.settings["seed-all"] != 0:
            continue
        nodes = in_order(request.plan(store).targets, lambda node: False)
        teachers = in_order([node for node in nodes if node.stage == "dpo-teacher"], lambda node: False)
        given = {node.recipe.id for node in teachers} | {node.recipe.id for node in nodes if node.stage == "sft"}
        own = [node for node in nodes if node.recipe.id not in given]
        costs = [cost_of(node, store, Runtime(), machine, clock) for node in own]
        operations[cell.row.name] = sum(
            n.declared.flops(n, c.load) or 0 for n, c in zip(own, costs, strict=True) if c.load
        )
        steps[cell.row.name] = sum(125 * node.spec.epochs for node in own if node.declared.any_method)
    budget = operations["ADPA+"]
    assert budget == pytest.approx(715.1e9, rel=1e-3), "as the recipe says"
    equal = {name: value for name, value in operations.items() if name.endswith(EQUAL)}
    assert len(equal) == 7
    assert list(equal.values()) == pytest.approx([budget] * 7, rel=0.01)
    assert steps.pop(HALF) == 250
    assert {value for name, value in steps.items() if name not in equal} == {500}
    text = (FOLDER / "main.toml").read_text(encoding="utf-8")
    for left, each, epochs in re.findall(r"([\d.]+) / ([\d.]+) = +([\d.]+)", text):
        assert float(left) / float(each) == pytest.approx(float(epochs), abs=0.06)
        assert f"epochs = {epochs}" in text


def test_the_other_methods_have_as_many_steps(tmp_path: Path) -> None:
    recipe, store = read_recipe(str(FOLDER / "methods.toml")), Store.find_or_empty(tmp_path / "none")
    for cell, request in requests(recipe):
        if not cell.row.is_tried and cell.settings["seed-all"] == 0:
            nodes = in_order(request.plan(store).targets, lambda node: False)
            assert sum(steps_of(4000, node.spec) for node in nodes if node.declared.any_method) == 500, cell.row.name


SMALL = """
student = "tiny"
data = "{data}"
max-steps = 2
batch-size = 10
limit = 40
{seeds}
sft.max_steps = 2
sft.limit = 64
dpo-teacher.max_steps = 2
dpo-teacher.limit = 40
rollout.max_new_tokens = 12
"""
REPORT = '[report]\nagainst = "Student"\n"rollout.temperature" = [0.7, 0.0]\n'
ROW = '[[rows]]\nname = "{}"\nmethod = "{}"\n{}\n'
STUDENT = '[[rows]]\nname = "Student"\nmeasures = "start"\n'
MAIN = (
    'choose = ["alpha"]\n[tuning]\nseed = 3\n' + REPORT + STUDENT + ROW.format("SFT", "sft", "")
    + ROW.format("DCKD", "dckd", "alpha = [1, 5]") + ROW.format("ADPA+", "adpa+", 'alpha = "{DCKD}"')
    + ROW.format("DCKD, equal FLOPs", "dckd", 'alpha = "{DCKD}"\nmax-steps = 3')
)  # fmt: skip
CONDITIONS = REPORT + STUDENT + ROW.format("SFT", "sft", "") + "".join(
    ROW.format(f"{name}, by γ", method, "gamma = [0.5, 2]") for name, method in (("ADPA", "adpa"), ("ADPA+", "adpa+"))
)  # fmt: skip


def test_the_page_is_made_from_a_store_and_checked(
    pipeline: Pipeline, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    Path("small").mkdir()
    seeds = "seed = [0, 1]"
    for name, text in (("main", MAIN), ("conditions", CONDITIONS)):
        head = SMALL.replace("{data}", str(pipeline.data)).replace("{seeds}", seeds)
        Path(f"small/{name}.toml").write_text(head + text, encoding="utf-8")
    monkeypatch.syspath_prepend(FOLDER)
    make = runpy.run_path(str(FOLDER / "results.py"))["main"]
    words = ["--store", str(pipeline.store), "--recipes", "small", "--to", "docs/results.md"]
    assert cli("run", "small/main.toml").code == 0
    assert make([*words, "--check"]) == 1, "there is no page yet"
    assert not Path("docs").exists()
    assert make(words) == 0
    page = Path("docs/results.md").read_text(encoding="utf-8")
    assert re.search(r"`conditions.toml` was not run to its end in this store. \d+ of 12 lines are missing", page)
    assert cli("run", "small/conditions.toml").code == 0
    assert make([*words, "--check"]) == 1, "the page lacks the conditions"
    assert make(words) == 0
    assert make([*words, "--check"]) == 0
    page = Path("docs/results.md").read_text(encoding="utf-8")
    for file in re.findall(r"\]\((results/[^)]+)\)", page):
        assert Path("docs", file).stat().st_size > 0
    assert {path.name for path in Path("docs/results").iterdir()} == {
        f"{name}.{kind}" for name in ("main-steps", "main-flops", "by-gamma", "by-pull") for kind in ("svg", "csv")
    }
    check_numbers(page, pipeline.store)
    Path("docs/results.md").write_text(page.replace("0.", "0,", 1), encoding="utf-8")
    assert make([*words, "--check"]) == 1


def is_alone(training: Manifest, store: Store) -> bool:
    """Whether it starts from the student, and not from another training."""
    model = store.get(str(training.inputs["model"]).partition(":")[2])
    return model is not None and model.stage != training.stage


def check_numbers(page: str, folder: Path) -> None:
    """The row of ADPA+ has the mean of what its two seeds were given, and the RMS that the signals recorded."""
    store = Store.find(folder)
    (line,) = [line for line in page.splitlines() if line.startswith("| ADPA+ |")][:1]
    sampled = float(line.split("|")[3].split("±")[0])
    found = []
    for made in store.artifacts():
        if (
            made.stage != "eval"
            or made.metrics.get("prompts") != "report half"
            or "mean_reward" not in made.metrics["scores"]
        ):
            continue
        model = store.get(str(made.inputs["model"]).partition(":")[2])
        rollouts = store.get(str(made.inputs["rollouts"]).partition(":")[2])
        assert model is not None
        assert rollouts is not None
        if model.spec["method"] == "adpa" and rollouts.spec["temperature"]:
            found.append(made.metrics["scores"]["mean_reward"]["value"])
    assert len(found) == 2
    assert sampled == pytest.approx(sum(found) / 2, abs=5.1e-4)
    trained = [m for m in store.artifacts() if m.stage == "distill" and m.spec["params"].get("gamma") == 0.5]
    alone = [m for m in trained if is_alone(m, store)]
    signals = [store.get(content.partition(":")[2]) for m in alone for content in m.inputs["cache"]]
    assert len(signals) == 2
    size = sum(signal.metrics["rms_advantage"] for signal in signals if signal) / 2
    facts = next(line for line in page.splitlines() if line.startswith("| γ × RMS(A) |"))
    assert [float(cell) for cell in facts.split("|")[2:4]] == pytest.approx([0.5 * size, 2 * size], abs=5.1e-4)
