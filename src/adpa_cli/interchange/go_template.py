"""A chat template (Jinja) as Ollama's Go template, found by rendering: what stands around each turn is read off."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from adpa_cli.data.examples import Message
from adpa_cli.errors import DataError

Render = Callable[[Sequence[Message], bool], str]
"""Turns, and whether an answer is asked for, to the text of the prompt."""

S, U, A, V, B, W = (f"QZ{letter}QZ" for letter in "SUAVBW")  # texts that no template holds


@dataclass(frozen=True)
class Pieces:
    """What a template writes around the turns.

    `system` is the text before a system message and the text from it to the first user's words, None when the template
    takes no system message; `first` comes before the first user's words without one, `later` before those that follow.
    """

    system: tuple[str, str] | None
    first: str
    later: str
    after_user: str
    answer: tuple[str, str]
    ask: str


def go_template(render: Render, bos: str = "") -> tuple[str, bool]:
    """The Go template, and whether it takes conversations of several turns; a leading `bos` is left out.

    Raises DataError when the template cannot be written as texts around the turns.
    """
    pieces = _several(render)
    if pieces is not None and all(_compose(pieces, turns) == render(turns, True) for turns in _dialogues(pieces)):
        return _chat(pieces, bos), True
    pieces = _single(render)
    if pieces is None:
        raise DataError(
            "the chat template cannot be written as a Go template: it writes turns more than once, or changes them",
            "export --to hf, and write the TEMPLATE of the Modelfile by hand",
        )
    return _prompt(pieces, bos), False


def _several(render: Render) -> Pieces | None:
    """The pieces of a template that writes each turn on its own; None when it does not."""
    single = _single(render)
    long = [Message("user", U), Message("assistant", A), Message("user", V)]
    try:
        first, between, later, end = _around(render(long, True), U, A, V)
        _, _, closing = _around(render(long[:2], False), U, A)
    except (DataError, ValueError):
        return None
    if single is None or not end.endswith(single.ask):
        return None
    if not later.startswith(closing):
        closing = ""  # a text that ends with an answer has an end of its own
    after = end.removesuffix(single.ask)
    if not between.startswith(after):
        return None
    answer = between.removeprefix(after), closing
    return Pieces(single.system, first, later.removeprefix(closing), after, answer, single.ask)


def _single(render: Render) -> Pieces | None:
    """The pieces of one question, with or without a system message; None when there are none to be found."""
    try:
        first, after = _around(render([Message("user", U)], False), U)
        _, asking = _around(render([Message("user", U)], True), U)
    except (DataError, ValueError):
        return None
    if not asking.startswith(after):
        after = ""
    system = None
    try:
        before, between, end = _around(render([Message("system", S), Message("user", U)], True), S, U)
        system = (before, between) if end == asking else None
    except (DataError, ValueError):
        pass
    return Pieces(system, first, "", after, ("", ""), asking.removeprefix(after))


def _around(text: str, *words: str) -> list[str]:
    """The texts before, between and after some words, each of which stands there once. Raises ValueError."""
    pieces = []
    for word in words:
        before, _, text = text.partition(word)
        pieces.append(before)
    if not _ or any(word in part for part in (*pieces, text) for word in words):
        raise ValueError(f"{words} do not stand there once each")
    return [*pieces, text]


def _dialogues(pieces: Pieces) -> Iterator[list[Message]]:
    turns = [
        Message(role, word)
        for role, word in (("user", U), ("assistant", A), ("user", V), ("assistant", B), ("user", W))
    ]
    for count in (1, 3, 5):
        yield turns[:count]
        if pieces.system is not None:
            yield [Message("system", S), *turns[:count]]


def _compose(pieces: Pieces, turns: Sequence[Message]) -> str:
    text, before = "", pieces.first
    for turn in turns:
        if turn.role == "system" and pieces.system is not None:
            before = pieces.system[0] + turn.content + pieces.system[1]
        elif turn.role == "user":
            text += before + turn.content + pieces.after_user
            before = pieces.later
        else:
            text += pieces.answer[0] + turn.content + pieces.answer[1]
    return text + pieces.ask


def _opening(pieces: Pieces, bos: str, system: str) -> str:
    """What stands before the first user's words, as a Go expression."""
    first = _literal(pieces.first.removeprefix(bos))
    if pieces.system is None:
        return first
    before, between = _literal(pieces.system[0].removeprefix(bos)), _literal(pieces.system[1])
    return f"{{{{ if {system} }}}}{before}{{{{ {system} }}}}{between}{{{{ else }}}}{first}{{{{ end }}}}"


def _chat(pieces: Pieces, bos: str) -> str:
    answer = f"{_literal(pieces.answer[0])}{{{{ .Content }}}}{_literal(pieces.answer[1])}"
    return (
        '{{ $first := true }}{{ range .Messages }}{{ if eq .Role "user" }}'
        f"{{{{ if $first }}}}{_opening(pieces, bos, '$.System')}{{{{ else }}}}{_literal(pieces.later)}{{{{ end }}}}"
        f"{{{{ $first = false }}}}{{{{ .Content }}}}{_literal(pieces.after_user)}"
        f'{{{{ else if eq .Role "assistant" }}}}{answer}{{{{ end }}}}{{{{ end }}}}{_literal(pieces.ask)}'
    )


def _prompt(pieces: Pieces, bos: str) -> str:
    after = _literal(pieces.after_user + pieces.ask)
    return f"{_opening(pieces, bos, '.System')}{{{{ .Prompt }}}}{after}{{{{ .Response }}}}"


def _literal(text: str) -> str:
    return text.replace("{{", '{{ "{{" }}')
