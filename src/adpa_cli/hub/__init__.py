"""What comes from outside the store: models and data sets, as inputs of stages. The nouns that all folders share."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal


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

    @property
    def is_here(self) -> bool:
        """Whether all of it is on this machine, so that a plan can read it."""
        return self.is_open and not self.download


def stand_in(kind: str, name: str) -> External:
    """In place of a "model" or "data" of the hub that is closed to us, so that the rest of a plan can be looked at."""
    return External(f"{kind}:{hashlib.sha256(name.encode()).hexdigest()}", name, (), {"name": name})
