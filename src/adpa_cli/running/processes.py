"""One stage in several local processes: the parent plans, resolves and shows; ranks only compute.

A rank is `python -m adpa_cli.running.processes`, with its job on stdin, which stays open as long as the parent lives.
It speaks to the parent in JSON lines on a pipe of its own, so that whatever a library prints goes to stderr and nowhere
else.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import IO, Any

from adpa_cli.data.tables import WATCH, heeding, watching
from adpa_cli.errors import AdpaError, Stopped
from adpa_cli.stages import Job, Monitor, compute

CHANNEL = "ADPA_CHANNEL"


def compute_in_processes(job: Job, monitor: Monitor, threads: int) -> None:
    """Compute a stage in `job.runtime.processes` processes; raises what the first failing one raised."""
    # They find each other through a file that nobody else knows: a port that is free may be taken before it is used.
    with tempfile.TemporaryDirectory(prefix="adpa-") as folder:
        meeting = replace(job, runtime=replace(job.runtime, rendezvous=f"{folder}/rendezvous"))
        children: list[subprocess.Popen[str]] = []
        pipes: list[IO[bytes]] = []
        try:
            for rank in range(job.runtime.processes):
                child, pipe = _start(rank, job.runtime.processes, threads)
                children.append(child)
                pipes.append(pipe)
                _write(child, meeting.to_json() + "\n")
            failure = _listen(children, pipes, monitor)
        finally:
            _kill(children)
            for pipe in pipes:
                pipe.close()
    if failure is not None:
        raise failure


def _start(rank: int, count: int, threads: int) -> tuple[subprocess.Popen[str], IO[bytes]]:
    """A rank, and the end of its pipe that is read."""
    reading, writing = os.pipe()
    environment = {
        **os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count), "OMP_NUM_THREADS": str(threads), CHANNEL: str(writing),
    }  # fmt: skip
    child = subprocess.Popen(
        [sys.executable, "-m", "adpa_cli.running.processes"], stdin=subprocess.PIPE, stdout=2,
        env=environment, pass_fds=(writing,), text=True, start_new_session=True,
    )  # fmt: skip
    os.close(writing)
    # Unbuffered: a line held back in a buffer would not wake select.
    return child, os.fdopen(reading, "rb", 0)


def _write(child: subprocess.Popen[str], text: str) -> None:
    """Hand a rank its job; one that has died already is noticed by its pipe."""
    if child.stdin is not None:
        with contextlib.suppress(BrokenPipeError):
            child.stdin.write(text)
            child.stdin.flush()


def _listen(children: list[subprocess.Popen[str]], pipes: list[IO[bytes]], monitor: Monitor) -> AdpaError | None:
    """Pass on what the ranks say, and to all of them a signal to stop, until all have ended.

    Returns what the first failing rank raised, else how one died; either ends the others at once, for they may wait for
    that rank. What a rank says of its failure goes before a death, which may only follow from it.
    """
    open_pipes = dict(enumerate(pipes))
    said: AdpaError | None = None
    died: AdpaError | None = None
    stopping: str | None = None
    while open_pipes:
        if stopping is None and (stopping := monitor.stop()):
            for child in children:
                child.send_signal(getattr(signal, stopping))
        ready, _, _ = select.select(list(open_pipes.values()), [], [], 0.2)
        for rank in [r for r, pipe in open_pipes.items() if pipe in ready]:
            line = open_pipes[rank].readline()
            if line:
                said = said or _heard(json.loads(line), rank, monitor)
                continue
            open_pipes.pop(rank).close()
            if children[rank].wait() and died is None:
                died = _death([child.poll() for child in children], stopping)
                _kill(children)
        if said is not None and not isinstance(said, Stopped):
            _kill(children)
    return said or died


def _death(statuses: Sequence[int | None], stopping: str | None) -> AdpaError:
    """What the exit statuses of ranks mean that have said nothing of a failure; None stands for one that lives.

    A rank that a signal killed takes the others with it, who then fail for want of it. `stopping` is the signal that
    was passed on to all of them.
    """
    status, rank = min((status, rank) for rank, status in enumerate(statuses) if status)
    who = f"process {rank} of {len(statuses)}"
    if status > 0:
        return AdpaError(
            f"{who} failed with exit status {status}", "its own error is printed above; repeat the command to continue"
        )
    name = signal.Signals(-status).name
    if name == stopping:
        return Stopped(name, f"{Stopped.opening(name)} before {who} had started")
    hint = (
        "the system does this when memory runs out (see dmesg); use fewer processes, or a smaller --tokens-per-device"
    )
    return AdpaError(f"{who} was killed by {name}", hint if name == "SIGKILL" else "repeat the command to continue")


def _heard(message: Mapping[str, Any], rank: int, monitor: Monitor) -> AdpaError | None:
    """Pass on what a rank says, of progress and time only the first one's; what it raised, if that is what it says."""
    if message["kind"] == "progress" and rank == 0:
        monitor.progress(message["step"], message["of"], message["numbers"])
    if message["kind"] == "note" and rank == 0:
        monitor.note(message["text"])
    if message["kind"] == "worked" and rank == 0:
        monitor.worked(message["seconds"])
    if message["kind"] == "reading":
        WATCH.get()(message["what"], message["done"], message["of"])
    if message["kind"] == "stopped":
        return Stopped(message["signal"], message["text"])
    if message["kind"] == "error":
        failure = AdpaError(message["text"], message["hint"])
        failure.exit_code = message["code"]  # of the class it had over there
        return failure
    return None


def _kill(children: Sequence[subprocess.Popen[str]]) -> None:
    """End all ranks that still run, and wait for them."""
    for child in children:
        if child.poll() is None:
            child.kill()
        child.wait()
        if child.stdin is not None:
            with contextlib.suppress(BrokenPipeError):  # a job that was never read
                child.stdin.close()


def _leave_with_the_parent() -> None:
    """Leave when stdin closes: ranks of a parent that was killed must not write where the next run works."""
    while os.read(0, 4096):
        pass
    os._exit(1)


def main() -> int:
    """The life of one rank."""
    channel = os.fdopen(int(os.environ[CHANNEL]), "w", buffering=1)
    job = Job.from_json(sys.stdin.readline())
    threading.Thread(target=_leave_with_the_parent, daemon=True).start()
    rank, processes = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    received: list[str] = []
    for name in Stopped.heeded():
        signal.signal(getattr(signal, name), lambda number, _: received.append(signal.Signals(number).name))

    def say(**message: Any) -> None:
        channel.write(json.dumps(message) + "\n")

    monitor = Monitor(
        lambda step, of, numbers: say(kind="progress", step=step, of=of, numbers=dict(numbers)),
        lambda text: say(kind="note", text=text),
        lambda: received[0] if received else None,
        lambda seconds: say(kind="worked", seconds=seconds),
    )
    import torch

    from adpa_cli.engine.device import prepare

    prepare(int(os.environ["OMP_NUM_THREADS"]))

    def tell(what: str, done: int, of: int) -> None:
        say(kind="reading", what=what, done=done, of=of)

    try:
        with watching(heeding(monitor.stop, tell)):
            compute(job, monitor, rank, processes)
    except Stopped as stopped:
        say(kind="stopped", signal=stopped.signal_name, text=stopped.message)
    except AdpaError as error:
        say(kind="error", text=error.message, hint=error.hint, code=error.exit_code)
        return 1
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
