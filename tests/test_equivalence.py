"""Micro-batches and processes change a result by rounding at most: through the command line, on the tiny family."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from adpa_cli.cli.main import main
from adpa_cli.errors import AdpaError, Corrupt, DataError, NotFound, Stopped, UsageError
from adpa_cli.hub import Located
from adpa_cli.running.execute import run as run_stage
from adpa_cli.running.processes import CHANNEL, _death, _heard
from adpa_cli.spec import Runtime
from adpa_cli.stages import Job, Monitor
from adpa_cli.store.store import Store

METHODS = ["sft", "dpo", "dckd", "adpa"]
SMALL = [
    "--student", "tiny", "--no-eval", "--limit", "48", "--epochs", "5", "--max-steps", "30", "--set", "batch_size=7",
    "--set", "sft.limit=64", "--set", "sft.max_steps=4", "--set", "dpo-teacher.limit=48",
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
    shutil.rmtree(store / pair.ref)
    distill(store, "adpa", "--gpus", "2")
    made = Store(store).get(pair.ref)
    assert made is not None
    assert made.files == pair.files
    assert made.made["processes"] == 2
    assert distance(weights(store), weights(stores["adpa"])) < 1e-5


def rollout_job(store: Path, work: Path, processes: int = 2) -> Job:
    """A rollout of 4,000 answers, far too long for a test, in blocks of one row."""
    [known] = [m for m in Store(store).artifacts() if m.stage == "rollout"]
    model = Located("model", "model:student", "student", (str(sft_folders(store)[0]),))
    data = Located("data", "data:pairs", "pairs", ("builtin:tiny-pairs",))
    settings = {**known.spec, "limit": None, "block_tokens": 1}
    inputs = {"model": (model,), "data": (data,)}
    return Job("rollout", "rollout/test", settings, inputs, str(work), Runtime(processes=processes))


@pytest.mark.slow
def test_a_signal_stops_every_process_and_its_blocks_are_those_of_one(stores: dict[str, Path], tmp_path: Path) -> None:
    several, one = tmp_path / "several", tmp_path / "one"

    def of_processes() -> set[int]:
        """The processes, by the numbers of their blocks, that have kept one."""
        blocks = (re.fullmatch(r"_block-(\d+)\.json", path.name) for path in several.iterdir())
        return {int(block[1]) % 2 for block in blocks if block}

    steps: list[int] = []
    asking = Monitor(
        lambda step, of, numbers: steps.append(step), stop=lambda: "SIGUSR1" if len(of_processes()) == 2 else None
    )
    several.mkdir()
    with pytest.raises(Stopped, match="after block") as caught:
        run_stage(rollout_job(stores["beneath"], several), asking, 1)
    assert caught.value.exit_code == 75
    kept = sorted(path.name for path in several.iterdir())
    assert 1 < len(kept) < 1000
    assert of_processes() == {0, 1}

    steps.clear()
    with pytest.raises(Stopped):
        run_stage(rollout_job(stores["beneath"], several, processes=1), asking, 1)
    assert steps == [len(kept) + 1]

    one.mkdir()
    until = Monitor(stop=lambda: "SIGUSR1" if all((one / name).exists() for name in kept) else None)
    with pytest.raises(Stopped):
        run_stage(rollout_job(stores["beneath"], one, processes=1), until, 1)
    assert [(several / name).read_bytes() for name in kept] == [(one / name).read_bytes() for name in kept]


@pytest.mark.slow
def test_a_failing_process_ends_the_others(
    stores: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = "import os\nif os.environ.get('RANK') == '1':\n    del os.replace\n"  # it cannot put a block in place
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(broken)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    work = tmp_path / "work"
    work.mkdir()
    with pytest.raises(AdpaError, match="process 1 of 2 died with status 1"):
        run_stage(rollout_job(stores["beneath"], work), Monitor(), 1)
    assert not (work / "_block-000000.json").exists()
    assert len(list(work.glob("_block-*.json"))) < 1000


@pytest.mark.parametrize(
    ("statuses", "asked", "words", "code"),
    [
        ([1, -signal.SIGKILL, None], None, "process 1 of 3 was killed by SIGKILL", 1),
        ([1, -signal.SIGSEGV], None, "process 1 of 2 was killed by SIGSEGV", 1),
        ([None, 7], None, "process 1 of 2 died with status 7", 1),
        ([1, -signal.SIGHUP], "SIGHUP", "stopped by SIGHUP before process 1 of 2 had started", 129),
        ([-signal.SIGTERM, None], "SIGHUP", "process 0 of 2 was killed by SIGTERM", 1),
    ],
)
def test_how_a_process_died_is_named(statuses: list[int | None], asked: str | None, words: str, code: int) -> None:
    found = _death(statuses, asked)
    assert (found.message, found.exit_code) == (words, code)


@pytest.mark.parametrize("kind", [UsageError, NotFound, Corrupt, DataError])
def test_a_failure_keeps_its_exit_code_on_the_way_from_a_process(kind: type[AdpaError]) -> None:
    raised = kind("what", "try this")
    told = {"kind": "error", "text": raised.message, "hint": raised.hint, "code": raised.exit_code}
    heard = _heard(told, 1, Monitor())
    assert heard is not None
    assert (heard.message, heard.hint, heard.exit_code) == ("what", "try this", kind.exit_code)


@pytest.mark.slow
def test_a_rank_leaves_with_its_parent(stores: dict[str, Path], tmp_path: Path) -> None:
    reading, writing = os.pipe()
    environment = {"RANK": "0", "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1", CHANNEL: str(writing)}
    rank = subprocess.Popen(
        [sys.executable, "-m", "adpa_cli.running.processes"], stdin=subprocess.PIPE, text=True,
        env={**os.environ, **environment}, pass_fds=(writing,),
    )  # fmt: skip
    os.close(writing)
    with os.fdopen(reading) as heard:
        rank.stdin.write(rollout_job(stores["beneath"], tmp_path).to_json() + "\n")
        rank.stdin.flush()
        kinds = (json.loads(line)["kind"] for line in heard)
        assert next(kind for kind in kinds if kind not in ("reading", "worked")) == "progress"
        rank.stdin.close()  # what the kernel does for a parent that is killed
        assert rank.wait(timeout=60) == 1
    assert len(list(tmp_path.glob("_block-*.json"))) < 1000
