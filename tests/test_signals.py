"""Signals that a command was started without: `nohup`, `trap '' HUP`, and what scripts run in the background."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

from adpa_cli.cli.console.stopping import stoppable
from adpa_cli.errors import Stopped
from adpa_cli.store.store import Store
from support.processes import adpa

IGNORE = "import signal\nfor name in ('SIGHUP', 'SIGINT'):\n    signal.signal(getattr(signal, name), signal.SIG_IGN)\n"
WORDS = ("sft", "--model", "tiny", "--limit", "64", "--set", "batch_size=4", "--epochs")


def ranks_of(pid: int) -> list[int]:
    """The processes that a process has started."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.slow
def test_what_was_ignored_at_the_start_stops_neither_a_command_nor_its_processes(tmp_path: Path) -> None:
    with adpa([*WORDS, "2", "--gpus", "2"], tmp_path, hook=IGNORE) as running:
        running.until(lambda: list(tmp_path.glob("adpa-store/.partial/*/metrics.jsonl")), "the first step")
        ranks = [child for child in ranks_of(running.pid) if b"adpa_cli" in _words(child)]
        assert len(ranks) == 2
        for pid in [*ranks, running.pid]:
            os.kill(pid, signal.SIGHUP)
            os.kill(pid, signal.SIGINT)
        assert running.code() == 0, running.said
    assert len(Store(tmp_path / "adpa-store").artifacts()) == 1


def _words(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def test_the_others_still_stop_it_and_so_does_its_own_alarm(tmp_path: Path) -> None:
    hook = f"{IGNORE}signal.signal(signal.SIGALRM, signal.SIG_IGN)\n"
    with adpa([*WORDS, "400", "--stop-after", "2s"], tmp_path, hook=hook) as running:
        assert running.code() == 75, running.said
        assert "Stopped by --stop-after at step" in running.said
    with adpa([*WORDS, "400", "--store", "other"], tmp_path, hook=hook) as running:
        running.until(lambda: list(tmp_path.glob("other/.partial/*/metrics.jsonl")), "the first step")
        running.signal(signal.SIGHUP)
        running.signal(signal.SIGTERM)
        assert running.code() == 143, running.said
        assert "topped by SIGTERM" in running.said


def test_a_program_that_reads_errors_is_told_one_line(tmp_path: Path) -> None:
    with adpa([*WORDS, "400", "--json"], tmp_path) as running:
        running.until(lambda: list(tmp_path.glob("adpa-store/.partial/*/metrics.jsonl")), "the first step")
        running.signal(signal.SIGTERM)
        assert running.code() == 143, running.said
        assert json.loads(running.said)["exit"] == 143


@pytest.mark.parametrize("name", ["SIGHUP", "SIGINT", "SIGUSR1", "SIGTERM"])
def test_handlers_are_put_back_as_they_were(name: str) -> None:
    number = getattr(signal, name)
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with stoppable(lambda: "adpa") as stopping:
            assert signal.getsignal(number) is signal.SIG_IGN
            assert name not in Stopped.heeded()
            os.kill(os.getpid(), number)
            time.sleep(0.01)
            assert stopping.asked is None
            others = [getattr(signal, other) for other in Stopped.CODES if other != name]
            assert all(signal.getsignal(other) == stopping.handle for other in others)
        assert signal.getsignal(number) is signal.SIG_IGN
    finally:
        signal.signal(number, before)
