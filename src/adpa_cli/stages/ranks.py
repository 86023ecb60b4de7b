"""One stage in several local processes: the parent plans, resolves and shows; ranks only compute.

A rank is `python -m adpa_cli.stages.ranks`, with its job on stdin. It speaks to the parent in JSON lines on a pipe of
its own, so that whatever a library prints goes to stderr and nowhere else.
"""

from __future__ import annotations

import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from typing import IO, Any

from adpa_cli.errors import AdpaError, Stopped
from adpa_cli.stages.job import Job, Monitor

CHANNEL = "ADPA_CHANNEL"


def compute_in_processes(job: Job, monitor: Monitor, threads: int) -> None:
    """Compute a stage in `job.runtime.processes` processes; raises what the first failing one raised."""
    count = job.runtime.processes
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children: list[subprocess.Popen[str]] = []
    pipes: list[IO[str]] = []
    for rank in range(count):
        reading, writing = os.pipe()
        environment = {
            **os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count),
            "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": str(threads), CHANNEL: str(writing),
        }  # fmt: skip
        child = subprocess.Popen(
            [sys.executable, "-m", "adpa_cli.stages.ranks"], stdin=subprocess.PIPE, stdout=sys.stderr.fileno(),
            env=environment, pass_fds=(writing,), text=True, start_new_session=True,
        )  # fmt: skip
        os.close(writing)
        children.append(child)
        pipes.append(os.fdopen(reading))
        assert child.stdin is not None
        child.stdin.write(job.to_json())
        child.stdin.close()
    try:
        failure = _listen(children, pipes, monitor)
    finally:
        for child in children:
            if child.poll() is None:
                child.terminate()
            child.wait()
    if failure is not None:
        raise failure


def _listen(children: list[subprocess.Popen[str]], pipes: list[IO[str]], monitor: Monitor) -> AdpaError | None:
    """Pass on what the ranks say until all have ended; the first failure ends the others."""
    open_pipes = dict(enumerate(pipes))
    failure: AdpaError | None = None
    passed_on = False
    while open_pipes:
        asked = monitor.stop()
        if asked and not passed_on:
            passed_on = True
            children[0].send_signal(getattr(signal, asked))
        ready, _, _ = select.select(list(open_pipes.values()), [], [], 0.2)
        for rank in [r for r, pipe in open_pipes.items() if pipe in ready]:
            line = open_pipes[rank].readline()
            if not line:
                open_pipes.pop(rank).close()
                if children[rank].wait() and failure is None:
                    failure = AdpaError(
                        f"process {rank} of {len(children)} died with status {children[rank].returncode}"
                    )
                    _end(children)
            else:
                failure = _heard(json.loads(line), rank, monitor) or failure
    return failure


def _heard(message: Mapping[str, Any], rank: int, monitor: Monitor) -> AdpaError | None:
    if message["kind"] == "progress" and rank == 0:
        monitor.progress(message["step"], message["of"], message["numbers"])
    if message["kind"] == "note" and rank == 0:
        monitor.note(message["text"])
    if message["kind"] == "stopped":
        return Stopped(message["signal"], message["text"])
    if message["kind"] == "error":
        failure = AdpaError(message["text"], message["hint"])
        failure.exit_code = message["code"]
        return failure
    return None


def _end(children: list[subprocess.Popen[str]]) -> None:
    for child in children:
        if child.poll() is None:
            child.terminate()


def main() -> int:
    """The life of one rank."""
    channel = os.fdopen(int(os.environ[CHANNEL]), "w", buffering=1)
    job = Job.from_json(sys.stdin.read())
    rank, processes = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    asked: list[str] = []
    for name in Stopped.CODES:
        signal.signal(getattr(signal, name), lambda number, _: asked.append(signal.Signals(number).name))

    def say(**message: Any) -> None:
        channel.write(json.dumps(message) + "\n")

    monitor = Monitor(
        lambda step, of, numbers: say(kind="progress", step=step, of=of, numbers=dict(numbers)),
        lambda text: say(kind="note", text=text),
        lambda: asked[0] if asked else None,
    )
    import torch

    from adpa_cli.stages.execute import MODULES

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    module = importlib.import_module(f"adpa_cli.stages.{MODULES[job.stage]}")
    try:
        module.compute(job, monitor, rank, processes)
    except Stopped as stopped:
        say(kind="stopped", signal=asked[0] if asked else "SIGTERM", text=stopped.message)
    except AdpaError as error:
        say(kind="error", text=error.message, hint=error.hint, code=error.exit_code)
        return 1
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
