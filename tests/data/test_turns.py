"""What the values of a row say: turns in every form that they are stored in, calls of tools, columns beside turns."""

from __future__ import annotations

import csv
import json

import pytest

from adpa_cli.data.examples import TOOLS, Message, make_dialogue, make_pair, prompt_key, trimmed, turn_dict
from adpa_cli.data.preferences import load_dialogues, load_pairs
from adpa_cli.data.sources import Source, parse_source
from adpa_cli.data.turns import turns_of
from adpa_cli.errors import DataError


def turn(role, content, **more):
    return {"role": role, "content": content, **more}


def rows(*found):
    """Rows in memory; named as a split so that all of them are read."""
    return [Source("rows", "rows", split="train", rows=found), Source("rest", "rows", split="test", rows=({},))]


def pair_of(row):
    (item,) = load_pairs(rows(row)).items
    return item.prompt, item.chosen, item.rejected


def dialogue_of(row):
    (item,) = load_dialogues(rows(row)).items
    return item.messages


Q, A, B = "why ?", "because .", "no idea ."
USER, SAID = Message("user", Q), Message("assistant", A)
SYSTEM, EARLIER = Message("system", "be brief"), (Message("user", "hi"), Message("assistant", "hello"))
TURNS = [turn("user", Q), turn("assistant", A)]
FORMS = {
    "JSON": json.dumps,
    "JSON over lines": lambda turns: json.dumps(turns, indent=1),
    "Python": repr,
    "NumPy on one line": lambda turns: "[" + " ".join(map(repr, turns)) + "]",
    "NumPy": lambda turns: "[" + "\n ".join(map(repr, turns)) + "]",
}


@pytest.mark.parametrize("form", FORMS)
def test_turns_that_are_stored_as_text_are_read_in_every_column(form, tmp_path):
    write = FORMS[form]
    chosen, rejected = write(TURNS), write([TURNS[0], turn("assistant", B)])
    row = {"chosen": chosen, "rejected": rejected}
    assert pair_of(row) == ((USER,), A, B)
    assert pair_of({"prompt": write(TURNS[:1]), "chosen": A, "rejected": B}) == ((USER,), A, B)
    assert dialogue_of({"messages": write(TURNS)}) == (USER, SAID)
    assert dialogue_of({"prompt": write(TURNS[:1]), "completion": write(TURNS[1:])}) == (USER, SAID)
    with (tmp_path / "pairs.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(row))
        writer.writeheader()
        writer.writerows([row, {"chosen": write(EARLIER_TURNS), "rejected": write([EARLIER_TURNS[0], TURNS[1]])}])
    loaded = load_pairs([parse_source(str(tmp_path / "pairs.csv"))])
    assert loaded.shape == "preference turns"
    assert {item.prompt[0].content for item in loaded.items} < {Q, "hi"}


EARLIER_TURNS = [turn("user", "hi"), turn("assistant", "hello")]


@pytest.mark.parametrize(
    "text",
    ["[1, 2] is a list", "[" * 3000 + "]", r"['\d']", "{'a': '\\d'}",
     "[]", "[1, 2]", '{"role": "manager", "content": "x"}', '{"a": 1}', "[not json]", "[{}]",
     '[{"name": "x"}]', "[{'role': 'x'}] and more"],
)  # fmt: skip
def test_other_text_that_begins_like_a_list_stays_text(text):
    assert turns_of(text, "prompt") == (Message("user", text),)
    assert pair_of({"prompt": Q, "chosen": text, "rejected": B}) == ((USER,), text, B)


@pytest.mark.parametrize(
    "text",
    ['[{"role": "user", "content": "hi"}', "array([{'content': 'hi', 'role': 'user'}], dtype=object)", "[{'role': u}]"],
)
def test_turns_as_text_that_cannot_be_read_are_named(text):
    with pytest.raises(DataError, match=r"rows row 1, chosen: .*looks like a list of turns"):
        pair_of({"chosen": text, "rejected": text})


def test_content_as_parts_is_its_text():
    parts = [{"type": "text", "text": "why "}, {"type": "input_text", "text": "?"}]
    assert turns_of([turn("user", parts)], "messages") == (USER,)
    assert turns_of([turn("user", ["why ", "?"])], "messages") == (USER,)


@pytest.mark.parametrize(
    ("part", "kind"),
    [({"type": "image_url", "image_url": {"url": "x"}}, "image_url"), ({"type": "image", "text": None}, "image"),
     ({"type": "input_audio"}, "input_audio"), ({"type": "thinking", "thinking": "hm"}, "thinking")],
)  # fmt: skip
def test_parts_that_are_no_text_are_refused_by_name(part, kind):
    content = [{"type": "text", "text": Q}, part]
    with pytest.raises(DataError, match=rf"row 1, messages\[0\].content\[1\]: its type is {kind}, and only text"):
        dialogue_of({"messages": [turn("user", content), TURNS[1]]})


CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Bern", "at": 3}}}
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
CALLED = [
    turn("user", Q),
    turn("assistant", None, tool_calls=[CALL]),
    turn("tool", '{"c": 9}', name="weather"),
    TURNS[1],
]


def test_calls_of_tools_and_their_results_are_turns():
    user, call, result, said = dialogue_of({"messages": CALLED})
    assert (user, said) == (USER, SAID)
    assert turn_dict(call) == turn("assistant", "", tool_calls=[CALL])
    assert turn_dict(result) == turn("tool", '{"c": 9}', name="weather")
    prompt, chosen, _ = pair_of({"prompt": CALLED[:3], "chosen": TURNS[1:], "rejected": [turn("assistant", B)]})
    assert prompt == (user, call, result)
    assert chosen == A


def test_keys_keep_their_order_for_templates_write_them_in_it():
    (message,) = turns_of([turn("assistant", None, tool_calls=[CALL])], "messages")
    assert message.more == (
        '{"tool_calls":[{"type":"function","function":{"name":"weather","arguments":{"city":"Bern","at":3}}}]}'
    )


@pytest.mark.parametrize(
    "calls",
    [
        [{"type": "function", "function": {"name": "weather", "arguments": '{"city": "Bern", "at": 3}'}}],
        [{"id": None, "index": None, **CALL}],
        CALL["function"],
        [json.dumps(CALL)],
        json.dumps([CALL["function"]]),
    ],
)
def test_every_form_of_a_call_is_the_same_call(calls):
    (message,) = turns_of([turn("assistant", "", tool_calls=calls)], "messages")
    assert turn_dict(message)["tool_calls"] == [CALL]


def test_a_call_in_words_of_llama_factory_and_of_older_interfaces():
    called = [
        {"from": "human", "value": Q},
        {"from": "function_call", "value": json.dumps(CALL["function"])},
        {"from": "observation", "value": '{"c": 9}'},
        {"from": "gpt", "value": A},
    ]
    messages = dialogue_of({"conversations": called, "tools": json.dumps([WEATHER["function"]])})
    assert [message.role for message in messages] == [TOOLS, "user", "assistant", "tool", "assistant"]
    assert json.loads(messages[0].content) == [WEATHER]
    assert turn_dict(messages[2]) == turn("assistant", "", tool_calls=[CALL])
    (older,) = turns_of([turn("assistant", None, function_call=CALL["function"])], "messages")
    assert turn_dict(older)["tool_calls"] == [CALL]


@pytest.mark.parametrize("tools", [[WEATHER], json.dumps([WEATHER]), [json.dumps(WEATHER)], [WEATHER["function"]]])
def test_tools_stand_in_front_of_a_dialogue_and_of_a_prompt(tools):
    offered = Message(TOOLS, json.dumps([WEATHER], separators=(",", ":")))
    messages = dialogue_of({"messages": [turn("system", "be brief"), *TURNS], "tools": tools})
    assert messages == (offered, SYSTEM, USER, SAID)
    assert pair_of({"prompt": Q, "chosen": A, "rejected": B, "tools": tools}) == ((offered, USER), A, B)
    assert trimmed((*messages, USER)) == messages


@pytest.mark.parametrize("tools", [None, "", [], "[]", "null"])
def test_no_tools_are_none(tools):
    assert dialogue_of({"messages": TURNS, "tools": tools}) == (USER, SAID)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"messages": TURNS, "tools": "a calculator"}, "tools: it is not a list of objects"),
        (
            {"messages": [turn("user", Q), turn("assistant", None, tool_calls=[{"x": 1}])]},
            "tool_calls: a tool call has no",
        ),
        ({"messages": [turn("user", Q), turn("assistant", None)]}, r"\[1\].content: the key is missing or null"),
        ({"messages": [turn("user", Q), turn("assistant", A, name=3)]}, r"messages\[1\].name: its type is int"),
        ({"messages": [Q, A]}, r"messages\[0\]: its type is str, and an object with role and content"),
        ({"messages": [turn("user", {"text": Q}), TURNS[1]]}, r"messages\[0\].content: its type is dict"),
    ],
)
def test_what_is_no_tool_no_call_and_no_text_is_named(row, said):
    with pytest.raises(DataError, match=f"row 1, .*{said}"):
        dialogue_of(row)


def test_an_answer_of_a_pair_is_text():
    called = [turn("assistant", None, tool_calls=[CALL])]
    with pytest.raises(DataError, match="row 1, chosen: the answer has more than text"):
        pair_of({"prompt": Q, "chosen": called, "rejected": [turn("assistant", B)]})


def test_keys_without_a_meaning_change_nothing():
    plain = load_dialogues(rows({"messages": TURNS})).items[0]
    extra = [turn("user", Q, weight=1, id="x", tool_calls=None, name=None), turn("assistant", A, tool_call_id=None)]
    loaded = load_dialogues(rows({"messages": extra}))
    assert loaded.items[0] == plain
    assert loaded.notes == ("not used: columns messages[].weight, messages[].id",)
    assert make_dialogue((Message("user", Q, ""), SAID), 1).id == plain.id
    assert make_dialogue((Message("user", Q, '{"name":"x"}'), SAID), 1).id != plain.id


def test_the_first_question_is_found_behind_tools():
    lead = (Message(TOOLS, "[]"), SYSTEM)
    one = make_dialogue((*lead, USER, SAID), 1)
    assert prompt_key(one) == prompt_key(make_pair((*lead, USER), A, B))
    assert prompt_key(one) != prompt_key(make_dialogue((USER, SAID)))


BESIDE = {
    "pairs, text": {"prompt": Q, "chosen": A, "rejected": B},
    "pairs, question": {"question": Q, "chosen": A, "rejected": B},
    "pairs, input alone": {"input": Q, "chosen": A, "rejected": B},
    "pairs, turns": {"chosen": TURNS, "rejected": [TURNS[0], turn("assistant", B)]},
    "pairs, prompt as turns": {"prompt": TURNS[:1], "chosen": TURNS[1:], "rejected": [turn("assistant", B)]},
    "LLaMA-Factory pairs": {
        "conversations": [{"from": "human", "value": Q}],
        "chosen": {"from": "gpt", "value": A},
        "rejected": {"from": "gpt", "value": B},
    },
    "axolotl pairs": {"messages": TURNS[:1], "chosen": TURNS[1], "rejected": turn("assistant", B)},
    "pairs beside a dialogue": {"messages": TURNS, "chosen": TURNS[1], "rejected": turn("assistant", B)},
    "pairs, transcripts": {
        "chosen": f"\n\nHuman: {Q}\n\nAssistant: {A}",
        "rejected": f"\n\nHuman: {Q}\n\nAssistant: {B}",
    },
    "pairs, chosen as turns only": {"chosen": TURNS, "rejected": B},
    "annotations": {"instruction": Q, "output_1": A, "output_2": B, "preference": 1},
}


@pytest.mark.parametrize("shape", BESIDE)
def test_system_and_history_stand_beside_any_pair(shape):
    row = BESIDE[shape]
    assert pair_of(row) == ((USER,), A, B)
    assert pair_of({**row, "system": "", "history": []}) == ((USER,), A, B)
    assert pair_of({**row, "system": "be brief"}) == ((SYSTEM, USER), A, B)
    for history in ([["hi", "hello"]], json.dumps([["hi", "hello"]]), EARLIER_TURNS):
        beside = {**row, "system_prompt": "be brief", "history": history}
        assert pair_of(beside) == ((SYSTEM, *EARLIER, USER), A, B)
    assert dialogue_of({**row, "system": "be brief"}) == (SYSTEM, USER, SAID) or shape == "annotations"


@pytest.mark.parametrize(
    "row",
    [{"messages": TURNS}, {"conversations": [{"from": "human", "value": Q}, {"from": "gpt", "value": A}]},
     {"prompt": Q, "completion": A}, {"instruction": Q, "input": "", "output": A}],
)  # fmt: skip
def test_system_and_history_stand_beside_any_dialogue(row):
    assert dialogue_of({**row, "system": "be brief", "history": [["hi", "hello"]]}) == (SYSTEM, *EARLIER, USER, SAID)


def test_a_system_turn_stands_instead_of_a_column():
    own = [turn("developer", "be kind"), *TURNS]
    loaded = load_dialogues(rows({"messages": own, "system": "be brief"}))
    assert loaded.items[0].messages[0] == Message("system", "be kind")
    assert loaded.notes == ("not used: columns system",)


@pytest.mark.parametrize("history", ["long ago", [["a"]], [["a", "b", "c"]], [["a", None]]])
def test_a_history_that_is_none_is_named(history):
    with pytest.raises(DataError, match="row 1, history"):
        dialogue_of({"messages": TURNS, "history": history})


def test_an_instruction_goes_on_with_its_input():
    row = {"instruction": "translate", "input": "hello", "chosen": A, "rejected": B}
    asked = Message("user", "translate\n\nhello")
    assert pair_of(row) == ((asked,), A, B)
    assert pair_of({**row, "input": ""}) == ((Message("user", "translate"),), A, B)
    judged = {"instruction": "translate", "input": "hello", "output_1": A, "output_2": B, "preference": 1}
    assert pair_of(judged) == ((asked,), A, B)
    several = load_pairs(rows(*({**row, "input": f"hello {n}"} for n in range(8)))).items
    assert len({item.prompt for item in several}) == 8


@pytest.mark.parametrize(
    ("chosen", "rejected", "said"),
    [
        (
            TURNS,
            [TURNS[0], turn("assistant", B), turn("user", "so ?"), turn("assistant", B)],
            "1 turn .*1 and 3 follow",
        ),
        ([turn("user", "so ?"), TURNS[1]], TURNS, "no turns are shared, and 2 and 2 follow"),
        ([*TURNS, turn("user", "so ?"), TURNS[1]], TURNS, "2 turns are shared, and 2 and 0 follow"),
    ],
)
def test_sides_that_part_before_the_last_answer_are_named(chosen, rejected, said):
    with pytest.raises(DataError, match=f"row 1, rejected: chosen and rejected answer different prompts: {said}"):
        pair_of({"chosen": chosen, "rejected": rejected})


def test_an_input_stands_alone_where_the_instruction_is_empty():
    row = {"instruction": "", "input": Q}
    assert dialogue_of({**row, "output": A}) == (USER, SAID)
    assert pair_of({**row, "chosen": A, "rejected": B}) == ((USER,), A, B)


@pytest.mark.parametrize(
    "text", ["Human: {}\n\nAssistant: {}", "\r\n\r\nHuman: {}\r\n\r\nAssistant: {}", "\nHuman: {}\nAssistant: {}\n"]
)
def test_a_transcript_may_have_lost_its_empty_lines(text):
    side = {"chosen": text.format(Q, A), "rejected": text.format(Q, B)}
    assert pair_of(side) == ((Message("user", Q),), A, B)


@pytest.mark.parametrize(
    "text", ["Human: who says that ?", "Assistant: no\n\nHuman: yes", "The Human:\n\nAssistant: x"]
)
def test_text_that_names_a_speaker_only_stays_text(text):
    assert pair_of({"prompt": text, "chosen": A, "rejected": B})[0] == (Message("user", text),)


def test_words_that_both_texts_begin_with_are_the_prompt():
    texts = {"chosen": "Capital of Norway? Oslo", "rejected": "Capital of Norway? Oslo is nice"}
    assert pair_of(texts) == ((Message("user", "Capital of Norway?"),), "Oslo", "Oslo is nice")
    assert pair_of({**texts, "system": "be brief"})[0] == (SYSTEM, Message("user", "Capital of Norway?"))


@pytest.mark.parametrize("form", ["objects", "JSON of Parquet", "JSON of every turn", "guessed", "saved"])
def test_turns_with_calls_come_out_of_parquet_as_they_were(form, tmp_path):
    from datasets import Dataset, Features, Json, List

    other = {"type": "function", "function": {"name": "add", "arguments": {"x": 1}}}
    found = [
        {"messages": CALLED, "tools": [WEATHER]},
        {"messages": [CALLED[0], turn("assistant", None, tool_calls=[other]), turn("tool", "2"), TURNS[1]],
         "tools": [{"type": "function", "function": {"name": "add", "parameters": {"n": 2}}}]},
    ]  # fmt: skip
    if form == "JSON of every turn":
        made = Dataset.from_list(found, features=Features({"messages": List(Json()), "tools": List(Json())}))
    elif form == "objects":
        made = Dataset.from_list(found)
    elif form == "guessed":
        made = Dataset.from_list(found, on_mixed_types="use_json")
    else:
        made = Dataset.from_list(found, features=Features({"messages": Json(), "tools": Json()}))
    if form == "saved":
        made.save_to_disk(tmp_path / "train")
        source = f"{tmp_path}/train"
    else:
        source = str(tmp_path / "train.parquet")
        made.to_parquet(source)
    assert load_dialogues([parse_source(source)]).items or form
    both = [load_dialogues([parse_source(source)], side).items for side in ("train", "test")]
    items = sorted((item for side in both for item in side), key=lambda item: item.row)
    expected = load_dialogues(rows(*found)).items
    assert [[turn_dict(message) for message in item.messages] for item in items] == [
        [turn_dict(message) for message in item.messages] for item in expected
    ]


@pytest.mark.parametrize("text", [" \n", "nan", "NaN", "None", "null", float("nan"), None])
def test_a_system_that_says_nothing_is_none(text):
    assert pair_of({"prompt": Q, "system": text, "chosen": A, "rejected": B})[0] == (USER,)
    row = {"prompt": Q, "system": text, "system_prompt": "be brief", "history": text, "tools": text}
    assert dialogue_of({**row, "completion": A}) == (SYSTEM, USER, SAID)


def test_two_systems_with_different_texts_are_refused():
    row = {"prompt": Q, "chosen": A, "rejected": B, "system": "be brief", "system_prompt": "be brief\n"}
    assert pair_of(row)[0] == (SYSTEM, USER)
    with pytest.raises(DataError, match="system_message: its text differs from that in the column system ") as caught:
        pair_of({**row, "system_message": "be long"})
    assert "keep one of the columns system and system_message" in str(caught.value)


def test_a_turn_that_is_written_in_two_ways_says_the_same_in_both():
    both = {"from": "human", "value": Q, "role": "user", "content": Q}
    assert turns_of([both], "messages") == (USER,)
    for other in ({"value": "x"}, {"from": "gpt"}, {"content": "x"}, {"role": "system"}):
        with pytest.raises(DataError, match=r"messages\[0\]: role and content say something else than from and value"):
            dialogue_of({"messages": [both | other, turn("assistant", A)]})
    for more in ({"from": None, "value": None}, {"value": 0.5}, {"from": "the web"}):
        assert turns_of([turn("user", Q, **more)], "messages") == (USER,)
    assert turns_of([{"from": "human", "value": Q, "role": None, "content": None}], "messages") == (USER,)
