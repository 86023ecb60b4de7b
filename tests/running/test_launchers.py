"""What launchers say of a process, and what is refused of it before any work."""

from __future__ import annotations

import dataclasses
import signal
import socket
from datetime import timedelta
from multiprocessing.connection import Client, Listener
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from adpa_cli.errors import AdpaError
from adpa_cli.hub import Located
from adpa_cli.running import launchers, processes
from adpa_cli.running.processes import _callers, check_alike, check_files
from adpa_cli.stages import Job
from support.cli_samples import Cli

STEP = {
    "SLURM_JOB_ID": "1234567", "SLURM_STEP_ID": "0", "SLURM_PROCID": "9", "SLURM_LOCALID": "1", "SLURM_NTASKS": "16",
    "SLURM_STEP_NUM_TASKS": "16", "SLURM_STEP_TASKS_PER_NODE": "8(x2)", "SLURM_STEP_NODELIST": "gpu[007-008]",
}  # fmt: skip


@pytest.mark.parametrize(
    ("environ", "found"),
    [
        ({}, (0, 1)),
        ({"RANK": "3", "WORLD_SIZE": "4"}, (3, 4)),
        (STEP, (9, 16)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "16"}, (0, 1)),  # a batch script
    ],
)
def test_which_process_of_how_many(environ: dict[str, str], found: tuple[int, int]) -> None:
    assert launchers.place(environ) == found


def test_what_srun_says_becomes_what_torch_reads() -> None:
    found = launchers.slurm_as_torch(STEP)
    assert {name: found[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR")} == {
        "RANK": "9", "WORLD_SIZE": "16", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "8", "MASTER_ADDR": "gpu007",
    }  # fmt: skip
    assert int(found["MASTER_PORT"]) in launchers.PORTS
    assert launchers.slurm_as_torch({**STEP, "SLURM_PROCID": "0"})["MASTER_PORT"] == found["MASTER_PORT"]
    assert launchers.slurm_as_torch({**STEP, "SLURM_STEP_ID": "1"})["MASTER_PORT"] != found["MASTER_PORT"]
    assert launchers.slurm_as_torch({**STEP, "RANK": "0"}) == {}
    assert launchers.slurm_as_torch({"SLURM_PROCID": "0", "SLURM_NTASKS": "16"}) == {}


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("gpu[007-009,012],big1", "gpu007"), ("a,b", "a"), ("a-[3]-ib,c", "a-3-ib"), ("node12", "node12"), ("", "")],
)
def test_the_first_node_of_a_list(nodes: str, first: str) -> None:
    environ = {**STEP, "SLURM_STEP_NODELIST": nodes, "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.1"}
    assert launchers.slurm_as_torch(environ)["MASTER_ADDR"] == (first or "10.0.0.1")
    if not nodes:
        with pytest.raises(AdpaError, match="SLURM_STEP_NODELIST is empty"):
            launchers.slurm_as_torch({**STEP, "SLURM_STEP_NODELIST": ""})


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("ACCELERATE_USE_DEEPSPEED", "true", "DeepSpeed"),
        ("ACCELERATE_USE_FSDP", "1", "accelerate's FSDP"),
        ("ACCELERATE_MIXED_PRECISION", "bf16", "--set dtype=bfloat16"),
    ],
)
def test_other_engines_are_refused_by_name(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, name: str, value: str, words: str
) -> None:
    monkeypatch.setenv(name, value)
    said = cli.refused(2, "sft", "--model", "tiny")
    assert words in said
    assert f"{name}={value}" in said


def test_what_accelerate_sets_by_default_is_no_wish(monkeypatch: pytest.MonkeyPatch) -> None:
    launchers.refuse_wrappers({"ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_USE_FSDP": "false"})


def test_gpus_inside_a_launcher_must_agree_with_it(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert "leave --gpus out" in cli.refused(2, "sft", "--model", "tiny", "--gpus", "2")


def facts(**more: Any) -> dict[str, Any]:
    return {"host": "a", "versions": {"torch": "2.13.0"}, "threads": 4, "card": "", **more}


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (facts(host="b", versions={"torch": "2.14.0"}), "process 1 on b has torch 2.14.0, and process 0 on a has 2.13"),
        (facts(threads=2), "process 1 on a computes with 2 threads"),
        (facts(card="GPU-1"), "processes 0 and 1 on a have one card"),
    ],
)
def test_processes_that_would_compute_otherwise_are_refused(other: dict[str, Any], words: str) -> None:
    own = facts(card=other["card"])
    check_alike({0: own, 1: facts(card="GPU-2") if own["card"] else facts()})
    with pytest.raises(AdpaError, match=words):
        check_alike({0: own, 1: other})


def test_who_does_not_know_the_key_holds_nobody_up() -> None:
    key = b"k" * 32
    with Listener(("", 0)) as listener:
        callers, address = _callers(listener, key), ("127.0.0.1", listener.address[1])
        with socket.create_connection(address), socket.create_connection(address) as garbage:
            garbage.sendall(b"GET / HTTP/1.0\r\n\r\n")
            socket.create_connection(address).close()
            with Client(address, authkey=key) as line:
                line.send({"rank": 1})
                assert callers.get(timeout=30)[1] == {"rank": 1}
                assert callers.empty()


def test_processes_that_never_come_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "MEET", timedelta(seconds=0.1))
    monkeypatch.setattr(processes, "_store", lambda: dist.HashStore())
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(AdpaError, match="of 3 processes these have not come: 1, 2"):
        processes.lead(lambda error: 1)


def test_two_hosts_may_name_their_cards_alike() -> None:
    check_alike({0: facts(card="GPU-1"), 1: facts(card="GPU-1", host="b")})


def test_a_node_that_does_not_see_the_store_says_so(tmp_path: Path) -> None:
    model = Located("model", "model:m", "m", (str(tmp_path),))
    data = Located("data", "data:d", "d", ("builtin:tiny-pairs",))
    job = Job("rollout", "rollout/test", {}, {"model": (model,), "data": (data,)}, str(tmp_path))
    check_files(job, "process 1 on b")
    for unseen in (
        dataclasses.replace(job, work=str(tmp_path / "gone")),
        dataclasses.replace(job, inputs={"model": (dataclasses.replace(model, where=(str(tmp_path / "gone"),)),)}),
    ):
        with pytest.raises(AdpaError, match=r"process 1 on b does not see .*gone") as caught:
            check_files(unseen, "process 1 on b")
        assert "--store DIR" in caught.value.hint


@pytest.mark.parametrize(
    ("status", "words"),
    [(-signal.SIGKILL, "process 1 of 3 was killed by SIGKILL"), (7, "process 1 of 3 failed with exit status 7")],
)
def test_how_a_process_died_is_named(status: int, words: str) -> None:
    assert launchers.death(1, 3, status).message == words


def test_a_code_that_a_launcher_makes_1_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.delenv(launchers.RESULT, raising=False)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert launchers.leave_code(75) == "adpa: the exit status is 75\n"
    assert launchers.leave_code(0) == launchers.leave_code(1) == ""
    monkeypatch.setenv(launchers.RESULT, str(tmp_path / "code"))
    assert launchers.leave_code(130) == ""
    assert (tmp_path / "code").read_text() == "130"
