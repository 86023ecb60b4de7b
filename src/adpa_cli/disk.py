"""Durable files on POSIX: a reader sees a file or a folder whole or not at all, also after a crash or a full disk."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import pwd
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeGuard

from adpa_cli.errors import AdpaError

_FULL = {errno.ENOSPC, errno.EDQUOT}
_FULL_WORDS = ("No space left on device", "os error 28", "Disk quota exceeded")
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
GROUP = "chmod -R g+rwX,g+s STORE once, and umask 002 for everybody who works there"
_ROOM = 10**9  # with this many bytes free it was hardly the store that filled up
_RENAME_EXCHANGE = 2
_AT_WORKING_FOLDER = -100
_UNABLE = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EPERM}


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file's bytes, read in chunks."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def sync_file(path: Path) -> None:
    """Wait until a file's bytes, or a folder's list of names, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_folder(path: Path) -> None:
    """Wait until a folder's list of names is on the disk."""
    sync_file(path)


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file, and make the folders above it: nobody reads half of it, and a failure leaves the old file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _replacing(path, f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}") as out:
        out.write(data)


def write_json(path: Path, value: Any) -> None:
    """Write JSON whole or not at all."""
    write_atomic(path, json.dumps(value).encode())


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[BinaryIO]:
    """A private file beside `path` to write to; on leaving it takes that name, on an error it is removed.

    Its own name is fixed, so that what a killed writer leaves behind is overwritten by the next: one writer at a time.
    """
    with _replacing(path, f".{path.name}.tmp") as out:
        yield out


@contextlib.contextmanager
def _replacing(path: Path, name: str) -> Iterator[BinaryIO]:
    """A file called `name` beside `path`, synced and renamed at the end: a reader sees the old file or the new one."""
    private = path.with_name(name)
    try:
        with private.open("wb") as out:
            yield out
            out.flush()
            os.fsync(out.fileno())
        os.replace(private, path)
    except BaseException:
        with contextlib.suppress(OSError):
            private.unlink()
        raise
    sync_folder(path.parent)


def make_folder(path: Path) -> None:
    """Make a folder and those above it. Raises AdpaError where none can be made; a full disk stays an OSError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if is_disk_full(error):
            raise
        raise AdpaError(
            f"{path} cannot be written: {error.strerror}", "use a folder that is yours: --store DIR or $ADPA_STORE"
        ) from error


def is_disk_full(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, is a full disk or quota; libraries in Rust only say so in words."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        if any(words in str(error) for words in _FULL_WORDS):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextlib.contextmanager
def explained(root: Path, lost: str) -> Iterator[None]:
    """Turn a full disk, and a store that may not be written, into an AdpaError that says what is `lost` by it."""
    try:
        yield
    except AdpaError:
        raise
    except Exception as error:
        if is_disk_full(error):
            full = f"the disk of {root} is full"
            if shutil.disk_usage(root).free > _ROOM:
                full = f"a disk or quota is full, though {root} has room (look at $TMPDIR and $HF_HOME)"
            raise AdpaError(
                f"{full}; {lost}, and nothing half-made is visible",
                "free some space (adpa gc), then type the same command again; it continues from the last saved state",
            ) from error
        if is_forbidden(error) and str(error.filename).startswith(str(root)):
            place = error.filename if os.path.exists(error.filename) else os.path.dirname(error.filename)
            raise AdpaError(
                f"{place} cannot be written ({error.strerror}{_owner(place)}); {lost}",
                f"use a store that is yours: --store DIR or $ADPA_STORE; one of a group needs {GROUP}",
            ) from error
        raise


def is_forbidden(error: BaseException) -> TypeGuard[OSError]:
    """Whether an error says that this user may not read or write a file, or nobody may."""
    return isinstance(error, OSError) and error.errno in _FORBIDDEN and error.filename is not None


def unreadable(path: str | Path, why: str | None = None) -> AdpaError:
    """What to raise for a file that this user may not open."""
    words = f"{path} cannot be opened ({why or 'Permission denied'}{_owner(path)})"
    return AdpaError(words, f"ask its owner to let you, or use a copy; a store of a group needs {GROUP}")


def readable(folder: Path) -> Path:
    """The same folder. Raises AdpaError for one with a file that this user may not read: libraries call it missing."""
    for path in folder.iterdir():
        if not os.access(path, os.R_OK):
            raise unreadable(path)
    return folder


def _owner(path: str | Path) -> str:
    """Whose a file is, where it is another user's."""
    try:
        number = os.stat(path).st_uid
    except OSError:
        return ""
    if number == os.geteuid():
        return ""
    try:
        return f"; it belongs to {pwd.getpwuid(number).pw_name}"
    except KeyError:
        return f"; it belongs to user {number}"


def share(path: Path) -> None:
    """Give a file that a library wrote for its owner alone, as safetensors does, the mode of any new file there."""
    mode = path.stat().st_mode
    if mode & 0o077:
        return
    probe = path.with_name(f".{path.name}.{os.urandom(4).hex()}")
    try:
        probe.touch(mode=0o666)
        path.chmod(mode | probe.stat().st_mode & 0o777)
    finally:
        probe.unlink(missing_ok=True)


def swap(new: Path, target: Path) -> None:
    """Exchange two folders of one filesystem in one step; afterwards `new` is the old one.

    The step is Linux's renameat2, called by ctypes since Python has no name for it: two renames cannot do, for between
    them an artifact would not be there. Where a system lacks the call they have to, and a crash between them leaves
    both folders beside `new`.
    """
    if not _exchanged(new, target):
        aside = new.with_name(f"{new.name}.old")
        os.rename(target, aside)
        os.rename(new, target)
        os.rename(aside, new)
    sync_folder(target.parent)
    sync_folder(new.parent)


def _exchanged(one: Path, other: Path) -> bool:
    """Whether the system exchanged the two."""
    if not sys.platform.startswith("linux"):
        return False
    import ctypes

    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        return False
    here = _AT_WORKING_FOLDER
    if call(here, os.fsencode(one), here, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in _UNABLE:
        return False
    raise OSError(number, os.strerror(number), str(other))


def numbered(folder: Path, pattern: str) -> list[Path]:
    """The files of a folder whose names match a pattern and end with a number, by that number, however long it is."""
    return sorted(folder.glob(pattern), key=lambda path: int(path.stem.rpartition("-")[2]))
