"""What is said of columns that are not read as they are: what they may be instead, and how to name them."""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from adpa_cli.data.columns import plain_name, shown_names
from adpa_cli.data.examples import Problem
from adpa_cli.data.shapes import DIALOGUES, PAIRS, Shape, detect
from adpa_cli.data.sources import Source, read_part
from adpa_cli.errors import DataError


class UnknownShape(DataError):
    """Rows whose columns are those of no shape."""


NEEDED = {"pairs": "preference pairs", "dialogues": "dialogues"}
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


def check_columns(part: Source, names: Iterable[str]) -> None:
    """Raise DataError where `--columns` names a column that a file does not have; `names` are after the mapping."""
    mapped = set(names)
    for role, name in part.columns:
        if mapped and role not in mapped:
            recorded = (row for _, row in read_part(replace(part, columns=())) if not isinstance(row, Problem))
            there = set(next(recorded, ()))
            near = difflib.get_close_matches(name, there, 1, 0.6)
            hint = f"did you mean {near[0]}? --columns {role}={near[0]}" if near else "name one of these columns"
            raise DataError(f"{part.text} has no column {name!r}; its columns are: {shown_names(sorted(there))}", hint)


def unknown_shape(part: Source, sample: Mapping[str, Any], names: Iterable[str], purpose: str) -> UnknownShape:
    """The error for columns that no shape of this purpose has; of the `names` some hold nothing in any row."""
    empty = ", ".join(sorted(set(names) - set(sample)))
    columns = (", ".join(sorted(sample)) or "none") + (f"; without any value: {empty}" if empty else "")
    other = detect(DIALOGUES, sample)
    if other is not None:
        said = f"{part.text} holds dialogues ({other.name}), and preference pairs are needed here"
        hint = (
            "give data with the columns chosen and rejected; dialogues are read by adpa sft --data and adpa data --sft"
        )
        return UnknownShape(f"{said}. Its columns are: {columns}", hint)
    if "label" in sample and "completion" in sample:
        said = f"{part.text} holds single answers with a label, and preference pairs are needed here"
        hint = "give data with the two answers to each prompt in the columns chosen and rejected"
        return UnknownShape(f"{said}. Its columns are: {columns}", hint)
    if "text" in sample and purpose == "dialogues":
        said = f"{part.text} has a column text that does not say where the prompt ends and the answer begins"
        hint = "give the columns prompt and completion, or a column messages: [{role, content}, …]"
        return UnknownShape(f"{said}. Its columns are: {columns}", hint)
    shapes: tuple[Shape[Any], ...] = (*PAIRS, *(DIALOGUES if purpose == "dialogues" else ()))
    known = "; ".join(shape.name for shape in shapes)
    guess = _renamed(sample, shapes) or _misspelt(sample, shapes)
    if not guess and purpose == "pairs" and (renamed := _renamed(sample, DIALOGUES)):
        guess = f"these look like dialogues, which adpa sft --data reads: {renamed}"
    said = f"the columns of {part.text} do not form {NEEDED[purpose]}: {columns}"
    return UnknownShape(said, f"{guess}the forms that are read: {known}")


def _renamed(sample: Mapping[str, Any], shapes: tuple[Shape[Any], ...]) -> str:
    """Which columns to rename where a shape is known by other names; "" where that would not do."""
    for names in OTHER_NAMES:
        new = {column: names[plain_name(column)] for column in sample if plain_name(column) in names}
        taken = set(sample) - set(new)
        is_clear = len(set(new.values())) == len(new) and not taken & set(new.values())
        if is_clear and detect(shapes, {new.get(column, column): value for column, value in sample.items()}):
            return f"{meant(new)}; "
    return ""


def _misspelt(sample: Mapping[str, Any], shapes: tuple[Shape[Any], ...]) -> str:
    """The names under which the columns of a row would have a shape, asked for; "" where none are near."""
    words = {word for shape in shapes for word in re.findall(r"\w+", shape.name)}
    near = {
        column: match[0]
        for column in sample
        if column not in words and (match := difflib.get_close_matches(column.lower(), words - sample.keys(), 1, 0.8))
    }
    if not near or detect(shapes, {near.get(column, column): value for column, value in sample.items()}) is None:
        return ""
    return f"{meant(near)}; "


def meant(names: Mapping[str, str]) -> str:
    """How to read columns under other names, {column: name that is read}."""
    option = shlex.quote(",".join(f"{role}={column}" for column, role in names.items()))
    return f"to read {', '.join(names)} as {', '.join(names.values())}, add --columns {option}"
