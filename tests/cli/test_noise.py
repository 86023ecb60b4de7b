"""An advantage that few bits drown is refused before the work, and one that they keep is told with its error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from adpa_cli.store.manifest import Manifest
from adpa_cli.store.store import Store
from support.cli_samples import Cli, write_rows
from support.light_update import write_pair
from support.tiny_models import TEMPLATE, pretrained_tokenizer, tiny_llama

ROWS = [{"prompt": f"w{n} w{n + 1}", "chosen": f"w{n} w2 w{n} w4", "rejected": f"w{n + 1} w3 w5"} for n in range(24)]


@pytest.fixture
def words(tmp_path: Path) -> list[Any]:
    teacher, reference = write_pair(tmp_path / "pair", template=TEMPLATE)
    data = write_rows(tmp_path / "pairs.jsonl", ROWS)
    return ["cache-teacher", "--teacher", teacher, "--reference", reference, "--data", data, "--set", "max_length=32"]


def manifest(ref: str) -> Manifest:
    found = Store.find(Path("adpa-store")).get(ref)
    assert found is not None
    return found


def test_an_advantage_that_bfloat16_has_not_is_refused(cli: Cli, words: list[Any]) -> None:
    said = " ".join(cli.refused(1, *words, "--set", "dtype=bfloat16").split())
    assert "in bfloat16 the difference to the reference of" in said
    assert "--set cache-teacher.dtype=float16" in said
    assert "--runtime noise=accept" in said
    assert not list(Path("adpa-store/cache-teacher").glob("*/manifest.json"))
    again = cli(*words, "--set", "dtype=bfloat16", "--runtime", "noise=accept")
    noise = manifest(again.ref).metrics["noise"]["advantage"]
    assert noise["error"] == pytest.approx(noise["rms"], rel=1e-3)
    assert "continuing, because noise=accept" in " ".join(again.err.split())
    assert "only 1 times the noise of bfloat16" in " ".join(again.err.split())


def test_float16_is_the_default_and_keeps_it(cli: Cli, words: list[Any]) -> None:
    ran = cli(*words)
    made = manifest(ran.ref)
    assert made.spec["dtype"] == "float16"
    assert made.spec["noise_answers"] == 64
    noise = made.metrics["noise"]
    assert noise["answers"] == 46  # of 23 pairs: one prompt is held out
    assert noise["advantage"]["correlation"] > 0.95
    assert "answers were computed in float32 too: difference to the reference" in " ".join(ran.err.split())
    shown = " ".join(cli("show", ran.ref).out.split())
    assert f"error of {noise['advantage']['error']:.2g}" in shown
    assert json.loads(cli("show", ran.ref, "--json").out)["metrics"]["noise"] == noise


def test_float32_has_no_sample_and_a_rehearsal_never_refuses(cli: Cli, words: list[Any]) -> None:
    exact = manifest(cli(*words, "--set", "dtype=float32").ref)
    assert "noise" not in exact.metrics
    assert "noise_answers" not in exact.spec
    rehearsed = manifest(cli(*words, "--set", "dtype=bfloat16", "--smoke").ref)
    assert rehearsed.metrics["noise"]["answers"] == 8


def test_what_a_coarse_difference_asks_for_can_be_typed_in_every_command(cli: Cli, words: list[Any]) -> None:
    said = " ".join(cli(*words, "--pair-precision", "1/8").err.split())
    assert "so rounding matters; --set cache-teacher.pair_precision=0.015625" in said
    finer = ("--set", "cache-teacher.pair_precision=0.015625", "-n")
    assert cli(*words, *finer).code == cli("distill", "--method", "adpa", "--student", "tiny", *finer).code == 0


def test_how_the_noise_is_met_moves_no_id(cli: Cli, words: list[Any]) -> None:
    plain = cli(*words, "-n", "--json")
    accepted = cli(*words, "-n", "--json", "--runtime", "noise=accept")
    other = cli(*words, "-n", "--json", "--set", "noise_answers=8")
    first, second, third = (json.loads(ran.out)["rows"][0]["id"] for ran in (plain, accepted, other))
    assert first == second != third


def test_margins_of_an_evaluation_are_told_with_their_error(cli: Cli, words: list[Any]) -> None:
    _, _, teacher, _, reference, _, data, *more = words
    few = ("eval", teacher, "--reference", reference, "--suite", "agreement", *more, "--data", data)
    assert cli(*few, "--set", "dtype=bfloat16").ref, "one pair is held out, by which nothing is refused"
    Path("held").mkdir()
    for name in ("train", "test"):
        write_rows(Path("held", f"{name}.jsonl"), ROWS)
    evaluate = (*few[:-1], "./held")
    ran = cli(*evaluate)
    assert "agreement " in ran.err.rpartition("done ")[2]
    made = manifest(ran.ref)
    margin = made.metrics["noise"]["margin"]
    assert margin["error"] < margin["rms"] / 3
    refused = " ".join(cli.refused(1, *evaluate, "--set", "dtype=bfloat16").split())
    assert "in bfloat16 the margin of" in refused
    assert "--set eval.dtype=float16" in refused
    assert "--runtime noise=accept" in refused
    accepted = cli(*evaluate, "--set", "dtype=bfloat16", "--runtime", "noise=accept")
    assert manifest(accepted.ref).metrics["scores"]["agreement"]


def test_the_card_of_a_student_tells_what_its_signals_were_off_by(cli: Cli, words: list[Any]) -> None:
    _, _, teacher, _, reference, _, data, *more = words
    signal = cli("cache-teacher", "--teacher", teacher, "--data", data, *more).ref
    trained = ("distill", "--method", "dckd", "--student", reference, "--cache", signal, "--data", data, *more)
    student = cli(*trained, "--max-steps", "2", "--batch-size", "4", "--no-eval").ref
    cli("export", student, "exported")
    (said,) = [
        line for line in Path("exported/README.md").read_text().splitlines() if signal in line and "float32" in line
    ]
    assert f"off by {manifest(signal).metrics['noise']['logps']['error']:.2g} nat" in said


@pytest.mark.parametrize(
    ("rows", "value", "problem", "dtype"),
    [
        (slice(None), 6e4, "layers.1.mlp.up_proj exceeds 65,504", "tf32"),
        (slice(1), 1e6, "the weight layers.1.mlp.up_proj.weight reaches 1e+06", "float32"),
    ],
)
def test_what_float16_does_not_hold_is_refused_with_the_words_to_type(
    cli: Cli, tmp_path: Path, rows: slice, value: float, problem: str, dtype: str
) -> None:
    model, tokenizer = tiny_llama(), pretrained_tokenizer()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[rows] = value
    tokenizer.chat_template = TEMPLATE
    model.save_pretrained(tmp_path / "wide")
    tokenizer.save_pretrained(tmp_path / "wide")
    chat = ("chat", tmp_path / "wide", "-", "--max-new-tokens", 4)
    refused = cli.refused(1, *chat, stdin="w1 w2\n")
    assert problem in refused
    assert f"--dtype {dtype}" in refused
    assert len(cli(*chat, "--dtype", dtype, stdin="w1 w2\n").rows) == 1
    data = write_rows(tmp_path / "pairs.jsonl", ROWS)
    rollout = ("rollout", "--student", tmp_path / "wide", "--data", data, "--set", "max_length=32")
    refused = cli.refused(1, *rollout)
    assert problem in refused
    assert f"--set rollout.dtype={dtype}" in refused
    assert cli(*rollout, "--set", f"rollout.dtype={dtype}").ref
    score = ("eval", tmp_path / "wide", "--data", data, "--set", "max_length=32", "--set", "noise_answers=0")
    refused = cli.refused(1, *score)
    assert problem in refused
    assert f"--set eval.dtype={dtype}" in refused
    assert cli(*score, "--set", f"eval.dtype={dtype}").ref


def test_a_teacher_that_is_its_own_reference_is_refused_as_such(cli: Cli, words: list[Any]) -> None:
    command, _, teacher, _, _, *more = words
    said = " ".join(cli.refused(1, command, "--teacher", teacher, "--reference", teacher, *more).split())
    assert "the two models give the same probabilities" in said
    assert "--reference MODEL" in said
    assert "noise_answers must be 0 or more" in cli.refused(2, *words, "--set", "noise_answers=-1")
