"""Questions of two turns with their category, and reference answers to them: FastChat's files, or data alike.

A row has `question_id`, `category` and `turns`; a reference answer `question_id`, `model_id` and `choices`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from adpa_cli.data.examples import Row, sha256
from adpa_cli.data.sources import Source, read_rows
from adpa_cli.errors import DataError

ASKED = ("turns", "prompt")
"""Columns that hold the turns; the second is that of the copy on the hub."""
NAMES = ("question_id", "prompt_id")
NEED_REFERENCE = ("math", "reasoning", "coding")
"""Categories whose answers are right or wrong, and are graded beside a reference answer."""
TEMPERATURES: Mapping[str, float] = {"writing": 0.7, "roleplay": 0.7, "stem": 0.1, "humanities": 0.1}
"""At which answers to questions of a category are drawn; 0 for any other. Zheng et al. 2023, as FastChat has them."""
HINT = "give rows with question_id, category and turns: [first question, second question]"


@dataclass(frozen=True)
class Question:
    """Two questions, the second asked after the answer to the first; `id` is 16 hex, of the number if there is one."""

    id: str
    number: int | str
    category: str
    turns: tuple[str, ...]


@dataclass(frozen=True)
class Reference:
    """The reference answers to both turns, and who wrote them."""

    turns: tuple[str, ...]
    author: str


def question_id(number: int | str) -> str:
    """16 hex that name a question by its number, or by its name."""
    return f"{number:016x}" if isinstance(number, int) else sha256(number)[:16]


def questions_of(sources: Sequence[Source], limit: int | None = None) -> list[Question]:
    """The questions of some sources, in their order. DataError that names the row of one that has no second turn, and
    of one that is there twice."""
    found: dict[str, Question] = {}
    for where, values in _rows(sources):
        turns = next((values[name] for name in ASKED if isinstance(values.get(name), list)), None)
        if turns is None or not all(isinstance(turn, str) and turn.strip() for turn in turns):
            raise DataError(f"{where} has no list of turns", HINT)
        if len(turns) < 2:
            raise DataError(f"{where} has one turn, and this suite grades two turns of each question", HINT)
        number = next((values[name] for name in NAMES if isinstance(values.get(name), int | str)), sha256(turns)[:16])
        name = question_id(number)
        if name in found:
            raise DataError(f"{where} repeats the question {number}", "keep one of the two rows")
        found[name] = Question(name, number, str(values.get("category") or ""), tuple(turns[:2]))
    return list(found.values())[:limit]


def references_of(sources: Sequence[Source]) -> dict[str, Reference]:
    """Reference answers by the id of their question. DataError that names a row which is none, or has one turn only."""
    found = {}
    hint = "use FastChat's reference_answer format: question_id, model_id, choices: [{turns: [first, second]}]"
    for where, values in _rows(sources):
        try:
            turns = values["choices"][0]["turns"]
            name = question_id(values["question_id"])
        except (KeyError, IndexError, TypeError):
            raise DataError(f"{where} is not a reference answer", hint) from None
        if not isinstance(turns, list) or len(turns) < 2:
            raise DataError(f"{where} has one turn, and this suite grades two turns of each question", hint)
        found[name] = Reference(tuple(str(turn) for turn in turns), str(values.get("model_id") or ""))
    return found


def _rows(sources: Sequence[Source]) -> Iterator[tuple[str, Row]]:
    """(where it stands, row) of every row."""
    for source in sources:
        for number, row in read_rows(source):
            yield f"{source.base} row {number}", row
