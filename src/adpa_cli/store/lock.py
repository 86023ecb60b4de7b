"""Kernel locks on files that are never unlinked, and the lists of what commands at work rely on."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from adpa_cli.disk import explained
from adpa_cli.errors import Busy

PARTIAL = ".partial"
"""The folder of the store that holds work in progress, and the locks."""
POLL_SECONDS = 0.2
_GRACE_SECONDS = 0.05  # `holder` takes the lock for an instant to look; a builder must not mistake that for work


@contextlib.contextmanager
def locked(
    path: Path,
    command: str,
    *,
    wait: bool = True,
    announce: Callable[[str], None] | None = None,
    what: str = "",
    needs: Sequence[str] = (),
) -> Iterator[None]:
    """Hold the lock at `path`, with this process, `command` and the ids that it `needs` written inside.

    Waits for another holder after naming it through `announce`; raises `Busy` at once when `wait` is false.
    """
    with explained(path.parent, f"{what or path.stem} needs its lock there"):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        _acquire(handle, path, what or path.stem, wait, announce)
        about = {"pid": os.getpid(), "host": os.uname().nodename, "command": command, "needs": list(needs)}
        note = json.dumps(about, ensure_ascii=False).encode()
        os.ftruncate(handle, 0)
        os.lseek(handle, 0, os.SEEK_SET)
        os.write(handle, note)
        yield
    finally:
        os.close(handle)


def holder(path: Path) -> str | None:
    """Who holds the lock at `path` now ("process 123 on host (command)"), or None when it is free."""
    try:
        handle = os.open(path, os.O_RDWR)
    except OSError:
        return None
    try:
        return None if _try_lock(handle) else _note(path)
    finally:
        os.close(handle)


def needed(path: Path) -> list[str]:
    """The ids that the holder of the lock at `path` wrote down."""
    try:
        return [str(item) for item in json.loads(path.read_text(encoding="utf-8"))["needs"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []


@contextlib.contextmanager
def collecting(root: Path, command: str) -> Iterator[None]:
    """Alone among those who collect, reserve or tag in the store at `root`; held for an instant only."""
    with locked(root / PARTIAL / "gc.lock", command, what="the store's list of what is in use"):
        yield


@contextlib.contextmanager
def reserved(root: Path, ids: Sequence[str], command: str) -> Iterator[None]:
    """Keep artifacts with these full ids, there already or still to be made, from being collected meanwhile."""
    mine = root / PARTIAL / f"use-{os.getpid()}-{os.urandom(4).hex()}.lock"
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


def _acquire(handle: int, path: Path, what: str, wait: bool, announce: Callable[[str], None] | None) -> None:
    if _try_lock(handle):
        return
    time.sleep(_GRACE_SECONDS)
    if _try_lock(handle):
        return
    who = _note(path)
    if not wait:
        raise Busy(f"{what} is being built by {who}", "leave out --no-wait to wait for it, or come again later")
    if announce:
        announce(f"waiting for {what}, which {who} is building")
    while not _try_lock(handle):
        time.sleep(POLL_SECONDS)


def _try_lock(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _note(path: Path) -> str:
    try:
        note = json.loads(path.read_text(encoding="utf-8"))
        return f"process {note['pid']} on {note['host']} ({note['command']})"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"  # it holds the lock but has not written its name yet
