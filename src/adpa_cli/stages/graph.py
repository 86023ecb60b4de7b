"""What a plan is made of: models and data from outside, artifacts that exist, and stages still to be built.

All three are inputs to a stage, told apart by where their content id comes from. No torch here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from adpa_cli.spec import STAGE_VERSIONS, hashed
from adpa_cli.store.identity import Recipe
from adpa_cli.store.manifest import Manifest

Kind = Literal["model", "dataset"]
"""What a repository of the hub holds."""


@dataclass(frozen=True)
class HubFile:
    """A file of a hub model or data set at a commit: what it must hash to, its bytes, and where it is or will be."""

    repo: str
    kind: Kind
    commit: str
    name: str
    size: int
    sha: str
    path: Path


@dataclass(frozen=True)
class External:
    """A model folder or a data set from outside the store.

    `content` is `model:<sha256>` or `data:<sha256>`; `where` finds it on this machine and is not hashed; `facts` is its
    provenance (name, repository, commit), kept in manifests.
    """

    content: str
    label: str
    where: tuple[str, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)
    size: int = 0
    """Bytes of the files that determine it, on this machine or not."""
    download: int = 0
    """Bytes of them that are still to be fetched."""
    files: tuple[HubFile, ...] = ()
    """Those of them that the hub has; empty for what is local."""

    @property
    def is_open(self) -> bool:
        """Whether it could be looked at; what could not only stands in, until the plan is refused."""
        return bool(self.where)


def stand_in(kind: str, name: str) -> External:
    """In place of a "model" or "data" of the hub that is closed to us, so that the rest of a plan can be looked at."""
    return External(f"{kind}:{hashlib.sha256(name.encode()).hexdigest()}", name, (), {"name": name})


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
