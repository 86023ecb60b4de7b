"""What commands at work rely on, so that `adpa gc` leaves it alone.

A command writes the ids of its whole plan into a file of its own and holds that file's lock until it ends, however it
ends. Reserving and collecting exclude each other by one lock, so that either the collector sees the reservation or the
command sees that the artifact is gone.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path

from adpa_cli.store.build import PARTIAL
from adpa_cli.store.lock import holder, locked, needed


@contextlib.contextmanager
def collecting(root: Path, command: str) -> Iterator[None]:
    """Alone among those who collect, reserve or tag in the store at `root`; held for an instant only."""
    with locked(root / PARTIAL / "gc.lock", command, what="the store's list of what is in use"):
        yield


@contextlib.contextmanager
def reserved(root: Path, ids: Sequence[str], command: str) -> Iterator[None]:
    """Keep artifacts with these full ids, there already or still to be made, from being collected meanwhile."""
    mine = root / PARTIAL / f"use-{os.getpid()}-{secrets.token_hex(4)}.lock"
    with contextlib.ExitStack() as stack:
        with collecting(root, command):
            stack.enter_context(locked(mine, command, needs=ids))
        # The name is never used again, so nobody else can be waiting for this lock.
        stack.callback(mine.unlink, missing_ok=True)
        yield


def reservations(root: Path) -> dict[str, str]:
    """Who is at work with an artifact, by its full id."""
    notes = [(path, holder(path)) for path in sorted((root / PARTIAL).glob("use-*.lock"))]
    return {artifact: who for path, who in notes if who for artifact in needed(path)}


def forget_dead(root: Path) -> None:
    """Remove the notes of commands that were killed; under `collecting`, or a new note would look like a dead one."""
    for path in (root / PARTIAL).glob("use-*.lock"):
        if holder(path) is None:
            path.unlink(missing_ok=True)
