"""Running out of memory for real: training goes on with less at a time, a block names the size to ask for."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from adpa_cli.engine.device import (
    block_that_fits,
    fitting,
    forget_peak,
    is_out_of_memory,
    peak_memory,
    refused_when_full,
)
from adpa_cli.engine.training.step_report import METRICS, StepLog
from adpa_cli.errors import AdpaError
from support.memory_limit import WANTED

# Freed memory goes back at once, so that a limit above what is mapped is a limit above what is used.
MALLOC = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
TESTS = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the processes of `memory_limit.py` left behind."""
    folder = tmp_path_factory.mktemp("limit")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **MALLOC}
    argv = [sys.executable, "-m", "support.memory_limit", str(folder)]
    ran = subprocess.run(argv, cwd=TESTS, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return folder


def told(folder: Path) -> Any:
    return json.loads((folder / "told.json").read_text())


def far(ours: Path, theirs: Path) -> float:
    """The greatest relative distance of two tensors of one name."""
    one, other = (load_file(folder / "weights.safetensors") for folder in (ours, theirs))
    return max(float(np.linalg.norm(one[n] - other[n]) / np.linalg.norm(other[n])) for n in other)


@pytest.mark.slow
def test_a_training_that_runs_out_of_memory_goes_on_with_less_and_ends_alike(left: Path) -> None:
    limited = told(left / "limited")
    now = limited["summary"]["tokens_per_device"]
    assert 1 < now < WANTED
    assert limited["said"][-1] == f"A step did not fit in memory; continuing with --tokens-per-device {now}"
    assert told(left / "small")["said"] == []
    assert far(left / "limited", left / "small") < 1e-5
    lines = [json.loads(line) for line in (left / "limited" / METRICS).read_text().splitlines()]
    assert lines[-1]["tokens_per_device"] == now


@pytest.mark.slow
def test_when_one_of_two_processes_runs_out_of_memory_both_do_the_step_over(left: Path) -> None:
    ranks = [told(left / f"rank{number}") for number in (0, 1)]
    now = ranks[0]["summary"]["tokens_per_device"]
    assert 1 < now < WANTED // 2
    assert ranks[0] == ranks[1]
    assert ranks[0]["said"][-1] == f"A step did not fit in memory; continuing with --tokens-per-device {now}"
    assert far(left / "rank0", left / "small") < 1e-5
    weights = [(left / f"rank{number}" / "weights.safetensors").read_bytes() for number in (0, 1)]
    assert weights[0] == weights[1]


@pytest.mark.slow
def test_a_row_that_does_not_fit_is_refused_with_what_would_help(left: Path) -> None:
    refused = told(left / "none")
    assert "one row of 2 × 48 tokens does not fit in memory" in refused["error"]
    assert refused["hint"].startswith("--set max_length=24, or a device with more memory")
    assert not (left / "none" / "weights.safetensors").exists()


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["rollout", "cache-teacher", "eval", "start-logps"])
def test_a_block_of_a_stage_that_does_not_fit_is_refused_with_a_smaller_one(stage: str, left: Path) -> None:
    of = stage if stage != "eval" else "STAGE"  # pairs are scored in one way for all stages that do; the job names it
    words = rf"(?:{stage}: )?a block of .+ does not fit in memory \| --set {of}.block_tokens=(\d+)"
    said = re.fullmatch(words, told(left / stage))
    assert said
    assert 256 < int(said[1]) <= 10**6 // 2
    assert not list((left / stage / "1000000").glob("_block*"))


def exhausted() -> torch.Tensor:
    """More than any machine has: the allocator itself says so."""
    return torch.empty(2**60, dtype=torch.uint8)


def test_only_running_out_of_memory_is_told_as_such() -> None:
    with pytest.raises(RuntimeError) as caught:
        exhausted()
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert fitting(exhausted) is None
    assert fitting(lambda: 3) == 3
    with pytest.raises(RuntimeError, match="size"):
        fitting(lambda: torch.zeros(2) @ torch.zeros(3))
    with pytest.raises(ZeroDivisionError), refused_when_full("it", "less"):
        _ = 1 // 0


def test_the_peak_is_that_since_it_was_forgotten() -> None:
    device, large = torch.device("cpu"), 200 * 2**20
    forget_peak(device)
    before = peak_memory(device)
    held = torch.ones(large // 4)
    assert peak_memory(device) >= before + 0.9 * large
    del held
    assert peak_memory(device) >= before + 0.9 * large, "what was freed was there"
    forget_peak(device)
    assert peak_memory(device) < before + 0.5 * large


@pytest.mark.parametrize(
    ("rows", "what", "hint"),
    [
        (4, "a block of 4 rows of 100 tokens", "--set rollout.block_tokens=200"),
        (1, "one row of 100 tokens", "--set rollout.max_length=50, or a device"),
    ],
)
def test_a_block_that_does_not_fit_names_the_smaller_one(rows: int, what: str, hint: str) -> None:
    with pytest.raises(AdpaError) as caught, block_that_fits("rollout", rows, 100):
        exhausted()
    assert caught.value.message == f"rollout: {what} does not fit in memory"
    assert caught.value.hint.startswith(hint)


def test_a_run_that_was_cut_down_stays_so_after_a_resume(tmp_path: Path) -> None:
    rows = [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 1.0, "tokens_per_device": 64}]
    (tmp_path / METRICS).write_text("".join(json.dumps(row) + "\n" for row in rows))
    for done, asked, tokens in ((1, 128, 128), (2, 128, 64), (2, 32, 32), (0, 128, 128)):
        assert StepLog(tmp_path / METRICS, done, False).tokens(asked) == tokens
