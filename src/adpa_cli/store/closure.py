"""All that some artifacts need, inside of the store and outside of it, and the files by which they are copied."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from adpa_cli.store import manifest as manifests
from adpa_cli.store.manifest import Manifest
from adpa_cli.store.store import MARKER, PINS_FILE, Store


@dataclass(frozen=True)
class Outside:
    """A model or a data set that an artifact of a closure was made from and that no store holds.

    `role` is what it is to that artifact (model, aligned, data, …), `content` its digest, and `facts` say its name, and
    its commit where it is of the hub.
    """

    role: str
    content: str
    facts: Mapping[str, Any]

    @property
    def kind(self) -> str:
        """model or data."""
        return self.content.partition(":")[0]

    @property
    def parts(self) -> list[Mapping[str, Any]]:
        """The facts of each source, of which data may have several."""
        return list(self.facts.get("sources") or [self.facts])


@dataclass(frozen=True)
class Closure:
    """Some artifacts with all that they were made from: what an artifact needs stands before it.

    `missing` has (role, id, ref of what needs it) of inputs that the store no longer has.
    """

    store: Store
    artifacts: tuple[Manifest, ...]
    outside: tuple[Outside, ...]
    missing: tuple[tuple[str, str, str], ...]

    @cached_property
    def files(self) -> dict[str, list[str]]:
        """The files of each artifact but its manifest, by its ref, as paths inside the store."""
        return {manifest.ref: _files(self.store.root, manifest.ref) for manifest in self.artifacts}

    @property
    def last_files(self) -> list[str]:
        """The small files by which what was copied becomes visible, in the order in which they should arrive.

        The manifests come first, what an artifact needs before it; then the tags of these artifacts, the commits that
        names of the hub mean in this store, and the file that makes a folder a store.
        """
        ids = {manifest.id for manifest in self.artifacts}
        named = [f"{manifest.ref}/{manifests.FILE_NAME}" for manifest in self.artifacts]
        tags = [f"tags/{tag}" for tag, artifact in self.store.tags().items() if artifact in ids]
        rest = [name for name in (PINS_FILE, MARKER) if (self.store.root / name).is_file()]
        return [*named, *tags, *rest]

    def size(self, manifest: Manifest) -> int:
        """Bytes of all files of an artifact, its manifest included."""
        names = [*self.files[manifest.ref], f"{manifest.ref}/{manifests.FILE_NAME}"]
        return sum((self.store.root / name).stat().st_size for name in names)


def closure(store: Store, asked: Sequence[Manifest]) -> Closure:
    """What `asked` artifacts need, themselves included, each once.

    What an artifact read that follows from its recipe, without being an input, is taken along where the store has it.
    """
    done: dict[str, Manifest] = {}
    outside: dict[str, Outside] = {}
    missing: dict[str, tuple[str, str, str]] = {}
    opened: set[str] = set()
    todo = list(reversed(asked))
    while todo:
        one = todo[-1]
        if one.id in opened:
            done.setdefault(one.id, todo.pop())
            continue
        opened.add(one.id)
        for role, parent in one.parents():
            found = store.get(parent)
            if found is None:
                missing.setdefault(parent, (role, parent, one.ref))
            elif parent not in opened:
                todo.append(found)
        derived = (store.get(parent) for _, parent in one.derived() if parent not in opened)
        todo += [found for found in derived if found is not None]
        roles = {content: role for role, value in one.inputs.items() for content in _listed(value)}
        for content, facts in one.sources.items():
            outside.setdefault(content, Outside(roles.get(content, "source"), content, facts))
    return Closure(store, tuple(done.values()), tuple(outside.values()), tuple(missing.values()))


def _listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def _files(root: Path, ref: str) -> list[str]:
    """The files below the folder of an artifact but its manifest, also those that no manifest names."""
    names = []
    for where, _, files in os.walk(root / ref):
        names += [os.path.relpath(os.path.join(where, name), root) for name in files]
    return sorted(name for name in names if name != f"{ref}/{manifests.FILE_NAME}")
