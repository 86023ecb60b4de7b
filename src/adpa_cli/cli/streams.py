"""What goes where: content to stdout, everything else to stderr, stdin only when asked for with `-`."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from adpa_cli.errors import AdpaError, NotFound, UsageError


@dataclass
class Globals:
    """Options that are accepted before and after every command."""

    json: bool = False
    quiet: bool = False
    verbose: bool = False
    store: Path | None = None
    argv: list[str] = field(default_factory=list)

    @property
    def command(self) -> str:
        """The command line as it was typed."""
        import shlex

        return shlex.join(["adpa", *self.argv])


GLOBALS = Globals()
_FLAGS = {"--json": "json", "-q": "quiet", "--quiet": "quiet", "-v": "verbose", "--verbose": "verbose"}


def take_globals(argv: Sequence[str]) -> list[str]:
    """Set GLOBALS from `argv` and return the rest. Raises UsageError when --store has no value."""
    vars(GLOBALS).update(vars(Globals(argv=list(argv))))  # one process may run several commands, as tests do
    rest: list[str] = []
    words = iter(argv)
    for word in words:
        if word == "--":
            rest += [word, *words]
        elif word in _FLAGS:
            setattr(GLOBALS, _FLAGS[word], True)
        elif word == "--store" or word.startswith("--store="):
            value = word.partition("=")[2] if "=" in word else next(words, "")
            if not value:
                raise UsageError("--store has no value", "name the store's folder: --store DIR")
            GLOBALS.store = Path(value)
        else:
            rest.append(word)
    return rest


@dataclass
class Output:
    """The stdout of a maker. File descriptor 1 points to stderr meanwhile, for libraries and children that print."""

    descriptor: int

    def line(self, text: str) -> None:
        """Write one line at once."""
        os.write(self.descriptor, (text + "\n").encode())


@contextlib.contextmanager
def ids_only() -> Iterator[Output]:
    """Keep stdout for what is written through the yielded `Output`."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield Output(kept)
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


def read_ids(option: str) -> list[str]:
    """Artifact references from stdin, one a line, or one JSON object with an `id` a line; read to the end.

    Raises UsageError at a terminal, NotFound when nothing came.
    """
    if sys.stdin is None or sys.stdin.isatty():
        raise UsageError(f"{option} - reads ids from a pipe, and stdin is a terminal", f"adpa … | adpa … {option} -")
    lines = [line.strip() for line in sys.stdin.read().splitlines() if line.strip()]
    if not lines:
        raise NotFound(f"{option} -: nothing came through the pipe", "the command before it failed, or made nothing")
    found = []
    for line in lines:
        if line.startswith("{"):
            try:
                line = str(json.loads(line)["id"])
            except (ValueError, KeyError) as error:
                raise UsageError(
                    f"{option} -: a line is no manifest: {line[:60]}", "pipe ids, or adpa show --json"
                ) from error
        found.append(line)
    return found


def dashes(options: dict[str, list[str]]) -> dict[str, list[str]]:
    """Replace the one `-` among the values of some options by what stdin holds."""
    asked = [(name, i) for name, values in options.items() for i, value in enumerate(values) if value == "-"]
    if len(asked) > 1:
        raise UsageError("stdin can be read once, and several options ask for it", "name the others by id")
    for name, i in asked:
        found = read_ids(name)
        options[name][i : i + 1] = found
        GLOBALS.argv = _spelled_out(GLOBALS.argv, name, found)
    return options


def _spelled_out(argv: Sequence[str], option: str, found: Sequence[str]) -> list[str]:
    """The command line with the ids that came through the pipe, so that it can be repeated without the pipe."""
    at = next((i for i, word in enumerate(argv) if word in ("-", f"{option}=-")), len(argv))
    named = [f"{option}={item}" for item in found] if option.startswith("--") else list(found)
    before = at - 1 if option.startswith("--") and at < len(argv) and argv[at] == "-" else at
    return [*argv[:before], *named, *argv[at + 1 :]]


def one(option: str, values: Sequence[str]) -> str:
    """The only value of an option that takes one."""
    if len(values) != 1:
        raise UsageError(f"{option} takes one model, and stdin has {len(values)}", "choose one of them")
    return values[0]


def at_most_one(option: str, values: Sequence[str]) -> str | None:
    """The value of an option that may be left out, but must not be empty."""
    return needed(option, one(option, values)) if values else None


def several(value: str | None) -> list[str]:
    """An optional value as a list."""
    return [] if value is None else [value]


def needed(option: str, value: str | None) -> str:
    """An option that must be there and must not be empty."""
    if value is None:
        raise UsageError(f"{option} is missing", f"give it: {option} VALUE")
    if not value:
        raise UsageError(f"{option} is empty", "the command before it may have failed")
    return value


def fail(error: AdpaError) -> int:
    """Say what went wrong on stderr, with -v also where; returns the exit code."""
    if GLOBALS.verbose and not GLOBALS.json:
        traceback.print_exception(error)
    if GLOBALS.json:
        record = {"error": error.message, "hint": error.hint, "exit": error.exit_code}
        sys.stderr.write(json.dumps(record, ensure_ascii=False) + "\n")
    else:
        hint = f"\ntry: {error.hint}" if error.hint else ""
        text = f"error: {error.message}{hint}\n"
        sys.stderr.write(text.encode(sys.stderr.encoding or "utf-8", "replace").decode(sys.stderr.encoding or "utf-8"))
    sys.stderr.flush()
    return error.exit_code
