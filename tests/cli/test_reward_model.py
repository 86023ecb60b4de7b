"""Reward models through the command line: trained, plain for transformers, judging, selecting and feeding a method."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from adpa_cli.lab import world
from adpa_cli.report.text import number
from adpa_cli.store.store import Store
from support.cli_samples import Cli, write_pairs

FEW = ["--set", "sft.max_steps=2", "--set", "sft.limit=64", "--limit", "24", "--max-steps", "2"]
UPSTREAM = ["--set", "reward-model.max_steps=2", "--set", "reward-model.limit=24"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pairs; the store of the tests of this module is beside them."""
    return write_pairs(tmp_path_factory.mktemp("reward"))


@pytest.fixture
def here(cli: Cli, place: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    monkeypatch.chdir(place)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return cli


def stages(here: Cli, *words: object) -> list[str]:
    """The stages of a plan, in order."""
    return [row[4].split("/")[0] for row in here(*words, "-n").rows if row[0].isdigit()]


def planned(here: Cli, *words: object) -> str:
    """The reference of what a plan makes in the end."""
    return here(*words, "-n").rows[-1][4]


def train(here: Cli) -> str:
    return here("reward-model", "--model", "tiny", "--data", "./pairs", *FEW).ref


def test_the_artifact_is_a_plain_classifier_with_its_accuracy(here: Cli, place: Path) -> None:
    ref = train(here)
    folder = Path(here("path", ref).ref)
    model, info = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert model.config.num_labels == 1
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.pad_token_id == model.config.pad_token_id != tokenizer.eos_token_id
    margins = []
    for row in world.preferences("test")[:8]:
        rewards = []
        for part in ("chosen", "rejected"):
            turns = [*row["prompt"], *row[part]]
            ids = tokenizer.apply_chat_template(turns, return_tensors="pt", return_dict=True)
            assert int(ids["input_ids"][0, -1]) == tokenizer.eos_token_id
            with torch.no_grad():
                rewards.append(float(model(**ids).logits[0, 0]))
        margins.append(rewards[0] - rewards[1])
    metrics = Store.find(place / "adpa-store").get(ref).metrics
    assert metrics["pairs"] == 8
    assert metrics["margin"] == pytest.approx(sum(margins) / 8, abs=1e-5)
    assert metrics["accuracy"] == pytest.approx(sum((m > 0) + 0.5 * (m == 0) for m in margins) / 8)
    page = json.loads(here("show", ref, "--json").out)
    assert page["metrics"]["accuracy"] == metrics["accuracy"]
    assert f"accuracy {number(metrics['accuracy'])}" in here("show", ref).out


def again(here: Cli, ref: str) -> str:
    """What the recipe of an artifact makes."""
    recipe = here("show", ref, "--recipe")
    assert recipe.code == 0, recipe.err
    Path("again.toml").write_text(recipe.out)
    return here("run", "./again.toml").ref


def test_its_recipe_makes_it_again(here: Cli) -> None:
    ref = train(here)
    assert again(here, ref) == ref
    assert 'command = "reward-model"' in Path("again.toml").read_text()


def test_it_closes_a_distillation_where_the_family_has_no_judge(here: Cli, place: Path) -> None:
    judge = train(here)
    student = here("path", here("sft", "--model", "tiny", *FEW).ref).ref
    words = ["distill", "--method", "sft", "--student", student, "--data", "./pairs", "--set", "max_length=128",
             "--set", "dtype=float32", "--set", "eval.max_length=128", "--max-steps", "2"]  # fmt: skip
    plain, judged = stages(here, *words), stages(here, *words, "--reward-model", judge)
    assert (plain.count("eval"), plain.count("rollout")) == (2, 0)
    assert [judged.count(stage) for stage in ("eval", "rollout", "rewards")] == [4, 2, 2]


def test_it_judges_answers_under_every_name(here: Cli, place: Path) -> None:
    ref = train(here)
    student = here("sft", "--model", "tiny", *FEW).ref
    few = ["--data", "./pairs", "--set", "rollout.max_new_tokens=6"]
    by_id = here("eval", student, *few, "--reward-model", ref).ref
    scores = Store.find(place / "adpa-store").get(by_id).metrics
    assert scores["suite"] == "reward-model"
    assert "mean_reward" in scores["scores"]
    by_path = here("eval", student, *few, "--reward-model", str(Path(here("path", ref).ref))).ref
    again = Store.find(place / "adpa-store").get(by_path).metrics
    assert by_path != by_id
    assert again["scores"]["mean_reward"]["value"] == pytest.approx(scores["scores"]["mean_reward"]["value"], abs=1e-5)
    upstream = ["--set", "sft.max_steps=2", "--set", "sft.limit=64", *UPSTREAM]
    rows = here("eval", student, *few, *upstream, "--reward-model", "tiny", "-n").rows
    assert by_id in [row[4] for row in rows], "the family's own"
    assert "--reward-model needs an artifact made by reward-model" in here.refused(
        2, "eval", student, "--reward-model", student
    )


def test_ddpo_fits_the_rewards_of_one(here: Cli, place: Path) -> None:
    words = ["distill", "--method", "ddpo", "--student", "tiny", "--data", "./pairs", "--no-eval", *FEW, *UPSTREAM]
    explicit = [*words, "--set", "reward=explicit"]
    found = stages(here, *explicit)
    assert found[-4:] == ["reward-model", "rewards", "start-logps", "distill"]
    assert set(found[:-4]) <= {"sft"}
    made = Store.find(place / "adpa-store").get(here(*explicit).ref)
    assert made.spec["params"]["reward"] == "explicit"
    assert "beta_teacher" not in made.spec["params"]
    assert planned(here, *explicit, "--set", "beta_teacher=3") == made.ref
    assert "cache-teacher" in stages(here, *words)
    assert planned(here, *explicit, "--reward-model", train(here)) == made.ref, "it is the one that the plan makes"
    other = here("reward-model", "--model", "tiny", "--data", "./pairs", *FEW, "--seed", "1").ref
    assert planned(here, *explicit, "--reward-model", other) != made.ref
    assert again(here, made.ref) == made.ref
    here(*explicit, "--set", "rewards.dtype=float16")
    few = next(m for m in Store.find(place / "adpa-store").artifacts() if m.stage == "rewards" and "noise" in m.metrics)
    assert few.spec["dtype"] == "float16"
    assert 0 < few.metrics["noise"]["margin"]["error"] < few.metrics["noise"]["margin"]["rms"] / 3


def test_the_best_point_is_the_one_whose_answers_it_prefers(here: Cli, place: Path) -> None:
    judge = train(here)
    words = ["distill", "--method", "sft", "--student", "tiny", "--data", "./pairs", "--no-eval", *FEW,
             "--set", "batch_size=6", "--max-steps", "4", "--select", "best"]  # fmt: skip
    without, judged = here(*words).ref, here(*words, "--reward-model", judge).ref
    assert without != judged
    made = Store.find(place / "adpa-store").get(judged)
    points = made.metrics["selection"]["points"]
    assert made.metrics["selection"]["step"] == max(points, key=lambda p: (p["reward"], p["step"]))["step"]
    assert {p["prompts"] for p in points} == {1}, "of the eight, those by which is selected"
    assert made.spec["judged_tokens"] == 64
    assert again(here, judged) == judged
    assert planned(here, *words[:-2], "--reward-model", judge) == planned(here, *words[:-2])
