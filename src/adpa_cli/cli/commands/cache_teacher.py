"""`adpa cache-teacher`: the signal of a teacher, or of a pair, on given answers."""

from __future__ import annotations

from typing import Annotated

from adpa_cli.cli.commands import Command
from adpa_cli.cli.console import options as opt
from adpa_cli.cli.console.complete import artifacts
from adpa_cli.cli.console.streams import dashes, needed


@opt.making(*opt.INFERENCE)
def cache_teacher(
    teacher: opt.Teacher = None,
    reference: opt.Reference = None,
    data: opt.Data = None,
    rollouts: Annotated[
        list[str] | None,
        opt.option(
            "--rollouts", help="Answers to score; - reads stdin.", metavar="ID", completion=artifacts("answers")
        ),
    ] = None,
    top_k: Annotated[int | None, opt.much("--top-k", help="Ids kept per token [50].", metavar="K")] = None,
    precision: Annotated[
        str | None,
        opt.much(
            "--precision", help="Step of stored log-probs [1/32], exact, or auto=KL that finds one.", metavar="NATS"
        ),
    ] = None,
    pair_precision: Annotated[
        str | None,
        opt.much(
            "--pair-precision",
            help="Step of the stored difference to the reference [1/128], or exact.",
            metavar="NATS",
        ),
    ] = None,
    support: Annotated[
        str | None, opt.much("--support", help="Which ids: topk, or sampled (drawn).", metavar="KIND")
    ] = None,
    *,
    options: opt.Options,
) -> opt.Request:
    """Keep a teacher's top-k signal on given answers, so that training needs no teacher.

    adpa cache-teacher --teacher T --data pairs.jsonl · adpa cache-teacher --teacher T --rollouts R
    """
    from adpa_cli.planning.requests import plan_capture

    values = dashes({"--teacher": needed("--teacher", teacher), "--reference": reference, "--rollouts": rollouts})
    aligned, below, answers = values.one("--teacher"), values.optional("--reference"), values["--rollouts"]
    options = options.setting(top_k=top_k, precision=precision, pair_precision=pair_precision, support=support)
    return opt.Request(
        options, lambda names, given: plan_capture(names, given, aligned, below, data or (), answers, ())
    )


COMMAND = Command("cache-teacher", "Build", 4, cache_teacher)
