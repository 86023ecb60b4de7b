"""A model's answers, from rollout artifacts and from files in AlpacaEval's format."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from adpa_cli.data.answers import Answered, answers_of
from adpa_cli.data.examples import Message, make_prompt, prompt_key
from adpa_cli.engine.layout.examples import Rollout, write_rollouts
from adpa_cli.errors import DataError, NotFound


def written(folder: Path, rows: object, name: str = "model_outputs.json") -> Path:
    path = folder / name
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def test_a_file_holds_an_answer_to_each_prompt(tmp_path: Path) -> None:
    rows = [
        {"instruction": "Say a.", "output": "a {b}", "generator": "m", "dataset": "d"},
        {"instruction": "Add.", "input": "1 2", "output": "", "generator": "m"},
    ]
    first, second = answers_of(written(tmp_path, rows))
    turn = Message("user", "Say a.")
    assert first == Answered(prompt_key(make_prompt([turn]))[:16], (turn,), "a {b}", None, None)
    assert second.prompt == (Message("user", "Add.\n\n1 2"),)
    assert second.text == ""


def test_a_rollout_holds_the_same_prompts_with_lengths(tmp_path: Path) -> None:
    (by_file,) = answers_of(written(tmp_path, [{"instruction": "Say a.", "output": "a"}]))
    row = Rollout(by_file.id, by_file.prompt, (1, 2), (3, 4, 5), "a", True)
    write_rollouts(tmp_path / "rows-00000.parquet", [row])
    assert answers_of(tmp_path) == [Answered(by_file.id, by_file.prompt, "a", 3, True)]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (
            [{"instruction": "a", "output": "b"}, {"instruction": "a", "output": "c"}],
            "row 2 answers the same prompt as row 1",
        ),
        ([{"instruction": "a"}], "row 1, output: the column is missing"),
        (
            [{"instruction": "a", "output": "b"}, {"instruction": "c", "output": None}],
            "row 2, output: its type is NoneType",
        ),
        ([{"instruction": " ", "output": "b"}], "row 1, prompt"),
        ([{"output": "b"}], "row 1, prompt"),
        ([{"instruction": "a", "output": "b \ud800"}], "row 1 has half of a surrogate pair"),
        ([["a"]], "row 1: the row is not a JSON object but of type list"),
    ],
)
def test_a_broken_row_is_named(tmp_path: Path, rows: object, said: str) -> None:
    path = written(tmp_path, rows)
    with pytest.raises(DataError) as caught:
        answers_of(path)
    assert path.name in caught.value.message
    assert said in caught.value.message


def test_a_file_is_read_again_only_once_it_has_changed(tmp_path: Path) -> None:
    path = written(tmp_path, [{"instruction": "Say a.", "output": "a"}])
    assert answers_of(path) is answers_of(path)
    written(tmp_path, [{"instruction": "Say a.", "output": "another"}])
    assert [answer.text for answer in answers_of(path)] == ["another"]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"gone\.json"):
        answers_of(tmp_path / "gone.json")


def test_published_answers_are_read(shared_data: Path) -> None:
    answers = answers_of(shared_data / "alpaca_eval_model_outputs.json")
    assert len({answer.id for answer in answers}) == 805
