"""One small function per shape of data set; `PAIRS` and `DIALOGUES` list them in the order they are tried.

A function turns one row into a pair or a dialogue, or raises `Problem` (the row is unusable) or `Passed` (it holds no
example). A shape is known by its columns: `sample` has the first value of each. What stands beside a prompt or a
dialogue in columns of its own (the system's text, an earlier dialogue, tools) is put before it, whatever the shape.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Generic, TypeVar

from adpa_cli.data.examples import Message, Passed, Problem, Prompt, Row, Tie
from adpa_cli.data.repeated import CHECKING, Numbered, Rows, cut_repeated
from adpa_cli.data.turns import (
    checked,
    earlier_turns,
    number_of,
    says_none,
    text_of,
    tools_of,
    transcript,
    turns_of,
    value_of,
    written_turns,
)

T = TypeVar("T")
Sides = tuple[Prompt, str, str]  # prompt, chosen, rejected
Prepare = Callable[[Rows, Counter[str]], Iterator[Numbered]]

DIALOGUE_COLUMNS = ("conversations", "messages")
PROMPTS = ("prompt", "question", "instruction", "input", *DIALOGUE_COLUMNS)
"""Columns that may hold the prompt of two answers; the first that has a value does."""
SYSTEM = ("system", "system_prompt", "system_message")
TOOL_LISTS = ("tools", "functions")


class Recorded(Mapping[str, Any]):
    """A row that remembers which of its columns were read."""

    def __init__(self, row: Row) -> None:
        self._row = row
        self._read: set[str] = set()

    def items_read(self) -> list[tuple[str, Any]]:
        """The columns that were read, with their values."""
        return [(name, self._row[name]) for name in self._row if name in self._read]

    def items_unread(self) -> list[tuple[str, Any]]:
        """The columns that hold something and were not."""
        return [(name, value) for name, value in self._row.items() if name not in self._read and has_value(value)]

    def __getitem__(self, name: str) -> Any:
        value = self._row[name]
        self._read.add(name)
        return value

    def __contains__(self, name: object) -> bool:
        return name in self._row

    def __iter__(self) -> Iterator[str]:
        return iter(self._row)

    def __len__(self) -> int:
        return len(self._row)


def _as_they_are(rows: Rows, remarks: Counter[str]) -> Iterator[Numbered]:
    yield from rows(CHECKING)


@dataclass(frozen=True)
class Shape(Generic[T]):
    """A name to say aloud, a test on the sample row, what makes an example of a row, and what is done to rows before:
    it may join some, and counts what it changes, by what is said of it."""

    name: str
    fits: Callable[[Row], bool]
    read: Callable[[Row], T]
    prepare: Prepare = _as_they_are


def has(*fields: str) -> Callable[[Row], bool]:
    """A test for columns."""
    return lambda sample: all(field in sample for field in fields)


def has_value(value: object) -> bool:
    """Whether a column holds something; CSV has empty texts where others have null."""
    return value is not None and value not in ("", [], {})


def first_value(row: Row, fields: Iterable[str]) -> tuple[str, Any] | None:
    """The first of some columns that holds something, and what; None when none does."""
    return next(((field, row[field]) for field in fields if field in row and has_value(row[field])), None)


def after_columns(row: Row, turns: Prompt) -> Prompt:
    """Turns after what stands beside them in columns: tools, the system's text (unless a turn has it), a history."""
    tools: Prompt = ()
    if listed := first_value(row, TOOL_LISTS):
        tools = tools_of(listed[1], listed[0])
    lead = turns[:1] if turns and turns[0].role == "system" else ()
    rest = turns[len(lead) :]
    earlier = () if says_none(row.get("history")) else earlier_turns(row["history"], "history")
    if earlier and earlier[0].role == "system" and not lead:
        lead, earlier = earlier[:1], earlier[1:]
    lead = lead or _system_beside(row)
    return (*tools, *lead, *earlier, *rest)


def _system_beside(row: Row) -> Prompt:
    """The system's turn in a column of its own; of several columns all must say the same."""
    given = {name: checked(row[name], name) for name in SYSTEM if name in row and not says_none(row[name])}
    for name, text in given.items():
        first = next(iter(given))
        if text.strip() != given[first].strip():
            content = f"its text differs from that in the column {first}"
            raise Problem(
                "two system texts", name, content, f"keep one of the columns {first} and {name}, or join them"
            )
    return tuple(Message("system", text) for text in list(given.values())[:1])


def question_in(row: Row, field: str) -> Prompt:
    """The turns of a column that asks; an `instruction` goes on with its `input`, which may stand alone."""
    if field == "instruction" and has_value(row.get("input")):
        if not has_value(row.get(field)):
            return turns_of(row["input"], "input")
        turns = turns_of(value_of(row, field), field)
        return (*turns[:-1], Message(turns[-1].role, f"{turns[-1].content}\n\n{text_of(row, 'input')}"))
    return turns_of(value_of(row, field), field)


def given_prompt(row: Row, answers: Sequence[Message] = ()) -> Prompt:
    """The prompt that stands in a column of its own; () when none does. A whole dialogue may end with an answer."""
    field, _ = first_value(row, PROMPTS) or next(
        ((name, None) for name in PROMPTS if row.get(name) is not None), ("", 0)
    )
    turns = question_in(row, field) if field else ()
    return turns[:-1] if field in DIALOGUE_COLUMNS and turns[-1] in answers else turns


def sided_turns(row: Row) -> Sides:
    """`chosen` and `rejected` as turns (that hold the prompt, or follow a column of it) or as plain answers to it."""
    chosen, rejected = _side(row, "chosen"), _side(row, "rejected")
    if chosen[0].role == "assistant" or rejected[0].role == "assistant":
        longer = next((side for side in (chosen, rejected) if side[0].role != "assistant"), ())
        given = given_prompt(row, (chosen[-1], rejected[-1])) or longer[:-1]
        chosen, rejected = (given + side if side[0].role == "assistant" else side for side in (chosen, rejected))
    if chosen[:-1] != rejected[:-1]:
        same = sum(1 for _ in takewhile(lambda both: both[0] == both[1], zip(chosen, rejected, strict=False)))
        shared = f"{same or 'no'} turn{' is' if same == 1 else 's are'} shared"
        follow = f"{len(chosen) - same} and {len(rejected) - same} follow"
        content = f"chosen and rejected answer different prompts: {shared}, and {follow}"
        fix = "begin both with the same turns, followed by one answer each"
        raise Problem("prompts differ", "rejected", content, fix)
    return after_columns(row, chosen[:-1]), _answer(chosen[-1], "chosen"), _answer(rejected[-1], "rejected")


def _side(row: Row, field: str) -> Prompt:
    """The turns of one side, which end with an answer."""
    value = value_of(row, field)
    if isinstance(value, str) and not written_turns(checked(value, field), field):
        turns = transcript(value) or (Message("assistant", value),)
        if turns[-1].role != "assistant":
            raise Problem(
                f"empty {field}", field, "the transcript has no answer", "end with an answer of the assistant"
            )
        return turns
    turns = turns_of(value, field)
    if turns[-1].role != "assistant":
        raise Problem(
            f"{field}: no answer",
            field,
            f"the turns end with the {turns[-1].role}'s",
            "end with an answer of the assistant",
        )
    return turns


def _answer(turn: Message, field: str) -> str:
    if turn.more:
        content = "the answer has more than text (a tool call, a name or separate reasoning)"
        raise Problem(
            f"{field}: more than text", field, content, "write answers as text, with any reasoning between <think> tags"
        )
    return turn.content


def shared_beginning(row: Row) -> Sides:
    """`chosen` and `rejected` as two plain texts: the words that both begin with are the prompt."""
    chosen, rejected = text_of(row, "chosen"), text_of(row, "rejected")
    shared = "".join(a for a, _ in takewhile(lambda both: both[0] == both[1], zip(chosen, rejected, strict=False)))
    shared = shared[: max(shared.rfind(" "), shared.rfind("\n")) + 1]
    if not shared.strip():
        near = difflib.get_close_matches("prompt", [name for name in row if name not in SIDES], 1, 0.6)
        fix = f"if {near[0]} is the prompt, add --columns prompt={near[0]}" if near else "add a column prompt"
        content = (
            "there is no column prompt, and chosen and rejected do not begin with the same words; the columns are "
            f"{', '.join(row)}"
        )
        raise Problem("no prompt", "chosen", content, fix)
    cut = len(shared)
    prompt = after_columns(row, (Message("user", shared.strip()),))
    return prompt, chosen[cut:].lstrip(), rejected[cut:].lstrip()


def alpaca_judgement(row: Row) -> Sides:
    """AlpacaEval annotations: `preference` runs from 1 (first output is better) to 2 (second is)."""
    first, second = text_of(row, "output_1"), text_of(row, "output_2")
    preference = number_of(row, "preference", 1, 2)
    better, worse = (first, second) if preference < 1.5 else (second, first)
    text_of(row, "instruction")
    prompt = after_columns(row, question_in(row, "instruction"))
    if abs(preference - 1.5) < 1e-9:
        raise Tie(prompt)
    return prompt, better, worse


def rated_twice(row: Row) -> Sides:
    """HelpSteer2: two responses of one prompt, ordered by helpfulness (paper section 4.1: ties are dropped)."""
    if "partner" not in row:
        raise Passed("response without a partner")
    prompt = after_columns(row, turns_of(text_of(row, "prompt"), "prompt"))
    rated = [(number_of(each, "helpfulness", 0, 4), text_of(each, "response")) for each in (row, row["partner"])]
    (one, first), (two, second) = rated
    if one == two:
        raise Tie(prompt)
    return (prompt, first, second) if one > two else (prompt, second, first)


def join_responses(rows: Rows, remarks: Counter[str]) -> Iterator[Numbered]:
    """Two consecutive rows of one prompt become one row, the second under `partner`."""
    waiting: Numbered | None = None
    for number, row in rows(CHECKING):
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
    """A whole dialogue in one column, as turns or as a transcript."""
    return lambda row: after_columns(row, turns_of(value_of(row, field), field))


def answered(question: str, answer: str, fits: Callable[[Row], bool]) -> Shape[Prompt]:
    """A prompt in one column, its answer in another, each text or turns."""

    def read(row: Row) -> Prompt:
        prompt = after_columns(row, question_in(row, question))
        value = value_of(row, answer)
        if isinstance(value, str) and not written_turns(checked(value, answer), answer):
            return (*prompt, Message("assistant", value))
        return prompt + turns_of(value, answer)

    prepare = cut_repeated((answer,), lambda row: question_in(row, question))
    return Shape(f"{question} and {answer}", fits, read, prepare)


SIDES = ("chosen", "rejected")
both = has(*SIDES)


def _holds_turns(sample: Row, field: str) -> bool:
    """Whether a column holds turns, as objects or written as text."""
    value = sample.get(field)
    if not isinstance(value, str):
        return isinstance(value, list | Mapping)
    try:
        return written_turns(value, field) is not None
    except Problem:
        return True  # they are turns, and each row says what is wrong with its own


def _holds_dialogue(field: str) -> Callable[[Row], bool]:
    """A test for whole dialogues in a column: beside two answers it may hold their prompt alone."""

    def fits(sample: Row) -> bool:
        if not _holds_turns(sample, field):
            return False
        try:
            return not both(sample) or turns_of(sample[field], field)[-1].role == "assistant"
        except Problem:
            return True

    return fits


def _is_transcript(sample: Row, field: str) -> bool:
    value = sample.get(field)
    return isinstance(value, str) and bool(transcript(value))


def _is_completion(sample: Row) -> bool:
    """Completions with a `label` are good and bad ones mixed: not to be imitated."""
    return has("prompt", "completion")(sample) and "label" not in sample


def _is_prompted(sample: Row) -> bool:
    return any(field in sample for field in PROMPTS)


PAIRS: tuple[Shape[Sides], ...] = (
    Shape("AlpacaEval annotations", has("output_1", "output_2", "preference"), alpaca_judgement),
    Shape("HelpSteer2 ratings", has("prompt", "response", "helpfulness"), rated_twice, join_responses),
    Shape("preference transcripts", lambda sample: both(sample) and _is_transcript(sample, "chosen"), sided_turns),
    Shape("preference turns", lambda sample: both(sample) and _holds_turns(sample, "chosen"), sided_turns,
          cut_repeated(SIDES, given_prompt)),
    Shape(
        "prompt, chosen, rejected", lambda sample: both(sample) and _is_prompted(sample), sided_turns,
        cut_repeated(SIDES, given_prompt),
    ),
    Shape("chosen and rejected texts; their shared beginning is the prompt", both, shared_beginning),
)  # fmt: skip
DIALOGUES: tuple[Shape[Prompt], ...] = (
    Shape("messages", _holds_dialogue("messages"), listed_turns("messages")),
    Shape("ShareGPT conversations", _holds_dialogue("conversations"), listed_turns("conversations")),
    answered("prompt", "completion", _is_completion),
    answered("instruction", "output", has("instruction", "output")),
    Shape("text transcripts", lambda sample: _is_transcript(sample, "text"), listed_turns("text")),
)


ASKING = ("prompt", "instruction", "turns")
"""Columns that may hold a prompt which nothing is to be learned from; FastChat's questions have several `turns`."""


def first_question(row: Row) -> Prompt:
    """A prompt alone; of questions that are asked one after the other the first."""
    field, value = first_value(row, ASKING) or next((field, row[field]) for field in ASKING if field in row)
    if field != "turns":
        return after_columns(row, question_in(row, field))
    if not isinstance(value, list) or not all(isinstance(turn, str) for turn in value):
        raise Problem(
            "turns are no list of texts",
            field,
            f"its type is {type(value).__name__}",
            "write a list of texts: [first question, …]",
        )
    return after_columns(row, (Message("user", value[0]),))


PROMPT: Shape[Prompt] = Shape(
    "prompts without answers", lambda sample: any(field in sample for field in ASKING), first_question
)
"""What a model may be asked, and compared with others by its answers."""


def detect(shapes: tuple[Shape[T], ...], sample: Mapping[str, Any]) -> Shape[T] | None:
    """The first shape that fits a sample row."""
    return next((shape for shape in shapes if shape.fits(sample)), None)
