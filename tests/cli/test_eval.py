"""`adpa eval` with every suite, and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification

from adpa_cli import suites
from adpa_cli.engine.layout.examples import read_rollouts
from adpa_cli.lab import BASES, world
from adpa_cli.store.store import Store
from support.cli_samples import Cli, Pipeline

LENGTHS = {"answer_tokens", "cut_share", "repeated_share"}


def scores(pipeline: Pipeline, ref: str) -> dict[str, Any]:
    return dict(Store.find(pipeline.store).resolve(ref).metrics["scores"])


@pytest.fixture
def reward_model(tmp_path: Path) -> Path:
    """A reward model of random weights under the tokenizer of tiny."""
    folder = tmp_path / "rm"
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=238, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, num_labels=1,
        max_position_embeddings=256, pad_token_id=0, initializer_range=0.5,
    )  # fmt: skip
    LlamaForSequenceClassification(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(BASES / "student" / name, folder / name)
    return folder


def test_the_tiny_suite_is_the_reward_of_the_world(pipeline: Pipeline, cli: Cli) -> None:
    """Mean reward and win rate from the answers of both models, counted by hand."""
    student, start = pipeline.made("distill adpa"), pipeline.made("student")
    ran = cli("eval", student, "--against", start, "--data", pipeline.data, "--set", "rollout.max_new_tokens=12")
    found = scores(pipeline, ran.ref)
    store = Store.find(pipeline.store)
    inputs = store.resolve(ran.ref).inputs
    ours, theirs = (
        [world.reward(row.prompt[-1].content, row.text) for row in read_rollouts(store.folder(str(inputs[role])))]
        for role in ("rollouts", "against")
    )
    assert found["mean_reward"]["value"] == pytest.approx(sum(ours) / 12)
    wins = sum((a > b) + 0.5 * (a == b) for a, b in zip(ours, theirs, strict=True))
    assert found["win_rate"]["value"] == pytest.approx(wins / 12)
    assert found["win_rate"]["against"] == start
    for score in found.values():
        assert score["low"] <= score["value"] <= score["high"]
        assert score["n"] == 12


def test_without_an_opponent_there_is_no_win_rate(pipeline: Pipeline, cli: Cli) -> None:
    ran = cli("eval", pipeline.made("student"), "--data", pipeline.data)
    assert set(scores(pipeline, ran.ref)) == {"mean_reward", *LENGTHS}


def test_several_models_give_one_line_each(pipeline: Pipeline, cli: Cli) -> None:
    refs = [pipeline.made("distill dckd"), pipeline.made("distill adpa")]
    words = ("--suite", "accuracy", "--data", pipeline.data)
    ran = cli("eval", *refs, *words)
    lines = ran.out.splitlines()
    assert len(set(lines)) == 2
    assert all(set(scores(pipeline, line)) == {"reward_accuracy"} for line in lines)
    assert cli("eval", "-", *words, stdin="\n".join(refs)).out == ran.out


def test_a_reward_model_judges(pipeline: Pipeline, cli: Cli, reward_model: Path) -> None:
    student, start = pipeline.made("distill adpa"), pipeline.made("student")
    ran = cli("eval", student, "--against", start, "--reward-model", "./rm", "--data", pipeline.data)
    found = scores(pipeline, ran.ref)
    assert set(found) == {"mean_reward", "win_rate", *LENGTHS}
    assert Store.find(pipeline.store).resolve(ran.ref).spec["suite"] == "reward-model"
    same = cli(
        "eval",
        student,
        "--against",
        start,
        "--suite",
        "reward-model",
        "--reward-model",
        "./rm",
        "--data",
        pipeline.data,
    )
    assert same.ref == ran.ref


def test_the_implicit_reward_of_the_teachers_judges(pipeline: Pipeline, cli: Cli) -> None:
    """The reference teacher against itself gains nothing; the implicit reward of its lineage is found by itself."""
    teacher, student = pipeline.made("aligned teacher"), pipeline.made("distill adpa")
    words = ("--teacher", teacher, "--against", pipeline.made("student"), "--data", pipeline.data)
    ran = cli("eval", student, *words)
    made = Store.find(pipeline.store).resolve(ran.ref)
    assert made.spec["suite"] == "implicit"
    store = Store.find(pipeline.store)
    rewards = store.get(str(made.inputs["rewards"]))
    assert rewards is not None
    assert rewards.inputs["reference"] == f"artifact:{store.resolve(pipeline.made('reference teacher')).id}"
    assert set(scores(pipeline, ran.ref)) == {"mean_reward", "win_rate", *LENGTHS}
    named = cli("eval", student, *words, "--suite", "implicit", "--reference", pipeline.made("reference teacher"))
    assert named.ref == ran.ref
    assert made.metrics["watch"] == [suites.every()["implicit"].remark]
    for said in (ran.err, cli("eval", student, *words, "-n").err, cli("show", ran.ref).out):
        assert "the signal that ADPA is trained on" in " ".join(said.split())


def test_show_tells_the_scores_of_a_model(pipeline: Pipeline, cli: Cli) -> None:
    ref = pipeline.made("distill adpa")
    page = json.dumps(json.loads(cli("show", ref, "--json").out))
    assert "reward_accuracy" in page
    assert "mean_reward" in page


def test_limit_takes_the_first_rows(pipeline: Pipeline, cli: Cli) -> None:
    ran = cli("eval", pipeline.made("student"), "--data", pipeline.data, "--limit", "5", "--suite", "accuracy")
    assert scores(pipeline, ran.ref)["reward_accuracy"]["n"] == 5


def test_what_an_evaluation_needs_is_named(pipeline: Pipeline, cli: Cli, reward_model: Path) -> None:
    student = pipeline.made("student")
    words = ("eval", student, "--data", pipeline.data)
    assert "--reward-model MODEL" in cli.refused(2, *words, "--suite", "reward-model")
    teacher = pipeline.made("reference teacher")
    assert "--reference MODEL" in cli.refused(2, *words, "--teacher", teacher)
    for option in ("--against", "--reward-model", "--teacher"):
        said = cli.refused(2, *words, "--suite", "accuracy", option, teacher)
        assert f"{option} has no effect with --suite accuracy, which does not judge answers" in said
    raw = json.loads((reward_model / "config.json").read_text())
    raw.update(id2label={"0": "a", "1": "b"}, label2id={"a": 0, "b": 1})
    (reward_model / "config.json").write_text(json.dumps(raw))
    said = cli.refused(1, *words, "--reward-model", "./rm", "-n")
    assert "rm is not a reward model: it has 2 outputs instead of one" in said
    shutil.copytree(BASES / "student", "./writer")
    said = cli.refused(1, *words, "--reward-model", "./writer", "-n")
    assert "writer is not a reward model: LlamaForCausalLM has no head that gives one number" in said
