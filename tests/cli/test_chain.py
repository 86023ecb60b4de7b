"""The stages one by one, chained by the ids they print, make what the one command makes."""

from __future__ import annotations

from support.cli_samples import Cli, Pipeline

STEPS = ("--max-steps", "2")
ROWS = ("--limit", "40")


def test_explicit_stages_have_the_ids_of_the_one_command(pipeline: Pipeline, cli: Cli) -> None:
    def found(role: str, *words: object) -> str:
        ran = cli(*words)
        assert "Nothing to do" in ran.err
        assert ran.ref == pipeline.made(role)
        return ran.ref

    data = ("--data", pipeline.data)
    start = found("student", "sft", "--model", "tiny", *STEPS, "--limit", 64)
    below = found("reference teacher", "sft", "--model", "tiny-teacher", *STEPS, "--limit", 64)
    teacher = found("aligned teacher", "dpo-teacher", "--reference", below, *data, *STEPS, *ROWS)
    on_pairs = found("signal", "cache-teacher", "--teacher", teacher, *data, *ROWS)
    dckd = found(
        "distill dckd", "distill", "--method", "dckd", "--student", start, "--cache", on_pairs, *STEPS, *ROWS,
        "--no-eval",
    )  # fmt: skip
    answers = found("rollouts", "rollout", "--student", dckd, *ROWS, "--max-new-tokens", 12)
    on_answers = found("signal #2", "cache-teacher", "--teacher", teacher, "--rollouts", answers, *ROWS)
    found(
        "distill adpa", "distill", "--method", "adpa", "--student", dckd, "--cache", on_answers, *STEPS, *ROWS,
        "--no-eval",
    )  # fmt: skip


def test_aliases_stand_for_the_role_that_the_option_asks_for(pipeline: Pipeline, cli: Cli) -> None:
    sft = ("--set", "sft.max_steps=2", "--set", "sft.limit=64")
    reference = cli("dpo-teacher", "--teacher", "tiny", "--data", pipeline.data, *STEPS, *ROWS, *sft)
    assert reference.ref == pipeline.made("aligned teacher")
    rollout = cli("rollout", "--student", "tiny", *sft, "--data", pipeline.data, "-n").rows
    assert [row[2] for row in rollout] == ["student", "rollouts"]
    assert rollout[0][4] == pipeline.made("student")


def test_a_pipe_of_ids_builds_a_student(pipeline: Pipeline, cli: Cli) -> None:
    start, teacher = pipeline.made("distill dckd"), pipeline.made("aligned teacher")
    rollout = cli("rollout", "--student", start, "--limit", 8, "--seed", 5, "--max-new-tokens", 8)
    cache = cli("cache-teacher", "--teacher", teacher, "--rollouts", "-", stdin=rollout.out)
    words = ("distill", "--method", "adpa", "--student", start, "--cache", "-", *STEPS, "--no-eval", "--tag", "piped")
    student = cli(*words, stdin=cache.out)
    rows = cli(*words[:-2], "-n", stdin=cache.out).rows
    assert [row[1:3] for row in rows] == [["found", "distill adpa"]]
    assert cli("path", "piped").ref == str(pipeline.store / student.ref)
    assert "32 of 40 pairs have no rollout and are left out" in student.err


def test_two_caches_are_matched_to_what_they_cover(pipeline: Pipeline, cli: Cli) -> None:
    on_pairs, on_answers = pipeline.made("signal"), pipeline.made("signal #2")
    words = ("distill", "--method", "adpa+", "--student", "tiny", "--data", pipeline.data, *STEPS, *ROWS)
    sft = ("--set", "sft.max_steps=2", "--set", "sft.limit=64", "--set", "rollout.max_new_tokens=12", "--no-eval")
    ran = cli(*words, *sft, "--cache", on_answers, "--cache", on_pairs)
    assert ran.ref == pipeline.made("distill adpa")


def test_what_is_named_and_serves_nothing_is_refused(pipeline: Pipeline, cli: Cli) -> None:
    words = (
        "distill",
        "--method",
        "adpa",
        "--student",
        pipeline.made("distill dckd"),
        "--cache",
        pipeline.made("signal"),
    )
    assert f"the method adpa does not read {pipeline.made('signal')} (chosen+rejected)" in cli.refused(2, *words)
    words = ("distill", "--method", "dckd", "--student", pipeline.made("student"))
    assert "the method dckd does not read rollout/" in cli.refused(2, *words, "--rollouts", pipeline.made("rollouts"))


def test_a_cache_of_other_answers_is_refused_and_the_row_named(pipeline: Pipeline, cli: Cli) -> None:
    """The signal covers the first 40 pairs; asked for are the pairs of another file."""
    other = pipeline.data / "test.jsonl"
    words = ("distill", "--method", "dckd", "--student", pipeline.made("student"), "--cache", pipeline.made("signal"))
    said = cli.refused(1, *words, "--data", other, *STEPS, "--no-eval")
    assert "it was made for 40 others" in said
    assert "adpa cache-teacher" in said


def test_artifacts_of_the_wrong_kind_are_refused(pipeline: Pipeline, cli: Cli) -> None:
    signal, rollouts, student = (pipeline.made(role) for role in ("signal", "rollouts", "student"))
    assert "--student needs an artifact made by sft or dpo-teacher or distill" in cli.refused(
        2, "rollout", "--student", signal
    )
    assert "--rollouts needs an artifact made by rollout" in cli.refused(
        2, "cache-teacher", "--teacher", student, "--rollouts", signal
    )
    words = ("distill", "--method", "adpa", "--student", student)
    assert "--cache needs an artifact made by cache-teacher" in cli.refused(2, *words, "--cache", rollouts)
    assert "--rollouts needs an artifact made by rollout" in cli.refused(2, *words, "--rollouts", student)
    assert "--reward-model needs an artifact made by reward-model" in cli.refused(
        2, "eval", student, "--reward-model", student
    )


def test_adpa_needs_the_model_the_teacher_was_aligned_from(pipeline: Pipeline, cli: Cli) -> None:
    words = ("distill", "--method", "adpa", "--student", pipeline.made("student"), "--data", pipeline.data)
    said = cli.refused(2, *words, "--teacher", pipeline.made("reference teacher"))
    assert "needs the model that the teacher was aligned from" in said
    assert "--reference MODEL" in said


def test_baselines_train_too(pipeline: Pipeline, cli: Cli) -> None:
    for method in ("sft", "dpo"):
        ran = cli("distill", "--method", method, "--student", pipeline.made("student"), "--data", pipeline.data, *STEPS,
                  "--limit", 8, "--no-eval")  # fmt: skip
        assert ran.ref.startswith("distill/")
