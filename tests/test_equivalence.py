"""Micro-batches and processes change a result by rounding at most: through the command line, on the tiny family."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from adpa_cli.cli.main import main
from adpa_cli.store.store import Store

METHODS = ["sft", "dpo", "dckd", "adpa"]
SMALL = [
    "--student", "tiny", "--no-eval", "--limit", "48", "--epochs", "5", "--max-steps", "30", "--set", "batch_size=7",
    "--lr", "1e-3", "--set", "sft.limit=64", "--set", "sft.max_steps=4", "--set", "dpo-teacher.limit=48",
    "--set", "dpo-teacher.max_steps=4", "--set", "rollout.max_new_tokens=16", "--set", "cache-teacher.block_tokens=600",
    "-q",
]  # fmt: skip


@pytest.fixture(scope="module")
def one_thread() -> Any:
    """Equal bytes are promised for one thread count."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> dict[str, Path]:
    """For each method a store with its student and all beneath it, made in one process; `beneath` has no student."""
    root = tmp_path_factory.mktemp("stores")
    beneath = root / "beneath"
    found = {"beneath": beneath}
    for method in METHODS:
        distill(beneath, method)
        found[method] = root / method
        found[method].mkdir()
        shutil.move(beneath / "distill", found[method] / "distill")
    return found


def distill(store: Path, method: str, *more: str) -> None:
    assert main(["--store", str(store), "distill", "--method", method, *SMALL, *more]) == 0


def weights(store: Path) -> dict[str, Any]:
    [folder] = (store / "distill").iterdir()
    return load_file(folder / "model.safetensors")


def distance(ours: dict[str, Any], theirs: dict[str, Any]) -> float:
    """The greatest relative distance of two tensors of one name."""
    assert set(ours) == set(theirs)
    return max(float(np.linalg.norm(ours[n] - theirs[n]) / np.linalg.norm(theirs[n])) for n in ours)


def test_thirty_steps_move_the_student(stores: dict[str, Path]) -> None:
    start = load_file(next(p for p in sft_folders(stores["beneath"])) / "model.safetensors")
    for method in METHODS:
        assert distance(weights(stores[method]), start) > 1e-2
        [folder] = (stores[method] / "distill").iterdir()
        assert len((folder / "metrics.jsonl").read_text().splitlines()) == 30


def sft_folders(store: Path) -> list[Path]:
    """The student's SFT first: it is the smaller model."""
    return sorted((store / "sft").iterdir(), key=lambda path: (path / "model.safetensors").stat().st_size)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_one_sequence_at_a_time_equals_all_at_once(method: str, stores: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(stores["beneath"], tmp_path / "store")
    distill(tmp_path / "store", method, "--tokens-per-device", "1")
    assert distance(weights(tmp_path / "store"), weights(stores[method])) < 1e-5


@pytest.mark.slow
def test_two_processes_equal_one_in_training(stores: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(stores["beneath"], tmp_path / "store")
    # Seven pairs, one at a time: the second process has three of them, and one of weight 0.
    more = ["--tokens-per-device", "1", "--select", "best", "--keep", "all"]
    distill(tmp_path / "store", "dpo", "--gpus", "2", *more)
    [folder] = (tmp_path / "store" / "distill").iterdir()
    last = load_file(folder / "step-000030" / "model.safetensors")
    assert distance(last, weights(stores["dpo"])) < 1e-5
    [made] = [m for m in Store(tmp_path / "store").artifacts() if m.stage == "distill"]
    assert made.made["processes"] == 2

    shutil.copytree(stores["beneath"], tmp_path / "one")
    distill(tmp_path / "one", "dpo", *more)
    [alone] = [m for m in Store(tmp_path / "one").artifacts() if m.stage == "distill"]
    assert alone.id == made.id
    ours, theirs = (m.metrics["selection"]["points"] for m in (made, alone))
    assert [point["step"] for point in ours] == [4, 8, 12, 16, 20, 24, 28, 30]
    both = [[(p["step"], p["pairs"], p["accuracy"]) for p in points] for points in (ours, theirs)]
    assert both[0] == both[1]
    assert {pairs for _, pairs, _ in both[0]} == {21}, "the half of 48 by which points are selected"
    assert [p["margin"] for p in ours] == pytest.approx([p["margin"] for p in theirs], rel=1e-4)
    assert made.metrics["gradients"] == pytest.approx(alone.metrics["gradients"], rel=1e-4)
    assert made.metrics["entropy"] == pytest.approx(alone.metrics["entropy"], rel=1e-4)
    assert 0 < made.metrics["memory"]["peak"] < 2**32


@pytest.mark.slow
def test_two_processes_write_the_same_signal_and_train_on_it_alike(stores: dict[str, Path], tmp_path: Path) -> None:
    store = tmp_path / "store"
    shutil.copytree(stores["beneath"], store)
    [pair] = [m for m in Store(store).artifacts() if m.stage == "cache-teacher" and "reference" in m.inputs]
    [rollout] = [m for m in Store(store).artifacts() if m.stage == "rollout"]
    for known in (pair, rollout):
        shutil.rmtree(store / known.ref)
    distill(store, "adpa", "--gpus", "2")
    for known in (pair, rollout):
        made = Store(store).get(known.ref)
        assert made is not None
        assert made.files == known.files
        assert made.made["processes"] == 2
    assert distance(weights(store), weights(stores["adpa"])) < 1e-5
