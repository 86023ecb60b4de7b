"""How training runs, through the command line: --runtime moves no id and little else, weights=bfloat16 is a recipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from adpa_cli.report.page import collect, screen
from adpa_cli.store.manifest import Manifest
from adpa_cli.store.store import Store
from support.cli_samples import SMALL, Cli, Pipeline

SFT = ("sft", "--model", "tiny", "--limit", 32, "--max-steps", 2, "--batch-size", 8)
TUNED = {
    "attention eager  fused false  recompute true": ("attention=eager", "recompute=true", "fused=false"),
    "recompute true": ("recompute=true", "attention=auto", "liger=off"),
}
"""What is asked for, by what is said of it; rows are packed under "auto" only."""


def made(store: Path, ref: str) -> tuple[Manifest, dict[str, Any]]:
    """A finished artifact and its weights."""
    found = Store(store).get(ref)
    assert found is not None
    return found, load_file(store / ref / "model.safetensors")


def distance(ours: dict[str, Any], theirs: dict[str, Any]) -> float:
    """The greatest relative distance of two tensors of one name."""
    assert ours.keys() == theirs.keys()
    return max(float(np.linalg.norm(ours[n] - theirs[n]) / np.linalg.norm(theirs[n])) for n in ours)


@pytest.mark.parametrize("said", TUNED)
def test_a_tuned_run_is_the_same_artifact_and_says_how_it_ran(said: str, cli: Cli, tmp_path: Path) -> None:
    words = [word for item in TUNED[said] for word in ("--runtime", item)]
    usual, tuned = cli(*SFT, "--store", "usual").ref, cli(*SFT, *words, "--store", "tuned").ref
    assert usual == tuned
    (plain, theirs), (told, ours) = (made(tmp_path / name, usual) for name in ("usual", "tuned"))
    assert distance(ours, theirs) < 1e-5
    assert "runtime" not in plain.metrics
    assert " ".join(f"{key} {value}" for key, value in told.metrics["runtime"].items()).lower() == " ".join(
        said.split()
    )
    configs = [{name: digest for name, digest in one.files.items() if "config" in name} for one in (told, plain)]
    assert configs[0] == configs[1]
    assert f"runtime   {said}" in screen(collect(Store(tmp_path / "tuned"), told), 100, told.at).splitlines()
    assert "runtime" not in cli("show", usual, "--store", "usual").out


def test_what_cannot_be_done_here_is_refused_before_the_first_step(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "--runtime liger=auto" in cli.refused(1, *SFT, "--runtime", "liger=on")
    assert "sdpa, flex_attention" in cli.refused(2, *SFT, "--runtime", "attention=none-such")
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert "--runtime compile=false" in cli.refused(1, *SFT, "--runtime", "compile=true")


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # torch's compiler uses what torch warns of
def test_a_compiled_run_is_the_same_artifact(cli: Cli, tmp_path: Path) -> None:
    ref = cli(*SFT, "--store", "usual").ref
    assert cli(*SFT, "--runtime", "compile=true", "--store", "compiled").ref == ref
    (_, theirs), (told, ours) = (made(tmp_path / name, ref) for name in ("usual", "compiled"))
    assert told.metrics["runtime"] == {"compile": True}
    assert distance(ours, theirs) < 1e-5


def test_a_recipe_and_run_say_how_training_runs(cli: Cli) -> None:
    from adpa_cli.cli.recipes.grid import read_recipe, requests

    text = 'command = "sft"\nmodel = "tiny"\nruntime = ["recompute=true", "fused=false"]\n'
    Path("recipe.toml").write_text(text, encoding="utf-8")
    [(cell, request)] = requests(read_recipe("recipe.toml"))
    assert cell.words == ("sft", "--model", "tiny", "--runtime", "recompute=true", "--runtime", "fused=false")
    assert (request.options.runtime().recompute, request.options.runtime().fused) == (True, False)
    assert cli("run", "recipe.toml", "-n", "--runtime", "recompute=true").rows
    assert "no such key" in cli.refused(2, "run", "recipe.toml", "--runtime", "recomputed=true")


def test_weights_in_bfloat16_are_another_recipe_and_a_float32_folder(cli: Cli, tmp_path: Path) -> None:
    half = ("--set", "weights=bfloat16")
    usual, small = cli(*SFT).ref, cli(*SFT, *half).ref
    assert usual != small == cli(*SFT, *half, "--set", "dtype=float32").ref
    assert cli(*SFT, "--set", "weights=float32").ref == usual
    store = tmp_path / "adpa-store"
    (_, theirs), (told, ours) = made(store, usual), made(store, small)
    assert (told.spec["weights"], told.spec["dtype"]) == ("bfloat16", "bfloat16")
    assert {array.dtype for array in ours.values()} == {np.dtype("float32")}
    assert all(not np.any(array.view(np.uint32) & 0xFFFF) for array in ours.values()), "values that bfloat16 has"
    assert 1e-4 < distance(ours, theirs) < 0.02
    again = cli("show", small, "--recipe").out
    assert 'weights = "bfloat16"' in again
    Path("again.toml").write_text(again, encoding="utf-8")
    assert cli("run", "again.toml").ref == small


@pytest.mark.parametrize("method", ["adpa", "dppo"])
def test_distillation_in_bfloat16_with_recomputed_layers(method: str, pipeline: Pipeline, cli: Cli) -> None:
    """DPPO trains a critic beside the student, whose scalar head stays float32."""
    words = ["distill", "--method", method, "--student", "tiny", "--data", str(pipeline.data), "--no-eval", *SMALL]
    ref = cli(*words, "--set", "weights=bfloat16", "--runtime", "recompute=true", "--batch-size", 8).ref
    told, ours = made(pipeline.store, ref)
    assert told.metrics["runtime"] == {"recompute": True}
    assert distance(ours, made(pipeline.store, pipeline.made("student"))[1]) > 1e-4
    lines = [json.loads(line) for line in (pipeline.store / ref / "metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(line["loss"]) for line in lines)


def test_a_reward_model_in_bfloat16_has_a_float32_head(pipeline: Pipeline, cli: Cli) -> None:
    words = ["reward-model", "--model", "tiny", "--data", str(pipeline.data), *SMALL]
    ref = cli(*words, "--set", "weights=bfloat16", "--runtime", "recompute=true").ref
    _, found = made(pipeline.store, ref)
    exact = {name for name, array in found.items() if not np.any(array.view(np.uint32) & 0xFFFF)}
    assert found.keys() - exact == {"score.weight"}


@pytest.mark.slow
def test_two_processes_with_bfloat16_weights_equal_one(cli: Cli, tmp_path: Path) -> None:
    words = (*SFT, "--set", "weights=bfloat16")
    ref = cli(*words, "--store", "one").ref
    assert cli(*words, "--gpus", 2, "--store", "two").ref == ref
    (_, theirs), (_, ours) = (made(tmp_path / name, ref) for name in ("one", "two"))
    # The noise is the same, so only gradients that differ in their last bit move a rounding.
    assert distance(ours, theirs) < 2e-3
