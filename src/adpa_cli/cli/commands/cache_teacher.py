"""`adpa cache-teacher`: the signal of a teacher, or of a pair, on given answers."""

from __future__ import annotations

from typing import Annotated

from adpa_cli.cli.commands import Command
from adpa_cli.cli.console import options as opt
from adpa_cli.cli.console.complete import artifacts
from adpa_cli.cli.console.streams import dashes, needed


@opt.making(*opt.INFERENCE, opt.SHARED)
def cache_teacher(
    teacher: opt.Teacher = None,
    reference: opt.Reference = None,
    data: opt.Data = None,
    rollouts: Annotated[
        list[str] | None,
        opt.option(
            "--rollouts",
            help="Rollouts whose answers are scored; - reads stdin.",
            metavar="ID",
            completion=artifacts("answers"),
        ),
    ] = None,
    top_k: Annotated[int | None, opt.much("--top-k", help="Log-probs stored per token [50].", metavar="K")] = None,
    precision: Annotated[
        str | None,
        opt.much(
            "--precision",
            help="Resolution of the stored log-probs: a number, exact, or auto=KL [1/32].",
            metavar="NATS",
        ),
    ] = None,
    pair_precision: Annotated[
        str | None,
        opt.much(
            "--pair-precision",
            help="Resolution of the stored difference to the reference: a number, or exact [1/128].",
            metavar="NATS",
        ),
    ] = None,
    support: Annotated[
        str | None,
        opt.much(
            "--support", help="Which tokens are stored: topk, or sampled (drawn at random) [topk].", metavar="KIND"
        ),
    ] = None,
    *,
    options: opt.Options,
) -> opt.Request:
    """Store the teacher's top-k log-probabilities for given answers, so that training does not need the teacher.

    adpa cache-teacher --teacher tiny-teacher --data tiny-pairs
    adpa cache-teacher --teacher ./teacher --rollouts rollout/1b2c3d4e5f60
    """
    from adpa_cli.planning.requests import plan_capture

    values = dashes({"--teacher": needed("--teacher", teacher), "--reference": reference, "--rollouts": rollouts})
    aligned, below, answers = values.one("--teacher"), values.optional("--reference"), values["--rollouts"]
    options = options.setting(top_k=top_k, precision=precision, pair_precision=pair_precision, support=support)
    return opt.Request(
        options, lambda names, given: plan_capture(names, given, aligned, below, data or (), answers, ())
    )


COMMAND = Command("cache-teacher", "Build", 4, cache_teacher, also=("cache", "capture", "logits", "logprobs"))
