"""Every shape of preference data and dialogues, what makes a row unusable, and what is held out."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest

from adpa_cli.data.examples import Dialogue, Message, Pair, held_out_keys, make_dialogue, make_pair, prompt_key
from adpa_cli.data.preferences import DataSet, load_dialogues, load_pairs
from adpa_cli.data.sources import Source, parse_source
from adpa_cli.data.turns import transcript
from adpa_cli.errors import DataError


def turn(role, content):
    return {"role": role, "content": content}


def user(text):
    return Message("user", text)


def said(text):
    return Message("assistant", text)


def rows(*found, split="train"):
    """Rows in memory; named as a split so that all of them are read."""
    return [Source("rows", "rows", split=split, rows=found), Source("rest", "rows", split="test", rows=({},))]


def pairs(*found, **options):
    return load_pairs(rows(*found), **options)


Q, A, B, Q2 = "why ?", "because .", "no idea .", "and then ?"
SHORT = ((user(Q),), A, B)
LONG = ((user(Q), said("so ."), user(Q2)), A, B)
HH = f"\n\nHuman: {Q}\n\nAssistant: so .\n\nHuman: {Q2}\n\nAssistant: "

PAIR_SHAPES = {
    "implicit turns": (
        {"chosen": [turn("user", Q), turn("assistant", A)], "rejected": [turn("user", Q), turn("assistant", B)]},
        SHORT,
        "preference turns",
    ),
    "explicit turns": (
        {"prompt": [turn("user", Q)], "chosen": [turn("assistant", A)], "rejected": [turn("assistant", B)]},
        SHORT,
        "preference turns",
    ),
    "several turns": (
        {
            "chosen": [turn("user", Q), turn("assistant", "so ."), turn("user", Q2), turn("assistant", A)],
            "rejected": [turn("user", Q), turn("assistant", "so ."), turn("user", Q2), turn("assistant", B)],
        },
        LONG,
        "preference turns",
    ),
    "ultrafeedback": (
        {
            "prompt": Q,
            "chosen": [turn("user", Q), turn("assistant", A)],
            "rejected": [turn("user", Q), turn("assistant", B)],
            "messages": [turn("user", Q), turn("assistant", A)],
            "score_chosen": 8.0,
        },
        SHORT,
        "preference turns",
    ),
    "plain with prompt": ({"prompt": Q, "chosen": A, "rejected": B}, SHORT, "prompt, chosen, rejected"),
    "system and question": (
        {"system": "be kind", "question": Q, "chosen": A, "rejected": B},
        ((Message("system", "be kind"), user(Q)), A, B),
        "prompt, chosen, rejected",
    ),
    "plain without prompt": (
        {"chosen": "the sky is blue .", "rejected": "the sky is black ."},
        ((user("the sky is"),), "blue .", "black ."),
        "chosen and rejected texts; their shared beginning is the prompt",
    ),
    "transcripts": ({"chosen": HH + A, "rejected": HH + B}, LONG, "preference transcripts"),
    "transcript as prompt": ({"prompt": HH, "chosen": A, "rejected": B}, LONG, "prompt, chosen, rejected"),
    "first output is better": (
        {"instruction": Q, "output_1": A, "output_2": B, "preference": 1.2},
        SHORT,
        "AlpacaEval annotations",
    ),
    "second output is better": (
        {"instruction": Q, "output_1": B, "output_2": A, "preference": "1.9"},
        SHORT,
        "AlpacaEval annotations",
    ),
}


@pytest.mark.parametrize("name", PAIR_SHAPES)
def test_shapes_of_pairs(name):
    row, (prompt, chosen, rejected), shape = PAIR_SHAPES[name]
    loaded = pairs(row)
    assert loaded.items == (make_pair(prompt, chosen, rejected, 1),)
    assert loaded.shape == shape
    assert loaded.dropped == {}


def test_helpsteer_pairs_consecutive_responses_by_helpfulness():
    def row(prompt, response, helpfulness):
        return {"prompt": prompt, "response": response, "helpfulness": helpfulness, "verbosity": 4}

    long = f"{Q}\n<extra_id_1>Assistant\nso .\n<extra_id_1>User\n{Q2}"
    loaded = pairs(
        row(Q, A, 4),
        row(Q, B, 1),
        row("tie ?", A, 3),
        row("tie ?", B, 3),
        row("alone ?", A, 2),
        row(long, B, "0"),
        row(long, A, "3"),
    )
    assert loaded.items == (make_pair(*SHORT, 1), make_pair(*LONG, 6))
    assert loaded.dropped == {"tie": 1, "response without a partner": 1}
    assert loaded.shape == "HelpSteer2 ratings"


def test_a_tie_is_a_prompt_of_its_side_and_moves_no_pair(tmp_path):
    """Ties are no pairs and hold nothing out; whoever asks for prompts gets those of the held-out side."""

    def rows(prompt, ratings):
        return [
            {"prompt": prompt, "response": answer, "helpfulness": rating}
            for answer, rating in zip((A, B), ratings, strict=True)
        ]

    decided = [row for n in range(40) for row in rows(f"number {n} ?", (4, 1))]
    tied = [row for n in range(200) for row in rows(f"tie {n} ?", (2, 2))]

    def sides(name, listed):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in listed))
        data = DataSet([parse_source(str(path))], "pairs", skip_bad_rows=False)
        return {side: (data.pairs(side).items, data.prompts(side, None, True).items) for side in ("train", "test")}

    without, mixed = sides("without.jsonl", decided), sides("mixed.jsonl", [*tied[:200], *decided, *tied[200:]])
    for side in ("train", "test"):
        assert [pair.id for pair in mixed[side][0]] == [pair.id for pair in without[side][0]]
        assert [prompt.id for prompt in without[side][1]] == [pair.id for pair in without[side][0]]
    held, asked = mixed["test"]
    ties = [prompt for prompt in asked if not prompt.chosen]
    assert len(held) == 2
    assert 0 < len(ties) < 60, "held out by their hash, as the prompts of pairs are"
    assert len(ties) + sum(not prompt.chosen for prompt in mixed["train"][1]) == 200
    assert max(prompt_key(prompt)[:16] for prompt in ties) <= max(prompt_key(pair)[:16] for pair in held)
    assert {pair.id for pair in held} < {prompt.id for prompt in asked}


def test_ties_of_annotations_are_dropped():
    row = {"instruction": Q, "output_1": A, "output_2": B}
    loaded = pairs({**row, "preference": 1.5}, {**row, "preference": 1})
    assert [item.row for item in loaded.items] == [2]
    assert loaded.dropped == {"tie": 1}
    assert "left out: tie (1)" in loaded.notes


ONE, TWO = (user(Q), said(A)), (user(Q), said("so ."), user(Q2), said(A))
DIALOGUE_SHAPES = {
    "messages": ({"messages": [turn("user", Q), turn("assistant", A)]}, ONE),
    "sharegpt": (
        {
            "system": "be kind",
            "conversations": [
                {"from": who, "value": text} for who, text in (("human", Q), ("gpt", "so ."), ("human", Q2), ("gpt", A))
            ],
        },
        (Message("system", "be kind"), *TWO),
    ),
    "completion": ({"prompt": Q, "completion": A}, ONE),
    "completion as turns": ({"prompt": [turn("user", Q)], "completion": [turn("assistant", A)]}, ONE),
    "alpaca": ({"instruction": Q, "output": A, "generator": "g"}, ONE),
    "alpaca with input": ({"instruction": Q, "input": "this", "output": A}, (user(f"{Q}\n\nthis"), said(A))),
    "transcript": ({"text": HH + A}, TWO),
    "preferences": ({"prompt": Q, "chosen": A, "rejected": B}, ONE),
}


@pytest.mark.parametrize("name", DIALOGUE_SHAPES)
def test_shapes_of_dialogues(name):
    row, messages = DIALOGUE_SHAPES[name]
    assert load_dialogues(rows(row)).items == (make_dialogue(messages, 1),)


def test_turns_without_part_in_training_are_left_out_and_said():
    chat = [turn("system", "s"), turn("assistant", "hi"), turn("user", Q), turn("assistant", A), turn("user", Q2)]
    loaded = load_dialogues(rows({"messages": chat}))
    assert loaded.items[0].messages == (Message("system", "s"), *ONE)
    assert "1 dialogue lost turns" in loaded.notes[0]


@pytest.mark.parametrize(
    ("row", "found"),
    [
        ({"text": "once upon a time"}, "has a column text that does not say where the prompt ends"),
        ({"prompt": Q, "completion": A, "label": True}, "answers with a label"),
        ({"foo": 1, "bar": 2}, r"do not form dialogues: bar, foo"),
    ],
)
def test_shapes_that_cannot_serve(row, found):
    with pytest.raises(DataError, match=found) as caught:
        load_dialogues(rows(row))
    assert caught.value.hint


@pytest.mark.parametrize(
    ("row", "guess"),
    [
        ({"prompt": Q, "chosen": A, "rejectd": B}, "to read rejectd as rejected, add --columns rejected=rejectd; "),
        (
            {"Prompt": Q, "Chosen": A, "Rejected": B},
            "to read Prompt, Chosen, Rejected as prompt, chosen, rejected, add --columns ",
        ),
        ({"prompt": Q, "chosen": A, "third": B}, "the forms that are read: "),
        ({"promt": Q, "answer": A}, "the forms that are read: "),
    ],
)
def test_a_misspelt_column_is_asked_for_where_that_would_do(row, guess):
    with pytest.raises(DataError, match="do not form") as caught:
        pairs(row)
    assert caught.value.hint.startswith(guess)


@pytest.mark.parametrize(
    ("columns", "load", "said"),
    [
        ("query response_chosen response_rejected", load_pairs,
         "to read query, response_chosen, response_rejected as prompt, chosen, rejected, add --columns "),
        ("prompt Chosen-Response Rejected-Response", load_pairs,
         "to read Chosen-Response, Rejected-Response as chosen, rejected, add --columns "),
        ("question response_j response_k", load_pairs,
         "to read question, response_j, response_k as prompt, chosen, rejected, add --columns "),
        ("prompt better worse", load_pairs, "to read better, worse as chosen, rejected, add --columns "),
        ("question answer", load_dialogues, "to read question, answer as prompt, completion, add --columns "),
        ("prompt answer", load_pairs, "these look like dialogues, which adpa sft --data reads: "),
        ("prompt response answer", load_dialogues, "the forms that are read: "),
    ],
)  # fmt: skip
def test_columns_that_others_call_otherwise_are_to_be_renamed(columns, load, said):
    with pytest.raises(DataError, match="do not form") as caught:
        load(rows({name: name for name in columns.split()}))
    assert caught.value.hint.startswith(said)


def test_dialogues_are_no_pairs():
    with pytest.raises(DataError, match="and preference pairs are needed") as caught:
        pairs({"messages": [turn("user", Q), turn("assistant", A)]})
    assert "adpa sft" in caught.value.hint


def good(number):
    return {"prompt": f"q{number}", "chosen": A, "rejected": B}


def chat(*roles_and_texts):
    return [turn(*each) for each in roles_and_texts]


@pytest.mark.parametrize(
    ("bad", "kind", "said_of_it"),
    [
        ({"prompt": Q, "chosen": A}, "missing rejected", "row 2, rejected: the column is missing"),
        ({"prompt": Q, "chosen": A, "rejected": None}, "missing rejected", "row 2, rejected: the column is missing"),
        (
            {"prompt": Q, "chosen": 3, "rejected": B},
            "chosen: wrong type",
            "row 2, chosen: its type is int, and text or turns",
        ),
        ({"prompt": 3, "chosen": A, "rejected": B}, "prompt: wrong type", "row 2, prompt: its type is int"),
        ({"prompt": Q, "chosen": " \n", "rejected": B}, "empty chosen", "row 2, chosen: the answer is empty"),
        (
            {"prompt": Q, "chosen": A, "rejected": A},
            "chosen equals rejected",
            "row 2, rejected: both answers are the same text",
        ),
        ({"prompt": " ", "chosen": A, "rejected": B}, "empty prompt", "row 2, prompt"),
        ({"prompt": Q, "chosen": "\ud800", "rejected": B}, "chosen: broken characters", "row 2, chosen"),
        (
            {"prompt": chat(("user", Q), ("assistant", A)), "chosen": A, "rejected": B},
            "prompt does not end with the user",
            "row 2, prompt: ends with the assistant's turn",
        ),
        (
            {"prompt": chat(("narrator", Q)), "chosen": A, "rejected": B},
            "prompt: unknown role",
            r"row 2, prompt\[0\].role: 'narrator'",
        ),
        (
            {"prompt": [{"role": "user"}], "chosen": A, "rejected": B},
            "prompt: missing content",
            r"row 2, prompt\[0\].content: the key is missing or null",
        ),
        (
            {"chosen": chat(("user", Q), ("assistant", A)), "rejected": chat(("user", Q2), ("assistant", B))},
            "prompts differ",
            "row 2, rejected: chosen and rejected answer different prompts",
        ),
        (
            {"chosen": chat(("user", Q)), "rejected": chat(("user", Q))},
            "chosen: no answer",
            "row 2, chosen: the turns end with the user's",
        ),
        ({"prompt": Q, "chosen": [], "rejected": B}, "chosen: wrong type", "row 2, chosen: the list is empty"),
    ],
)
def test_problems_name_row_and_field_and_can_be_skipped(bad, kind, said_of_it):
    found = (good(1), bad, good(3))
    with pytest.raises(DataError, match=f"1 of 3 rows cannot be used\n  rows {said_of_it}") as caught:
        pairs(*found)
    assert f"by kind: {kind} (1)" in caught.value.message
    assert "--skip-bad-rows" in caught.value.hint
    loaded = pairs(*found, skip_bad_rows=True)
    assert [item.row for item in loaded.items] == [1, 3]
    assert loaded.dropped == {kind: 1}


@pytest.mark.parametrize("preference", [0, 2.5, "x", None, True, float("nan")])
def test_annotations_outside_one_to_two_are_problems(preference):
    row = {"instruction": Q, "output_1": A, "output_2": B}
    with pytest.raises(DataError, match="row 2, preference"):
        pairs({**row, "preference": 1.0}, {**row, "preference": preference})


def test_first_five_problems_and_all_counts():
    bad = [{"prompt": f"q{i}", "chosen": A, "rejected": "" if i % 2 else A} for i in range(8)]
    with pytest.raises(DataError) as caught:
        pairs(*bad)
    assert caught.value.message.count("rows row ") == 5
    assert "… 3 more" in caught.value.message
    assert "chosen equals rejected (4), empty rejected (4)" in caught.value.message


def test_nothing_left_is_an_error():
    with pytest.raises(DataError, match=r"none of the 1 rows can be used as pairs: empty rejected \(1\)"):
        pairs({"prompt": Q, "chosen": A, "rejected": ""}, skip_bad_rows=True)


@pytest.mark.parametrize(
    ("messages", "found"),
    [
        (chat(("user", Q)), "ends with the user's turn"),
        (chat(("user", Q), ("assistant", "")), r"messages\[1\]: this turn of the assistant is empty"),
        (chat(("assistant", A)), "no turn of the user"),
        (chat(("system", "s")), "no turn of the user"),
    ],
)
def test_unusable_dialogues(messages, found):
    with pytest.raises(DataError, match=f"row 2, messages.*{found}|row 2, {found}"):
        load_dialogues(rows({"messages": chat(("user", Q), ("assistant", A))}, {"messages": messages}))


def test_transcripts():
    assert transcript(HH + A) == (user(Q), said("so ."), user(Q2), said(A))
    assert transcript(HH.rstrip()) == (user(Q), said("so ."), user(Q2))
    assert transcript("no marks") == ()
    assert transcript("a\n\nHuman: b") == ()


def test_ids_are_of_the_content():
    same = [make_pair(*SHORT, row).id for row in (1, 2)]
    assert same[0] == same[1]
    content = json.dumps([[["user", Q]], A, B], separators=(",", ":")).encode()
    assert same[0] == hashlib.sha256(content).hexdigest()[:16]
    assert make_pair(SHORT[0], B, A).id != same[0]


def test_repetitions_are_left_out_so_that_an_id_is_a_key():
    loaded = pairs(good(1), good(2), good(1))
    assert [item.row for item in loaded.items] == [1, 2]
    assert loaded.dropped == {"repeated": 1}


def test_limit_takes_the_first():
    assert [item.row for item in pairs(good(1), good(2), good(3), limit=2).items] == [1, 2]


def hold_out(items):
    """(train, test) of some items."""
    keys = np.array([int(prompt_key(item)[:16], 16) for item in items], dtype=np.uint64)
    is_held = np.isin(keys, held_out_keys(keys))
    return [[item for item, of_test in zip(items, is_held, strict=True) if of_test == side] for side in (False, True)]


def many(count, answers=2):
    return [
        make_pair((user(f"question {number} ?"),), f"answer {answer}", "no", number * answers + answer)
        for number in range(count)
        for answer in range(answers)
    ]


@pytest.mark.parametrize(("prompts", "held"), [(1, 0), (2, 1), (39, 1), (40, 2), (200, 10), (10020, 500)])
def test_share_of_the_prompts_held_out(prompts, held):
    items = many(prompts)
    train, test = hold_out(items)
    assert len(test) == 2 * held
    assert len(train) == 2 * (prompts - held)
    assert not {item.prompt for item in train} & {item.prompt for item in test}


def test_held_out_are_the_smallest_hashes_in_any_order():
    items = many(60)
    train, test = hold_out(items)
    hashes = {
        item.prompt: hashlib.sha256(
            json.dumps([["user", item.prompt[0].content]], separators=(",", ":")).encode()
        ).hexdigest()
        for item in items
    }
    assert {item.prompt for item in test} == set(sorted(hashes, key=hashes.__getitem__)[:3])
    assert hold_out(items[::-1])[1] == test[::-1]
    assert hold_out(train)[1] != test


def test_dialogues_are_split_by_their_first_question():
    items = [make_dialogue((user(f"q{i // 3}"), said("a"), user(f"more {i}"), said("b")), i) for i in range(120)]
    train, test = hold_out(items)
    assert len(test) == 6
    assert not {item.messages[0] for item in train} & {item.messages[0] for item in test}


def write(path, found):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in found))
    return parse_source(str(path))


def test_sides_of_a_file_are_held_out_alike_for_pairs_and_dialogues(tmp_path):
    source = write(tmp_path / "test_rows.jsonl", [good(i) for i in range(100)])
    train, test = (load_pairs([source], side) for side in ("train", "test"))
    assert len(train.items) == 95
    assert len(test.items) == 5
    assert train.notes == ("there is no test split: 5 prompts held out, chosen by hash",)
    chats = load_dialogues([source], "test").items
    assert [item.row for item in chats] == [item.row for item in test.items]


def test_a_split_of_its_own_is_used(tmp_path):
    write(tmp_path / "train.jsonl", [good(i) for i in range(30)])
    write(tmp_path / "test.jsonl", [good(i) for i in range(30, 37)])
    folder = parse_source(str(tmp_path))
    assert len(load_pairs([folder]).items) == 30
    assert len(load_pairs([folder], "test").items) == 7
    assert load_pairs([folder]).notes == ()
    named = parse_source(f"{tmp_path}#test")
    assert len(load_pairs([named], "test").items) == 7
    with pytest.raises(DataError, match="holds test splits only"):
        load_pairs([named])
    beside = write(tmp_path / "more" / "x.jsonl", [good(i) for i in range(40, 50)])
    assert len(load_pairs([beside, named]).items) == 10
    assert len(load_pairs([beside, named], "test").items) == 7


def test_sources_follow_each_other_and_share_what_is_held_out(tmp_path):
    first = write(tmp_path / "a.jsonl", [good(i) for i in range(40)])
    again = write(tmp_path / "b.jsonl", [{**good(i), "chosen": "else"} for i in range(40)])
    train, test = (load_pairs([first, again], side).items for side in ("train", "test"))
    assert len(train) == 76
    assert len(test) == 4
    assert not {item.prompt for item in train} & {item.prompt for item in test}
    assert [item.chosen for item in train] == [A] * 38 + ["else"] * 38


def test_a_problem_in_a_folder_names_its_file(tmp_path):
    write(tmp_path / "d" / "one.jsonl", [good(1)])
    write(tmp_path / "d" / "two.jsonl", [good(2), {"prompt": "x", "chosen": A, "rejected": A}])
    with pytest.raises(DataError, match=r"two\.jsonl row 2, rejected"):
        load_pairs([parse_source(str(tmp_path / "d"))])


def test_real_transcripts(shared_data):
    source = parse_source(str(shared_data / "hh_rlhf_harmless_test.jsonl.gz"))
    with pytest.raises(DataError, match="9 of 2312 rows cannot be used"):
        load_pairs([source])
    train, test = (load_pairs([source], side, skip_bad_rows=True) for side in ("train", "test"))
    assert len(train.items) + len(test.items) == 2303
    assert train.dropped == {"empty chosen": 4, "prompts differ": 5}
    first = next(item for item in (*train.items, *test.items) if item.row == 1)
    assert [message.role for message in first.prompt] == ["user", "assistant", "user", "assistant", "user"]
    assert first.chosen.startswith("No, sorry!  All of these")
    assert first.rejected.startswith("There are lots of funny")
    assert not any("\n\nHuman:" in item.chosen for item in train.items)


def test_real_annotations_and_answers(shared_data):
    source = parse_source(str(shared_data / "alpaca_eval_preferences.jsonl.zst"))
    train, test = (load_pairs([source], side) for side in ("train", "test"))
    prompts = [{item.prompt for item in side.items} for side in (train, test)]
    assert len(prompts[0] | prompts[1]) == 685
    assert len(prompts[1]) == 34
    assert not prompts[0] & prompts[1]
    assert len(train.items) + len(test.items) + train.dropped["repeated"] + test.dropped["repeated"] == 4110
    answers = parse_source(str(shared_data / "alpaca_eval_model_outputs.json"))
    loaded = load_dialogues([answers])
    assert len(loaded.items) + len(load_dialogues([answers], "test").items) == 805
    assert all(isinstance(item, Dialogue) for item in loaded.items)
    assert all(isinstance(item, Pair) for item in test.items)


def test_a_source_is_read_once_for_both_sides_and_every_limit(tmp_path, monkeypatch):
    from adpa_cli.data import files
    from adpa_cli.hub import externals

    lines = [json.dumps({"prompt": f"q {n}", "chosen": A, "rejected": B if n else A}) + "\n" for n in range(40)]
    (tmp_path / "pairs.jsonl").write_text("".join(lines))
    read = []
    lines_of = files.open_lines
    monkeypatch.setattr(files, "open_lines", lambda path: read.append(path.name) or lines_of(path))
    where = (str(tmp_path / "pairs.jsonl"),)
    with pytest.raises(DataError, match="1 of 40 rows cannot be used"):
        externals.pairs_of(where, "train", None, False)
    with pytest.raises(DataError, match="1 of 40 rows cannot be used"):
        externals.pairs_of(where, "test", None, False)
    once = list(read)
    assert set(once) == {"pairs.jsonl"}
    train, test, few = (
        externals.pairs_of(where, side, n, True) for side, n in (("train", None), ("test", None), ("train", 3))
    )
    assert read == once
    assert few.items == train.items[:3]
    assert len(train.items) + len(test.items) == 39
    assert train.notes == test.notes == few.notes
    assert train == load_pairs([parse_source(where[0])], skip_bad_rows=True)
    assert test == load_pairs([parse_source(where[0])], "test", skip_bad_rows=True)


def test_rows_that_are_built_in_are_made_for_the_side_that_is_read(monkeypatch, tmp_path):
    from adpa_cli.hub import externals
    from adpa_cli.lab import world

    made = []
    monkeypatch.setenv("ADPA_CACHE", str(tmp_path))
    monkeypatch.setattr(world, "demonstrations", lambda split: made.append(split) or world.preferences("test")[:4])
    sources = externals.open_sources(["builtin:tiny-sft"])
    assert made == []
    assert len(load_dialogues(sources).items) == 4
    assert made == ["train"]
    assert len(load_dialogues(externals.open_sources(["builtin:tiny-sft"])).items) == 4
    assert made == ["train"], "and are kept"


@pytest.mark.parametrize("asked", ["", " \n"])
def test_a_dialogue_that_begins_with_an_empty_question_is_refused_by_its_row(asked):
    whole = {"messages": chat(("user", Q), ("assistant", A))}
    question = ("user", asked), ("assistant", A)
    for place, turns in ((0, question), (1, (("system", Q2), *question, ("user", Q), ("assistant", B)))):
        bad = {"messages": chat(*turns)}
        said_of_it = rf"rows row 2, messages\[{place}\]: this turn of the user is empty"
        with pytest.raises(DataError, match=said_of_it):
            load_dialogues(rows(whole, bad))
        assert load_dialogues(rows(whole, bad), skip_bad_rows=True).dropped == {"empty prompt": 1}
