"""`--shard I/N`: jobs that share one store make parts of an artifact, and the last to finish commits it."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from adpa_cli.store import parts
from adpa_cli.store.lock import locked
from adpa_cli.store.parts import Part
from adpa_cli.store.store import Store
from support.cli_samples import Cli, Pipeline

ROLLOUT = ("--set", "rollout.block_tokens=64", "--set", "rollout.max_new_tokens=12", "--limit", "40")


@pytest.fixture
def rollout(pipeline: Pipeline) -> list[str]:
    return ["rollout", "--student", pipeline.made("student"), "--data", str(pipeline.data), *ROLLOUT]


@pytest.fixture
def capture(pipeline: Pipeline) -> list[str]:
    teachers = ["--teacher", pipeline.made("aligned teacher"), "--reference", pipeline.made("reference teacher")]
    return ["cache-teacher", *teachers, "--data", str(pipeline.data), "--set", "cache-teacher.block_tokens=512"]


def bytes_of(store: Path, ref: str) -> dict[str, bytes]:
    """The files of an artifact but for what tells of times."""
    return {
        path.name: path.read_bytes()
        for path in sorted((store / ref).iterdir())
        if path.name not in ("log.txt", "manifest.json")
    }


def metrics_of(store: Path, ref: str) -> str:
    return json.dumps(json.loads((store / ref / "manifest.json").read_text())["metrics"], sort_keys=True)


def run_parts(cli: Cli, words: list[str], count: int) -> str:
    """The id that the last of all parts prints, in a drawn order; the others print none and are no failures."""
    order = list(range(1, count + 1))
    random.Random(count).shuffle(order)
    for part in order[:-1]:
        ran = cli(*words, "--shard", f"{part}/{count}")
        assert (ran.code, ran.out) == (0, ""), ran.err
        assert f"part {part} of {count} of {words[0]}/" in ran.err
        assert "blocks are left to the other parts, the last of which completes it" in ran.err
        assert "repeat the command" not in ran.err
        assert "continues at step" not in ran.err
    return cli(*words, "--shard", f"{order[-1]}/{count}").ref


@pytest.mark.parametrize("name", ["rollout", "capture"])
def test_any_number_of_parts_gives_the_bytes_of_one_job(
    name: str, pipeline: Pipeline, cli: Cli, tmp_path: Path, request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("adpa_cli.signal.block_files.SHARD_TOKENS", 300)
    words = request.getfixturevalue(name)
    whole = cli(*words).ref
    expected, numbers = bytes_of(pipeline.store, whole), metrics_of(pipeline.store, whole)
    assert name == "rollout" or sum(file.startswith("signal-") for file in expected) > 2
    for count in (2, 3):
        shutil.rmtree(pipeline.store / whole)
        assert run_parts(cli, words, count) == whole
        assert bytes_of(pipeline.store, whole) == expected
        assert metrics_of(pipeline.store, whole) == numbers
        assert not list((pipeline.store / ".partial").glob("*part-*"))
    assert cli("verify", whole).code == 0


def test_a_whole_job_goes_on_with_what_parts_left(pipeline: Pipeline, cli: Cli, rollout: list[str]) -> None:
    whole = cli(*rollout).ref
    expected = bytes_of(pipeline.store, whole)
    shutil.rmtree(pipeline.store / whole)
    cli(*rollout, "--shard", "2/2")
    (work,) = Store.find(pipeline.store).unfinished()
    assert 0 < work.progress["step"] == work.progress["of"]
    assert len(list((pipeline.store / ".partial").glob("*/_block-*.json"))) == work.progress["step"]
    assert cli(*rollout).ref == whole
    assert bytes_of(pipeline.store, whole) == expected


def test_finished_shards_of_a_capture_leave_no_blocks(
    pipeline: Pipeline, cli: Cli, capture: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adpa_cli.signal.block_files.SHARD_TOKENS", 100)
    monkeypatch.setattr("adpa_cli.stages.cache_teacher.TURN_SHARDS", 1)
    most = 0

    def watched(*values: object) -> None:
        nonlocal most
        most = max(most, len(list((pipeline.store / ".partial").glob("*/_*.block"))))
        encode(*values)

    from adpa_cli.stages import _signal_shards

    encode = _signal_shards.encode
    monkeypatch.setattr(_signal_shards, "encode", watched)
    ran = cli(*capture, "--shard", "1/1")
    assert ran.code == 0, ran.err
    made = len(list((pipeline.store / ran.ref).glob("signal-*.adpa")))
    assert made > 3
    assert 0 < most < 2 * made


def test_a_part_that_is_at_work_is_waited_for(pipeline: Pipeline, cli: Cli, rollout: list[str]) -> None:
    planned = cli(*rollout, "-n").rows[-1][4]
    (pipeline.store / ".partial").mkdir(exist_ok=True)
    cli(*rollout, "--shard", "1/3")
    folder = next(path for path in (pipeline.store / ".partial").iterdir() if path.is_dir())
    with locked(parts.lock_of(folder, Part(1, 3)), "adpa rollout --shard 2/3"):
        assert "part 2 of 3" in cli.refused(4, *rollout, "--shard", "2/3", "--no-wait")
        assert planned in cli.refused(4, *rollout, "--no-wait")
        gone = cli("gc", "--older", "0", "--yes")
        assert folder.is_dir(), gone.err
        third = cli(*rollout, "--shard", "3/3")
        assert (third.code, third.out) == (0, "")
    assert cli(*rollout, "--shard", "2/3").ref == planned


def test_parts_of_other_environments_do_not_mix(
    pipeline: Pipeline, cli: Cli, rollout: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli(*rollout, "--shard", "1/2").code == 0
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    said = cli.refused(1, *rollout, "--shard", "2/2")
    assert "threads was 1 and is now 2" in said
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert cli(*rollout, "--shard", "2/2").ref.startswith("rollout/")


def test_what_a_training_rests_on_is_shared_out_and_the_training_is_not(pipeline: Pipeline, cli: Cli) -> None:
    words = ["distill", "--method", "dpo", "--student", pipeline.made("student"), "--data", str(pipeline.data),
             "--max-steps", "2", "--no-eval", "--set", "start-logps.block_tokens=256"]  # fmt: skip
    whole = cli(*words, "-n").rows[-1][4]
    first = cli(*words, "--shard", "1/2")
    assert (first.code, first.out) == (0, "")
    second = cli(*words, "--shard", "2/2")
    assert (second.code, second.out) == (0, "")
    assert "repeat the command without --shard" in second.err
    states = {row[2]: row[1] for row in cli(*words, "-n").rows}
    assert states == {"start log-probs": "found", "distill dpo": "build"}
    assert cli(*words).ref == whole


def test_rewards_are_shared_out(pipeline: Pipeline, cli: Cli) -> None:
    judge = cli(
        "reward-model", "--model", pipeline.made("student"), "--data", str(pipeline.data), "--max-steps", "2"
    ).ref
    words = ["distill", "--method", "ddpo", "--student", pipeline.made("student"), "--data", str(pipeline.data),
             "--set", "reward=explicit", "--reward-model", judge, "--max-steps", "2", "--no-eval",
             "--set", "rewards.block_tokens=256", "--set", "rewards.dtype=float32"]  # fmt: skip
    assert cli(*words).code == 0
    store = Store.find(pipeline.store)
    (rewards,) = [
        manifest for manifest in store.artifacts() if manifest.stage == "rewards" and "data" in manifest.inputs
    ]
    expected = bytes_of(pipeline.store, rewards.ref)
    shutil.rmtree(pipeline.store / rewards.ref)
    for made in [manifest for manifest in store.artifacts() if manifest.stage == "distill"]:
        if rewards.id in {parent for _, parent in made.parents()}:
            shutil.rmtree(pipeline.store / made.ref)
    for part in (3, 1, 2):
        assert cli(*words, "--shard", f"{part}/3").code == 0
    assert bytes_of(pipeline.store, rewards.ref) == expected


@pytest.mark.parametrize("text", ["0/4", "5/4", "1", "a/b", "1/0", "1/2/3"])
def test_a_wrong_part_is_named(text: str, cli: Cli) -> None:
    said = cli.refused(2, "rollout", "--student", "tiny", "--shard", text)
    assert f"--shard must be I/N with I from 1 to N; got {text}" in said


def test_what_one_job_must_make_first_is_said(cli: Cli) -> None:
    said = cli.refused(2, "rollout", "--student", "tiny", "--shard", "1/2")
    assert "must be made first, by one job" in said


def test_two_jobs_at_once_of_which_one_is_killed(
    pipeline: Pipeline, cli: Cli, capture: list[str], tmp_path: Path
) -> None:
    whole = cli(*capture).ref
    expected = bytes_of(pipeline.store, whole)
    shutil.rmtree(pipeline.store / whole)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def job(part: int) -> subprocess.Popen[str]:
        words = [sys.executable, "-m", "adpa_cli", *capture, "--shard", f"{part}/2"]
        return subprocess.Popen(words, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)

    killed, other = job(1), job(2)
    deadline = time.monotonic() + 120
    while not list((pipeline.store / ".partial").glob("*/_aligned-*.block")) and killed.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    out = [other.communicate()[0]]
    again = cli(*capture, "--shard", "1/2")
    assert again.code == other.returncode == 0
    assert [line for text in (*out, again.out) for line in text.splitlines()] == [whole]
    assert bytes_of(pipeline.store, whole) == expected
