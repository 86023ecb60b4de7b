"""What is said of rows whose columns have no shape: what they are instead, and which columns to rename."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from adpa_cli.data.columns import plain_name
from adpa_cli.data.shapes import DIALOGUES, PAIRS, Shape, detect
from adpa_cli.data.sources import Source
from adpa_cli.errors import DataError


class UnknownShape(DataError):
    """Rows whose columns are those of no shape."""


ASKED = ("query", "question", "input", "user", "human", "problem", "post", "user_prompt", "context")
BETTER = ("better", "preferred", "winner", "win", "accepted", "accept", "positive", "pos", "good", "best", "j")
WORSE = ("worse", "dispreferred", "loser", "lose", "reject", "negative", "neg", "bad", "worst", "non_preferred", "k")
ANSWERED = ("answer", "response", "output", "target", "reply", "assistant", "gpt", "solution")


def _sides(side: str, names: Iterable[str]) -> dict[str, str]:
    """The names of one answer of two, alone and beside a word for answers."""
    answers = ("response", "answer", "output", "completion")
    both = [(name, answer) for name in (side, *names) for answer in answers]
    written = [form for name, answer in both for form in (f"{name}_{answer}", f"{answer}_{name}")]
    return dict.fromkeys([*(name for name in names if len(name) > 1), *written], side)


OTHER_NAMES = (
    {**dict.fromkeys(ASKED, "prompt"), **_sides("chosen", BETTER), **_sides("rejected", WORSE)},
    {**dict.fromkeys(ASKED, "prompt"), **dict.fromkeys(ANSWERED, "completion")},
)
"""Names that others give to what is read here: of pairs, and of dialogues."""


def unknown_shape(part: Source, sample: Mapping[str, Any], names: Iterable[str], purpose: str) -> UnknownShape:
    """The error for columns that no shape of this purpose has; of the `names` some hold nothing in any row."""
    empty = ", ".join(sorted(set(names) - set(sample)))
    columns = (", ".join(sorted(sample)) or "none") + (f"; without any value: {empty}" if empty else "")
    other = detect(DIALOGUES, sample)
    if other is not None:
        hint = "preference data have chosen and rejected; dialogues are for: adpa sft --data, adpa data --sft"
        return UnknownShape(f"{part.text}: {other.name}, not preference pairs (columns: {columns})", hint)
    if "label" in sample and "completion" in sample:
        return UnknownShape(
            f"{part.text}: answers with a label, not pairs (columns: {columns})", "give chosen and rejected"
        )
    if "text" in sample and purpose == "dialogues":
        hint = "give the turns as messages: [{role, content}, …], or prompt and completion"
        return UnknownShape(f"{part.text}: text without turns, so nothing tells prompt from answer", hint)
    shapes: tuple[Shape[Any], ...] = (*PAIRS, *(DIALOGUES if purpose == "dialogues" else ()))
    known = "; ".join(shape.name for shape in shapes)
    guess = _renamed(sample, shapes) or _misspelt(sample, shapes)
    if not guess and purpose == "pairs" and (renamed := _renamed(sample, DIALOGUES)):
        guess = f"dialogues for adpa sft? {renamed}"
    return UnknownShape(f"{part.text}: unknown shape (columns: {columns})", f"{guess}known: {known}")


def _renamed(sample: Mapping[str, Any], shapes: tuple[Shape[Any], ...]) -> str:
    """Which columns to rename where a shape is known by other names; "" where that would not do."""
    for names in OTHER_NAMES:
        new = {column: names[plain_name(column)] for column in sample if plain_name(column) in names}
        taken = set(sample) - set(new)
        is_clear = len(set(new.values())) == len(new) and not taken & set(new.values())
        if is_clear and detect(shapes, {new.get(column, column): value for column, value in sample.items()}):
            return f"rename {', '.join(new)} to {', '.join(new.values())}; "
    return ""


def _misspelt(sample: Mapping[str, Any], shapes: tuple[Shape[Any], ...]) -> str:
    """The names under which the columns of a row would have a shape, asked for; "" where none are near."""
    words = {word for shape in shapes for word in re.findall(r"\w+", shape.name)}
    near = {
        column: match[0]
        for column in sample.keys() - words
        if (match := difflib.get_close_matches(column.lower(), words - sample.keys(), 1, 0.8))
    }
    if not near or detect(shapes, {near.get(column, column): value for column, value in sample.items()}) is None:
        return ""
    return "".join(f"did you mean {near[column]} for {column}? " for column in sorted(near))
