"""Every error that `adpa` raises on purpose: what happened, what to type next, and the exit code.

A bug shows a traceback; an `AdpaError` never does.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar


class AdpaError(Exception):
    """A failure the user can act on.

    `message` says what was asked and what was found; `hint` is the next command or change, shown after `try:`;
    `facts` are for programs that read errors as JSON.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "", facts: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.facts = dict(facts or {})


def fault_in(error: Exception) -> str:
    """What is wrong with content that a reader expected otherwise, without the words of Python."""
    if isinstance(error, KeyError):
        return f"there is no field {error}"
    if isinstance(error, TypeError | AttributeError | IndexError):
        return "a value is of another kind than is needed here"
    return str(error)


class NotFinite(AdpaError):
    """A model gave outputs that are not finite numbers for the token `ids`."""

    def __init__(self, message: str, ids: Sequence[int]) -> None:
        super().__init__(message, "check the weights of the model, or compute in float32: --set dtype=float32")
        self.ids = tuple(ids)


class UsageError(AdpaError):
    """The command line itself is wrong."""

    exit_code = 2


class NotFound(AdpaError):
    """A name that stands for nothing: there is no such artifact, tag, file or alias, or stdin is empty."""

    exit_code = 3


class ComeAgain(AdpaError):
    """What was done is kept, and the same command does the rest; `folder` has what there is of an artifact."""

    exit_code = 75
    folder: Path | None = None


class Busy(AdpaError):
    """Another process is building the artifact and the caller asked not to wait."""

    exit_code = 4


class Corrupt(AdpaError):
    """Stored bytes are not what their manifest or their checksums say."""

    exit_code = 5


class DataError(AdpaError):
    """A data set cannot be used as it is; the message names file, row and field."""


@contextmanager
def named_row(where: str) -> Iterator[None]:
    """Say of which row a DataError is."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{where}: {error.message}", error.hint) from error


@contextmanager
def hints_for(stage: str) -> Iterator[None]:
    """Name the stage in hints on settings that any stage may have, which say `--set STAGE.`."""
    try:
        yield
    except AdpaError as error:
        error.hint = error.hint.replace("STAGE.", f"{stage}.")
        raise


class Stopped(AdpaError):
    """Stopped by a signal, or by `--stop-after` (the kernel's alarm), after the work was saved."""

    CODES: ClassVar[dict[str, int]] = {"SIGUSR1": 75, "SIGALRM": 75, "SIGINT": 130, "SIGTERM": 143, "SIGHUP": 129}

    def __init__(self, signal_name: str, message: str, hint: str = "") -> None:
        super().__init__(message, hint)
        self.signal_name = signal_name
        self.exit_code = self.CODES[signal_name]

    @classmethod
    def heeded(cls) -> list[str]:
        """The signals that stop a command, without those that it was told to ignore by whoever started it (`nohup`)."""
        known = [name for name in cls.CODES if hasattr(signal, name)]
        return [name for name in known if signal.getsignal(getattr(signal, name)) is not signal.SIG_IGN]

    @classmethod
    def opening(cls, signal_name: str) -> str:
        """How a message begins that tells where it stopped; whoever typed Ctrl-C knows why."""
        return "Stopped" if signal_name == "SIGINT" else f"Stopped by {cls.words(signal_name)}"

    @staticmethod
    def words(signal_name: str) -> str:
        """How a signal is called to people."""
        return "--stop-after" if signal_name == "SIGALRM" else signal_name
