"""Model folders that cannot be used, or only with a remark."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer as Core
from tokenizers import models
from transformers import AutoTokenizer

from adpa_cli.data.templates import ZEPHYR
from adpa_cli.data.tokenizer import Tokenizer, different_cut
from adpa_cli.lab import BASES
from adpa_cli.store.store import Store
from support.cli_samples import Cli, Pipeline

FEW = ("--max-steps", "1", "--limit", "8", "--set", "max_length=128")


@pytest.fixture
def teacher(pipeline: Pipeline, tmp_path: Path) -> Path:
    """The aligned teacher as a folder from outside the store."""
    return Path(shutil.copytree(pipeline.store / pipeline.made("aligned teacher"), tmp_path / "t"))


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """The student's base model, which has no chat template, as a folder of the user's."""
    return Path(shutil.copytree(BASES / "student", tmp_path / "base"))


def swap_words(folder: Path) -> None:
    path = folder / "tokenizer.json"
    raw = json.loads(path.read_text())
    words = raw["model"]["vocab"]
    words["a"], words["b"] = words["b"], words["a"]
    path.write_text(json.dumps(raw))


def test_a_teacher_with_another_vocabulary_is_refused_before_any_work(
    pipeline: Pipeline, cli: Cli, teacher: Path
) -> None:
    swap_words(teacher)
    before = len(Store.find(pipeline.store).artifacts())
    words = ("distill", "--method", "dckd", "--student", pipeline.made("student"), "--data", pipeline.data)
    said = cli.refused(1, *words, "--teacher", "./t")
    assert "teacher and student differ in 2 of 238 ids" in said
    assert said.count("teacher 'a', student 'b'") + said.count("teacher 'b', student 'a'") == 2
    assert "adpa models" in said
    assert len(Store.find(pipeline.store).artifacts()) == before


def test_a_teacher_that_cuts_a_text_otherwise_is_refused_before_any_work(
    pipeline: Pipeline, cli: Cli, teacher: Path
) -> None:
    path = teacher / "tokenizer.json"
    raw = json.loads(path.read_text())
    path.write_text(json.dumps({**raw, "pre_tokenizer": {"type": "Whitespace"}}))
    words = ("distill", "--method", "dckd", "--student", pipeline.made("student"), "--data", pipeline.data)
    assert "split this text differently" in cli.refused(1, *words, "--teacher", "./t")


def test_merges_in_another_order_cut_single_words_otherwise() -> None:
    letters = {token: number for number, token in enumerate(("a", "b", "c", "ab", "abc", "bc"))}
    merges = [("b", "c"), ("a", "b"), ("ab", "c")]
    first, second = (Tokenizer(Core(models.BPE(letters, list(order))), {}) for order in (merges[1:], merges))
    assert different_cut(first, second) is not None
    assert different_cut(first, first) is None


def test_a_reference_with_another_template_than_the_teacher_is_refused(
    pipeline: Pipeline, cli: Cli, teacher: Path
) -> None:
    other = Path(shutil.copytree(teacher, teacher.parent / "other"))
    (other / "chat_template.jinja").write_text((teacher / "chat_template.jinja").read_text() + "{{ 'more' }}")
    words = ("cache-teacher", "--teacher", "./t", "--reference", "./other", "--data", pipeline.data)
    assert "the reference other was made with another chat template than the teacher" in cli.refused(2, *words)


def test_a_folder_without_a_tokenizer_is_refused(pipeline: Pipeline, cli: Cli, base: Path, teacher: Path) -> None:
    for folder in (base, teacher):
        (folder / "tokenizer.json").unlink()
    for words in (
        ["sft", "--model", "./base", "--data", "tiny-sft"], ["rollout", "--student", "./t"],
        ["cache-teacher", "--teacher", "./t"],
        ["distill", "--method", "dpo", "--student", "./t"], ["dpo-teacher", "--reference", "./t"], ["eval", "./t"],
        ["data", "tiny-pairs", "--model", "./t"],
    ):  # fmt: skip
        said = cli.refused(1, *words)
        assert "has a model but no tokenizer" in said
        assert "copy the model's tokenizer files into that folder" in said


@pytest.mark.parametrize(
    ("missing", "code", "found"),
    [("config.json", 1, "no config.json"), ("model.safetensors", 1, "no safetensors weights")],
)
def test_a_folder_without_a_model_is_refused(cli: Cli, base: Path, missing: str, code: int, found: str) -> None:
    (base / missing).unlink()
    assert found in cli.refused(code, "sft", "--model", "./base", "--data", "tiny-sft")


def test_a_base_model_without_template_gets_the_default_one_said_and_saved(
    pipeline: Pipeline, cli: Cli, base: Path
) -> None:
    ran = cli("sft", "--model", "./base", "--data", pipeline.data, *FEW)
    said = " ".join(ran.err.split())
    assert "base has no chat template; the default one (zephyr) is used, and saved with the model" in said
    saved = AutoTokenizer.from_pretrained(pipeline.store / ran.ref)
    assert saved.chat_template == ZEPHYR.text
    assert json.loads((pipeline.store / ran.ref / "generation_config.json").read_text())["eos_token_id"] == 3


@pytest.mark.parametrize(
    "words", [["rollout", "--student", "./base"],
              ["dpo-teacher", "--reference", "./base"], ["cache-teacher", "--teacher", "./base"], ["eval", "./base"]],
    ids=lambda words: words[0],
)  # fmt: skip
def test_a_base_model_is_refused_where_a_trained_one_is_needed(cli: Cli, base: Path, words: list[str]) -> None:
    said = cli.refused(2, *words)
    assert "chat template" in said
    assert "adpa sft --model " in said
    assert "/base --data FILE.jsonl\n or: --template FILE|NAME" in said


def test_not_a_number_in_the_weights_is_named(pipeline: Pipeline, cli: Cli, teacher: Path) -> None:
    path = teacher / "model.safetensors"
    weights = load_file(path)
    weights["model.norm.weight"][3] = torch.nan
    save_file(weights, path, metadata={"format": "pt"})
    before = len(Store.find(pipeline.store).artifacts())
    data = ("--data", pipeline.data)
    for words in (
        ["cache-teacher", "--teacher", "./t", *data], ["rollout", "--student", "./t", *data],
        ["distill", "--method", "dckd", "--student", pipeline.made("student"), "--teacher", "./t", *data],
    ):  # fmt: skip
        said = cli.refused(1, *words, "--limit", "4", "--set", "max_length=128")
        assert "model.norm.weight" in said
        assert "not finite" in said
    assert len(Store.find(pipeline.store).artifacts()) == before


def test_a_student_trained_with_another_template_is_refused_with_the_command_for_the_right_one(
    pipeline: Pipeline, cli: Cli, base: Path
) -> None:
    other = cli("sft", "--model", "./base", "--data", pipeline.data, *FEW).ref
    words = ("distill", "--method", "dckd", "--student", other, "--data", pipeline.data)
    said = cli.refused(2, *words, "--teacher", pipeline.made("aligned teacher"))
    assert f"the student {other} was made with another chat template than the teacher" in said
    assert "alias to --student" in said


def test_folders_work_as_teachers_and_are_named_by_content(pipeline: Pipeline, cli: Cli, teacher: Path) -> None:
    words = ("cache-teacher", "--data", pipeline.data, "--limit", "4", "--set", "max_length=128", "-n")
    first = cli(*words, "--teacher", "./t").rows
    teacher.rename(teacher.with_name("moved"))
    assert cli(*words, "--teacher", "./moved").rows[-1][-1] == first[-1][-1]


def test_the_hub_is_not_asked_for_what_looks_like_a_folder_and_is_named_when_it_cannot_be_reached(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    said = cli.refused(1, "sft", "--model", "org/name", "--data", "tiny-sft")
    assert "org/name   not on this machine, and HF_HUB_OFFLINE is set" in said
    assert "adpa plan sft --model org/name --data tiny-sft --fetch" in said
