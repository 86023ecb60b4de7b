"""Mistakes on the command line: exit 2 or 3, nothing on stdout, and what to type instead."""

from __future__ import annotations

import json

import pytest

from support.cli_samples import Cli


@pytest.fixture(autouse=True)
def _no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is wrong with a command line is found before anything is built."""
    monkeypatch.setattr("adpa_cli.cli.console.make.execute", lambda *_: pytest.fail("work was begun"))


ADPA_PLUS = ("distill", "--method", "adpa+", "--student", "tiny")


@pytest.mark.parametrize(
    ("words", "names", "answer"),
    [
        ([*ADPA_PLUS, "--gamma", "3"], "--gamma", "did you mean --set gamma=3?"),
        ([*ADPA_PLUS, "--xyzzy", "3"], "--xyzzy", "adpa distill --help"),
        ([*ADPA_PLUS, "--sed", "3"], "--sed", "did you mean --seed"),
        ([*ADPA_PLUS, "--limit", "many"], "--limit must be a whole number", "adpa distill --limit N"),
        (["distil"], "distil", "adpa --help"),
        (["distill", "--student", "tiny"], "--method is missing", "--method"),
        (["distill", "--method", "adpa+"], "--student is missing", "--student"),
        (["distill", "--method", "", "--student", "tiny"], "--method is empty", "command before it"),
        (["distill", "--method", "adpa+", "--student", ""], "--student is empty", "command before it"),
        ([*ADPA_PLUS, "--teacher", ""], "--teacher is empty", "command before it"),
        ([*ADPA_PLUS, "--reference", ""], "--reference is empty", "command before it"),
        ([*ADPA_PLUS, "--cache", ""], "--cache is empty", "command before it"),
        ([*ADPA_PLUS, "--rollouts", ""], "--rollouts is empty", "command before it"),
        ([*ADPA_PLUS, "--data", ""], "data source is empty", "name a file"),
        ([*ADPA_PLUS, "--sft-data", ""], "data source is empty", "name a file"),
        ([*ADPA_PLUS, "--tag", ""], "--tag is empty", "--tag NAME"),
        ([*ADPA_PLUS, "--set", ""], "--set", "KEY=VALUE"),
        ([*ADPA_PLUS, "--set", "gamma"], "got 'gamma'", "KEY=VALUE"),
        ([*ADPA_PLUS, "--set", "gamma="], "got 'gamma='", "KEY=VALUE"),
        ([*ADPA_PLUS, "--store", ""], "--store has no value", "--store DIR"),
        ([*ADPA_PLUS, "--gpus", "none"], "--gpus must be a number from 1, or all; got none", "--gpus all"),
        (["sft", "--model", ""], "--model is empty", "command before it"),
        (["dpo-teacher", "--reference", ""], "--reference is empty", "command before it"),
        (["cache-teacher", "--teacher", ""], "--teacher is empty", "command before it"),
        (["rollout", "--student", ""], "--student is empty", "command before it"),
        (["rollout", "--student", "tiny", "--split", "dev"], "--split must be train or test; got dev", "--split out"),
        (["eval", "tiny", "--against", ""], "--against is empty", "command before it"),
        (["eval", "tiny", "--reward-model", ""], "--reward-model is empty", "command before it"),
        (["eval", "tiny", "--teacher", ""], "--teacher is empty", "command before it"),
        (["eval", ""], "REF is empty", "command before it"),
        (["data", "tiny-pairs", "--rows", "-1"], "--rows must be 0 or more; got -1", "leave --rows out"),
        (["data", "tiny-pairs", "--max-length", "0"], "--max-length must be 1 or more; got 0", "--max-length out"),
        (["eval"], "adpa eval needs the model to measure", "adpa eval REF"),
        (["eval", "tiny", "--suite", "best"], "no suite called 'best'", "accuracy, tiny, reward-model, implicit"),
        (["eval", "tiny", "--suite", "reward-model"], "reward-model", "--reward-model MODEL"),
        (["distill", "--method", "dpoo", "--student", "tiny"], "'dpoo'", "did you mean dpo?"),
        (["distill", "--method", "adpaplus", "--student", "tiny"], "'adpaplus'", "did you mean adpa+?"),
        (["distill", "--method", "dpo", "--student", "tulu-3-8b"], "pair of teachers", "--teacher tulu-3-8b"),
        (["sft", "--model", "tiny", "--shard", "1/2"], "no option --shard", "adpa dpo-teacher, adpa cache-teacher"),
        (["sft", "--model", "tiny", "--shard", "none"], "no option --shard", "--runtime shard=none"),
        (["methods", "adpaa"], "'adpaa'", "did you mean adpa?"),
    ],
)  # fmt: skip
def test_a_wrong_word_is_named_and_answered(cli: Cli, words: list[str], names: str, answer: str) -> None:
    said, _, tried = cli.refused(2, *words).partition("\ntry: ")
    assert names in said
    assert answer in tried


@pytest.mark.parametrize(
    ("setting", "answer"),
    [
        ("gamma=-1", "between 0 and 1000"), ("gamma=nan", "a finite number"), ("gamma=much", "a finite number"),
        ("lr=0", "above 0"), ("lr=inf", "a finite number"), ("epochs=-1", "above 0"), ("batch_size=0", "above 0"),
        ("batch_size=1.5", "a whole number"),
        ("batch_size=1e999", "a whole number"), ("lr=1e999", "a finite number"),
        ("max_steps=0", "above 0"), ("dtype=float16", "float32, bfloat16"),
        ("warmup_ratio=2", "between 0 and 1"), ("adam_beta1=1", "between 0 and 0.999999"), ("clip=0", "above 0"),
        ("weight_decay=-1", "between 0"), ("seed=-1", "between 0"), ("reduction=max", "seqmean"),
        ("rollout.temperature=-1", "between 0"), ("rollout.top_p=1.5", "between 0 and 1"),
        ("cache-teacher.precision=-1", "between 0"), ("cache-teacher.precision=1e-9", "0 (exact)"),
        ("cache-teacher.top_k=0", "above 0"), ("preset=best", "paper"), ("skip_bad_rows=maybe", "true or false"),
    ],
)  # fmt: skip
def test_a_value_out_of_range_is_refused_before_any_work(cli: Cli, setting: str, answer: str) -> None:
    said = cli.refused(2, *ADPA_PLUS, "--set", setting)
    assert setting.split("=")[0].rpartition(".")[2] in said.partition("\ntry: ")[0]
    assert answer in said


@pytest.mark.parametrize(
    "option", ["--limit 0", "--lr nan", "--lr 1e999", "--epochs nan",
               "--lr -1", "--epochs 0", "--batch-size 0", "--max-steps 0", "--seed -1", "--seed-all -1",
               "--tokens-per-device 0", "--gpus 0"],
)  # fmt: skip
def test_an_option_out_of_range_is_refused_before_any_work(cli: Cli, option: str) -> None:
    said = cli.refused(2, *ADPA_PLUS, *option.split()).partition("\ntry: ")[0]
    assert option.split()[0].lstrip("-").replace("-all", "").replace("-", "_") in said.replace("-", "_")


def test_a_misspelt_setting_is_corrected_and_an_unknown_one_lists_all_with_their_defaults(cli: Cli) -> None:
    said = cli.refused(2, *ADPA_PLUS, "--set", "gama=2")
    assert "--set gama: distill has no such setting" in said
    assert said.endswith("did you mean gamma? its default: gamma=1.0\n"), "of the family"
    said = cli.refused(2, *ADPA_PLUS, "--set", "margin=2")
    assert "lr=0.004" in said, "the default of the family"
    assert "max_steps=none" in said
    assert "missing_reference=kth" in said


def test_a_key_of_the_runtime_is_named_and_typed(cli: Cli) -> None:
    assert "did you mean recompute?" in (said := cli.refused(2, *ADPA_PLUS, "--runtime", "recomputed=true"))
    assert "recompute=false, compile=false, liger=auto, attention=auto, fused=true" in said
    assert "keys and defaults: recompute=false" in cli.refused(2, *ADPA_PLUS, "--runtime", "recompute")
    assert "true or false" in cli.refused(2, *ADPA_PLUS, "--runtime", "recompute=maybe")
    assert "auto, on, off" in cli.refused(2, *ADPA_PLUS, "--runtime", "liger=perhaps")
    assert "cannot be combined" in cli.refused(2, *ADPA_PLUS, "--runtime", "liger=on", "--runtime", "compile=true")
    assert "there is no such key" in cli.refused(2, *ADPA_PLUS, "--runtime", "processes=2"), "which is --gpus"
    assert "--runtime compile=true" in cli.refused(2, *ADPA_PLUS, "--compile", "true")
    assert "--runtime" not in cli.refused(2, "export", "tiny", "folder", "--compile", "true")
    assert "no option --runtime" in cli.refused(2, "export", "tiny", "folder", "--runtime", "recompute=true")


def test_an_unknown_setting_of_a_stage_lists_those_of_the_stage(cli: Cli) -> None:
    said = cli.refused(2, *ADPA_PLUS, "--set", "rollout.temprature=1")
    assert "rollout.temprature" in said
    assert "temperature=0.7" in said, "the default of the family"
    assert "batch_size" not in said


def test_a_setting_of_another_stage_is_told_where_it_belongs(cli: Cli) -> None:
    assert "--set rollout.temperature=…" in cli.refused(2, *ADPA_PLUS, "--set", "temperature=1")
    assert "sft, dpo-teacher" in cli.refused(2, *ADPA_PLUS, "--set", "teacher.lr=1")


def test_an_unknown_alias_is_told_the_nearest(cli: Cli) -> None:
    assert "did you mean tiny" in cli.refused(3, "sft", "--model", "tinny")
    assert "did you mean llama-3.2-1b" in cli.refused(3, "distill", "--method", "dpo", "--student", "llama-3.2-1")


def test_a_bare_word_is_never_a_folder(cli: Cli, tmp_path: object) -> None:
    assert "nosuch" in cli.refused(3, "sft", "--model", "nosuch")
    assert "nosuch" in cli.refused(3, "sft", "--model", "./nosuch")
    assert "./mydata" in cli.refused(3, "sft", "--model", "tiny", "--data", "mydata")
    assert "nosuch.jsonl" in cli.refused(3, "sft", "--model", "tiny", "--data", "nosuch.jsonl")


@pytest.mark.parametrize("place", [0, 1, 4])
def test_an_error_is_one_json_line_when_asked(cli: Cli, place: int) -> None:
    words = ["distill", "--method", "adpa+", "--student", "tiny", "--set", "gama=2"]
    ran = cli(*words[:place], "--json", *words[place:])
    record = json.loads(ran.err.splitlines()[-1])
    assert (ran.code, ran.out, record["exit"]) == (2, "", 2)
    assert set(record) == {"error", "hint", "exit"}
    assert "gama" in record["error"]


def test_help_has_the_four_panels_and_only_what_works(cli: Cli) -> None:
    ran = cli("--help")
    assert ran.code == 0
    for word in ("Build", "Look", "Use", "Keep", "distill", "cache-teacher", "verify"):
        assert word in ran.out
    for command in ("sft", "dpo-teacher", "cache-teacher", "rollout", "distill", "eval", "show", "data", "tag"):
        assert cli(command, "--help").code == 0
