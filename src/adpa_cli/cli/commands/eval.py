"""`adpa eval`."""

from __future__ import annotations

from typing import Annotated

import typer

from adpa_cli.cli.commands import Command
from adpa_cli.cli.console import options as opt


@opt.making("sets", "skip_bad_rows", "limit", "smoke", "stop_after", "no_wait", "refresh", "dry_run", "yes")
def evaluate(
    models: Annotated[
        list[str] | None,
        typer.Argument(metavar="REF…", help="Models to measure; - reads stdin [required].", show_default=False),
    ] = None,
    suite: Annotated[
        str | None,
        opt.option(
            "--suite", help="accuracy, tiny, reward-model or implicit [family].", panel=opt.WHAT, metavar="NAME"
        ),
    ] = None,
    against: Annotated[
        str | None,
        opt.option("--against", help="The model whose answers are to be beaten.", panel=opt.WHAT, metavar="MODEL"),
    ] = None,
    reward_model: Annotated[
        str | None,
        opt.option(
            "--reward-model",
            help="A reward model that judges; an alias: its family's.",
            panel=opt.WHAT,
            metavar="MODEL",
        ),
    ] = None,
    teacher: opt.Teacher = None,
    reference: opt.Reference = None,
    data: opt.Data = None,
    *,
    options: opt.Options,
) -> opt.Request:
    """Measure models on held-out data: one numbers artifact per model.

    adpa eval best --against sft/3f9c0a1b2c4d --reward-model reward-model/0c5e7a1b2d3f
    """
    from adpa_cli.cli.console.streams import dashes, needed
    from adpa_cli.errors import UsageError
    from adpa_cli.planning.requests import Evaluate, plan_eval

    if not models:
        raise UsageError("no model to measure", "adpa eval REF…")
    named = {"--against": against, "--reward-model": reward_model, "--teacher": teacher, "--reference": reference}
    for option, value in named.items():
        if value is not None:
            needed(option, value)
    read = dashes({"REF": list(models)})["REF"]
    asked = Evaluate(tuple(read), suite, against, reward_model, teacher, reference, tuple(data or ()))
    return opt.Request(options, lambda names, given: plan_eval(names, given, asked))


COMMAND = Command("eval", "Build", 7, evaluate)
