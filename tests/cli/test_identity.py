"""The same command has the same id, and so has one that says a default aloud; another seed has another."""

from __future__ import annotations

import subprocess
import sys

import pytest

from support.cli_samples import Cli, Pipeline, Ran

# Whoever moves these ids makes everybody train again: a new family setting or a new way of hashing, nothing less.
TINY_PLAN = [
    "sft/3905119e52ac", "sft/002e5accef00", "start-logps/2e543ce7edb7", "dpo-teacher/88ce4bbe399d",
    "cache-teacher/d9fc3713d8a3", "distill/e6dfb133b3af", "rollout/2ea5b36d505f", "cache-teacher/4109b15426df",
    "distill/05ebe926a8c8", "rollout/c40727011902", "rewards/0eda34f86eed", "eval/7d13c4b9f9d5",
    "eval/1a14ec6528f9", "rollout/387ee4d3af2d", "rewards/0673bcabf4d8", "eval/46a8a78fa7f7",
    "eval/834e0aaf7b80", "rollout/ee0877e6e1a3", "rewards/ea6b51ff9ae6", "eval/3f15b97198fa",
    "eval/e83d897a1264", "rollout/ed326a7b079d", "rewards/fc4e7dae9810", "eval/d5f62a99ec9f",
    "eval/7df95bfd9fab", "rollout/4af8fc65333d", "rewards/5c3072ad263f", "eval/829eb69c5a94",
    "eval/50c51f3fea38",
]  # fmt: skip
ADPA_PLUS = ("distill", "--method", "adpa+", "--student", "tiny")


def ids(cli: Cli, *words: object) -> list[tuple[str, str]]:
    """(role, id) of every stage of the plan of a command."""
    return [(row[2], row[4]) for row in cli(*words, "-n").rows]


def unmoved(before: list[tuple[str, str]], after: list[tuple[str, str]]) -> list[str]:
    """Roles of the stages that have the same ids in two plans of one shape."""
    assert [role for role, _ in before] == [role for role, _ in after]
    return [role for (role, one), (_, other) in zip(before, after, strict=True) if one == other]


def test_the_plan_of_tiny_has_its_ids(cli: Cli) -> None:
    assert [row[4] for row in cli(*ADPA_PLUS, "--dry-run").rows] == TINY_PLAN


def test_a_repeated_command_finds_everything_without_torch(pipeline: Pipeline) -> None:
    code = (
        "import sys; from adpa_cli.cli.main import main; code = main(sys.argv[1:]);"
        "slow = {'torch', 'transformers', 'datasets', 'accelerate'} & set(sys.modules);"
        "sys.exit(f'imported {slow}' if slow else code)"
    )
    ran = subprocess.run([sys.executable, "-c", code, *pipeline.words], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    (line,) = ran.stdout.splitlines()
    assert f"Nothing to do: {line} was made " in ran.stderr
    assert "MEAN REWARD" in ran.stderr


@pytest.mark.parametrize(
    "said",
    [
        ["--set", "alpha=5"],
        ["--set", "distill.alpha=5.0"],
        ["--set", "batch_size=32.0", "--batch-size", "32"],
        ["--seed", "0", "--set", "reduction=seqmean", "--set", "preset=paper"],
        ["--set", "eval.bootstrap=2000", "--seed-all", "0"],
        ["--teacher", "tiny", "--reference", "tiny", "--data", "tiny-pairs", "--sft-data", "tiny-sft"],
        ["--tokens-per-device", "100", "--no-wait", "--tag", "mine"],
    ],
)
def test_a_default_said_aloud_and_how_to_run_leave_the_ids_alone(cli: Cli, said: list[str]) -> None:
    assert stages(cli(*ADPA_PLUS, *said, "-n")) == stages(cli(*ADPA_PLUS, "-n"))


def test_adpa_plus_has_two_spellings(cli: Cli) -> None:
    assert stages(cli("distill", "--method", "adpa-plus", "--student", "tiny", "-n")) == stages(cli(*ADPA_PLUS, "-n"))


def stages(ran: Ran) -> list[list[str]]:
    """A plan without its sizes and times, which depend on the machine."""
    return [row[:5] for row in ran.rows]


def test_adpa_plus_is_dckd_followed_by_adpa(pipeline: Pipeline, cli: Cli) -> None:
    both = {role: pipeline.made(role) for role in ("distill dckd", "distill adpa")}
    rest = pipeline.words[5:]
    dckd = cli("distill", "--method", "dckd", "--student", "tiny", *rest, "--no-eval")
    assert dckd.ref == both["distill dckd"]
    adpa = cli("distill", "--method", "adpa", "--student", dckd.ref, *rest, "--no-eval")
    assert adpa.ref == both["distill adpa"]
    assert "Nothing to do" in dckd.err
    assert "Nothing to do" in adpa.err


def test_seed_moves_what_comes_after_the_sft_of_the_student(cli: Cli) -> None:
    models = ["student", "reference teacher", "start log-probs", "aligned teacher", "signal"]
    evaluations = ["rollouts", "rewards", "eval", "eval"] * 3  # of the start and of both teachers
    assert unmoved(ids(cli, *ADPA_PLUS), ids(cli, *ADPA_PLUS, "--seed", "1")) == models + evaluations


def test_seed_all_moves_everything(cli: Cli) -> None:
    assert unmoved(ids(cli, *ADPA_PLUS), ids(cli, *ADPA_PLUS, "--seed-all", "1")) == []


def test_a_setting_of_one_stage_moves_only_what_rests_on_it(cli: Cli) -> None:
    before = ids(cli, *ADPA_PLUS)
    after = ids(cli, *ADPA_PLUS, "--set", "gamma=0.3")
    assert len(before) - len(unmoved(before, after)) == 5  # the last training, its answers, their rewards, its numbers
    after = ids(cli, *ADPA_PLUS, "--set", "dpo-teacher.beta=0.2")
    start = ["student", "reference teacher", "start log-probs"]
    assert unmoved(before, after) == [*start, *["rollouts", "rewards", "eval", "eval"] * 2]
