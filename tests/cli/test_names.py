"""What a name means: an alias by the role that the option asks for, everything else itself, never two things."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from support.cli_samples import Cli, Pipeline


def first(cli: Cli, *words: object) -> list[str]:
    """(found|build, role, what, id) of the first stage that a command needs."""
    return cli(*words, "-n").rows[0][1:5]


def test_an_alias_is_the_role_of_the_option_and_an_artifact_itself(pipeline: Pipeline, cli: Cli) -> None:
    base = first(cli, "sft", "--model", "tiny")
    assert base[1:3] == ["student", "tiny base student on tiny-sft"]
    assert first(cli, "sft", "--model", "tiny-teacher")[2] == "tiny base teacher on tiny-sft"
    assert first(cli, "dpo-teacher", "--reference", "tiny")[1] == "reference teacher"
    assert [row[2] for row in cli("cache-teacher", "--teacher", "tiny", "-n").rows][-2:] == [
        "aligned teacher",
        "signal",
    ]
    assert first(cli, "rollout", "--student", "tiny")[1] == "student"
    made = pipeline.made("reference teacher")
    (only,) = cli("rollout", "--student", made, "--data", pipeline.data, "-n").rows
    assert only[2:4] == ["rollouts", f"by {made}, temperature 0.7, train prompts"]


def test_one_artifact_by_each_of_its_names(pipeline: Pipeline, cli: Cli) -> None:
    student = pipeline.made("student")
    assert cli("tag", "start", student).code == 0
    digits = student.split("/")[1]
    plans = {cli("rollout", "--student", name, "--data", pipeline.data, "-n").out
             for name in (student, digits, digits[:6], digits.upper(), "start")}  # fmt: skip
    assert len(plans) == 1
    newest = cli("show", "distill@latest", "--json").out
    assert pipeline.made("distill adpa") in newest


@pytest.mark.parametrize("name", ["cafe", "deadbeef", "BEEF", "0123", "tiny", "tulu-3-8b", "a/b", "x@y"])
def test_a_tag_that_means_something_else_is_refused_before_any_work(pipeline: Pipeline, cli: Cli, name: str) -> None:
    student = pipeline.made("student")
    for words in (["tag", name, student], ["rollout", "--student", student, "--tag", name]):
        assert name in cli.refused(2, *words)
    assert cli("tag").out == ""


def test_a_word_that_is_an_alias_and_a_tag_lists_both(pipeline: Pipeline, cli: Cli) -> None:
    """No command makes such a tag, but a newer version may know an alias that an older one did not."""
    student = pipeline.made("student")
    cli("tag", "mine", student)
    (pipeline.store / "tags" / "mine").rename(pipeline.store / "tags" / "tiny")
    said = cli.refused(2, "rollout", "--student", "tiny")
    assert "it is an alias" in said
    assert f"the tag of {student}" in said
    assert "adpa tag --delete tiny" in said


def test_a_word_that_is_a_tag_and_the_beginning_of_an_id_lists_both(pipeline: Pipeline, cli: Cli) -> None:
    student, teacher = pipeline.made("student"), pipeline.made("aligned teacher")
    cli("tag", "mine", student)
    digits = teacher.split("/")[1][:6]
    (pipeline.store / "tags" / "mine").rename(pipeline.store / "tags" / digits)
    for words in (["show", digits], ["rollout", "--student", digits], ["path", digits]):
        said = cli.refused(2, *words)
        assert f"the tag of {student}" in said
        assert f"the id {teacher}" in said
    assert cli("path", teacher).code == 0


def test_a_bare_word_is_never_a_folder_and_is_told_how_one_is_written(pipeline: Pipeline, cli: Cli) -> None:
    shutil.copytree(pipeline.store / pipeline.made("student"), "mymodel/best")
    shutil.copytree(pipeline.store / pipeline.made("student"), "here")
    for name in ("here", "mymodel"):
        assert f"./{name}" in cli.refused(3, "rollout", "--student", name).partition("\ntry: ")[2]
    for folder in ("./here", Path("here").absolute()):
        words = ("rollout", "--student", folder, "--data", pipeline.data, "--set", "max_length=256", "-n")
        assert cli(*words).code == 0


def test_a_hub_name_that_is_a_folder_too_is_told_so(
    pipeline: Pipeline, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    shutil.copytree(pipeline.store / pipeline.made("student"), "models/best")
    said, _, tried = cli.refused(1, "rollout", "--student", "models/best").partition("\ntry: ")
    assert "models/best" in said
    assert "./models/best" in tried


def test_names_of_stages_are_no_organisations_of_the_hub(pipeline: Pipeline, cli: Cli) -> None:
    for name in ("sft/nothing", "distill/0000", "rollout/abc", "eval/x"):
        assert "there is no tag or id" in cli.refused(3, "rollout", "--student", name)
    assert "was made by cache-teacher" in cli.refused(2, "rollout", "--student", "cache-teacher@latest")


def test_data_are_files_by_their_extension_and_several_are_joined(pipeline: Pipeline, cli: Cli) -> None:
    student = pipeline.made("student")
    shutil.copy(pipeline.data / "train.jsonl", "more.jsonl")
    (cli_rows,) = cli("rollout", "--student", student, "--data", "more.jsonl", "-n").rows
    both = cli("rollout", "--student", student, "--data", pipeline.data, "--data", "more.jsonl", "-n").rows
    assert both[0][4] != cli_rows[4]
    (named,) = cli("rollout", "--student", student, "--data", f"{pipeline.data}#train", "-n").rows
    assert named[4] not in (both[0][4], cli_rows[4])
    shutil.copy("more.jsonl", "data.jsonl")
    assert cli("rollout", "--student", student, "--data", "./data.jsonl", "-n").rows[0][4] == cli_rows[4]


def test_prompts_held_out_without_a_test_split_are_recorded(pipeline: Pipeline, cli: Cli) -> None:
    shutil.copy(pipeline.data / "train.jsonl", "pairs.jsonl")
    words = ("distill", "--method", "dpo", "--student", pipeline.made("student"), "--data", "pairs.jsonl", "--no-eval")
    ran = cli(*words, "--max-steps", "1")
    said = " ".join(ran.err.split())
    assert "there is no test split: 2 prompts held out, chosen by hash" in said
    assert "there is no test split: 2 prompts held out, chosen by hash" in cli("show", ran.ref, "--json").out


def test_answers_of_another_student_are_refused_unless_they_are_allowed(pipeline: Pipeline, cli: Cli) -> None:
    student, answers = pipeline.made("student"), pipeline.made("rollouts")  # the answers of the dckd student
    words = ("distill", "--method", "adpa", "--student", student, "--limit", "40", "--no-eval", "-n")
    for named in (["--rollouts", answers], ["--cache", pipeline.made("signal #2")]):
        said, _, tried = cli.refused(2, *words, *named).partition("\ntry: ")
        assert f"the rollouts {answers} are answers of {pipeline.made('distill dckd')}" in said
        assert student in said
        assert tried.strip() == f"adpa rollout --student {student}, or --allow-foreign-rollouts"
        assert cli(*words, *named, "--allow-foreign-rollouts").rows[-1][2] == "distill adpa"
    own = ("distill", "--method", "adpa", "--student", pipeline.made("distill dckd"), *words[5:])
    allowed, plain = cli(*own, "--rollouts", answers, "--allow-foreign-rollouts"), cli(*own, "--rollouts", answers)
    assert allowed.out == plain.out, "a permission moves no id"
