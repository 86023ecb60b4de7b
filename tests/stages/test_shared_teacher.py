"""Frozen models that processes share out give the same bytes as one that a process has whole."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from support import shared_stages
from support.cli_samples import Cli, write_rows
from support.light_update import write_pair
from support.processes import together
from support.tiny_models import TEMPLATE


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    teacher, reference = write_pair(tmp_path / "pair", template=TEMPLATE)
    data = write_rows(tmp_path / "pairs.jsonl", shared_stages.ROWS)
    named: list[Any] = ["--teacher", teacher, "--reference", reference, "--data", data]
    return ["cache-teacher", *map(str, named), "--set", "max_length=32", "--set", "block_tokens=40"]


def digests(folder: Path) -> dict[str, str]:
    """Of the files that stages leave, and of the blocks that they make them of."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "_noise.json"]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.slow
def test_every_stage_gives_the_same_bytes_with_shared_models(tmp_path: Path) -> None:
    shared_stages.write_inputs(tmp_path)
    shared_stages.main(tmp_path)
    together(shared_stages.main, tmp_path, 3)
    alone = digests(tmp_path / "1")
    assert {Path(name).parts[0] for name in alone} == set(shared_stages.jobs(tmp_path))
    assert digests(tmp_path / "3") == alone


@pytest.mark.parametrize(
    ("more", "hint"),
    [
        (["--runtime", "offload=disk"], "--runtime offload=none"),
        (["--set", "quantise=nf4"], "--runtime shard=none"),
    ],
)
def test_what_a_shared_teacher_cannot_be_is_refused(words: list[str], more: list[str], hint: str, cli: Cli) -> None:
    assert hint in cli.refused(1, *words, "--gpus", "2", "--runtime", "shard=all", *more)
