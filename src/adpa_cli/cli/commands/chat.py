"""`adpa chat`: a conversation at the terminal with one model, or with two side by side; or answers through a pipe.

Two answers that grow at the same time are shown line by line: no cursor is moved, so any terminal can show it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from adpa_cli.cli.commands import Command
from adpa_cli.cli.console import complete
from adpa_cli.cli.console import options as opt
from adpa_cli.cli.console.streams import GLOBALS, ids_only, quiet_libraries, say, terminal_width
from adpa_cli.errors import AdpaError, NotFound, UsageError
from adpa_cli.lab import TEMPLATE
from adpa_cli.report import text
from adpa_cli.report.text import pad, width_of
from adpa_cli.spec import Dtype

if TYPE_CHECKING:
    from adpa_cli.data.examples import Message
    from adpa_cli.engine.generation.chat_model import ChatModel
    from adpa_cli.engine.generation.sampling import Sampling
    from adpa_cli.planning.lineage import Trained

COMMANDS = "/reset starts a new conversation, /quit quits"
TINY_WORLD = """\
The built-in tiny models know a world of 232 words: letters, numbers, capitals and colours. Ask in lower case, with a
space before every full stop. For example:
  what is the capital of peru .
  be polite : put y h e in order .
  keep it short : write six zero in digits ."""
GAP = " │ "
LEAST = 24
"""Columns below which two texts are shown one after the other."""


def chat(
    refs: Annotated[
        list[str] | None,
        opt.argument(
            "REF [REF]",
            "One model, or two to compare; - reads one prompt per line [required].",
            complete.artifacts("model"),
        ),
    ] = None,
    template: opt.ChatTemplate = None,
    end: opt.End = None,
    thinking: opt.Thinking = None,
    system: Annotated[str | None, opt.option("--system", help="System prompt.", metavar="TEXT")] = None,
    temperature: Annotated[
        float, opt.option("--temperature", help="Sampling temperature; 0 is greedy.", metavar="X")
    ] = 0.0,
    max_new_tokens: Annotated[
        int, opt.option("--max-new-tokens", help="Longest answer, in tokens.", metavar="N")
    ] = 512,
    seed: Annotated[int, opt.option("--seed", help="Random seed of the sampling.", metavar="N")] = 0,
    dtype: Annotated[
        Dtype | None,
        opt.option("--dtype", help="Compute in this dtype [the model's].", metavar="|".join(get_args(Dtype))),
    ] = None,
) -> None:
    """Talk to a model, or to two side by side, in its own chat template. Nothing is built.

    adpa chat best · adpa chat best distill/51c0 · adpa chat best - < prompts.txt > answers.txt

    With - each line of stdin is a prompt, and each answer is one line of stdout (one column per model, line breaks as
    spaces; --json keeps them). Ctrl-C stops an answer and Ctrl-D quits; /reset starts again, /quit quits.
    """
    from adpa_cli.data.examples import Message
    from adpa_cli.planning.chat_templates import TemplateChoice
    from adpa_cli.planning.lineage import trained
    from adpa_cli.planning.resolve_inputs import Names
    from adpa_cli.store.store import Store

    words = [ref for ref in refs or () if ref != "-"]
    piped = len(words) < len(refs or ())
    if not 1 <= len(words) <= 2:
        raise UsageError(
            f"adpa chat takes one or two models; got {len(words) or 'none'}",
            "name artifacts, tags or folders: adpa chat REF [REF]; adpa show lists them",
        )
    if not piped and not (sys.stdin is not None and sys.stdin.isatty()):
        raise UsageError(
            "adpa chat needs a terminal to talk at",
            f"send prompts through a pipe: adpa chat {' '.join(words)} - < prompts.txt",
        )
    if not 0 <= temperature < float("inf"):
        raise UsageError(
            f"--temperature must be 0 (greedy) or more; got {temperature:g}", "leave --temperature out for 0"
        )
    if max_new_tokens < 1:
        raise UsageError(
            f"--max-new-tokens must be 1 or more; got {max_new_tokens}", "leave --max-new-tokens out for 512"
        )
    prompts = read_prompts() if piped else []
    names = Names(Store.find_or_empty(GLOBALS.store))
    choice = TemplateChoice.of(template, end, thinking)
    models = [trained(names, word, _note, choice) for word in words]
    if dtype is not None:
        models = [replace(model, dtype=dtype) for model in models]
    quiet_libraries()
    from adpa_cli.engine.generation.sampling import Sampling  # after everything that can be refused, for it loads torch

    sampling = Sampling(temperature=temperature, max_new_tokens=max_new_tokens, seed=seed)
    opening = [] if system is None else [Message("system", system)]
    if not piped:
        raise typer.Exit(converse(models, opening, sampling))
    with ids_only() as output:
        answer_all(models, [[*opening, Message("user", prompt)] for prompt in prompts], sampling, output.line)


def read_prompts() -> list[str]:
    """The lines of stdin, to its end, empty ones left out.

    Raises UsageError at a terminal and for bytes that are no text, NotFound without any.
    """
    if sys.stdin is None or sys.stdin.isatty():
        raise UsageError(
            "adpa chat - reads prompts from a pipe, but stdin is a terminal", "leave the - out to talk here"
        )
    lines = [line for line in sys.stdin.read().splitlines() if line.strip()]
    if not lines:
        raise NotFound("adpa chat -: nothing came through the pipe", "send one prompt per line")
    for number, line in enumerate(lines, 1):
        if not text.is_text(line):
            raise UsageError(f"adpa chat -: prompt {number} is not UTF-8 text", "convert the prompts: iconv -t UTF-8")
    return lines


def answer_all(
    trained: Sequence[Trained],
    conversations: Sequence[list[Message]],
    sampling: Sampling,
    write: Callable[[str], None],
) -> None:
    """Write one line per conversation: what the models answer to it, or an object with all about the answers."""
    from adpa_cli.engine.generation.chat_model import chat_answers

    models = _load(trained)
    rows = zip(*(chat_answers(model, conversations, sampling) for model in models), strict=True)
    for turns, row in zip(conversations, rows, strict=True):
        if GLOBALS.json:
            answers = [{"ref": model.label, **vars(answer)} for model, answer in zip(models, row, strict=True)]
            write(json.dumps({"prompt": turns[-1].content, "answers": answers}, ensure_ascii=False))
        else:
            write(text.tsv([[answer.text for answer in row]]).removesuffix("\n"))


def converse(trained: Sequence[Trained], opening: list[Message], sampling: Sampling) -> int:
    """Read, answer, repeat; returns the exit code: 0, or 130 when Ctrl-C ended it."""
    with suppress(ImportError):
        import readline  # noqa: F401  gives input() a history and its keys

    models = _load(trained)
    _note(f"{' · '.join(model.label for model in models)} · {COMMANDS}")
    if any(model.template.text.startswith(TEMPLATE) for model in trained):
        _note(TINY_WORLD)
    conversations = [list(opening) for _ in models]
    pressed = False
    while True:
        try:
            line = _ask().strip()
            pressed = False
            if line == "/quit":
                return 0
            if line == "/reset":
                conversations = [list(opening) for _ in models]
                _note("A new conversation begins.")
            elif line.startswith("/"):
                _note(COMMANDS)
            elif not text.is_text(line):
                _note("This line is not UTF-8 text.")
            elif line:
                conversations, pressed = _turn(models, conversations, line, sampling)
        except EOFError:
            _note("")
            return 0
        except KeyboardInterrupt:
            _note("")
            if pressed:
                return 130
            pressed = True
            _note("Press Ctrl-C again or Ctrl-D to quit.")


def _turn(
    models: Sequence[ChatModel], conversations: list[list[Message]], line: str, sampling: Sampling
) -> tuple[list[list[Message]], bool]:
    """Answer a line. Returns the conversations with the answers, and whether Ctrl-C stopped it."""
    from adpa_cli.data.examples import Message
    from adpa_cli.engine.generation.chat_model import answer_text, fitted_conversation

    prompts = [[*turns, Message("user", line)] for turns in conversations]
    answers = [""] * len(models)
    stopped = False
    try:
        streams = []
        for model, turns in zip(models, prompts, strict=True):
            ids, dropped = fitted_conversation(model, turns, sampling)
            if dropped:
                _note(f"({model.label} forgets the {dropped} oldest turns: its context has {model.context} tokens)")
            streams.append(answer_text(model, ids, sampling))
        _show(models, streams, answers)
    except KeyboardInterrupt:
        stopped = True
        _write("\n")
        _note("(stopped)")
    except AdpaError as error:
        _note(f"{error.message}\n{error.hint}")
        return conversations, False
    return [[*turns, Message("assistant", said)] for turns, said in zip(prompts, answers, strict=True)], stopped


def _show(models: Sequence[ChatModel], streams: Sequence[Iterator[str]], answers: list[str]) -> None:
    """Write answers as they come: one as it is, two in columns, or one after the other in a narrow terminal."""
    width = column_width(len(models), terminal_width())
    if width:
        heads: list[Iterator[str]] = [iter([model.label]) for model in models]
        for line in chain(side_by_side(heads, [""] * len(models), width), side_by_side(streams, answers, width)):
            _write(line + "\n")
        return
    for place, (model, stream) in enumerate(zip(models, streams, strict=True)):
        if len(models) > 1:
            _write(f"{model.label}\n")
        for piece in stream:
            answers[place] += piece
            _write(piece)
        _write("\n")


def column_width(count: int, width: int) -> int:
    """Columns for each of `count` texts in a terminal; 0 when they do not fit side by side."""
    each = (width - len(GAP) * (count - 1)) // count
    return each if count > 1 and each >= LEAST else 0


def side_by_side(streams: Sequence[Iterator[str]], texts: list[str], width: int) -> Iterator[str]:
    """Lines of texts of `width` columns, as soon as all of them know theirs; `texts` is what has come so far."""
    running = set(range(len(streams)))
    printed = 0
    while running:
        for place in sorted(running):
            piece = next(streams[place], None)
            if piece is None:
                running.discard(place)
            else:
                texts[place] += piece
        lines = [wrapped(text, width) for text in texts]
        # The last line of a text that goes on may still change.
        ready = min((len(lines[place]) - 1 for place in running), default=max(map(len, lines)))
        while printed < ready:
            cells = [pad(line[printed] if printed < len(line) else "", width) for line in lines]
            yield GAP.join(cells).rstrip()
            printed += 1


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


def _load(trained: Sequence[Trained]) -> list[ChatModel]:
    from adpa_cli.engine.generation.chat_model import load_chat_model

    return [load_chat_model(model.label, model.folder, model.template, model.dtype) for model in trained]


def _ask() -> str:
    """A line from the terminal; the prompt is on stdout only where that is the same terminal."""
    if sys.stdout.isatty():
        return input("> ")
    say("> ")
    return input()


def _write(piece: str) -> None:
    sys.stdout.write(text.for_encoding(piece, sys.stdout.encoding))
    sys.stdout.flush()


def _note(line: str) -> None:
    say(f"{line}\n")


COMMAND = Command("chat", "Use", 1, chat, also=("talk", "ask", "interact"))
