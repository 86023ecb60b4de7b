"""Messages, and the ways in which data sets write them down: lists of turns, transcripts, plain strings."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Message:
    """One turn: who speaks ("system", "user" or "assistant") and what is said."""

    role: str
    content: str


Prompt = tuple[Message, ...]


class Problem(Exception):
    """A row that cannot be used: the kind that is counted, the field, what was found there, and what would do."""

    def __init__(self, kind: str, field: str, found: str, fix: str) -> None:
        super().__init__(kind)
        self.kind, self.field, self.found, self.fix = kind, field, found, fix


class Passed(Exception):
    """A sound row that holds no example (a tie, a response without a partner); counted, never an error."""

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.kind = kind


ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
}
HUMAN = re.compile(r"\n\n(Human|Assistant):[ ]?")
EXTRA = re.compile(r"\n?<extra_id_1>(User|Assistant)(?:\n|$)")


def plain(messages: Sequence[Message]) -> list[list[str]]:
    """Messages as JSON values, for hashing."""
    return [[message.role, message.content] for message in messages]


def value_of(row: Row, field: str) -> Any:
    """The value of a field that must be there."""
    value = row.get(field)
    if value is None:
        raise Problem(f"missing {field}", field, "missing", f"give the row a {field}")
    return value


def text_of(row: Row, field: str) -> str:
    """The string in a field."""
    return checked(value_of(row, field), field)


def checked(value: object, field: str) -> str:
    """The value itself when it is a string that UTF-8 can hold."""
    if not isinstance(value, str):
        raise Problem(f"{field}: wrong type", field, f"{type(value).__name__} instead of text", "write a string")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise Problem(f"{field}: broken characters", field, "half a surrogate pair", "write proper Unicode") from error
    return value


def number_of(row: Row, field: str, low: float, high: float) -> float:
    """The number in a field (CSV holds it as text), between two bounds."""
    value = value_of(row, field)
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if isinstance(value, bool) or not low <= number <= high:
        raise Problem(f"{field}: not a rating", field, f"{value!r}", f"write a number from {low:g} to {high:g}")
    return number


def turns_of(value: object, field: str) -> Prompt:
    """Messages of a list of {role, content} or {from, value}, or of a transcript; other text is one user turn."""
    if isinstance(value, str):
        return transcript(checked(value, field)) or (Message("user", value),)
    if not isinstance(value, list) or not value:
        found = "an empty list" if value == [] else f"{type(value).__name__} instead of turns"
        raise Problem(f"{field}: wrong type", field, found, "write a list of {role, content}")
    return tuple(_turn(turn, f"{field}[{index}]", field) for index, turn in enumerate(value))


def _turn(turn: object, place: str, field: str) -> Message:
    if not isinstance(turn, Mapping):
        found = f"{type(turn).__name__} instead of {{role, content}}"
        raise Problem(f"{field}: wrong type", place, found, "write a list of {role, content}")
    name, said = ("from", "value") if "from" in turn else ("role", "content")
    role = turn.get(name)
    if not isinstance(role, str) or role.lower() not in ROLES:
        raise Problem(f"{field}: unknown role", f"{place}.{name}", repr(role), "use system, user or assistant")
    if turn.get(said) is None:
        raise Problem(f"{field}: missing {said}", f"{place}.{said}", "missing", "write the turn's text")
    return Message(ROLES[role.lower()], checked(turn[said], f"{place}.{said}"))


def transcript(text: str) -> Prompt:
    """Turns of `\\n\\nHuman: …\\n\\nAssistant: …` or of `…<extra_id_1>Assistant…`; () when the text is neither.

    An empty assistant turn at the end is the cue to answer, not a turn.
    """
    mark = HUMAN if HUMAN.match(text) else EXTRA
    first, *rest = mark.split(text)
    if not rest:
        return ()
    names = {"Human": "user", "User": "user", "Assistant": "assistant"}
    turns = [Message("user", first)] if first.strip() else []
    turns += [Message(names[who], said.strip()) for who, said in zip(rest[::2], rest[1::2], strict=True)]
    if turns[-1] == Message("assistant", ""):
        turns.pop()
    return tuple(turns)
