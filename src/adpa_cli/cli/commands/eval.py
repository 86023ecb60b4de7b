"""`adpa eval`: the numbers of models on held-out data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from adpa_cli.cli.commands import Command
from adpa_cli.cli.console import complete
from adpa_cli.cli.console import options as opt
from adpa_cli.cli.console.streams import dashes, needed
from adpa_cli.errors import UsageError


@opt.making(
    "sets", "skip_bad_rows", "ignore_columns", "columns", "limit", "smoke", "tokens_per_device", "judge_url",
    "judge_price", "base_url", "knobs", "stop_after", "no_wait", "refresh", "dry_run", "yes",
)  # fmt: skip
def evaluate(
    models: Annotated[
        list[str] | None,
        opt.argument(
            "REF…",
            "The models, or files of answers, to measure; - reads stdin [required].",
            completion=complete.models(),
        ),
    ] = None,
    suite: Annotated[
        str | None,
        opt.option(
            "--suite",
            help="accuracy, agreement, tiny, reward-model, implicit, win-rate, alpaca-eval, mt-bench, open-llm-v1 "
            "or lm-eval [the family's].",
            metavar="NAME",
            completion=complete.suites,
        ),
    ] = None,
    against: Annotated[
        str | None, opt.option("--against", help="The model, or file of answers, to compare with.", metavar="REF")
    ] = None,
    reward_model: Annotated[
        str | None, opt.reward_model(help="Judge answers by this reward model; an alias stands for its family's.")
    ] = None,
    teacher: opt.Teacher = None,
    reference: Annotated[
        str | None,
        opt.teacher("--reference", help="The model that the teacher was aligned from [as recorded]."),
    ] = None,
    judge: Annotated[
        str | None, opt.option("--judge", help="Judge answers by this model behind --judge-url.", metavar="NAME")
    ] = None,
    judge_prompts: Annotated[
        str | None,
        opt.option(
            "--judge-prompts",
            help="FastChat's judge_prompts.jsonl, or AlpacaEval's prompts [built in].",
            metavar="FILE",
        ),
    ] = None,
    references: Annotated[
        str | None,
        opt.option("--references", help="FastChat's reference answers, for --suite mt-bench.", metavar="FILE"),
    ] = None,
    data: opt.Data = None,
    split: Annotated[
        str | None, opt.option("--split", help="Which pairs: test, train or all [test].", metavar="SIDE")
    ] = None,
    tasks: Annotated[
        str | None, opt.option("--tasks", help="Tasks of lm-evaluation-harness, for --suite lm-eval.", metavar="NAME,…")
    ] = None,
    include_path: Annotated[
        str | None, opt.option("--include-path", help="A folder with more tasks, as *.yaml files.", metavar="DIR")
    ] = None,
    to: Annotated[
        str | None, opt.after("--to", help="Also write the table to a file: .csv, .md or .tex.", metavar="FILE")
    ] = None,
    *,
    options: opt.Options,
) -> opt.Request:
    """Measure models on held-out data, and print a table of the results.

    adpa eval best --against sft/3f9c0a1b2c4d --reward-model reward-model/0c5e7a1b2d3f
    adpa eval dpo-teacher/3f9c0a1b2c4d --suite agreement
    adpa eval rollout/1b2c3d4e5f60 answers.json --reward-model ./judge --to table.csv
    adpa eval best --against start --judge NAME --judge-url http://localhost:8000/v1
    """
    from adpa_cli.planning.benchmarks import INCLUDE_PATH, TASKS, Benchmark, plan_benchmark
    from adpa_cli.planning.evaluations import Evaluate
    from adpa_cli.planning.judges import Judge, plan_evaluation
    from adpa_cli.report.evaluation import checked_path

    if not models and not judge and not reward_model:
        raise UsageError("adpa eval needs the model to measure", "name an artifact, a tag or a folder: adpa eval REF…")
    inputs = {"--against": against, "--reward-model": reward_model, "--teacher": teacher, "--reference": reference,
              "--judge": judge, "--judge-prompts": judge_prompts, "--references": references}  # fmt: skip
    for option, value in inputs.items():
        if value is not None:
            needed(option, value)
    measured = tuple(dashes({"REF": models})["REF"]) if models else ()
    if split not in (None, "test", "train", "all"):
        raise UsageError(f"--split must be test, train or all; got {split}", "leave --split out for test")
    evaluation = Evaluate(measured, suite, against, reward_model, teacher, reference, tuple(data or ()), split)
    path = None if to is None else checked_path(needed("--to", to))
    benchmark = Benchmark(measured, suite, tasks, include_path)
    if measuring := benchmark.measuring:
        unused({**inputs, "--data": data, "--split": split}, measuring.name)
        return opt.Request(options, lambda names, given: plan_benchmark(names, given, benchmark, measuring), path)
    unused({TASKS: tasks, INCLUDE_PATH: include_path}, str(suite or "of the family"))
    asked = Judge(judge, judge_prompts, references)
    return opt.Request(options, lambda names, given: plan_evaluation(names, given, evaluation, asked), path)


def unused(given: Mapping[str, object], suite: str) -> None:
    """Raise UsageError for an option that was given and that the suite does not read."""
    for option, value in given.items():
        if value is not None:
            shown = " ".join(value) if isinstance(value, list) else value
            raise UsageError(
                f"{option} {shown} has no effect: the suite {suite} does not read it", f"leave {option} out"
            )


COMMAND = Command("eval", "Build", 7, evaluate, also=("evaluate", "test", "bench", "benchmark", "score", "judge"))
