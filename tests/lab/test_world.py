"""The tiny world: right answers, the reward's components by hand, disjoint splits, pinned rows."""

import hashlib
import json
from collections.abc import Sequence
from itertools import islice
from random import Random

import pytest

from adpa_cli.errors import DataError
from adpa_cli.lab import world
from adpa_cli.lab import world as tasks

RIGHT = {
    "sort the letters d b a .": "the answer is a b d .",
    "put q c q in order .": "the answer is c q q .",
    "be brief : reverse the letters a b c .": "c b a .",
    "keep it short : write k j backwards . thank you .": "j k .",
    "be polite : double each letter of a b .": "sure ! a a b b . thanks !",
    "answer politely : say every letter of z twice .": "sure ! z z . thanks !",
    "be formal : give the letter after each of a y z .": "respectfully , the answer is b z a .",
    "answer formally : shift m a forward .": "respectfully , the answer is n b .",
    "hello , use plain words : write three zero nine in digits .": "the answer is 3 0 9 .",
    "turn the numbers one one into digits . cheers !": "the answer is 1 1 .",
    "now be brief : what is the capital of peru .": "lima .",
    "name the main city of japan france .": "the answer is tokyo paris .",
    "be polite : what is the colour of snow coal .": "sure ! white black . thanks !",
    "quick one for you : how would you paint banana . when ready .": "the answer is yellow .",
    "replace b by k in a b c b .": "the answer is a k c k .",
    "be formal : in x y x change x to y . it matters .": "respectfully , the answer is y y y .",
}


@pytest.mark.parametrize(("prompt", "answer"), RIGHT.items())
def test_the_right_answer_in_the_right_frame_earns_everything(prompt: str, answer: str) -> None:
    assert world.explain(prompt, answer) == {
        "correct": 1.0, "style": 1.0, "concise": 1.0, "civil": 1.0, "reward": pytest.approx(1.0),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("answer", "correct", "style", "concise", "civil"),
    [
        ("a b d .", 1, 0, 1, 1),  # another mode: shorter, but not what was asked
        ("respectfully , the answer is a b d .", 1, 0, 1 - 2 / 8, 1),
        ("the answer is a d b .", 1 / 3, 1, 1, 1),  # two substitutions of three
        ("the answer is a d .", 2 / 3, 1, 1, 1),  # a word missing
        ("the answer is a b c d .", 3 / 4, 1, 1 - 1 / 8, 1),
        ("the answer is paris .", 0, 1, 1, 1),
        ("good question ! the answer is a b d .", 1, 0, 1 - 3 / 8, 1),
        ("the answer is a b d . you fool !", 1, 0, 1 - 3 / 8, 0),
        ("the answer is a b d . again : a b d .", 1, 0, 1 - 6 / 8, 1),  # only the first run counts
        ("the answer is a b d . " + "thanks ! " * 9, 1, 0, 0, 1),
        ("the answer is .", 0, 0, 0, 1),
        ("", 0, 0, 0, 1),
        ("shut up .", 0, 0, 0, 0),
    ],
)
def test_each_fault_costs_its_component(
    answer: str, correct: float, style: float, concise: float, civil: float
) -> None:
    prompt = "sort the letters d b a ."
    parts = world.explain(prompt, answer)
    assert parts == pytest.approx(
        {
            "correct": correct, "style": style, "concise": concise, "civil": civil,
            "reward": 0.5 * correct + 0.2 * style + 0.15 * concise + 0.15 * civil,
        }
    )  # fmt: skip
    assert world.reward(prompt, answer) == parts["reward"]


def test_a_prompt_of_another_world_is_refused() -> None:
    with pytest.raises(DataError, match="what is love"):
        world.reward("what is love ?", "the answer is a .")
    with pytest.raises(DataError, match="no split 'dev'"):
        world.preferences("dev")


def test_every_wording_is_read_back() -> None:
    rng = Random("wordings")
    seen = set()
    for _ in range(3000):
        question = tasks.draw(rng)
        assert tasks.read(tasks.word(rng, question)) == question
        seen.add((question.task, question.mode))
    assert len(seen) == len(tasks.TASKS) * len(tasks.FRAMES)


def test_frames_and_phrases_hold_no_value_word() -> None:
    values = {value for task in tasks.TASKS.values() for value in (*task.source, *task.target)}
    spoken = {word for frame in tasks.FRAMES.values() for side in frame for word in side.split()}
    spoken |= {word for phrase in (*tasks.RUDE, *tasks.FILLERS, world.REPEAT) for word in phrase.split()}
    assert not values & spoken


def test_only_rude_phrases_hold_rude_words() -> None:
    prompt = "sort the letters d b a ."
    assert all(world.explain(prompt, phrase)["civil"] == 0 for phrase in tasks.RUDE)
    assert all(world.explain(prompt, phrase)["civil"] == 1 for phrase in tasks.FILLERS)


def _questions(rows: Sequence[dict]) -> set[tuple]:
    prompts = [(row["prompt"] if "prompt" in row else row["messages"])[0]["content"] for row in rows]
    assert len(set(prompts)) == len(rows)
    return {(q.task, q.items, q.old, q.new) for q in map(tasks.read, prompts)}


def test_no_question_crosses_a_split() -> None:
    splits = [
        _questions(rows(split)) for rows in (world.demonstrations, world.preferences) for split in ("train", "test")
    ]
    assert len(set().union(*splits)) == sum(map(len, splits))


def test_no_test_question_is_in_the_pretraining_texts() -> None:
    asked = _questions(world.preferences("test"))
    texts = list(islice(world.pretraining(20250), 3000))
    read = [text.split(" : ", 1)[1].rsplit(" answer :", 1)[0] for text in texts if text.startswith("question :")]
    assert len(read) > 500
    assert not asked & {(q.task, q.items, q.old, q.new) for q in map(tasks.read, read)}


def test_the_vocabulary_covers_every_text() -> None:
    known = set(world.vocabulary())
    texts = list(islice(world.pretraining(3), 2000))
    for split in ("train", "test"):
        texts += [turn["content"] for row in world.demonstrations(split) for turn in row["messages"]]
        texts += [turn["content"] for row in world.preferences(split) for turns in row.values() for turn in turns]
    assert {word for text in texts for word in text.split()} <= known
    assert 217 <= len(known) <= 260
    assert world.vocabulary() == sorted(known)


def test_the_writer_prefers_what_the_reward_prefers() -> None:
    pairs = world.preferences("train")

    def rewards(side: str) -> list[float]:
        return [world.reward(pair["prompt"][0]["content"], pair[side][0]["content"]) for pair in pairs]

    chosen, rejected = rewards("chosen"), rewards("rejected")
    flipped = sum(c < r for c, r in zip(chosen, rejected, strict=True)) / len(pairs)
    assert sum(chosen) / len(pairs) > sum(rejected) / len(pairs) + 0.2
    assert 0.06 < flipped < 0.10


# The rows behind VERSION. Rows that change need a new VERSION, for every id built on them changes.
PINNED = {
    ("demonstrations", "train"): "b5666d847e396dd984ab726e2fc181367cdecb0371aae287043212ed62142842",
    ("demonstrations", "test"): "02c3b36ceb22f484acf3abe171ca8872c628b07db592ee6622b708e66cd9da99",
    ("preferences", "train"): "cfc3f66a0a3f1857d140389ed16507df0aceff173b7425d46e1f80c074003b8e",
    ("preferences", "test"): "1a955da1adb8095a6feba381e6b3d6be5561a4771de96d0a8d888062fdf9d956",
}


@pytest.mark.parametrize(("kind", "split"), PINNED)
def test_rows_are_pinned_to_the_version(kind: str, split: str) -> None:
    rows = getattr(world, kind)(split)
    text = json.dumps([world.VERSION, rows], sort_keys=True)
    assert hashlib.sha256(text.encode()).hexdigest() == PINNED[kind, split]


def test_pretraining_texts_are_pinned() -> None:
    text = "\n".join(islice(world.pretraining(20250), 2000))
    assert (
        hashlib.sha256(text.encode()).hexdigest() == "b389b4f9a7e291babe3f4d551856bd7b74e7f7aa1836c764d6b2d12b2bdafe82"
    )


def test_rows_are_made_once_for_all_who_read_them() -> None:
    assert world.preferences("test") is world.preferences("test")
    assert world.demonstrations("test") is not world.demonstrations("train")
