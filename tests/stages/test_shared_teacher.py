"""Teachers that processes share out say the same to the byte as one that a process has whole."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from adpa_cli.cli.main import main
from support.cli_samples import Cli, write_rows
from support.light_update import write_pair
from support.tiny_models import TEMPLATE

ROWS = [{"prompt": f"w{n} w{n + 1}", "chosen": f"w{n} w2 w{n} w4", "rejected": f"w{n + 1} w3 w5"} for n in range(17)]


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    teacher, reference = write_pair(tmp_path / "pair", template=TEMPLATE)
    data = write_rows(tmp_path / "pairs.jsonl", ROWS)
    named: list[Any] = ["--teacher", teacher, "--reference", reference, "--data", data]
    return ["cache-teacher", *map(str, named), "--set", "max_length=32", "--set", "block_tokens=40"]


def digests(store: Path) -> dict[str, str]:
    (folder,) = (store / "cache-teacher").iterdir()
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("signal-*")}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16"])
def test_a_shared_teacher_gives_the_same_bytes(words: list[str], dtype: str, tmp_path: Path) -> None:
    words = [*words, "--set", f"dtype={dtype}", "--set", "prompts=apart", "--runtime", "noise=accept"]
    assert main(["--store", str(tmp_path / "one"), *words]) == 0
    expected = digests(tmp_path / "one")
    assert expected
    assert main(["--store", str(tmp_path / "two"), *words, "--gpus", "2", "--runtime", "shard=all"]) == 0
    assert digests(tmp_path / "two") == expected


@pytest.mark.parametrize(
    ("more", "hint"),
    [
        (["--runtime", "offload=disk"], "--runtime offload=none"),
        (["--set", "quantise=nf4"], "--runtime shard=none"),
    ],
)
def test_what_a_shared_teacher_cannot_be_is_refused(words: list[str], more: list[str], hint: str, cli: Cli) -> None:
    assert hint in cli.refused(1, *words, "--gpus", "2", "--runtime", "shard=all", *more)
