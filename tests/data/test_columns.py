"""What of a row nothing reads: it is said, and a column that belongs to the example by its name is an error."""

from __future__ import annotations

import json

import pytest

from adpa_cli.data.preferences import check_unused, load_dialogues, load_pairs
from adpa_cli.data.sources import Source, parse_source
from adpa_cli.errors import DataError


def turn(role, content, **more):
    return {"role": role, "content": content, **more}


def rows(*found):
    """Rows in memory; named as a split so that all of them are read."""
    return [Source("rows", "rows", split="train", rows=found), Source("rest", "rows", split="test", rows=({},))]


Q, A, B = "why ?", "because .", "no idea ."
PAIR = {"prompt": Q, "chosen": A, "rejected": B}
TURNS = [turn("user", Q), turn("assistant", A)]
SIDES = {"chosen": TURNS, "rejected": [TURNS[0], turn("assistant", B)]}


def test_metadata_are_listed_and_no_error():
    loaded = load_pairs(rows({**PAIR, "id": 3, "source": "web", "empty": None, "none": [], "blank": ""}))
    assert loaded.unused == ("id", "source")
    assert loaded.notes == ("not used: columns id, source",)
    check_unused(loaded, ())


@pytest.mark.parametrize(
    ("column", "value"),
    [("input", "a text"), ("context", "a text"), ("documents", ["one", "two"]), ("images", [{"bytes": "x"}]),
     ("question", "another ?"), ("messages", [turn("user", "another ?")])],
)  # fmt: skip
def test_a_column_of_the_example_that_nothing_reads_is_an_error(column, value):
    loaded = load_pairs(rows({**PAIR, "score": 1}, {**PAIR, "prompt": "so ?", column: value}))
    assert loaded.notes == (f"not used: columns {column} (metadata: score)",)
    with pytest.raises(
        DataError, match=f"rows row 2: the column {column} holds .*, and it would not be used"
    ) as caught:
        check_unused(loaded, ("score",))
    assert f"--ignore-columns score,{column}" in caught.value.hint
    check_unused(loaded, (column,))


def test_a_column_is_read_by_its_own_shape_only():
    read = load_pairs(rows({"instruction": Q, "input": "a text", "chosen": A, "rejected": B}))
    assert read.unused == ()
    check_unused(load_dialogues(rows({"instruction": Q, "input": "a text", "output": A})), ())


REPEATING = {
    "ultrafeedback": {
        "prompt": Q, "prompt_id": "0f", **SIDES, "messages": TURNS, "score_chosen": 8.0, "score_rejected": 2.0,
    },
    "dpo-mix": {"dataset": "x", **SIDES, "chosen_rating": 5.0, "rejected_rating": 1.0},
    "orpo-mix": {"source": "x", **SIDES, "prompt": Q, "question": f" {Q}\n"},
    "system as a turn": {
        "system": "be brief", "chosen": [turn("system", "be brief"), *TURNS],
        "rejected": [turn("system", "be brief"), *SIDES["rejected"]],
    },
}  # fmt: skip


@pytest.mark.parametrize("name", REPEATING)
def test_columns_that_repeat_what_is_read_are_no_error(name):
    loaded = load_pairs(rows(REPEATING[name]))
    assert len(loaded.items) == 1
    check_unused(loaded, ())


def test_known_sets_group_their_metadata():
    said = load_pairs(rows(REPEATING["ultrafeedback"])).notes
    assert said == ("not used: columns prompt, messages (metadata: prompt_id, score_chosen, score_rejected)",)


def test_dialogues_with_their_prompt_and_their_older_form_are_no_error():
    older = [{"from": "human", "value": Q}, {"from": "gpt", "value": A}]
    check_unused(load_dialogues(rows({"prompt": Q, "messages": TURNS, "conversations": older})), ())
    check_unused(load_dialogues(rows({"prompt": Q, "messages": TURNS, "conversations": [Q, A]})), ())


def test_a_text_that_stands_inside_what_is_read_is_repeated():
    passage = "the sky over the harbour was the colour of a screen"
    loaded = load_pairs(rows({**PAIR, "prompt": f"{passage}\n\n{Q}", "context": passage}))
    check_unused(loaded, ())
    with pytest.raises(DataError, match="the column context holds 'sky'"):
        check_unused(load_pairs(rows({**PAIR, "prompt": f"{passage}\n\n{Q}", "context": "sky"})), ())


def test_a_column_that_repeats_in_most_rows_only_is_no_error():
    found = [{"prompt": f"q{n}", "messages": [turn("user", f"q{n}"), turn("assistant", A)]} for n in range(5)]
    found[2]["prompt"] = "Q2, with other letters"
    check_unused(load_dialogues(rows(*found)), ())
    for row in found[:4]:
        row["prompt"] = "something else"
    with pytest.raises(DataError, match="rows row 1: the column prompt holds 'something else'"):
        check_unused(load_dialogues(rows(*found)), ())


def test_ratings_of_two_responses_are_metadata():
    rated = [{"prompt": Q, "response": A, "helpfulness": n, "coherence": 4, "verbosity": 2} for n in (4, 1)]
    rated[1]["response"] = B
    loaded = load_pairs(rows(*rated))
    assert loaded.notes == ("not used: columns coherence, verbosity",)


@pytest.mark.parametrize("key", ["images", "tools", "thinking"])
def test_what_a_turn_holds_besides_text_is_an_error(key):
    messages = [turn("user", Q, **{key: ["x"]}), TURNS[1]]
    for value in (messages, json.dumps(messages)):
        with pytest.raises(DataError, match=rf"row 1: the column messages\[\]\.{key} holds") as caught:
            check_unused(load_dialogues(rows({"messages": value})), ())
        assert f"messages[].{key}" in caught.value.hint


@pytest.mark.parametrize("column", ["System", "Input", "system-prompt", " Context ", "image_path"])
def test_a_column_of_the_example_may_be_written_otherwise(column):
    with pytest.raises(DataError, match=f"the column {column} holds 'a text'") as caught:
        check_unused(load_pairs(rows({**PAIR, column: "a text"})), ())
    assert caught.value.hint.endswith(f"--ignore-columns {column}")


@pytest.mark.parametrize(("key", "value"), [("weight", 0), ("weight", 0.0), ("train", False), ("training", False)])
def test_an_answer_that_is_not_to_be_trained_on_is_an_error(key, value):
    more = [turn("user", "so ?"), turn("assistant", B)]
    messages = [turn("user", Q, **{key: value}), turn("assistant", A, **{key: 1}), *more]
    check_unused(load_dialogues(rows({"messages": messages})), ())
    messages[1][key] = value
    with pytest.raises(DataError, match=rf"row 1: the column messages\[\]\.{key} holds '{value}'"):
        check_unused(load_dialogues(rows({"messages": messages})), ())


@pytest.mark.parametrize("column", ["label", "kto_tag"])
@pytest.mark.parametrize("bad", [False, "False", "false"])
def test_dialogues_of_which_some_are_bad_are_an_error(column, bad):
    found = [{"messages": [turn("user", f"q{n}"), TURNS[1]], column: str(bad) != bad or "True"} for n in range(3)]
    check_unused(load_dialogues(rows(*found)), ())
    found[1][column] = bad
    with pytest.raises(DataError, match=f"rows row 2: the column {column} holds '{bad}'"):
        check_unused(load_dialogues(rows(*found)), ())
    check_unused(load_dialogues(rows(*found)), (column,))
    check_unused(load_pairs(rows({**PAIR, column: bad})), ())


def test_many_columns_are_cut_short():
    loaded = load_pairs(rows({**PAIR, **{f"m{n:02}": 1 for n in range(20)}}))
    assert loaded.notes[0].endswith("m10, m11, … 8 more")


def test_columns_are_told_of_the_files_that_are_read(tmp_path):
    for name, more in (("train", {"context": "a text"}), ("test", {"id": 1})):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({**PAIR, **more}) + "\n")
    source = parse_source(str(tmp_path))
    with pytest.raises(DataError, match=r"train\.jsonl row 1: the column context"):
        check_unused(load_pairs([source]), ())
    assert load_pairs([source], "test").unused == ("id",)
