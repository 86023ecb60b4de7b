"""A signal in float16 has the same bytes from one process and from three, and after a kill: weights are held alike."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from adpa_cli.cli.main import main
from support.cli_samples import write_rows
from support.light_update import write_pair
from support.tiny_models import TEMPLATE

ROWS = [{"prompt": f"w{n} w{n + 1}", "chosen": f"w{n} w2 w{n} w4", "rejected": f"w{n + 1} w3 w5"} for n in range(30)]


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    teacher, reference = write_pair(tmp_path / "pair", template=TEMPLATE)
    data = write_rows(tmp_path / "pairs.jsonl", ROWS)
    named: list[Any] = ["--teacher", teacher, "--reference", reference, "--data", data]
    return ["cache-teacher", *map(str, named), "--set", "max_length=32", "--set", "block_tokens=40"]


def digests(store: Path) -> dict[str, str]:
    (folder,) = (store / "cache-teacher").iterdir()
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("signal-*")}


def test_one_process_three_and_one_that_was_killed(words: list[str], tmp_path: Path) -> None:
    assert main(["--store", str(tmp_path / "one"), *words]) == 0
    expected = digests(tmp_path / "one")
    assert expected
    assert main(["--store", str(tmp_path / "three"), *words, "--gpus", "3"]) == 0
    assert digests(tmp_path / "three") == expected
    killed = tmp_path / "killed"
    child = subprocess.Popen([sys.executable, "-m", "adpa_cli", "--store", str(killed), *words], stderr=subprocess.PIPE)
    end = time.monotonic() + 120
    while not list(killed.glob(".partial/*/_aligned-*.block")):
        assert child.poll() is None, child.communicate()[1].decode()
        assert time.monotonic() < end
        time.sleep(0.002)
    child.send_signal(signal.SIGKILL)
    child.communicate()
    assert not list(killed.glob("cache-teacher/*"))
    assert main(["--store", str(killed), *words]) == 0
    assert digests(killed) == expected
