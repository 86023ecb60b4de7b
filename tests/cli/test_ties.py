"""Prompts whose answers tie: a model is measured and selected on them, and trained on none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from adpa_cli.data.examples import in_half
from adpa_cli.engine.layout.examples import read_rollouts
from adpa_cli.families import PAPER
from adpa_cli.lab import world
from adpa_cli.store.store import Store
from support.cli_samples import Cli, Pipeline


@pytest.fixture
def rated(tmp_path: Path) -> Path:
    """The pairs of the small pipeline as ratings of HelpSteer2; of the 24 held-out prompts every other one is a tie."""
    folder = tmp_path / "rated"
    folder.mkdir()
    for split, count in (("train", 40), ("test", 24)):
        rows = []
        for n, pair in enumerate(world.preferences(split)[:count]):
            prompt = pair["prompt"][-1]["content"]
            is_tie = split == "test" and n % 2 == 1
            for side, rating in (("chosen", 3), ("rejected", 3 if is_tie else 1)):
                rows.append({"prompt": prompt, "response": pair[side][-1]["content"], "helpfulness": rating})
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def test_prompts_whose_answers_tie_are_measured(pipeline: Pipeline, cli: Cli, rated: Path) -> None:
    student = pipeline.made("student")
    store = Store.find(pipeline.store)
    words = ("eval", student, "--data", "./rated", "--set", "rollout.max_new_tokens=12")
    found = {}
    for ties in ("true", "false"):
        made = store.resolve(cli(*words, "--set", f"rollout.ties={ties}").ref)
        scores = made.metrics["scores"]
        accuracy = store.resolve(cli("eval", student, "--data", "./rated", "--suite", "accuracy").ref)
        pairs = accuracy.metrics["scores"]["reward_accuracy"]["n"]
        answers = read_rollouts(store.folder(str(made.inputs["rollouts"])))
        found[ties] = [scores["mean_reward"]["n"], len(answers), pairs]
        rewards = [world.reward(row.prompt[-1].content, row.text) for row in answers]
        assert scores["mean_reward"]["value"] == pytest.approx(sum(rewards) / len(rewards))
    assert found == {"true": [24, 24, 12], "false": [12, 12, 12]}
    assert cli(*words).ref == cli(*words, "--set", "rollout.ties=false").ref, "the built-in world has no ties"
    assert PAPER["eval.rollout"]["ties"]


def test_a_training_reads_no_tie_and_a_reward_model_selects_by_them(pipeline: Pipeline, cli: Cli, rated: Path) -> None:
    store = Store.find(pipeline.store)
    few = ("--max-steps", 2, "--batch-size", 10, "--limit", 40)
    judge = cli("reward-model", "--model", pipeline.made("reference teacher"), "--data", pipeline.data, *few).ref
    words = ("distill", "--method", "sft", "--student", pipeline.made("student"), "--data", "./rated", *few)
    words = (*words, "--no-eval", "--select", "best", "--reward-model", judge)
    made = store.resolve(cli(*words).ref)
    assert made.metrics["examples"] == 40
    prompts = {row["prompt"] for row in map(json.loads, (rated / "test.jsonl").read_text().splitlines())}
    rollouts = cli("rollout", "--student", pipeline.made("student"), "--data", "./rated", "--split", "test",
                   "--set", "ties=true", "--max-new-tokens", 4)  # fmt: skip
    answers = read_rollouts(store.folder(rollouts.ref))
    assert len(answers) == len(prompts) == 24
    half = int(in_half(answers.table.values("id"), "validation").sum())
    assert {point["prompts"] for point in made.metrics["selection"]["points"]} == {half}
    whole = store.resolve(cli(*words, "--set", "select_on=all").ref)
    assert {point["prompts"] for point in whole.metrics["selection"]["points"]} == {12}, "those of pairs, as ever"
