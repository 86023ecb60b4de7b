"""One stage to be computed, as plain JSON, so that it runs in this process or in several others alike.

A stage module has `compute(job, monitor, rank, processes)`, which fills the work folder and may be killed at any time,
and `finish(job)`, which one process runs at the end and which returns the metrics.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from adpa_cli.errors import AdpaError
from adpa_cli.spec import Runtime
from adpa_cli.store.disk import write_atomic

ALONE = ("eval", "rewards")
"""Stages that make figures of one model: one process does."""


@dataclass(frozen=True)
class Located:
    """An input and where it is: a model or artifact folder, or the sources of a data set."""

    kind: Literal["model", "artifact", "data"]
    content: str
    label: str
    where: tuple[str, ...]
    values: Mapping[str, Any] = field(default_factory=dict)
    """The spec that made an artifact."""

    @property
    def path(self) -> Path:
        return Path(self.where[0])


@dataclass(frozen=True)
class Job:
    """A stage's spec, its inputs by role, the folder to work in, and how to run."""

    stage: str
    ref: str
    spec: Mapping[str, Any]
    inputs: Mapping[str, tuple[Located, ...]]
    work: str
    runtime: Runtime = Runtime()
    hints: Mapping[str, Any] = field(default_factory=dict)
    """What helps to judge the result; never hashed."""
    logs: str = ""
    """Where trackers write, which is no part of the artifact."""

    @property
    def folder(self) -> Path:
        return Path(self.work)

    def one(self, role: str) -> Located:
        """The input of a role; AdpaError when the stage was given none."""
        if not self.inputs.get(role):
            raise AdpaError(f"{self.ref} has no input {role}")
        return self.inputs[role][0]

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Job:
        raw = json.loads(text)
        inputs = {
            role: tuple(Located(**{**item, "where": tuple(item["where"])}) for item in items)
            for role, items in raw["inputs"].items()
        }
        return cls(**{**raw, "inputs": inputs, "runtime": Runtime(**raw["runtime"])})


def _silent(step: int, of: int, numbers: Mapping[str, float]) -> None:
    """Shows nothing."""


@dataclass(frozen=True)
class Monitor:
    """How a stage speaks while it works: progress with a few numbers, remarks, and whether it was asked to stop."""

    progress: Callable[[int, int, Mapping[str, float]], None] = _silent
    note: Callable[[str], None] = lambda text: None
    stop: Callable[[], str | None] = lambda: None


def write_json(path: Path, value: Any) -> None:
    """Write JSON whole or not at all."""
    write_atomic(path, json.dumps(value).encode())


def stop_if_asked(monitor: Monitor, done: int, of: int) -> None:
    """Raise Stopped between two blocks of an inference stage when a signal came."""
    from adpa_cli.errors import Stopped

    signal = monitor.stop()
    if signal:
        by = Stopped.words(signal)
        raise Stopped(signal, f"stopped by {by} after block {done} of {of}; finished blocks are kept")


def vocabulary(folder: Path) -> int:
    """How many ids the model in `folder` can predict."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return int(config["vocab_size"] if "vocab_size" in config else config["text_config"]["vocab_size"])
