"""One command in several real processes: under `--gpus` and under torchrun on two hosts, signalled, and killed."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from adpa_cli.store.store import Store
from support.processes import Running, adpa

pytestmark = pytest.mark.slow
ROLLOUT = [
    "rollout", "--student", "tiny", "--limit", "12", "--set", "max_new_tokens=8", "--set", "block_tokens=200",
    "--set", "sft.limit=24", "--set", "sft.max_steps=3",
]  # fmt: skip
SFT = ["sft", "--model", "tiny", "--limit", "64", "--set", "batch_size=4", "--gpus", "2", "--epochs"]


def files(store: Path) -> dict[str, bytes]:
    """What is promised to be alike in two stores: all files of artifacts but those that tell of time."""
    made = Store(store).artifacts()
    assert made
    return {
        f"{m.ref}/{name}": (store / m.ref / name).read_bytes() for m in made for name in m.files if name != "log.txt"
    }


def of_rank(pid: int) -> dict[int, int]:
    """The processes that a launcher has started, by their rank."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    environs = {int(child): Path(f"/proc/{child}/environ").read_bytes().split(b"\0") for child in children}
    ranks = {pid: [word for word in words if word.startswith(b"RANK=")] for pid, words in environs.items()}
    return {int(named[0].removeprefix(b"RANK=")): pid for pid, named in ranks.items() if named}


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def test_two_hosts_give_the_bytes_of_one(tmp_path: Path) -> None:
    with adpa([*ROLLOUT, "--gpus", "2", "--store", "one"], tmp_path) as running:
        assert running.code() == 0, running.said
        ref = running.out.read_text().strip()
    port = str(free_port())
    hosts = [
        subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--node-rank", str(node), "--master-addr",
             "127.0.0.1", "--master-port", port, "-m", "adpa_cli", *ROLLOUT, "--store", "two"],
            cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for node in range(2)
    ]  # fmt: skip
    said = [host.communicate(timeout=120) for host in hosts]
    assert [host.returncode for host in hosts] == [0, 0], said
    assert [out.strip() for out, _ in said] == [ref, ""], "the first process alone speaks"
    assert "done   rollout/" not in said[1][1]
    assert files(tmp_path / "one") == files(tmp_path / "two")
    assert {made.made["processes"] for made in Store(tmp_path / "two").artifacts()} == {2}


def stopped_in(running: Running, work: Path, step: int) -> None:
    """Wait until a training has saved at least this step."""
    running.until(lambda: any(work.glob(f".partial/*/_resume-{step:06d}")), f"step {step}")


def test_signals_and_death_end_all_and_the_same_command_goes_on(tmp_path: Path) -> None:
    store = tmp_path / "adpa-store"
    with adpa([*SFT, "9", "--store", "whole"], tmp_path) as running:
        assert running.code() == 0, running.said
    with adpa([*SFT, "9"], tmp_path) as running:
        stopped_in(running, store, 8)
        running.signal(signal.SIGUSR1)
        assert running.code() == 75, running.said
        assert "topped by SIGUSR1 at step" in running.said
        assert running.said.count("Starting 2 processes of 1 thread each.") == 1
        assert running.said.rstrip().splitlines()[-1].strip().startswith("adpa sft"), running.said
        assert running.out.read_text() == ""
    at = int(next(store.glob(".partial/*/_resume-*")).name.split("-")[1])
    with adpa([*SFT, "9"], tmp_path) as running:
        running.until(lambda: [p for p in store.glob(".partial/*/_resume-*") if int(p.name[8:]) > at], "a later point")
        rank, pid = random.choice(sorted(of_rank(running.pid).items()))
        os.kill(pid, signal.SIGKILL)
        began = time.monotonic()
        assert running.code() == 1, running.said
        assert time.monotonic() - began < 10
        assert f"process {rank} of 2" in running.said
        assert "killed" in running.said
    assert not Store(store).artifacts()
    with adpa([*SFT, "9"], tmp_path) as running:
        assert running.code() == 0, running.said
    assert files(store) == files(tmp_path / "whole")


def test_a_launcher_that_is_killed_takes_its_processes_along(tmp_path: Path) -> None:
    with adpa([*SFT, "400"], tmp_path) as running:
        running.until(lambda: any(tmp_path.glob("adpa-store/.partial/*/_resume-*")), "the first point")
        ranks = of_rank(running.pid)
        assert set(ranks) == {0, 1}
        running.signal(signal.SIGKILL)
        deadline = time.monotonic() + 10
        while any(Path(f"/proc/{pid}").exists() for pid in ranks.values()):
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_a_launcher_that_is_killed_at_once_leaves_nobody(tmp_path: Path) -> None:
    """Its processes are still loading libraries, and have not looked who started them."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(
        "import os, time\nif 'RANK' in os.environ:\n    open(os.environ['RANK'], 'w').close()\n    time.sleep(2)\n"
    )
    path = os.pathsep.join([str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")])
    with adpa([*SFT, "9"], tmp_path, env={"PYTHONPATH": path}) as running:
        running.until(lambda: (tmp_path / "0").exists() and (tmp_path / "1").exists(), "both processes")
        ranks = of_rank(running.pid)
        assert set(ranks) == {0, 1}
        running.signal(signal.SIGKILL)
        deadline = time.monotonic() + 30
        while any(Path(f"/proc/{pid}").exists() for pid in ranks.values()):
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert not Store(tmp_path / "adpa-store").artifacts()


def test_a_signal_at_the_start_ends_all_soon_and_says_only_that(tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(
        "import os, time\nif os.environ.get('RANK') == '1':\n    open('begun', 'w').close()\n    time.sleep(60)\n"
    )
    path = os.pathsep.join([str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")])
    with adpa([*SFT, "9"], tmp_path, env={"PYTHONPATH": path}) as running:
        running.until(lambda: (tmp_path / "begun").exists() and len(of_rank(running.pid)) == 2, "both processes")
        began = time.monotonic()
        running.signal(signal.SIGTERM)
        assert running.code() == 143, running.said
        assert time.monotonic() - began < 25
        assert "death signal" not in running.said
        assert running.said.count("Stopped by SIGTERM") == 1


def test_srun_starts_the_same_program(tmp_path: Path) -> None:
    words = ["sft", "--model", "tiny", "--limit", "8", "--max-steps", "1"]
    step = {
        "SLURM_JOB_ID": str(free_port()), "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_TASKS_PER_NODE": "2", "SLURM_STEP_NODELIST": "localhost", "MASTER_PORT": str(free_port()),
    }  # fmt: skip
    tasks = [
        subprocess.Popen(
            [sys.executable, "-m", "adpa_cli", *words], cwd=tmp_path, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1", **step, "SLURM_PROCID": str(task), "SLURM_LOCALID": str(task)},
        )
        for task in range(2)
    ]  # fmt: skip
    said = [task.communicate(timeout=120) for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0], said
    [made] = Store(tmp_path / "adpa-store").artifacts()
    assert [out.strip() for out, _ in said] == [made.ref, ""]
    assert said[1] == ("", "")
    assert made.made["processes"] == 2


def test_what_came_through_a_pipe_reaches_all(tmp_path: Path) -> None:
    (tmp_path / "recipe").write_text('command = "sft"\nmodel = "tiny"\nlimit = 8\nmax_steps = 1\n')
    with adpa(["run", "-", "--gpus", "2"], tmp_path, stdin=str(tmp_path / "recipe")) as running:
        assert running.code() == 0, running.said
    [made] = Store(tmp_path / "adpa-store").artifacts()
    assert made.made["processes"] == 2


def test_a_failure_of_one_process_ends_all_and_is_told(tmp_path: Path) -> None:
    """As a bug in a library would be: the second process cannot put a block in place."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(
        "import os\nif os.environ.get('RANK') == '1':\n    del os.replace\n"
    )
    path = os.pathsep.join([str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")])
    with adpa([*ROLLOUT, "--set", "block_tokens=1", "--gpus", "2"], tmp_path, env={"PYTHONPATH": path}) as running:
        assert running.code() == 1, running.said
    assert "process 1 on" in running.said
    assert "module 'os' has no attribute 'replace'" in running.said
    assert "rollout" not in {made.stage for made in Store(tmp_path / "adpa-store").artifacts()}
