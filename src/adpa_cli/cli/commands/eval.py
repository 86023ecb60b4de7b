"""`adpa eval`: the numbers of models on held-out data."""

from __future__ import annotations

from typing import Annotated

from adpa_cli.cli.commands import Command
from adpa_cli.cli.console import complete
from adpa_cli.cli.console import options as opt
from adpa_cli.cli.console.streams import dashes, needed
from adpa_cli.errors import UsageError


@opt.making(
    "sets", "skip_bad_rows", "ignore_columns", "limit", "smoke", "tokens_per_device", "knobs", "stop_after", "no_wait",
    "refresh", "dry_run", "yes",
)  # fmt: skip
def evaluate(
    models: Annotated[
        list[str] | None,
        opt.argument("REF…", "Models to measure; - reads stdin [required].", completion=complete.models()),
    ] = None,
    suite: Annotated[
        str | None,
        opt.option(
            "--suite",
            help="accuracy, tiny, reward-model, implicit or agreement [family].",
            metavar="NAME",
            completion=complete.suites,
        ),
    ] = None,
    against: Annotated[
        str | None, opt.option("--against", help="The model whose answers are to be beaten.", metavar="MODEL")
    ] = None,
    reward_model: Annotated[
        str | None, opt.reward_model(help="A reward model that judges; an alias: its family's.")
    ] = None,
    teacher: opt.Teacher = None,
    reference: Annotated[
        str | None,
        opt.teacher("--reference", help="What the teacher, or REF under agreement, was aligned from [recorded]."),
    ] = None,
    data: opt.Data = None,
    *,
    options: opt.Options,
) -> opt.Request:
    """Measure models on held-out data: one numbers artifact per model.

    adpa eval best --against sft/3f9c0a1b2c4d --reward-model reward-model/0c5e7a1b2d3f
    adpa eval dpo-teacher/3f9c0a1b2c4d --suite agreement
    """
    from adpa_cli.planning.requests import Evaluate, plan_eval

    if not models:
        raise UsageError("no model to measure", "adpa eval REF…")
    inputs = {"--against": against, "--reward-model": reward_model, "--teacher": teacher, "--reference": reference}
    for option, value in inputs.items():
        if value is not None:
            needed(option, value)
    measured = tuple(dashes({"REF": models})["REF"])
    evaluation = Evaluate(measured, suite, against, reward_model, teacher, reference, tuple(data or ()))
    return opt.Request(options, lambda names, given: plan_eval(names, given, evaluation))


COMMAND = Command("eval", "Build", 7, evaluate)
