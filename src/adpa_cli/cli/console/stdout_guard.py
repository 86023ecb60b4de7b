"""The three standard file descriptors: ids alone go out through the first, and libraries and children read nothing."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass
class Output:
    """The stdout of a maker. File descriptor 1 points to stderr meanwhile, for libraries and children that print."""

    descriptor: int

    def line(self, text: str) -> None:
        """Write one line at once. Raises BrokenPipeError when nobody reads."""
        rest = (text + "\n").encode()
        while rest:
            rest = rest[os.write(self.descriptor, rest) :]

    @property
    def is_pipe(self) -> bool:
        """Whether another program reads: it may share the terminal, where two bars would be drawn over each other."""
        mode = os.fstat(self.descriptor).st_mode
        return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


@contextlib.contextmanager
def ids_only() -> Iterator[Output]:
    """Keep stdout for what is written through the yielded `Output`."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield Output(kept)
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


@contextlib.contextmanager
def no_stdin() -> Iterator[None]:
    """Give libraries and children an empty stdin: what is there belongs to whoever started the command."""
    kept, empty = os.dup(0), os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, 0)
    os.close(empty)
    try:
        yield
    finally:
        os.dup2(kept, 0)
        os.close(kept)


def open_closed() -> None:
    """Open on nothing those of stdin, stdout and stderr that the command was started without.

    Else the next file that is opened would take such a number, and a library's print would end up in it.
    """
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        try:
            os.fstat(number)
        except OSError:
            found = os.open(os.devnull, os.O_RDWR)
            if found != number:
                os.dup2(found, number)
                os.close(found)
        if getattr(sys, name) is None:
            stream = open(number, mode, encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115  stays open
            setattr(sys, name, stream)


def nobody_reads() -> int:
    """Let go of a stdout whose reader has left, as `head` does; returns the exit code of tools that die of it."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    os.close(nothing)
    return 141
