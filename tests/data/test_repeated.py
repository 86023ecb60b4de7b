"""Prompts that stand again at the beginning of their answers are cut from them, counted and said."""

from __future__ import annotations

import json

import pytest

from adpa_cli.data.examples import Message
from adpa_cli.data.preferences import check_unused, load_dialogues, load_pairs
from adpa_cli.data.sources import Source
from adpa_cli.errors import DataError

A, B = "because .", "no idea ."
P = "Why is that ?"
CUT = "1 row had the prompt repeated at the beginning of {}, where it was cut"


def rows(*found):
    """Rows in memory; named as a split so that all of them are read."""
    return [Source("rows", "rows", split="train", rows=found), Source("rest", "rows", split="test", rows=({},))]


def pair_of(row):
    (item,) = load_pairs(rows(row)).items
    return item.prompt, item.chosen, item.rejected


def said(text):
    return {"role": "assistant", "content": text}


FORMS = {
    "text": lambda text: text,
    "turn": said,
    "turns": lambda text: [said(text)],
    "ShareGPT": lambda text: [{"from": "gpt", "value": text}],
    "saved with the keys of other rows": lambda text: {**said(text), "from": None, "value": None},
    "JSON": lambda text: json.dumps([said(text)]),
    "JSON of every turn": lambda text: [json.dumps(said(text))],
    "parts": lambda text: [{"role": "assistant", "content": [{"type": "text", "text": text}]}],
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "asked",
    [{"prompt": P}, {"prompt": [{"role": "user", "content": P}]}, {"prompt": P, "system": "Be brief."},
     {"prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": P}]},
     {"instruction": "Why", "input": "is that ?"}],
    ids=["text", "turns", "system beside", "system turn", "input"],
)  # fmt: skip
def test_a_repeated_prompt_is_cut_from_answers_in_every_form(form, asked):
    prompt = "Why\n\nis that ?" if "input" in asked else P
    write = FORMS[form]
    loaded = load_pairs(rows({**asked, "chosen": write(f"{prompt} {A}"), "rejected": write(f"\n{prompt}\n{B}")}))
    (item,) = loaded.items
    assert (item.prompt[-1], item.chosen, item.rejected) == (Message("user", prompt), A, B)
    assert loaded.notes == (CUT.format("both answers"),)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("question", "answer"), [("prompt", "completion"), ("instruction", "output")])
def test_a_repeated_prompt_is_cut_from_what_dialogues_answer(form, question, answer):
    row = {question: P, answer: FORMS[form](f"{P} {A}")}
    loaded = load_dialogues(
        rows(row, {question: "Hi", answer: "Hi there!"}, {question: "Q", answer: A}, {question: "R", answer: A})
    )
    assert [item.messages[-1].content for item in loaded.items] == [A, "Hi there!", A, A]
    assert loaded.notes == (CUT.format("the answer"),)
    assert load_dialogues(rows({question: "Hi", answer: "Hi there!"})).items[0].messages[-1].content == "there!"


def test_whole_dialogues_and_longer_ones_stay_as_they_are():
    user = {"role": "user", "content": P}
    echo = [user, said(f"{P} {A}")]
    assert pair_of({"chosen": echo, "rejected": [user, said(f"{P} {B}")]})[1:] == (f"{P} {A}", f"{P} {B}")
    asked = [user, said("what ?"), user]
    assert pair_of({"prompt": asked, "chosen": f"{P} {A}", "rejected": f"{P} {B}"})[1:] == (f"{P} {A}", f"{P} {B}")
    (item,) = load_dialogues(rows({"messages": echo})).items
    assert item.messages[-1].content == f"{P} {A}"


def test_what_a_turn_holds_beside_its_text_is_still_told_where_it_is_cut():
    row = {"prompt": P, "chosen": [{**said(f"{P} {A}"), "images": ["x.png"]}], "rejected": [said(f"{P} {B}")]}
    with pytest.raises(DataError, match="images"):
        check_unused(load_pairs(rows(row)), ())


@pytest.mark.parametrize("field", ["chosen", "rejected"])
def test_a_prompt_that_one_side_repeats_in_most_rows_is_said_and_stays(field):
    found = [{"prompt": f"What is {n} ?", "chosen": A, "rejected": B} for n in range(5)]
    for row in found[:3]:
        row[field] = f"{row['prompt']} {row[field]}"
    loaded = load_pairs(rows(*found))
    assert getattr(loaded.items[0], field).startswith("What is 0 ?")
    assert loaded.notes == (f"3 rows had the prompt repeated at the beginning of {field} alone, where it stayed",)
    assert load_pairs(rows(*found[1:])).notes == ()


def test_the_prompt_is_cut_from_answers_that_repeat_it():
    found = [{"prompt": f"What is {n}?", "chosen": f"What is {n}? A number.", "rejected": f"What is {n}?\nA cat."}
             for n in range(3)]  # fmt: skip
    loaded = load_pairs(rows(*found, {"prompt": "Why ?", "chosen": A, "rejected": B}))
    assert [(item.chosen, item.rejected) for item in loaded.items] == [("A number.", "A cat.")] * 3 + [(A, B)]
    assert loaded.notes == ("3 rows had the prompt repeated at the beginning of both answers, where it was cut",)


def test_a_short_prompt_is_cut_where_most_rows_repeat_theirs():
    greeting = {"prompt": "Hi", "chosen": "Hi there!", "rejected": "Hi."}
    others = [{"prompt": f"Q{n}", "chosen": A, "rejected": B} for n in range(3)]
    assert load_pairs(rows(greeting, *others)).items[0].chosen == "Hi there!"
    assert load_pairs(rows(greeting)).items[0].chosen == "there!"


def test_a_prompt_that_only_one_answer_repeats_stays():
    row = {"prompt": "What is that ?", "chosen": "What is that ? A cat.", "rejected": "A cat."}
    assert pair_of(row)[1:] == (row["chosen"], row["rejected"])


def test_an_answer_that_is_the_prompt_alone_is_empty():
    with pytest.raises(DataError, match="row 1, rejected: the answer is empty"):
        pair_of({"prompt": "What is that ?", "chosen": "What is that ? A cat.", "rejected": "What is that ?"})
