"""Trainings that take over a scale from their teachers, and one that reads exact numbers, as users type them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from adpa_cli.store.store import Store
from support.cli_samples import SMALL, Cli, Pipeline

FEW = ("--student", "tiny", "--no-eval", *SMALL)


def distilled(cli: Cli, pipeline: Pipeline, *words: object) -> tuple[Any, Path]:
    """The manifest of a training on the pipeline's data, and its folder."""
    store = Store.find(pipeline.store)
    ref = cli("distill", *FEW, "--data", pipeline.data, *words).ref
    return store.get(ref), store.folder(ref)


def test_an_advantage_counted_in_its_rms_trains_as_the_beta_that_it_comes_to(pipeline: Pipeline, cli: Cli) -> None:
    made, folder = distilled(cli, pipeline, "--method", "q-softmax", "--set", "unit=rms")
    assert (made.spec["params"]["unit"], made.spec["params"]["beta"]) == ("rms", 0.05)
    store = Store.find(pipeline.store)
    (signal,) = (store.get(content) for content in made.inputs["cache"])
    assert signal is not None
    beta = 0.05 / signal.metrics["rms_advantage"]
    typed, other = distilled(cli, pipeline, "--method", "q-softmax", "--set", f"beta={beta!r}")
    assert typed.id != made.id
    ours, theirs = (load_file(path / "model.safetensors") for path in (folder, other))
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)
    taken, _ = distilled(cli, pipeline, "--method", "q-softmax")
    assert taken.spec["params"]["beta"] == 0.1, "that of the teacher of the plan"
    assert "unit" not in taken.spec["params"]


@pytest.mark.parametrize("clamp", ["none", "-1.5,1.5"])
def test_a_weight_counted_in_the_rms_trains_as_the_weight_that_it_comes_to(
    clamp: str, pipeline: Pipeline, cli: Cli
) -> None:
    words = ("--method", "adpa", "--set", "gamma=0.5")
    made, folder = distilled(cli, pipeline, *words, "--set", "unit=rms", "--set", f"clamp={clamp}")
    store = Store.find(pipeline.store)
    (signal,) = (store.get(content) for content in made.inputs["cache"])
    assert signal is not None
    rms = signal.metrics["rms_advantage"]
    limits = "none" if clamp == "none" else f"{-1.5 * rms!r},{1.5 * rms!r}"
    typed, other = distilled(
        cli, pipeline, "--method", "adpa", "--set", f"gamma={0.5 / rms!r}", "--set", f"clamp={limits}"
    )
    assert (typed.id, "unit" in typed.spec["params"]) != (made.id, True)
    ours, theirs = (load_file(path / "model.safetensors") for path in (folder, other))
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)
    assert made.metrics["gamma_rms"] == 0.5
    assert typed.metrics["gamma_rms"] == pytest.approx(0.5)
    plain, _ = distilled(cli, pipeline, *words, "--set", "unit=nat")
    assert "unit" not in plain.spec["params"], "the unit is no part of the id where it is the nat"


def test_what_is_first_is_learned_from_a_signal_that_is_stored_exactly(pipeline: Pipeline, cli: Cli) -> None:
    made, _ = distilled(cli, pipeline, "--method", "q-argmax")
    store = Store.find(pipeline.store)
    (signal,) = (store.get(content) for content in made.inputs["cache"])
    assert signal is not None
    assert (signal.spec["precision"], signal.spec["pair_precision"]) == (0.0, 0.0)
    coarse, _ = distilled(cli, pipeline, "--method", "adpa")
    (usual,) = (store.get(content) for content in coarse.inputs["cache"])
    assert usual is not None
    words = ("distill", "--method", "q-argmax", *FEW, "--data", pipeline.data)
    said = cli.refused(2, *words, "--cache", usual.ref)
    assert f"{usual.ref} is rounded to steps of 1/32 and 1/128 nat" in said
    assert cli(*words, "--cache", signal.ref).ref == made.ref


@pytest.mark.parametrize("words", [("--set", "preset=release"), ("--set", "preset=release", "--set", "gamma=1")])
def test_the_preset_of_the_release_asks_for_its_judge(words: tuple[str, ...], pipeline: Pipeline, cli: Cli) -> None:
    command = ("distill", "--method", "adpa", *FEW, "--data", pipeline.data, *words, "--set", "max_length=96")
    assert "selects the checkpoint by a reward model, and no reward model is named" in cli.refused(2, *command)
    planned = cli(*command, "--select", "last", "-n").rows[-1]
    assert planned[2] == "distill adpa"


def test_the_release_keeps_every_half_epoch(pipeline: Pipeline, cli: Cli) -> None:
    """40 pairs in batches of 16, three epochs: 8 steps, half an epoch after 2."""
    words = ("distill", "--method", "adpa", "--student", "tiny", "--no-eval", "--data", pipeline.data, *SMALL[2:])
    more = ("--set", "preset=release", "--select", "last", "--batch-size", 16, "--set", "max_length=96")
    ref = cli(*words, *more).ref
    store = Store.find(pipeline.store)
    made = store.get(ref)
    assert made is not None
    assert sorted(path.name for path in store.folder(ref).glob("step-*")) == [
        f"step-{step:06d}" for step in (2, 4, 6, 8)
    ]
    assert json.loads((store.folder(ref) / "manifest.json").read_text())["spec"]["params"]["gamma"] == 1.6


def test_a_kept_point_of_a_teacher_has_its_beta_and_its_reference(pipeline: Pipeline, cli: Cli) -> None:
    words = ("--set", "beta=0.3", "--set", "keep=all", "--epochs", 1, "--batch-size", 20, "--limit", 40)
    teacher = cli("dpo-teacher", "--reference", pipeline.made("reference teacher"), "--data", pipeline.data, *words).ref
    made, _ = distilled(cli, pipeline, "--method", "ddpo", "--teacher", f"{teacher}@1")
    assert made.spec["params"]["beta_teacher"] == 0.3
    store = Store.find(pipeline.store)
    (signal,) = (store.get(content) for content in made.inputs["cache"])
    assert signal is not None
    reference = store.get(str(signal.inputs["reference"]))
    assert reference is not None
    assert reference.ref == pipeline.made("reference teacher")
    again = cli("distill", *FEW, "--data", pipeline.data, "--method", "ddpo", "--cache", signal.ref)
    assert again.ref == made.ref
