"""What goes where: content to stdout, everything else to stderr, stdin only when asked for with `-`.

A maker prints ids alone: its stdout is moved aside, for libraries and children print and read as they like.
"""

from __future__ import annotations

import codecs
import contextlib
import io
import json
import os
import shlex
import shutil
import stat
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from adpa_cli.endpoint import BASE_URL, JUDGE_URL, shown_url
from adpa_cli.errors import AdpaError, NotFound, Stopped, UsageError
from adpa_cli.report.text import WORSE, for_encoding, is_text, styled

if TYPE_CHECKING:
    from adpa_cli.store.manifest import Manifest
    from adpa_cli.store.store import Store


@dataclass
class Globals:
    """Options that are accepted before and after every command."""

    json: bool = False
    quiet: bool = False
    verbose: bool = False
    store: Path | None = None
    typed: list[str] = field(default_factory=list)
    """The words as they were typed, for other processes of the same command."""
    piped: str = ""
    """What was read from stdin."""
    argv: list[str] = field(default_factory=list)
    words: list[str] = field(default_factory=list)
    """The command with its own options."""
    begun: float = 0.0
    """When the command started, on the monotonic clock."""

    @property
    def command(self) -> str:
        """The command line as it was typed, with the ids that came through a pipe."""
        return command_line(self.argv)

    def again(self, root: Path | None = None) -> str:
        """The command line that goes on from any folder, in the store at `root` (None leaves that to be added)."""
        words = whole_paths(self.argv)
        return command_line(words if root is None else [*words, "--store", str(root)])


def command_line(words: Sequence[str]) -> str:
    """Words after `adpa` as a shell takes them."""
    return shlex.join(["adpa", *words])


GLOBALS = Globals()
_FLAGS = {"--json": "json", "-q": "quiet", "--quiet": "quiet", "-v": "verbose", "--verbose": "verbose"}
_OWN_WORDS = ("--store", "--tag", "--set", "--data", "--sft-data")  # these say themselves what they lack
_FILES = ("run", "--data", "--sft-data", "--reward-model", "--include-path", "--judge-prompts", "--references")
"""A bare word after these may be a file or a folder."""


def take_globals(argv: Sequence[str]) -> list[str]:
    """Set GLOBALS from `argv` and return the rest. Raises UsageError for a value that is empty."""
    # One process may run several commands, as tests do.
    vars(GLOBALS).update(vars(Globals(typed=list(argv), argv=without_secrets(argv), begun=time.monotonic())))
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
    _check_values(rest)
    GLOBALS.words = without_secrets(rest)
    return rest


def without_secrets(words: Sequence[str]) -> list[str]:
    """The words with nothing of a server's URL but its place: what was typed is recorded and shown."""
    options = (JUDGE_URL, BASE_URL)
    return [
        f"{head}{shown_url(word[len(head) :])}" if head or before in options else word
        for before, word in zip(["", *words], words, strict=False)
        for head in [next((f"{option}=" for option in options if word.startswith(f"{option}=")), "")]
    ]


def _check_values(words: Sequence[str]) -> None:
    """Raise UsageError for the empty word that a failed `$(adpa …)` leaves behind, and for one that is no text."""
    for before, word in zip(["", *words], words, strict=False):
        name, mark, value = word.partition("=") if word.startswith("--") else (before, "=", word)
        if not is_text(word):
            raise UsageError(
                f"{word} is not UTF-8 text", "rename the file or folder: libraries cannot open a file with such a name"
            )
        if mark and not value.strip():
            option = name if name.startswith("-") else "REF"
            if option not in _OWN_WORDS:
                hint = "give it a value; a $variable in its place may have been empty, or the command before it failed"
                raise UsageError(f"{option} is empty", hint)


def whole_paths(argv: Sequence[str]) -> list[str]:
    """The words with every path in them absolute, and without `--store`."""
    from adpa_cli.data.sources import split_off

    whole: list[str] = []
    for before, word in zip(["", *argv], argv, strict=False):
        head, mark, value = word.partition("=") if word.startswith("--") else ("", "", word)
        option = head or before
        if option == "--store":
            continue
        path, split = split_off(value)
        is_file = option in _FILES and path and not path.startswith("~") and os.path.exists(path)
        if is_file or path.startswith(("./", "../")) or path in (".", ".."):
            value = os.path.abspath(path) + (f"#{split}" if split else "")
        whole.append(head + mark + value)
    return whole


def say(text: str) -> None:
    """Write to stderr what it can show; once it is gone (a closed terminal or pipe) nothing is said any more."""
    try:
        sys.stderr.write(for_encoding(text, sys.stderr.encoding))
        sys.stderr.flush()
    except OSError:
        _point_at_nothing(2)


def _point_at_nothing(descriptor: int) -> None:
    nothing = os.open(os.devnull, os.O_RDWR)
    if nothing != descriptor:
        os.dup2(nothing, descriptor)
        os.close(nothing)


def quiet_libraries() -> None:
    """Keep libraries from drawing bars of their own and, with -v too, from forking after threads have started."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not GLOBALS.verbose:
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


def read_ids(option: str) -> list[str]:
    """Artifact references from stdin, or JSON objects with an `id` such as manifests; read to the end.

    Raises UsageError at a terminal, NotFound when nothing came.
    """
    if sys.stdin is not None and sys.stdin.isatty():
        raise UsageError(f"{option} - reads ids from a pipe, but stdin is a terminal", f"adpa … | adpa … {option} -")
    try:
        text = "" if sys.stdin is None else sys.stdin.read()
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{option} -: the pipe delivered bytes that are not text",
            "pipe the ids that a command prints: adpa … | adpa …",
        ) from error
    except OSError:  # a stdin that was closed, or a folder
        text = ""
    if not is_text(text):
        raise UsageError(
            f"{option} -: the pipe delivered bytes that are not text",
            "pipe the ids that a command prints: adpa … | adpa …",
        )
    GLOBALS.piped = text
    ids = _ids_in(text.removeprefix("\ufeff"), option)
    if not ids:
        raise NotFound(
            f"{option} -: nothing came through the pipe",
            "look at the command before the pipe: it failed, or printed nothing",
        )
    return ids


def _ids_in(text: str, option: str) -> list[str]:
    """Ids between white space, folders (./NAME) by line, and JSON objects over any number of lines."""
    ids: list[str] = []
    while text := text.lstrip():
        word = text.partition("\n")[0] if text.startswith((".", "/", "~")) else text.split(maxsplit=1)[0]
        end = len(word)
        if text.startswith("{"):
            try:
                value, end = json.JSONDecoder().raw_decode(text)
                word = str(value["id"])
            except (ValueError, KeyError) as error:
                line = text.splitlines()[0][:60]
                hint = "pipe ids, or what adpa show REF --json prints"
                raise UsageError(f"{option} -: the pipe delivered JSON without an id: {line}", hint) from error
        ids.append(word.rstrip())
        text = text[end:]
    return ids


class Values(dict[str, list[str]]):
    """The values of some options by name, with what stdin held instead of a `-`."""

    def one(self, option: str) -> str:
        """The only value of an option that takes one."""
        if len(self[option]) != 1:
            raise UsageError(
                f"{option} takes one model, but {len(self[option])} came through the pipe",
                f"name one of them: {option} {(*self[option], 'REF')[0]}",
            )
        return self[option][0]

    def optional(self, option: str) -> str | None:
        """The value of an option that may be left out, but must not be empty."""
        return needed(option, self.one(option)) if self[option] else None


def dashes(options: Mapping[str, str | Sequence[str] | None]) -> Values:
    """The values of some options; the one `-` among them is replaced by what stdin holds."""
    values = Values({name: [given] if isinstance(given, str) else list(given or ()) for name, given in options.items()})
    places = [(name, i) for name, items in values.items() for i, item in enumerate(items) if item == "-"]
    if len(places) > 1:
        raise UsageError(
            "only one option can read the pipe (-), but several ask for it",
            "give - to one of them, and ids to the others",
        )
    for name, i in places:
        ids = read_ids(name)
        values[name][i : i + 1] = ids
        GLOBALS.argv, GLOBALS.words = (_spelled_out(words, name, ids) for words in (GLOBALS.argv, GLOBALS.words))
    return values


def _spelled_out(argv: Sequence[str], option: str, ids: Sequence[str]) -> list[str]:
    """The command line with the ids that came through the pipe, so that it can be repeated without the pipe."""
    at = next((i for i, word in enumerate(argv) if word in ("-", f"{option}=-")), len(argv))
    named = [f"{option}={item}" for item in ids] if option.startswith("--") else list(ids)
    before = at - 1 if option.startswith("--") and at < len(argv) and argv[at] == "-" else at
    return [*argv[:before], *named, *argv[at + 1 :]]


def one_value(option: str, value: str | None) -> str:
    """The value of an option that must be there; `-` reads it from stdin."""
    return dashes({option: needed(option, value)}).one(option)


def artifacts(refs: str | Sequence[str] | None) -> tuple[Store, list[Manifest]]:
    """The store, and the artifacts that words name in it; `-` reads them from stdin."""
    from adpa_cli.store.store import Store

    store = Store.find(GLOBALS.store)
    return store, [store.resolve(ref) for ref in dashes({"REF": refs})["REF"]]


def needed(option: str, value: str | None) -> str:
    """An option that must be there and must not be empty."""
    if value is None:
        command = f"adpa {GLOBALS.words[0]}" if GLOBALS.words else "adpa COMMAND"
        raise UsageError(f"{option} is missing", f"add it: {command} {option} …; what it takes: {command} --help")
    if not value:
        raise UsageError(
            f"{option} is empty", "give it a value; a $variable or a command before it may have been empty"
        )
    return value


def fail(error: AdpaError) -> int:
    """Say what went wrong on stderr, with -v also where; returns the exit code."""
    if isinstance(error, Stopped) and not GLOBALS.json:
        again = f" Continue with:\n  {error.hint}" if error.hint else ""
        say(f"{error.message[:1].upper()}{error.message[1:].rstrip('.')}.{again}\n")
    elif GLOBALS.json:
        record = {"error": error.message, "hint": error.hint, "exit": error.exit_code, **error.facts}
        say(json.dumps(record, ensure_ascii=False) + "\n")
    else:
        where = "".join(traceback.format_exception(error)) if GLOBALS.verbose else ""
        hint = f"\ntry: {error.hint}" if error.hint else ""
        say(f"{where}{in_colour('error:', WORSE)} {error.message}{hint}\n")
    return error.exit_code


def out(screen: Callable[[], str], tsv: Callable[[], str] | None, record: Callable[[], Any]) -> None:
    """Write whichever of the three forms stdout asks for; only that one is made.

    What has no `tsv` is a page to be read: its screen goes into a pipe too, where `less` may be.
    """
    if GLOBALS.json:
        text = _json(record())
    else:
        text = screen() if tsv is None or sys.stdout.isatty() else tsv()
    sys.stdout.write(for_encoding(text.rstrip("\n"), sys.stdout.encoding) + "\n" if text else "")
    sys.stdout.flush()


def _json(value: Any) -> str:
    """JSON for stdout; what its encoding lacks is escaped, so that a program still reads the same."""
    text = json.dumps(value, ensure_ascii=False, indent=1)
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return json.dumps(value, indent=1)
    return text


def terminal_width() -> int:
    """Columns of the terminal, also where stdout is a pipe to a program that shows it there; 120 without one."""
    streams = () if os.environ.get("COLUMNS") else (sys.__stdout__, sys.__stderr__)
    for stream in streams:
        with contextlib.suppress(AttributeError, ValueError, OSError):
            if stream is not None and (columns := os.get_terminal_size(stream.fileno()).columns):
                return columns
    return shutil.get_terminal_size((120, 24)).columns


def is_coloured(stream: TextIO) -> bool:
    """Whether a stream shows colours: FORCE_COLOR and NO_COLOR decide, else whether it is a terminal that has them."""
    if os.environ.get("FORCE_COLOR", "0") not in ("", "0"):
        return True
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM", "dumb") != "dumb" and stream.isatty()


def in_colour(text: str, style: str) -> str:
    """Words for stderr in a style, where that shows colours."""
    return styled(text, style, is_coloured(sys.stderr))


ANSWERS = {"y": True, "yes": True, "n": False, "no": False}


def can_ask() -> bool:
    """Whether stdin and stderr are terminals, and this process is not in the background of one (reading stops it)."""
    streams = (sys.stdin, sys.stderr)
    if any(stream is None or stream.closed or not stream.isatty() for stream in streams):
        return False
    try:
        return os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp()
    except OSError:  # a terminal that controls no job, or no descriptor at all
        return True


def confirm(question: str, default: bool) -> bool:
    """Ask until the answer is yes or no; an empty line is `default`, the end of the input (Ctrl-D) is no.

    Without somebody to ask the answer is `default`: what needs an explicit yes has False there, and looks at `can_ask`
    to say which option stands for it. A signal that comes meanwhile raises what its handler raises.
    """
    if not can_ask():
        return default
    while True:
        sys.stderr.write(f"{question} {'[Y/n]' if default else '[y/N]'} ")
        sys.stderr.flush()
        line = sys.stdin.readline()
        if not line:
            sys.stderr.write("\n")
            return False
        answer = line.strip().lower()
        if not answer:
            return default
        if answer in ANSWERS:
            return ANSWERS[answer]


@dataclass
class Output:
    """The stdout of a maker. File descriptor 1 points to stderr meanwhile, for libraries and children that print."""

    descriptor: int

    def line(self, text: str) -> None:
        """Write one line at once. Raises BrokenPipeError when nobody reads."""
        rest = (text + "\n").encode(errors="surrogateescape")
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
def stdin_of(text: str) -> Iterator[None]:
    """Give libraries and children a stdin that holds a text: what is there belongs to whoever started the command."""
    kept = os.dup(0)
    with tempfile.TemporaryFile() as file:
        file.write(text.encode(errors="surrogateescape"))
        file.seek(0)
        os.dup2(file.fileno(), 0)
    try:
        yield
    finally:
        os.dup2(kept, 0)
        os.close(kept)


@contextlib.contextmanager
def no_stdin() -> Iterator[None]:
    """Give libraries and children an empty stdin: what is there belongs to whoever started the command."""
    kept = os.dup(0)
    _point_at_nothing(0)
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
            _point_at_nothing(number)
        if getattr(sys, name) is None:
            stream = open(number, mode, encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115  stays open
            setattr(sys, name, stream)


def take_text() -> None:
    """Read stdin as UTF-8 where a locale knows ASCII only, and bytes that are no text as lone surrogates."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        is_ascii = codecs.lookup(sys.stdin.encoding).name == "ascii"
        sys.stdin.reconfigure(encoding="utf-8" if is_ascii else None, errors="surrogateescape")


def nobody_reads() -> int:
    """Let go of a stdout whose reader has left, as `head` does; returns the exit code of tools that die of it."""
    _point_at_nothing(1)
    return 141
