"""What a stage is, a node of a plan that is one, and a job that computes one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from adpa_cli.errors import AdpaError
from adpa_cli.hub import External, Located
from adpa_cli.spec import STAGE_VERSIONS, Runtime, hashed
from adpa_cli.store.identity import Recipe
from adpa_cli.store.manifest import Manifest

ALONE = ("eval", "rewards")
"""Stages that make figures of one model: one process does."""


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


def stop_if_asked(monitor: Monitor, done: int, of: int) -> None:
    """Raise Stopped between two blocks of an inference stage when a signal came."""
    from adpa_cli.errors import Stopped

    signal = monitor.stop()
    if signal:
        by = Stopped.words(signal)
        raise Stopped(signal, f"stopped by {by} after block {done} of {of}; finished blocks are kept")


@dataclass(frozen=True)
class Artifact:
    """A complete artifact of the store, used exactly as it is."""

    manifest: Manifest

    @property
    def content(self) -> str:
        return f"artifact:{self.manifest.id}"

    @property
    def label(self) -> str:
        return self.manifest.ref

    @property
    def stage(self) -> str:
        return self.manifest.stage

    @property
    def values(self) -> Mapping[str, Any]:
        """The spec that made it."""
        return self.manifest.spec


@dataclass(frozen=True)
class Node:
    """A stage with its spec and inputs, whether it is built already or not. `role` and `what` are for people."""

    stage: str
    spec: Any
    inputs: Mapping[str, Input | tuple[Input, ...]]
    role: str
    what: str
    hints: Mapping[str, Any] = field(default_factory=dict)
    """What helps to judge the result; never hashed."""
    derived: Mapping[str, Node] = field(default_factory=dict)
    """What it reads besides its inputs and is built before it. It follows from the recipe, and is no part of it."""

    @cached_property
    def recipe(self) -> Recipe:
        """What the node's id is the hash of."""
        contents: dict[str, str | list[str]] = {}
        for name, value in self.inputs.items():
            contents[name] = [item.content for item in value] if isinstance(value, tuple) else value.content
        return Recipe(self.stage, STAGE_VERSIONS[self.stage], hashed(self.spec), contents)

    @property
    def content(self) -> str:
        return f"artifact:{self.recipe.id}"

    @property
    def label(self) -> str:
        return self.recipe.ref

    @property
    def values(self) -> Mapping[str, Any]:
        """The spec as it is hashed."""
        return self.recipe.spec

    def flat_inputs(self) -> Iterator[tuple[str, Input]]:
        """(role, input) of every input, lists laid out."""
        for name, value in self.inputs.items():
            for item in value if isinstance(value, tuple) else (value,):
                yield name, item

    def reads(self) -> Iterator[tuple[str, Input]]:
        """(role, input) of every input, then of what is derived."""
        yield from self.flat_inputs()
        yield from self.derived.items()


Input = External | Artifact | Node
Made = Artifact | Node


def in_order(targets: tuple[Node, ...], have: Callable[[Node], bool]) -> list[Node]:
    """The targets and the stages they rest on, each once, inputs before what uses them; none beneath one we `have`."""
    found: dict[str, Node] = {}

    def visit(node: Node) -> None:
        if node.recipe.id in found:
            return
        for _, item in node.reads() if not have(node) else ():
            if isinstance(item, Node):
                visit(item)
        found[node.recipe.id] = node

    for target in targets:
        visit(target)
    return list(found.values())
