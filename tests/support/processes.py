"""Real `adpa` processes with real terminals, pipes and signals, forked from one server that has the imports done."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pty
import re
import select
import signal
import sys
import termios
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path

PATIENCE = 90.0
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload([
    "pytest", "torch", "transformers", "adpa_cli.cli.main", "adpa_cli.cli.console.make", "adpa_cli.stages.training",
    "adpa_cli.stages.cache_teacher", "adpa_cli.stages.rollout", "adpa_cli.stages.eval", "adpa_cli.engine.training.loop",
    "adpa_cli.engine.capture", "adpa_cli.engine.generation.generate", "torch.distributed.fsdp",
    "torch.distributed.checkpoint.state_dict_saver",
])  # fmt: skip


def _become_adpa(words: list[str], folder: str, files: tuple[str, str, str], env: dict[str, str], hook: str) -> None:
    """The life of the forked process: its own session, the three files, then `adpa`."""
    os.setsid()
    os.chdir(folder)
    os.environ.update({"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **env})
    for number, name in enumerate(files):
        opened = os.open(name, os.O_RDWR if number == 0 and "/dev/" in name else (os.O_RDONLY, os.O_WRONLY)[number > 0])
        os.dup2(opened, number)
        os.close(opened)
    coding = env.get("PYTHONIOENCODING", "utf-8")
    sys.stdin = open(0, encoding=coding, closefd=False)  # noqa: SIM115  stays open
    sys.stdout = open(1, "w", encoding=coding, closefd=False)  # noqa: SIM115  stays open
    sys.stderr = open(2, "w", 1, encoding=coding, errors="backslashreplace", closefd=False)  # noqa: SIM115  stays open
    from adpa_cli.cli.main import main

    exec(hook, {})
    code = main(words)
    sys.stdout.flush()
    os._exit(code)


def _become_rank(work: Callable[[Path], None], folder: Path, meet: str, rank: int, count: int) -> None:
    """The life of a forked process that is one of several."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meet}", rank=rank, world_size=count)
    work(folder)
    dist.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)


def together(work: Callable[[Path], None], folder: Path, count: int) -> None:
    """Run a function of a module in several processes, which make torch's process group."""
    meet = str(folder / f"meet-{count}")
    ranks = [SERVER.Process(target=_become_rank, args=(work, folder, meet, rank, count)) for rank in range(count)]
    for rank in ranks:
        rank.start()
    deadline = time.monotonic() + PATIENCE
    while any(rank.is_alive() for rank in ranks) and not any(rank.exitcode for rank in ranks):
        assert time.monotonic() < deadline, "they do not end"
        ranks[0].join(0.02)
    codes = [rank.exitcode for rank in ranks]
    for rank in ranks:
        rank.kill()
    assert codes == [0] * count, "a process says above what happened to it"


@dataclass
class Running:
    """One process; what it writes on its terminal is gathered whenever this is asked something."""

    process: BaseProcess
    out: Path
    err: Path
    terminal: int | None = None
    _read: bytes = field(default=b"", repr=False)

    @property
    def pid(self) -> int:
        """Its number."""
        return int(self.process.pid or 0)

    @property
    def screen(self) -> str:
        """Everything that was written to the terminal so far, carriage returns and all."""
        while self.terminal is not None and select.select([self.terminal], [], [], 0)[0]:
            try:
                self._read += os.read(self.terminal, 1 << 16)
            except OSError:  # everybody has left it
                break
        return self._read.decode("utf-8", "replace")

    @property
    def said(self) -> str:
        """Its stderr."""
        return self.err.read_text(errors="replace") if self.terminal is None else self.screen

    def until(self, condition: Callable[[], object], what: str) -> None:
        """Wait, while it lives."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert self.process.is_alive(), f"it ended ({self.process.exitcode}) before {what}: {self.said}"
            assert time.monotonic() < deadline, f"{what} never came: {self.said}"
            self.process.join(0.002)

    def signal(self, how: signal.Signals) -> None:
        """Send it a signal."""
        os.kill(self.pid, how)

    def type(self, text: str) -> None:
        """Type at its terminal."""
        assert self.terminal is not None
        os.write(self.terminal, text.encode())

    def hang_up(self) -> None:
        """Close its terminal window."""
        assert self.terminal is not None
        os.close(self.terminal)
        self.terminal = None
        self.err.write_bytes(self._read)

    def code(self) -> int:
        """Its exit code, once it has ended."""
        deadline = time.monotonic() + PATIENCE
        while self.process.is_alive() and time.monotonic() < deadline:
            self.process.join(0.02)
            self.screen  # noqa: B018  a terminal that nobody reads blocks who writes there
        assert self.process.exitcode is not None, f"it does not end: {self.said}"
        return self.process.exitcode


@contextlib.contextmanager
def adpa(
    words: Sequence[object],
    folder: Path,
    *,
    stdin: str = os.devnull,
    terminal: bool = False,
    columns: int = 100,
    env: Mapping[str, str] | None = None,
    hook: str = "",
) -> Iterator[Running]:
    """Start `adpa WORDS` in `folder`; with `terminal` its stdin and stderr are one of `columns`.

    stdout always goes to a file. `hook` is Python that runs there before the command.
    """
    made = len(list(folder.glob("*.out")))
    out, err = folder / f"{made}.out", folder / f"{made}.err"
    out.touch(), err.touch()
    files, master, slave = (stdin, str(out), str(err)), None, None
    if terminal:
        master, slave = pty.openpty()
        termios.tcsetwinsize(slave, (24, columns))
        files = (os.ttyname(slave), str(out), os.ttyname(slave))
    settings = {"TERM": "xterm-256color", "COLUMNS": str(columns), **(env or {})}
    child = SERVER.Process(target=_become_adpa, args=([str(w) for w in words], str(folder), files, settings, hook))
    child.start()
    running = Running(child, out, err, master)
    try:
        if slave is not None:
            while not running.screen and child.is_alive():
                child.join(0.002)
            os.close(slave)
        yield running
    finally:
        if child.is_alive():
            child.kill()
        child.join()
        child.close()
        if running.terminal is not None:
            os.close(running.terminal)


def shown(written: str, columns: int) -> list[str]:
    """The lines of a terminal after `written`, which moves by carriage returns and line ends only."""
    assert not re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f]", written), repr(written)
    lines: list[str] = []
    for line in written.split("\n"):
        cells = [" "] * columns
        for part in line.split("\r"):
            assert len(part) <= columns, f"wrapped at {columns} columns: {part!r}"
            cells[: len(part)] = part
        lines.append("".join(cells).rstrip())
    return lines
