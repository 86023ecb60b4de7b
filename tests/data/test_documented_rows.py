"""The rows of docs/data.md are read as it says, whole: no column of them is left unread."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from adpa_cli.data.preferences import check_unused, load_dialogues, load_pairs
from adpa_cli.data.sources import Source

PAGE = Path(__file__).resolve().parents[2] / "docs" / "data.md"


def rows(title: str) -> list[list[dict[str, object]]]:
    """The blocks of rows under a title."""
    _, _, section = PAGE.read_text(encoding="utf-8").partition(f"\n## {title}\n")
    section = section.partition("\n## ")[0]
    return [
        [json.loads(line) for line in block.splitlines()] for block in re.findall(r"```json\n(.*?)```", section, re.S)
    ]


def source(*found: dict[str, object]) -> list[Source]:
    return [Source("rows", "rows", split="train", rows=found), Source("rest", "rows", split="test", rows=({},))]


def read(load, *found):
    loaded = load(source(*found))
    check_unused(loaded, ())
    assert loaded.unused == ()
    return loaded


SINGLE, RATED = rows("Preference pairs")


@pytest.mark.parametrize("row", SINGLE, ids=lambda row: ", ".join(row))
def test_every_pair_is_the_better_answer_and_the_worse_one(row):
    (pair,) = read(load_pairs, row).items
    assert pair.chosen in ("a b .", "Oslo")
    assert pair.rejected in ("no idea .", "no .", "Bergen")
    assert pair.prompt[-1].role == "user"


def test_rated_responses_are_a_pair():
    (pair,) = read(load_pairs, *RATED).items
    assert (pair.chosen, pair.rejected) == ("a b .", "no idea .")


@pytest.mark.parametrize("row", [row for title in ("Dialogues", "Turns") for block in rows(title) for row in block])
def test_every_dialogue_ends_with_its_answer(row):
    (dialogue,) = read(load_dialogues, row).items
    assert dialogue.messages[-1].content in ("a b .", "9 degrees.")
    roles = [message.role for message in dialogue.messages]
    assert ("tools" in roles) == ("tool" in roles) == ("tools" in row)
    assert ("system" in roles) == ("system" in str(row))
