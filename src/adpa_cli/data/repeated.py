"""Prompts that stand again at the beginning of their answers, cut from rows before examples are made of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from adpa_cli.data.examples import Problem, Prompt, Row
from adpa_cli.data.turns import checked, is_sharegpt, transcript, turns_of, written_turns

Numbered = tuple[int, Row]
Rows = Callable[[str], Iterable[Numbered]]
"""Given what is done with them, all rows of a file once more."""
CHECKING = "checking the rows of"
SURE_WORDS = 3
"""Words of a prompt that no two answers begin with by chance."""


def cut_repeated(
    fields: Sequence[str], prompt_of: Callable[[Row], Prompt]
) -> Callable[[Rows, Counter[str]], Iterator[Numbered]]:
    """Rows without the prompt at the beginning of the answers in `fields`, where each of these repeats it whole.

    A short prompt counts as repeated only where most rows repeat theirs: "Hi" may well be answered by "Hi there". The
    rows are walked through twice.
    """
    where = "both answers" if len(fields) > 1 else "the answer"

    def prepare(rows: Rows, remarks: Counter[str]) -> Iterator[Numbered]:
        count, whole, alone = 0, 0, Counter[str]()
        for _, row in rows("looking for repeated prompts in"):
            repeating = _repeated(row, fields, prompt_of)[1]
            count += 1
            whole += len(repeating) == len(fields)
            alone.update(repeating if len(repeating) < len(fields) else ())
        is_usual = 2 * whole > count
        for field in fields:
            if 2 * alone[field] > count:
                said = f"rows had the prompt repeated at the beginning of {field} alone, where it stayed"
                remarks[said] = alone[field]
        for number, row in rows(CHECKING):
            prompt, repeating = _repeated(row, fields, prompt_of)
            if len(repeating) == len(fields) and (is_usual or len(prompt.split()) >= SURE_WORDS):
                remarks[f"rows had the prompt repeated at the beginning of {where}, where it was cut"] += 1
                yield number, {**row, **{field: _without(row[field], field, prompt) for field in fields}}
            else:
                yield number, row

    return prepare


def _repeated(row: Row, fields: Sequence[str], prompt_of: Callable[[Row], Prompt]) -> tuple[str, list[str]]:
    """The prompt of a row that asks once, and which of its answers, none of them more than one text, begin with it."""
    try:
        asked = [turn.content.strip() for turn in prompt_of(row) if turn.role != "system"]
        if len(asked) != 1 or not asked[0] or not any(_may_begin(row.get(field), asked[0]) for field in fields):
            return "", []
        answers = [_answer(row.get(field), field) for field in fields]
    except Problem:
        return "", []
    if not all(answers):
        return "", []
    return asked[0], [field for field, text in zip(fields, answers, strict=True) if text.startswith(asked[0])]


def _may_begin(value: Any, prompt: str) -> bool:
    """Whether an answer may begin with a prompt, by a look that costs little: most rows repeat none."""
    if isinstance(value, list):
        value = value[0] if len(value) == 1 else ""
    if isinstance(value, Mapping):
        value = value.get("content", value.get("value"))
    return not isinstance(value, str) or value.lstrip().startswith((prompt, "[", "{"))


def _answer(value: Any, field: str) -> str:
    """The text of an answer that is a text or one turn of the assistant; "" for any other."""
    if isinstance(value, str) and not written_turns(checked(value, field), field):
        return "" if transcript(value) else value.strip()
    turns = turns_of(value, field)
    return turns[0].content.strip() if len(turns) == 1 and turns[0].role == "assistant" and not turns[0].more else ""


def _without(value: Any, field: str, prompt: str) -> Any:
    """An answer without the prompt that it begins with, in the form that it has."""
    text = _answer(value, field)[len(prompt) :].lstrip()
    given = written_turns(value, field) if isinstance(value, str) else value
    if given is None:
        return text
    turn = given[0] if isinstance(given, list) else given
    if not isinstance(turn, Mapping):  # JSON of a turn, in a list
        return {"role": "assistant", "content": text}
    return {**turn, **({"value": text} if is_sharegpt(turn) else {"content": text})}
