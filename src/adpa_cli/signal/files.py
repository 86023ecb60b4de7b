"""A file that appears whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def atomic(path: Path) -> Iterator[BinaryIO]:
    """A private file beside `path` to write to; on leaving it is synced and renamed, on an error removed.

    Its name is fixed, so that what a killed writer leaves behind is overwritten by the next: one writer at a time.
    """
    private = path.with_name(f".{path.name}.tmp")
    try:
        with open(private, "wb") as out:
            yield out
            out.flush()
            os.fsync(out.fileno())
        os.replace(private, path)
    except BaseException:
        private.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
