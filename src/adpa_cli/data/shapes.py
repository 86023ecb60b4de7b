"""One small function per shape of data set; `PAIRS` and `DIALOGUES` list them in the order they are tried.

A function turns one row into a pair or a dialogue, or raises `Problem` (the row is unusable) or `Passed` (it holds no
example). A shape is known by its columns: `sample` has the first value of each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Generic, TypeVar

from adpa_cli.data.examples import (
    Message,
    Passed,
    Problem,
    Prompt,
    Row,
    checked,
    number_of,
    text_of,
    transcript,
    turns_of,
    value_of,
)

T = TypeVar("T")
Sides = tuple[Prompt, str, str]  # prompt, chosen, rejected
Numbered = tuple[int, Row]
Join = Callable[[Iterable[Numbered]], Iterator[Numbered]]


def _as_they_are(rows: Iterable[Numbered]) -> Iterator[Numbered]:
    yield from rows


@dataclass(frozen=True)
class Shape(Generic[T]):
    """A name to say aloud, a test on the sample row, what makes an example of a row, and what joins rows before."""

    name: str
    fits: Callable[[Row], bool]
    read: Callable[[Row], T]
    join: Join = _as_they_are


def has(*fields: str, **types: type) -> Callable[[Row], bool]:
    """A test for columns, and for the types of some."""
    return lambda sample: (
        all(field in sample for field in fields)
        and all(isinstance(sample.get(field), kind) for field, kind in types.items())
    )


def sided_turns(row: Row) -> Sides:
    """`chosen` and `rejected` as turns (that hold the prompt, or follow a column of it) or as plain answers to it."""
    given = given_prompt(row)
    (prompt, chosen), (other, rejected) = (_side(row, field, given) for field in ("chosen", "rejected"))
    if prompt != other:
        content = "chosen and rejected answer different prompts"
        raise Problem("prompts differ", "rejected", content, "let both begin with the same turns")
    return prompt, chosen, rejected


def given_prompt(row: Row) -> Prompt:
    """The prompt that stands in a column of its own (`prompt`, `question` or `instruction`); () when none does."""
    for field in ("prompt", "question", "instruction"):
        if row.get(field) is not None:
            system = row.get("system") or ""
            lead = (Message("system", checked(system, "system")),) if system else ()
            return lead + turns_of(row[field], field)
    return ()


def _side(row: Row, field: str, given: Prompt) -> tuple[Prompt, str]:
    """Prompt and answer of one side. Turns that begin with an answer follow the given prompt, others hold it."""
    value = value_of(row, field)
    if isinstance(value, str):
        turns = transcript(checked(value, field)) or (Message("assistant", value),)
    else:
        turns = turns_of(value, field)
    if turns[0].role == "assistant":
        turns = given + turns
    if turns[-1].role != "assistant":
        if isinstance(value, str):
            raise Problem(f"empty {field}", field, "a transcript without an answer", "end with the assistant")
        raise Problem(f"{field}: no answer", field, f"ends with the {turns[-1].role}'s turn", "end with the assistant")
    return turns[:-1], turns[-1].content


def shared_beginning(row: Row) -> Sides:
    """`chosen` and `rejected` as two plain texts: the words that both begin with are the prompt."""
    chosen, rejected = text_of(row, "chosen"), text_of(row, "rejected")
    shared = "".join(a for a, _ in takewhile(lambda both: both[0] == both[1], zip(chosen, rejected, strict=False)))
    shared = shared[: max(shared.rfind(" "), shared.rfind("\n")) + 1]
    if not shared.strip():
        raise Problem("no prompt", "chosen", "the two texts share no beginning", "add a column prompt")
    cut = len(shared)
    return (Message("user", shared.strip()),), chosen[cut:].lstrip(), rejected[cut:].lstrip()


def alpaca_judgement(row: Row) -> Sides:
    """AlpacaEval annotations: `preference` runs from 1 (first output is better) to 2 (second is)."""
    first, second = text_of(row, "output_1"), text_of(row, "output_2")
    preference = number_of(row, "preference", 1, 2)
    if abs(preference - 1.5) < 1e-9:
        raise Passed("tie")
    better, worse = (first, second) if preference < 1.5 else (second, first)
    return turns_of(text_of(row, "instruction"), "instruction"), better, worse


def rated_twice(row: Row) -> Sides:
    """HelpSteer2: two responses of one prompt, ordered by helpfulness (paper section 4.1: ties are dropped)."""
    if "partner" not in row:
        raise Passed("response without a partner")
    prompt = turns_of(text_of(row, "prompt"), "prompt")
    rated = [(number_of(each, "helpfulness", 0, 4), text_of(each, "response")) for each in (row, row["partner"])]
    (one, first), (two, second) = rated
    if one == two:
        raise Passed("tie")
    return (prompt, first, second) if one > two else (prompt, second, first)


def join_responses(rows: Iterable[Numbered]) -> Iterator[Numbered]:
    """Two consecutive rows of one prompt become one row, the second under `partner`."""
    waiting: Numbered | None = None
    for number, row in rows:
        if waiting is not None and waiting[1].get("prompt") == row.get("prompt"):
            yield waiting[0], {**waiting[1], "partner": row}
            waiting = None
            continue
        if waiting is not None:
            yield waiting
        waiting = number, row
    if waiting is not None:
        yield waiting


def listed_turns(field: str) -> Callable[[Row], Prompt]:
    """A whole dialogue in one column, as turns or as a transcript; a `system` column goes before it."""

    def read(row: Row) -> Prompt:
        turns = turns_of(value_of(row, field), field)
        system = row.get("system") or ""
        lead = (Message("system", checked(system, "system")),) if system and turns[0].role != "system" else ()
        return lead + turns

    return read


def asked_and_answered(question: str, answer: str) -> Callable[[Row], Prompt]:
    """A prompt in one column, its answer in another, each text or turns."""

    def read(row: Row) -> Prompt:
        prompt = turns_of(value_of(row, question), question)
        if question == "instruction" and row.get("input"):
            prompt = (Message("user", f"{prompt[-1].content}\n\n{text_of(row, 'input')}"),)
        value = value_of(row, answer)
        if isinstance(value, str):
            return (*prompt, Message("assistant", checked(value, answer)))
        return prompt + turns_of(value, answer)

    return read


def _is_transcript(sample: Row, field: str) -> bool:
    value = sample.get(field)
    return isinstance(value, str) and bool(transcript(value))


def _is_completion(sample: Row) -> bool:
    """Completions with a `label` are good and bad ones mixed: not to be imitated."""
    return has("prompt", "completion")(sample) and "label" not in sample


def _is_prompted(sample: Row) -> bool:
    return any(field in sample for field in ("prompt", "question", "instruction"))


both = has("chosen", "rejected")
PAIRS: tuple[Shape[Sides], ...] = (
    Shape("AlpacaEval annotations", has("output_1", "output_2", "preference"), alpaca_judgement),
    Shape("HelpSteer2 ratings", has("prompt", "response", "helpfulness"), rated_twice, join_responses),
    Shape("preference transcripts", lambda sample: both(sample) and _is_transcript(sample, "chosen"), sided_turns),
    Shape("preference turns", lambda sample: both(sample) and isinstance(sample["chosen"], list), sided_turns),
    Shape("prompt, chosen, rejected", lambda sample: both(sample) and _is_prompted(sample), sided_turns),
    Shape("chosen and rejected texts; their shared beginning is the prompt", both, shared_beginning),
)
DIALOGUES: tuple[Shape[Prompt], ...] = (
    Shape("messages", has(messages=list), listed_turns("messages")),
    Shape("ShareGPT conversations", has(conversations=list), listed_turns("conversations")),
    Shape("prompt and completion", _is_completion, asked_and_answered("prompt", "completion")),
    Shape("instruction and output", has("instruction", "output"), asked_and_answered("instruction", "output")),
    Shape("text transcripts", lambda sample: _is_transcript(sample, "text"), listed_turns("text")),
)


def detect(shapes: tuple[Shape[T], ...], sample: Mapping[str, Any]) -> Shape[T] | None:
    """The first shape that fits a sample row."""
    return next((shape for shape in shapes if shape.fits(sample)), None)
