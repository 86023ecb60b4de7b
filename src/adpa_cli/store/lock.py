"""Locks that exclude other processes on every file system, and the lists of what commands at work rely on.

A lock is two things: the kernel's, on a file that is never unlinked, which ends with its process; and a claim beside
it (`store/claim.py`), for file systems where the kernel's lock is missing (ENOLCK), excludes nobody (Lustre without
`-o flock`), or excludes the processes of one machine only. Whether it excludes is tried each time it is taken.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from adpa_cli.disk import explained
from adpa_cli.errors import Busy
from adpa_cli.store import claim as claims
from adpa_cli.store.claim import Beat, Claim, claimed

PARTIAL = ".partial"
"""The folder of the store that holds work in progress, and the locks."""
POLL_SECONDS = 0.2
_GRACE_SECONDS = 0.05  # `holder` takes the lock for an instant to look; a builder must not mistake that for work
_LEFT_SECONDS = 86400.0
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL, errno.EBADF}


@dataclass(frozen=True)
class Hold:
    """A lock that this process holds, by `claim`, which is touched by `beat`."""

    claim: Claim
    beat: Beat


@contextlib.contextmanager
def locked(
    path: Path,
    command: str,
    *,
    wait: bool = True,
    announce: Callable[[str], None] | None = None,
    what: str = "",
    needs: Sequence[str] = (),
) -> Iterator[Hold]:
    """Hold the lock at `path`, with this process, `command` and the ids that it `needs` in the claim beside it.

    Waits for another holder after naming it through `announce`; raises `Busy` at once when `wait` is false.
    """
    what = what or path.stem
    with contextlib.ExitStack() as stack:
        with explained(path.parent, f"{what} needs a lock file there"):
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = _opened(path)
            stack.callback(os.close, handle)
            claim = _acquired(handle, path, _Asked(command, tuple(needs), what, wait, announce))
        beat = stack.enter_context(Beat([]))
        stack.enter_context(claimed(claim_path(path), claim, beat))
        yield Hold(claim, beat)


def claim_path(path: Path) -> Path:
    """Where the claim of the lock at `path` lies."""
    return path.with_suffix(".claim")


def holder(path: Path) -> str | None:
    """Who holds the lock at `path` now ("process 123 on host (command)"), or None when it is free."""
    claim = claims.read(claim_path(path))
    if claim is None:
        return None
    excludes: bool | None = None
    with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
        handle = _opened(path, create=False)
        stack.callback(os.close, handle)
        excludes = _kernel_lock(handle, path)
    if excludes is not False and claim.state(claim_path(path), excludes is True) != "alive":
        return None
    return claim.who


def needed(path: Path) -> list[str]:
    """The ids that the holder of the lock at `path` wrote down."""
    claim = claims.read(claim_path(path))
    return [] if claim is None else list(claim.needs)


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
        # The name is never used again, so nobody else can be waiting for this lock.
        stack.callback(_removed, mine)
        with collecting(root, command):
            stack.enter_context(locked(mine, command, needs=ids))
        yield


def _removed(path: Path) -> None:
    """Remove a note, if it was written: where nobody may write it was not."""
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


def reservations(root: Path) -> dict[str, str]:
    """Who is at work with an artifact, by its full id."""
    notes = [(path, holder(path)) for path in sorted((root / PARTIAL).glob("use-*.lock"))]
    return {artifact: who for path, who in notes if who for artifact in needed(path)}


def forget_dead(root: Path) -> None:
    """Remove the notes of commands that were killed; under `collecting`, or a new note would look like a dead one."""
    for path in (root / PARTIAL).glob("use-*.lock"):
        if holder(path) is None:
            claim_path(path).unlink(missing_ok=True)
            path.unlink(missing_ok=True)
    for path in (root / PARTIAL).glob(".*"):  # of a process that was killed while it made a claim
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _LEFT_SECONDS:
                path.unlink()


@dataclass(frozen=True)
class _Asked:
    """What a lock is wanted for."""

    command: str
    needs: tuple[str, ...]
    what: str
    wait: bool
    announce: Callable[[str], None] | None


def _opened(path: Path, create: bool = True) -> int:
    """A descriptor of the file of a lock; one that cannot write where another user made the file for himself."""
    try:
        return os.open(path, os.O_RDWR | (os.O_CREAT if create else 0), 0o666)
    except PermissionError:
        if not os.path.exists(path):
            raise
        return os.open(path, os.O_RDONLY)


def _acquired(handle: int, path: Path, asked: _Asked) -> Claim:
    """The claim by which this process holds the lock, once it does."""
    other = _attempt(handle, path, asked)
    if isinstance(other, str):
        time.sleep(_GRACE_SECONDS)
        other = _attempt(handle, path, asked)
    if isinstance(other, str) and not asked.wait:
        hint = "leave out --no-wait to wait for it, or try again later"
        raise Busy(f"{asked.what} is already being made by {other}", hint)
    if isinstance(other, str) and asked.announce:
        asked.announce(f"waiting for {asked.what}, which {other} is making")
    while isinstance(other, str):
        time.sleep(POLL_SECONDS)
        other = _attempt(handle, path, asked)
    return other


def _attempt(handle: int, path: Path, asked: _Asked) -> Claim | str:
    """The claim by which this process holds the lock now, or who holds it."""
    excludes, place = _kernel_lock(handle, path), claim_path(path)
    other = claims.read(place)
    if excludes is False:
        return "another process" if other is None else other.who  # it may not have written its name yet
    if other is not None:
        if other.state(place, excludes is True) == "alive":
            return other.who
        claims.removed(place, other)
    mine = claims.new(asked.command, asked.needs, excludes is True)
    return mine if claims.made(place, mine) else (claims.read(place) or mine).who


def _kernel_lock(handle: int, path: Path) -> bool | None:
    """Whether the kernel gave its lock on an open file to this process; None where it has no lock that excludes."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        second = _opened(path, create=False)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return None
        raise
    try:
        fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return None
    finally:
        os.close(second)
    return None
