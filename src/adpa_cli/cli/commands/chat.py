"""Texts that grow at the same time, side by side, line by line: no cursor is moved, so any terminal can show it."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from adpa_cli.cli.commands import Command
from adpa_cli.cli.console.streams import GLOBALS, terminal_width
from adpa_cli.errors import AdpaError, NotFound, UsageError
from adpa_cli.report import text
from adpa_cli.report.text import pad, width_of

if TYPE_CHECKING:
    from adpa_cli.data.examples import Message
    from adpa_cli.engine.generation.chat_model import ChatModel
    from adpa_cli.engine.generation.sampling import Sampling
    from adpa_cli.planning.lineage import Trained

GAP = " │ "
LEAST = 24
"""Columns below which two texts are shown one after the other."""


def column_width(count: int, width: int) -> int:
    """Columns for each of `count` texts in a terminal; 0 when they do not fit side by side."""
    each = (width - len(GAP) * (count - 1)) // count
    return each if count > 1 and each >= LEAST else 0


def side_by_side(streams: Sequence[Iterator[str]], heard: list[str], each: int) -> Iterator[str]:
    """Lines of texts of `each` columns, as soon as all of them know theirs; `heard` is the texts so far."""
    running = set(range(len(streams)))
    printed = 0
    while True:
        for place in sorted(running):
            piece = next(streams[place], None)
            if piece is None:
                running.discard(place)
            else:
                heard[place] += piece
        lines = [wrapped(text, each) for text in heard]
        # The last line of a text that goes on may still change.
        ready = min((len(lines[place]) - 1 for place in running), default=max(map(len, lines)))
        while printed < ready:
            cells = [pad(line[printed] if printed < len(line) else "", each) for line in lines]
            yield GAP.join(cells).rstrip()
            printed += 1
        if not running:
            return


def wrapped(text: str, width: int) -> list[str]:
    """Lines of at most `width` columns; adding to the text changes the last of them only."""
    lines: list[str] = []
    for paragraph in text.expandtabs(4).split("\n"):
        line = ""
        for word in paragraph.split(" "):
            if line and width_of(line) + 1 + width_of(word) > width:
                lines.append(line)
                line = ""
            elif line:
                line += " "
            for letter in word:
                if width_of(line) + width_of(letter) > width:
                    lines.append(line)
                    line = ""
                line += letter
        lines.append(line)
    return lines


COMMANDS = "/reset forgets the conversation, /quit leaves"


@dataclass(frozen=True)
class Asked:
    """How to answer."""

    system: str | None
    temperature: float
    max_new_tokens: int
    seed: int

    @property
    def opening(self) -> list[Message]:
        """What every conversation begins with."""
        from adpa_cli.data.examples import Message

        return [] if self.system is None else [Message("system", self.system)]

    def sampling(self) -> Sampling:
        """The same for the engine."""
        from adpa_cli.engine.generation.sampling import Sampling

        return Sampling(temperature=self.temperature, max_new_tokens=self.max_new_tokens, seed=self.seed)


def check_sampling(temperature: float, max_new_tokens: int) -> None:
    """Raise UsageError for values without meaning, before anything is loaded."""
    if not 0 <= temperature < float("inf"):
        raise UsageError(f"--temperature is {temperature}", "give 0 (greedy) or more")
    if max_new_tokens < 1:
        raise UsageError(f"--max-new-tokens is {max_new_tokens}", "give 1 or more")


def read_prompts() -> list[str]:
    """The lines of stdin, to its end, empty ones left out.

    Raises UsageError at a terminal and for bytes that are no text, NotFound without any.
    """
    if sys.stdin is None or sys.stdin.isatty():
        raise UsageError("chat - reads prompts from a pipe, and stdin is a terminal", "leave out the - to talk here")
    lines = [line for line in sys.stdin.read().splitlines() if line.strip()]
    if not lines:
        raise NotFound("chat -: nothing came through the pipe", "send one prompt a line")
    for number, line in enumerate(lines, 1):
        if not is_text(line):
            raise UsageError(f"chat -: prompt {number} is not UTF-8 text", "iconv -t UTF-8")
    return lines


def is_text(line: str) -> bool:
    """Whether a line could be read whole: bytes that are no text come as lone surrogates."""
    try:
        line.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def answer_all(found: Sequence[Trained], prompts: Sequence[str], asked: Asked, write: Callable[[str], None]) -> None:
    """One line per prompt: the answers of the models, or an object with all about them."""
    from adpa_cli.data.examples import Message
    from adpa_cli.engine.generation.chat_model import chat_answers

    talkers, sampling = _load(found), asked.sampling()
    turns = [[*asked.opening, Message("user", prompt)] for prompt in prompts]
    rows = zip(*(chat_answers(talker, turns, sampling) for talker in talkers), strict=True)
    for prompt, row in zip(prompts, rows, strict=True):
        if GLOBALS.json:
            made = [{"ref": talker.label, **vars(answer)} for talker, answer in zip(talkers, row, strict=True)]
            write(json.dumps({"prompt": prompt, "answers": made}, ensure_ascii=False))
        else:
            write(text.tsv([[answer.text for answer in row]]).removesuffix("\n"))


def converse(found: Sequence[Trained], asked: Asked) -> int:
    """Read, answer, repeat; returns the exit code: 0, or 130 when Ctrl-C ended it."""
    with suppress(ImportError):
        import readline  # noqa: F401  gives input() a history and its keys

    # Whoever started us may have ignored it, as shells do for what runs in the background.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    talkers, sampling = _load(found), asked.sampling()
    _note(f"{' · '.join(talker.label for talker in talkers)} · {COMMANDS}")
    spoken = [list(asked.opening) for _ in talkers]
    pressed = False
    while True:
        try:
            line = _ask().strip()
            pressed = False
            if line == "/quit":
                return 0
            if line == "/reset":
                spoken = [list(asked.opening) for _ in talkers]
                _note("forgotten")
            elif line.startswith("/"):
                _note(COMMANDS)
            elif not is_text(line):
                _note("that is not UTF-8 text")
            elif line:
                spoken, pressed = _turn(talkers, spoken, line, sampling)
        except EOFError:
            _note("")
            return 0
        except KeyboardInterrupt:
            _note("")
            if pressed:
                return 130
            pressed = True
            _note("once more to leave, or Ctrl-D")


def _turn(
    talkers: Sequence[ChatModel], spoken: Sequence[list[Message]], line: str, sampling: Sampling
) -> tuple[list[list[Message]], bool]:
    """Answer a line. Returns the conversations with what was said, and whether Ctrl-C stopped it."""
    from adpa_cli.data.examples import Message
    from adpa_cli.engine.generation.chat_model import answer_text, fitted_conversation

    asked = [[*turns, Message("user", line)] for turns in spoken]
    heard = [""] * len(talkers)
    stopped = False
    try:
        streams = []
        for talker, turns in zip(talkers, asked, strict=True):
            ids, dropped = fitted_conversation(talker, turns, sampling)
            if dropped:
                _note(f"({talker.label}: {dropped} old turns no longer fit into {talker.context} tokens)")
            streams.append(answer_text(talker, ids, sampling))
        _show(talkers, streams, heard)
    except KeyboardInterrupt:
        stopped = True
        _write("\n")
        _note("(stopped)")
    except AdpaError as error:
        _note(f"{error.message}\n{error.hint}")
        return [list(turns) for turns in spoken], False
    return [[*turns, Message("assistant", said)] for turns, said in zip(asked, heard, strict=True)], stopped


def _show(talkers: Sequence[ChatModel], streams: Sequence[Iterator[str]], heard: list[str]) -> None:
    """Write answers as they come: one as it is, two in columns, or one after the other in a narrow terminal."""
    each = column_width(len(talkers), terminal_width())
    if each:
        heads: list[Iterator[str]] = [iter([talker.label]) for talker in talkers]
        for line in side_by_side(heads, [""] * len(talkers), each):
            _write(line + "\n")
        for line in side_by_side(streams, heard, each):
            _write(line + "\n")
        return
    for place, (talker, stream) in enumerate(zip(talkers, streams, strict=True)):
        if len(talkers) > 1:
            _write(f"{talker.label}\n")
        for piece in stream:
            heard[place] += piece
            _write(piece)
        _write("\n")


def _load(found: Sequence[Trained]) -> list[ChatModel]:
    from adpa_cli.engine.generation.chat_model import load_chat_model

    return [load_chat_model(one.label, one.folder, one.template) for one in found]


def _ask() -> str:
    """A line from the terminal; the prompt is on stdout only where that is the same terminal."""
    if sys.stdout.isatty():
        return input("> ")
    sys.stderr.write("> ")
    sys.stderr.flush()
    return input()


def _write(piece: str) -> None:
    sys.stdout.write(text.for_encoding(piece, sys.stdout.encoding))
    sys.stdout.flush()


def _note(line: str) -> None:
    sys.stderr.write(text.for_encoding(line, sys.stderr.encoding) + "\n")
    sys.stderr.flush()


def chat(
    refs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="REF [REF]", help="Who answers; - reads one prompt a line [required].", show_default=False
        ),
    ] = None,
    system: Annotated[
        str | None, typer.Option("--system", help="Said before the conversation.", metavar="TEXT", show_default=False)
    ] = None,
    temperature: Annotated[float, typer.Option("--temperature", help="0 is greedy.", metavar="X")] = 0.0,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", help="Per answer.", metavar="N")] = 512,
    seed: Annotated[int, typer.Option("--seed", help="Of the sampling.", metavar="N")] = 0,
) -> None:
    """Talk to a model with its own chat template, or to two side by side. Nothing is built for it.

    adpa chat best · adpa chat best distill/51c0 · adpa chat best - < prompts.txt > answers.txt

    With - each line is a prompt of its own; one line per answer goes to stdout (a column per model, line breaks as
    spaces; --json keeps them). Ctrl-C stops an answer, Ctrl-D leaves; /reset starts again, /quit leaves.
    """
    import sys

    from adpa_cli.cli.console.stdout_guard import ids_only
    from adpa_cli.cli.console.streams import GLOBALS, quiet_libraries, say
    from adpa_cli.errors import UsageError
    from adpa_cli.planning.lineage import trained
    from adpa_cli.planning.resolve_inputs import Names
    from adpa_cli.store.store import Store

    models = [ref for ref in refs or () if ref != "-"]
    piped = len(models) < len(refs or ())
    if not 1 <= len(models) <= 2:
        raise UsageError(f"chat takes one or two models, not {len(models)}", "adpa chat REF [REF], see adpa show")
    if not piped and not (sys.stdin is not None and sys.stdin.isatty()):
        raise UsageError("chat talks at a terminal, and stdin is none", f"adpa chat {' '.join(models)} - < prompts")
    check_sampling(temperature, max_new_tokens)
    prompts = read_prompts() if piped else []
    names = Names(Store.find_or_empty(GLOBALS.store))
    found = [trained(names, text, lambda line: say(f"{line}\n")) for text in models]
    quiet_libraries()
    asked = Asked(system, temperature, max_new_tokens, seed)
    if not piped:
        raise typer.Exit(converse(found, asked))
    with ids_only() as output:
        answer_all(found, prompts, asked, output.line)


COMMAND = Command("chat", "Use", 1, chat)
