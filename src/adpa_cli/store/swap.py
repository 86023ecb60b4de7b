"""Putting a new folder in the place of an artifact's, so that a reader finds the old one or the new one, whole."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from pathlib import Path

from adpa_cli.store.disk import sync_folder

_EXCHANGE = 2
_HERE = -100
_UNABLE = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EPERM)


def swap(new: Path, target: Path) -> None:
    """Exchange two folders of one filesystem in one step; afterwards `new` is the old one.

    Where the system has no such call (it is Linux's), the old one is moved aside first: then a crash between two
    renames leaves `target` missing, with both folders beside `new`.
    """
    if not _exchanged(new, target):
        aside = new.with_name(f"{new.name}.old")
        os.rename(target, aside)
        os.rename(new, target)
        os.rename(aside, new)
    sync_folder(target.parent)
    sync_folder(new.parent)


def _exchanged(one: Path, other: Path) -> bool:
    if not sys.platform.startswith("linux"):
        return False
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        return False
    if call(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in _UNABLE:
        return False
    raise OSError(number, os.strerror(number), str(other))
