"""The suite `agreement` by hand on two models whose log-probs are known, and on a teacher that DPO made."""

from __future__ import annotations

import json
import re
from math import exp, log
from pathlib import Path
from typing import Any

import pytest
import torch

from adpa_cli.lab import world
from adpa_cli.report.page import collect, screen
from adpa_cli.store.store import Store
from support.cli_samples import Cli, Pipeline, write_rows
from support.tiny_models import TEMPLATE, pretrained_tokenizer, tiny_llama

TOKENS = 37
LIKED = 5
"""The id of w0, which the model likes three times as well as any other token; the reference likes all alike."""
ROWS = {"right": ("w0 w1", "w1 w1"), "tie": ("w2 w1", "w1 w2"), "wrong": ("w1 w1", "w0 w0"), "long": ("w1 w2 w3", "w1")}
OTHER, BEST = log(37 / 39), log(37 * 3 / 39)
"""log π_model - log π_reference of any other token, and of w0."""
MARGINS = {"right": BEST - OTHER, "tie": 0.0, "wrong": 2 * (OTHER - BEST), "long": 2 * OTHER}
SETS = ("--set", "dtype=float32", "--set", "max_length=64")


def write_unigram(folder: Path, logit: float) -> Path:
    """A model of which every token has one probability wherever it stands: w0 exp(`logit`) times that of others."""
    model = tiny_llama(tie_word_embeddings=False, num_hidden_layers=1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
        model.model.embed_tokens.weight.fill_(1.0)
        model.model.norm.weight.fill_(1.0)
        model.lm_head.weight[LIKED] = logit / model.config.hidden_size
    model.save_pretrained(folder)
    tokenizer = pretrained_tokenizer()
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def unigrams(tmp_path: Path) -> Path:
    """A folder with `model`, `reference` and `pairs`; `wrong` and `long` are pairs of one prompt."""
    write_unigram(tmp_path / "model", log(3))
    write_unigram(tmp_path / "reference", 0.0)
    (tmp_path / "pairs").mkdir()
    for split in ("train", "test"):
        rows = [
            {"prompt": f"w9 w{6 + min(n, 2)}", "chosen": good, "rejected": bad}
            for n, (good, bad) in enumerate(ROWS.values())
        ]
        write_rows(tmp_path / "pairs" / f"{split}.jsonl", rows)
    return tmp_path


def evaluated(cli: Cli, *words: object) -> Any:
    """The manifest that an evaluation ended with."""
    ref = cli("eval", *words).ref
    return Store.find(Path("adpa-store")).resolve(ref)


def figures(manifest: Any) -> dict[str, Any]:
    return dict(json.loads((Path("adpa-store") / manifest.ref / "scores.json").read_text()))


def test_by_hand(unigrams: Path, cli: Cli) -> None:
    words = ("./model", "--suite", "agreement", "--reference", "./reference", "--data", "./pairs", *SETS)
    made = evaluated(cli, *words)
    kept = figures(made)
    assert sorted(kept["rows"]["margin"].values()) == pytest.approx(sorted(MARGINS.values()), abs=2e-6)
    assert len(set(kept["prompts"].values())) == 3
    found = made.metrics["scores"]
    assert set(found) == {"agreement", "longer_baseline", "longer_agreement"}
    assert (found["agreement"]["value"], found["agreement"]["n"]) == (1.5 / 4, 4)
    assert found["agreement"]["low"] == 0.0, "the two pairs of one prompt are wrong, and are drawn together"
    mean_square = sum(margin**2 for margin in MARGINS.values()) / 4
    assert made.metrics["margin_rms"] == pytest.approx(mean_square**0.5, abs=1e-6)
    assert exp(BEST - OTHER) == pytest.approx(3)
    page = screen(collect(Store.find(unigrams / "adpa-store"), made), 100, made.at)
    assert re.search(r" agreement on pairs \(n=4\) +37.5 ", page)
    assert f"margin_rms {made.metrics['margin_rms']:.3g}"[:14] in page


def test_two_models_are_compared_pair_by_pair(unigrams: Path, cli: Cli) -> None:
    write_unigram(unigrams / "contrary", -log(3))
    words = ("--suite", "agreement", "--reference", "./reference", "--data", "./pairs", *SETS)
    refs = cli("eval", "./model", "./contrary", *words).out.splitlines()
    said = json.loads(cli("show", *refs, "--json").out)["differences"]
    (difference,) = [one for one in said if one["metric"] == "agreement"]
    assert difference["value"] == 0.25, "right and wrong change places, and of the two long answers so does one"


def test_a_reference_alone_says_what_is_measured(unigrams: Path, cli: Cli) -> None:
    words = ("./model", "--reference", "./reference", "--data", "./pairs", *SETS)
    named = evaluated(cli, *words, "--suite", "agreement")
    assert evaluated(cli, *words).id == named.id
    planned = cli("eval", *words, "--limit", 2, "-n").rows
    assert any("agreement of model, reference reference" in row for row in planned)


def test_a_teacher_finds_the_model_that_it_was_aligned_from(cli: Cli, tmp_path: Path) -> None:
    """Twenty steps of DPO from the reference rank more of the unseen pairs right than wrong."""
    (tmp_path / "pairs").mkdir()
    for split, count in (("train", 256), ("test", 40)):
        write_rows(tmp_path / "pairs" / f"{split}.jsonl", world.preferences(split)[:count])
    reference = cli("sft", "--model", "tiny-teacher", "--max-steps", 20, "--limit", 256).ref
    steps = ("--max-steps", 20, "--batch-size", 32, "--lr", "1e-3", "--tag", "aligned")
    teacher = cli("dpo-teacher", "--reference", reference, "--data", "./pairs", *steps).ref
    made = evaluated(cli, "aligned", "--suite", "agreement")
    store = Store.find(tmp_path / "adpa-store")
    assert made.inputs["model"] == f"artifact:{store.resolve(teacher).id}"
    assert made.inputs["reference"] == f"artifact:{store.resolve(reference).id}"
    score = made.metrics["scores"]["agreement"]
    assert score["value"] > 0.5
    assert score["low"] <= score["value"] <= score["high"]
    assert score["n"] == 40
    assert made.metrics["margin_rms"] > 0
    assert evaluated(cli, "aligned", "--suite", "agreement", "--reference", reference).id == made.id
    shown = [found["metric"] for found in json.loads(cli("show", "aligned", "--json").out)["scores"]]
    assert shown == ["agreement", "longer_agreement", "longer_baseline", "shorter_agreement"]
    recipe = cli("show", made.ref, "--recipe").out
    assert 'suite = "agreement"' in recipe


def test_any_training_is_compared_with_its_start(pipeline: Pipeline, cli: Cli) -> None:
    student = pipeline.made("distill adpa")
    made = evaluated(cli, student, "--suite", "agreement", "--limit", 4)
    store = Store.find(pipeline.store)
    assert made.inputs["reference"] == store.resolve(student).inputs["model"]


def test_what_is_missing_or_does_not_fit_is_said(unigrams: Path, cli: Cli) -> None:
    words = ("--data", "./pairs", *SETS)
    asked = ("eval", "./model", "--suite", "agreement", *words)
    said = cli.refused(2, *asked)
    assert "compares a model with the one that it was aligned from" in said
    assert "--reference MODEL" in said
    assert "every margin would be 0" in cli.refused(2, *asked, "--reference", "./model")
    assert "--reference is empty" in cli.refused(2, *asked, "--reference", "")
    assert "there is no folder nowhere" in cli.refused(3, *asked, "--reference", "./nowhere")
    said = cli.refused(2, *asked, "--reference", "./reference", "--teacher", "./model")
    assert "--teacher has no effect with --suite agreement" in said
    assert "--suite implicit" in said
    said = cli.refused(2, "eval", "./model", "--suite", "accuracy", "--reference", "./reference", *words)
    assert "--reference has no effect with --suite accuracy, which does not judge answers" in said
    assert "--suite implicit or agreement" in said


def test_another_vocabulary_is_refused_before_any_work(unigrams: Path, cli: Cli) -> None:
    """As a capture refuses two teachers of two vocabularies."""
    raw = json.loads((unigrams / "reference" / "tokenizer.json").read_text())
    words = raw["model"]["vocab"]
    words["w7"], words["w8"] = words["w8"], words["w7"]
    (unigrams / "reference" / "tokenizer.json").write_text(json.dumps(raw))
    both = ("--reference", "./reference", "--data", "./pairs")
    said = [
        cli.refused(1, *command, *both)
        for command in (("eval", "./model", "--suite", "agreement"), ("cache-teacher", "--teacher", "./model"))
    ]
    assert said[0].splitlines()[0] == said[1].splitlines()[0]
