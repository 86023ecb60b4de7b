"""`adpa distill --method dppo`: both teachers are inputs, a plan shows them and their cost, and it runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from adpa_cli.store.store import Store
from support.cli_samples import SMALL, Cli, Pipeline

ONE_STEP = ("--max-steps", 1, "--limit", 4, "--set", "max_new_tokens=4", "--set", "max_length=96")
DPPO = ("distill", "--method", "dppo", "--student", "tiny", "--no-eval")


def test_a_plan_has_the_teachers_and_neither_signal_nor_rollouts_of_the_student(cli: Cli) -> None:
    rows = cli(*DPPO, "-n").rows
    teachers = ["reference teacher", "start log-probs", "aligned teacher"]
    assert [row[2] for row in rows] == ["student", *teachers, "distill dppo"]
    assert rows[-1][3] == f"dppo β 0.1 from {rows[0][4]}"
    plain = cli("distill", "--method", "dpo", "--student", "tiny", "--no-eval", "-n").rows[-1]
    assert int(rows[-1][6]) > int(plain[6]) > 0  # seconds
    other = cli(*DPPO, "--set", "reward=sequence", "-n").rows
    ids, others = ([row[4] for row in found] for found in (rows, other))
    assert ids[:-1] == others[:-1]
    assert ids[-1] != others[-1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--set", "reward=word"), "reward must be one of token, sequence; got word"),
        (("--set", "ppo_epochs=0"), "ppo_epochs must be between 1 and 100"),
        (("--set", "states=teacher"), "--set states: distill has no such setting"),
    ],
)
def test_what_it_does_not_take_is_refused(words: tuple[str, ...], said: str, cli: Cli) -> None:
    assert said in cli.refused(2, *DPPO, *words)


def test_it_trains_a_student_that_the_others_can_use(pipeline: Pipeline, cli: Cli) -> None:
    """Four steps of 16 prompts in two passes: one buffer of 32."""
    words = (*DPPO, "--data", pipeline.data, *SMALL, "--batch-size", 16, "--max-steps", 4, "--set", "ppo_epochs=2")
    ref = cli(*words).ref
    store = Store(pipeline.store)
    made = store.get(ref)
    assert made is not None
    assert set(made.inputs) == {"model", "data", "aligned", "reference"}
    below = {role: store.get(str(made.inputs[role])).ref for role in ("model", "aligned", "reference")}
    assert below == {
        role: pipeline.made(name)
        for role, name in (("model", "student"), ("aligned", "aligned teacher"), ("reference", "reference teacher"))
    }
    folder = store.folder(ref)
    ours, theirs = (load_file(path / "model.safetensors") for path in (folder, store.folder(below["model"])))
    assert ours.keys() == theirs.keys(), "the critic is no part of the student"
    assert any(bool((ours[name] != theirs[name]).any()) for name in ours)
    assert not list(folder.glob("_*"))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert len({line["reward"] for line in lines}) == 1
    assert lines[0]["kl"] == pytest.approx(0.0, abs=1e-4)
    shown = cli("show", ref).out
    assert all(name in shown for name in below.values())
    assert "Nothing to do" in cli(*words).err

    assert f"the method dppo does not read {pipeline.made('signal')}" in cli.refused(
        2, *words, "--cache", pipeline.made("signal")
    )
    assert "the method dppo does not read" in cli.refused(2, *words, "--rollouts", pipeline.made("rollouts"))


def test_a_student_of_no_family_needs_both_teachers_named(pipeline: Pipeline, cli: Cli, tmp_path: Path) -> None:
    student, aligned = (pipeline.store / pipeline.made(role) for role in ("student", "aligned teacher"))
    words = ("distill", "--method", "dppo", "--data", pipeline.data, "--no-eval", *ONE_STEP, "-n")
    folders = []
    for folder in (student, aligned):  # models of which nothing is known but their weights
        folders.append(tmp_path / folder.name)
        folders[-1].mkdir()
        for path in folder.iterdir():
            if path.name not in ("manifest.json", "card.md", "README.md"):
                (folders[-1] / path.name).write_bytes(path.read_bytes())
    words = (*words, "--student", folders[0])
    said = cli.refused(2, *words)
    assert "dppo needs a teacher" in said
    assert "--cache" not in said
    assert "needs the model that the teacher was aligned from" in cli.refused(2, *words, "--teacher", folders[1])
    said = cli.refused(2, *words, "--teacher", folders[1], "--reference", folders[0])
    assert "--set beta=X" in said, "nothing says by which it was aligned"
    words = (*words, "--set", "beta=0.1")
    rows = cli(*words, "--teacher", folders[1], "--reference", folders[0]).rows
    assert [row[2] for row in rows] == ["distill dppo"]

    # Its recipe names both, for no signal tells of them.
    ref = cli(*[word for word in words if word != "-n"], "--teacher", folders[1], "--reference", folders[0]).ref
    values = json.loads(cli("show", ref, "--recipe", "--json").out)["values"]
    start, teacher = (f"./{folder.name}" for folder in folders)
    assert {"student": start, "teacher": teacher, "reference": start}.items() <= values.items()


@pytest.mark.slow
def test_two_processes_draw_and_train_as_one(pipeline: Pipeline, cli: Cli, tmp_path: Path) -> None:
    words = (
        *DPPO, "--data", pipeline.data, *SMALL, "--batch-size", 8, "--max-steps", 10, "--set", "ppo_epochs=2",
        "--set", "rollout_batch=16", "--tokens-per-device", 64, "--select", "best", "--keep", "all",
    )  # fmt: skip
    shutil.copytree(pipeline.store, tmp_path / "other")
    one = cli(*words).ref
    assert cli(*words, "--gpus", 2, "--store", tmp_path / "other").ref == one
    stores = [Store(pipeline.store), Store(tmp_path / "other")]
    assert [store.get(one).made["processes"] for store in stores] == [1, 2]
    ours, theirs = (load_file(store.folder(one) / "step-000010" / "model.safetensors") for store in stores)
    apart = max(float((ours[name] - theirs[name]).abs().max()) for name in ours)
    assert apart < 1e-4, "a tenth of what one step moves a weight by"
    lines = [(store.folder(one) / "metrics.jsonl").read_text().splitlines() for store in stores]
    for here, there in zip(*(map(json.loads, found) for found in lines), strict=True):
        assert there == pytest.approx(here, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize(("words", "dtype"), [((), "float32"), (("--set", "teachers_dtype=float16"), "float16")])
def test_teachers_compute_as_captures_do_where_the_training_computes_in_bfloat16(
    words: tuple[str, ...], dtype: str, pipeline: Pipeline, cli: Cli
) -> None:
    ran = cli(*DPPO, "--data", pipeline.data, *SMALL, *ONE_STEP, "--set", "dtype=bfloat16", *words)
    made = Store(pipeline.store).get(ran.ref)
    assert made is not None
    assert made.spec["teachers_dtype"] == dtype
