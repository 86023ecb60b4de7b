"""One command in several real processes: under `--gpus` and under launchers on two hosts, signalled, and killed."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pytest

from adpa_cli.store.store import Store
from support.processes import Running, adpa

pytestmark = pytest.mark.slow
ROLLOUT = [
    "rollout", "--student", "tiny", "--limit", "12", "--set", "max_new_tokens=8", "--set", "block_tokens=200",
    "--set", "sft.limit=24", "--set", "sft.max_steps=3",
]  # fmt: skip
SFT = ["sft", "--model", "tiny", "--limit", "64", "--set", "batch_size=4", "--epochs", "5"]


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


@contextlib.contextmanager
def under_srun(words: Sequence[object], folder: Path, hooks: Sequence[str] = ("", "")) -> Iterator[list[Running]]:
    """The command as srun starts it in two tasks; a task runs its hook before."""
    start = f"import sys; from adpa_cli.cli.main import run; sys.argv[1:] = {list(map(str, words))}; run()"
    step = {
        "SLURM_JOB_ID": str(free_port()), "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_TASKS_PER_NODE": "2", "SLURM_STEP_NODELIST": "localhost", "MASTER_PORT": str(free_port()),
    }  # fmt: skip
    places = [{**step, "SLURM_PROCID": str(task), "SLURM_LOCALID": str(task)} for task in range(2)]
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(adpa(words, folder, env=place, hook=f"{hook}\n{start}"))
            for place, hook in zip(places, hooks, strict=True)
        ]


def carried_out(words: Sequence[object], folder: Path, store: str) -> str:
    """The id that a command prints, which two tasks carry out."""
    with under_srun([*words, "--store", store], folder) as tasks:
        assert [task.code() for task in tasks] == [0, 0], tasks[0].said
        assert (tasks[1].out.read_text(), tasks[1].said) == ("", ""), "the first process alone speaks"
        return tasks[0].out.read_text().strip()


def test_two_hosts_give_the_bytes_of_one(tmp_path: Path) -> None:
    """Of which one is started by torchrun, and the other one by accelerate."""
    ref = carried_out(ROLLOUT, tmp_path, "one")
    port = str(free_port())
    launchers = (
        ["torch.distributed.run", "--nnodes", "2", "--node-rank", "0", "--master-addr", "127.0.0.1", "--master-port",
         port],
        ["accelerate.commands.launch", "--multi_gpu", "--num_machines", "2", "--num_processes", "2", "--machine_rank",
         "1", "--main_process_ip", "127.0.0.1", "--main_process_port", port],
    )  # fmt: skip
    hosts = [
        subprocess.Popen(
            [sys.executable, "-m", *launcher, "-m", "adpa_cli", *ROLLOUT, "--store", "two"],
            cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for launcher in launchers
    ]  # fmt: skip
    said = [host.communicate(timeout=240) for host in hosts]
    assert [host.returncode for host in hosts] == [0, 0], said
    assert [out.strip() for out, _ in said] == [ref, ""], "the first process alone speaks"
    assert "done   rollout/" not in said[1][1]
    assert files(tmp_path / "one") == files(tmp_path / "two")
    assert {made.made["processes"] for made in Store(tmp_path / "two").artifacts()} == {2}


def points(store: Path, after: int = 0) -> list[Path]:
    """The resume points of a training that were saved after a step."""
    return [path for path in store.glob(".partial/*/_resume-*") if int(path.name[8:]) > after]


def test_signals_and_death_end_all_and_the_same_command_goes_on(tmp_path: Path) -> None:
    store = tmp_path / "adpa-store"
    carried_out(SFT, tmp_path, "whole")
    with adpa([*SFT, "--gpus", "2"], tmp_path) as running:
        running.until(lambda: points(store), "a resume point")
        running.signal(signal.SIGUSR1)
        assert running.code() == 75, running.said
        assert "topped by SIGUSR1 at step" in running.said
        assert running.said.count("Starting 2 processes of 1 thread each.") == 1
        assert running.said.rstrip().splitlines()[-1].strip().startswith("adpa sft"), running.said
        assert running.out.read_text() == ""
    at = int(points(store)[0].name[8:])
    with adpa([*SFT, "--gpus", "2"], tmp_path) as running:
        running.until(lambda: points(store, at), "a later point")
        rank, pid = random.choice(sorted(of_rank(running.pid).items()))
        os.kill(pid, signal.SIGKILL)
        began = time.monotonic()
        assert running.code() == 1, running.said
        assert time.monotonic() - began < 10
        assert f"process {rank} of 2" in running.said
        assert "killed" in running.said
    assert not Store(store).artifacts()
    carried_out(SFT, tmp_path, "adpa-store")
    assert files(store) == files(tmp_path / "whole")
    assert {made.made["processes"] for made in Store(store).artifacts()} == {2}


def wait_until_gone(processes: Iterable[int], seconds: float) -> None:
    """Return once none of some processes is there, which may take so long."""
    deadline = time.monotonic() + seconds
    while any(Path(f"/proc/{pid}").exists() for pid in processes):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_launcher_that_is_killed_takes_its_processes_along(tmp_path: Path) -> None:
    """What came to it through a pipe has reached them."""
    (tmp_path / "recipe").write_text('command = "sft"\nmodel = "tiny"\nlimit = 64\nepochs = 400\n')
    with adpa(["run", "-", "--gpus", "2"], tmp_path, stdin=str(tmp_path / "recipe")) as running:
        running.until(lambda: points(tmp_path / "adpa-store"), "the first point")
        ranks = of_rank(running.pid)
        assert set(ranks) == {0, 1}
        running.signal(signal.SIGKILL)
        wait_until_gone(ranks.values(), 10)


def at_start(folder: Path, code: str) -> dict[str, str]:
    """An environment in which every new Python runs some code before anything else."""
    (folder / "site").mkdir()
    (folder / "site" / "sitecustomize.py").write_text(f"import os, time\n{code}")
    return {"PYTHONPATH": os.pathsep.join([str(folder / "site"), os.environ.get("PYTHONPATH", "")])}


def test_a_launcher_that_is_killed_at_once_leaves_nobody(tmp_path: Path) -> None:
    """Its processes are still loading libraries, and have not looked who started them."""
    code = "if 'RANK' in os.environ:\n    open(os.environ['RANK'], 'w').close()\n    time.sleep(2)\n"
    with adpa([*SFT, "--gpus", "2"], tmp_path, env=at_start(tmp_path, code)) as running:
        running.until(lambda: (tmp_path / "0").exists() and (tmp_path / "1").exists(), "both processes")
        ranks = of_rank(running.pid)
        assert set(ranks) == {0, 1}
        running.signal(signal.SIGKILL)
        wait_until_gone(ranks.values(), 30)
    assert not Store(tmp_path / "adpa-store").artifacts()


def test_a_signal_at_the_start_ends_all_soon_and_says_only_that(tmp_path: Path) -> None:
    code = "if os.environ.get('RANK') == '1':\n    open('begun', 'w').close()\n    time.sleep(60)\n"
    with adpa([*SFT, "--gpus", "2"], tmp_path, env=at_start(tmp_path, code)) as running:
        running.until(lambda: (tmp_path / "begun").exists() and len(of_rank(running.pid)) == 2, "both processes")
        began = time.monotonic()
        running.signal(signal.SIGTERM)
        assert running.code() == 143, running.said
        assert time.monotonic() - began < 25
        assert "death signal" not in running.said
        assert running.said.count("Stopped by SIGTERM") == 1


REFUSAL = """
from adpa_cli.engine.training import loop
from adpa_cli.errors import AdpaError
real = loop.train
def train(student, run, *rest):
    if run.spec.lr == 0.5:
        raise AdpaError("the loss is not finite")
    return real(student, run, *rest)
loop.train = train
"""
"""As a training breaks off whose loss is not finite: in all processes."""


def test_a_combination_that_fails_in_all_leaves_the_others(tmp_path: Path) -> None:
    (tmp_path / "grid.toml").write_text(
        'command = "sft"\nmodel = "tiny"\nlimit = 8\nmax_steps = 1\n[set]\nlr = [1e-3, 0.5, 1e-4]\n'
    )
    with under_srun(["run", "./grid.toml"], tmp_path, (REFUSAL, REFUSAL)) as tasks:
        assert tasks[0].code() == 1, tasks[0].said
        assert "1 of 3 combinations failed" in tasks[0].said
        assert "combination 2 lr=0.5: the loss is not finite" in tasks[0].said
    assert [made.made["processes"] for made in Store(tmp_path / "adpa-store").artifacts()] == [2, 2]


def test_a_failure_of_one_process_ends_all_and_is_told(tmp_path: Path) -> None:
    """As a bug in a library would be: the second process cannot put a block in place."""
    words = [*ROLLOUT, "--set", "block_tokens=1"]
    with under_srun(words, tmp_path, ("", "import os\ndel os.replace")) as tasks:
        assert tasks[0].code() == 1, tasks[0].said
        assert "process 1 on" in tasks[0].said
        assert "module 'os' has no attribute 'replace'" in tasks[0].said
    assert "rollout" not in {made.stage for made in Store(tmp_path / "adpa-store").artifacts()}
