"""Drawn ids instead of a top k, steps that are found, and shared prompts, through the commands that users type."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adpa_cli.signal.shard import SignalReader
from support.cli_samples import Cli, Pipeline

FEW = ("--limit", "40", "--yes")
DISTILL = ("distill", "--student", "tiny", "--no-eval", "-n")


def ids(cli: Cli, *words: str) -> dict[str, str]:
    return {row[2]: row[4] for row in cli(*DISTILL, *words).rows}


def manifest(cli: Cli, ref: str) -> tuple[Path, dict[str, Any]]:
    folder = Path(cli("path", ref).out.strip())
    return folder, json.loads((folder / "manifest.json").read_text())


def test_a_tail_and_a_support_ask_for_each_other(cli: Cli) -> None:
    plain = ids(cli, "--method", "dckd")
    drawn = ids(cli, "--method", "dckd", "--set", "tail=sampled")
    assert drawn == ids(cli, "--method", "dckd", "--set", "cache-teacher.support=sampled")
    assert {role for role in plain if plain[role] != drawn[role]} == {"signal", "distill dckd"}
    assert drawn["signal"] == ids(cli, "--method", "vanilla-kd", "--set", "tail=sampled")["signal"]


@pytest.mark.parametrize("setting", ["samples=7", "seed=7"])
def test_how_ids_are_drawn_is_in_the_id_where_they_are(cli: Cli, setting: str) -> None:
    own = ("--set", f"cache-teacher.{setting}")
    assert ids(cli, "--method", "dckd", *own) == ids(cli, "--method", "dckd")
    drawn = ("--method", "dckd", "--set", "tail=sampled")
    assert ids(cli, *drawn, *own)["signal"] != ids(cli, *drawn)["signal"]
    assert ids(cli, *drawn, "--set", "cache-teacher.top_k=7") == ids(cli, *drawn)


@pytest.mark.parametrize(
    ("method", "more", "words"),
    [
        ("atkd", "", "atkd reads a top k"), ("dckd", "tail=bucket", "--set tail=sampled"),
        ("dpkd", "", "dpkd reads a top k"),
        ("adpa", "", "the advantage of two needs a top k"),
    ],
)  # fmt: skip
def test_methods_that_need_a_top_k_refuse_drawn_ids(cli: Cli, method: str, more: str, words: str) -> None:
    own = ("--set", more) if more else ()
    assert words in cli.refused(2, *DISTILL, "--method", method, "--set", "cache-teacher.support=sampled", *own)


def test_a_capture_of_drawn_ids_teaches(cli: Cli, pipeline: Pipeline) -> None:
    teacher = pipeline.made("aligned teacher")
    made = cli("cache-teacher", "--teacher", teacher, "--data", "tiny-pairs", *FEW, "--support", "sampled").ref
    folder, about = manifest(cli, made)
    reader = SignalReader(folder)
    assert reader.spec.draws == about["spec"]["samples"] == 50
    assert reader.spec.k == about["metrics"]["k"] <= 50
    for shard in reader.shards:
        for _, rows in shard:
            assert rows.weights is not None
            np.testing.assert_allclose(rows.weights.sum(1), 1, atol=1e-6)
    pair = ("cache-teacher", "--teacher", teacher, "--reference", teacher, "--data", "tiny-pairs", *FEW)
    assert "support=sampled works with one teacher only" in cli.refused(2, *pair, "--support", "sampled")
    student = pipeline.made("student")
    words = ("distill", "--method", "dckd", "--student", student, "--cache", made, "--data", "tiny-pairs", *FEW)
    assert "--set tail=sampled" in cli.refused(2, *words, "--no-eval")
    trained = cli(*words, "--no-eval", "--set", "tail=sampled", "--max-steps", "2").ref
    assert manifest(cli, trained)[1]["spec"]["params"]["tail"] == "sampled"


def test_a_wanted_error_finds_the_step(cli: Cli, pipeline: Pipeline) -> None:
    words = ("cache-teacher", "--teacher", pipeline.made("aligned teacher"), "--data", "tiny-pairs", *FEW)
    steps = []
    for target in ("1", "1e-4", "1e-5", "1e-12"):
        made = cli(*words, "--precision", f"auto={target}").ref
        folder, about = manifest(cli, made)
        assert about["spec"]["precision"] == f"auto={float(target):g}"
        assert SignalReader(folder).spec.step == about["metrics"]["step"]
        assert about["metrics"]["kl_error"] <= float(target) or about["metrics"]["step"] == 0
        steps.append(about["metrics"]["step"])
    assert steps == sorted(steps, reverse=True)
    assert (steps[0], steps[-1]) == (1 / 8, 0)
    assert cli(*words, "--precision", "exact", "-n").rows[0][4] == cli(*words, "--precision", "0", "-n").rows[0][4]
    assert "auto=0.001" in cli.refused(2, *words, "--precision", "auto=lots")


def test_shared_prompts_give_the_same_signal_to_float_noise(cli: Cli, pipeline: Pipeline) -> None:
    words = ("cache-teacher", "--teacher", pipeline.made("aligned teacher"), "--data", "tiny-pairs", *FEW,
             "--precision", "exact", "--set", "block_tokens=600")  # fmt: skip
    folders = []
    for choice in ("apart", "auto"):
        folder, about = manifest(cli, cli(*words, "--set", f"prompts={choice}").ref)
        assert about["metrics"]["shared_prompts"] == {"aligned": choice == "auto"}
        folders.append(folder)
    apart, shared = (SignalReader(folder) for folder in folders)
    keys = [key for shard in apart.shards for key in shard.keys]
    assert len(keys) == 80
    for key in keys:
        one, other = (reader.read(key, raw=True) for reader in (apart, shared))
        np.testing.assert_allclose(one.label_logps, other.label_logps, atol=1e-4)
        np.testing.assert_allclose(np.sort(one.logps, 1), np.sort(other.logps, 1), atol=1e-4)
    other = cli(*words, "--set", "prompts=auto", "--gpus", "2", "-n").rows[0]
    assert other[1] == "found"
