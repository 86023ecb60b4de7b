"""Checking stored bytes against the hashes in their manifest."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from adpa_cli.disk import sha256_file, write_atomic
from adpa_cli.store import manifest as manifests
from adpa_cli.store.identity import Recipe
from adpa_cli.store.manifest import Manifest
from adpa_cli.store.store import Store

SIGNAL_SUFFIX = ".adpa"


@dataclass(frozen=True)
class Damage:
    """One damaged file, what is wrong with it, and for a signal the names of its damaged rows."""

    file: str
    problem: str
    rows: tuple[str, ...] = ()


def verify(store: Store, manifest: Manifest, rows: Callable[[Path], list[str]] | None = None) -> list[Damage]:
    """Rehash every file of an artifact; an empty list means that it is whole.

    `rows` names the damaged rows of a damaged signal shard (the signal's own checksums know them). That an artifact was
    found whole, and when, is remembered for `verified_at`.
    """
    folder = store.folder(manifest.ref)
    checks = [_check(folder, name, manifest, rows) for name in sorted(manifest.files)]
    damages = [damage for damage in checks if damage is not None]
    recipe = Recipe(manifest.stage, manifest.version, manifest.spec, manifest.inputs)
    if recipe.id != manifest.id:
        damages.append(Damage(manifests.FILE_NAME, f"its recipe hashes to {recipe.id[:12]}, not {manifest.id[:12]}"))
    mark = _mark(store, manifest.id)
    with contextlib.suppress(OSError):  # a store that is mounted read-only can be verified, not marked
        if damages:
            mark.unlink(missing_ok=True)
        else:
            write_atomic(mark, f"{time.time()}\n".encode())
    return damages


def verified_at(store: Store, artifact_id: str) -> float | None:
    """When an artifact was last found whole, in seconds since 1970, or None."""
    try:
        return float(_mark(store, artifact_id).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _mark(store: Store, artifact_id: str) -> Path:
    return store.root / ".verified" / artifact_id


def _check(folder: Path, name: str, manifest: Manifest, rows: Callable[[Path], list[str]] | None) -> Damage | None:
    path, expected = folder / name, manifest.files[name]
    if not path.is_file():
        return Damage(name, "missing")
    size = path.stat().st_size
    if size != expected["bytes"]:
        problem = f"{size} bytes, not {expected['bytes']}"
    elif sha256_file(path) != expected["sha256"]:
        problem = "its bytes have changed"
    else:
        return None
    named = tuple(rows(path)) if rows is not None and name.endswith(SIGNAL_SUFFIX) else ()
    return Damage(name, problem, named)
