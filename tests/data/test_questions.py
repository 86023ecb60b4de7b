"""Questions of two turns and reference answers to them, in FastChat's files and in the form that the hub has."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from adpa_cli.data.questions import NEED_REFERENCE, question_id, questions_of, references_of
from adpa_cli.data.sources import parse_source
from adpa_cli.errors import DataError
from support.cli_samples import write_rows

ROW = {"question_id": 81, "category": "writing", "turns": ["One?", "Two?"]}


def test_the_questions_of_mt_bench(shared_data: Path) -> None:
    """Eighty in eight categories; the references are to those categories that need one, under the same ids."""
    questions = questions_of([parse_source(str(shared_data / "mt_bench_question.jsonl"))])
    assert set(Counter(question.category for question in questions).values()) == {10}
    assert len({question.id for question in questions}) == 80
    references = references_of([parse_source(str(shared_data / "mt_bench_reference_answer_gpt4.jsonl"))])
    assert references.keys() == {question.id for question in questions if question.category in NEED_REFERENCE}
    assert {reference.author for reference in references.values()} == {"gpt-4"}
    assert {len(reference.turns) for reference in references.values()} == {2}


def test_both_forms_are_one_question(tmp_path: Path) -> None:
    """The copy on the hub calls the turns `prompt`, and the number `prompt_id`."""
    other = {"prompt_id": 81, "category": "writing", "prompt": ROW["turns"], "reference": []}
    paths = [write_rows(tmp_path / name, [row]) for name, row in (("a.jsonl", ROW), ("b.jsonl", other))]
    (one,), (same,) = (questions_of([parse_source(str(path))]) for path in paths)
    assert one == same
    assert (one.id, one.number, one.turns) == (f"{81:016x}", 81, ("One?", "Two?"))
    assert question_id("a name") != question_id(81)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{**ROW, "turns": ["One?"]}], "row 1 has one turn"),
        ([{**ROW, "turns": "One?"}], "row 1 has no list of turns"),
        ([ROW, {**ROW, "turns": ["One?", " "]}], "row 2 has no list of turns"),
        ([ROW, ROW], "row 2 repeats the question 81"),
    ],
)
def test_what_is_no_question(tmp_path: Path, rows: list[dict[str, Any]], said: str) -> None:
    with pytest.raises(DataError, match=said):
        questions_of([parse_source(str(write_rows(tmp_path / "q.jsonl", rows)))])


def test_what_is_no_reference_answer(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="row 1 is not a reference answer"):
        references_of([parse_source(str(write_rows(tmp_path / "r.jsonl", [ROW])))])
