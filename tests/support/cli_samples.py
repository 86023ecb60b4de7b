"""Running `adpa` in this process, and the small pipeline that the tests of its commands share."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import pytest

from adpa_cli.cli.main import main
from adpa_cli.lab import world
from adpa_cli.store.lock import locked

SMALL = [
    "--max-steps", "2", "--set", "sft.max_steps=2", "--set", "sft.limit=64", "--set", "dpo-teacher.max_steps=2",
    "--set", "dpo-teacher.limit=40", "--limit", "40", "--set", "rollout.max_new_tokens=12",
]  # fmt: skip

STUDENT_AND_DCKD = """
[[rows]]
name = "Student"
measures = "start"

[[rows]]
name = "DCKD"
method = "dckd"
"""
"""The first rows of a recipe; keys that follow are DCKD's."""


@dataclass(frozen=True)
class Ran:
    """How a command ended and what it wrote."""

    code: int
    out: str
    err: str

    @property
    def ref(self) -> str:
        """The one line on stdout."""
        assert self.code == 0, self.err
        (line,) = self.out.splitlines()
        return line

    @property
    def rows(self) -> list[list[str]]:
        """Tab-separated lines of stdout."""
        assert self.code == 0, self.err
        return [line.split("\t") for line in self.out.splitlines()]


@dataclass(frozen=True)
class Cli:
    """Calls `adpa` in the working directory of the test."""

    capfd: pytest.CaptureFixture[str]
    monkeypatch: pytest.MonkeyPatch

    def __call__(self, *words: object, stdin: str | TextIO = "") -> Ran:
        self.monkeypatch.setattr("sys.stdin", io.StringIO(stdin) if isinstance(stdin, str) else stdin)
        self.capfd.readouterr()
        code = main([str(word) for word in words])
        return Ran(code, *self.capfd.readouterr())

    def refused(self, code: int, *words: object, stdin: str | TextIO = "") -> str:
        """What a command that must fail with `code` says; its stdout must be empty."""
        ran = self(*words, stdin=stdin)
        assert (ran.code, ran.out) == (code, ""), ran.err
        _, start, found = f"\n{ran.err}".partition("\nerror: ")
        assert start, ran.err
        assert "\ntry: " in found, found
        return found


@dataclass(frozen=True)
class Pipeline:
    """A finished `adpa distill --method adpa+ --student tiny` of a few steps, on pairs in a folder."""

    store: Path
    data: Path

    @property
    def words(self) -> list[str]:
        """The command that made it, without the store."""
        return ["distill", "--method", "adpa+", "--student", "tiny", "--data", str(self.data), *SMALL]

    def made(self, role: str) -> str:
        """The reference of a stage by its role and number, e.g. `signal 2`."""
        from adpa_cli.store.store import Store

        name, _, number = role.partition(" #")
        found = [m for m in reversed(Store.find(self.store).artifacts()) if m.made.get("role") == name]
        return found[int(number or 1) - 1].ref


def build_pipeline(folder: Path) -> Pipeline:
    """Make the pipeline in `folder`, or wait for another process of the tests that is making it."""
    made = Pipeline(folder / "adpa-store", folder / "pairs")
    in_parallel = "PYTEST_XDIST_WORKER" in os.environ
    with pytest.MonkeyPatch.context() as patch, locked(folder / "lock", "tests") if in_parallel else nullcontext():
        patch.setenv("OMP_NUM_THREADS", "1")
        made.data.mkdir(exist_ok=True)
        for split, count in (("train", 40), ("test", 12)):
            if not (path := made.data / f"{split}.jsonl").exists():  # another process of the tests may be reading it
                write_rows(path, world.preferences(split)[:count])
        if not (done := folder / "done").exists():  # another process of the tests may be copying the store
            assert main([*made.words, "--store", str(made.store), "-q"]) == 0
            done.touch()
    return made


def write_pairs(folder: Path) -> Path:
    """A folder with some pairs of the miniature in its folder `pairs`: 24 to train on, and 8 of the test side."""
    (folder / "pairs").mkdir()
    for split, count in (("train", 24), ("test", 8)):
        write_rows(folder / "pairs" / f"{split}.jsonl", world.preferences(split)[:count])
    return folder


def by_metric(line: Mapping[str, Any], key: str = "scores") -> dict[str, Any]:
    """The scores, or the differences, of a line of JSON by their metric."""
    return {one["metric"]: one for one in line[key]}


def write_rows(path: Path, rows: Sequence[Any]) -> Path:
    """JSON Lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
