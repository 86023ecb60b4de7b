"""`adpa cache-teacher`."""

from __future__ import annotations

from typing import Annotated

from adpa_cli.cli import options as opt


def cache_teacher(
    teacher: opt.Teacher = None,
    reference: opt.Reference = None,
    data: opt.Data = None,
    rollouts: Annotated[
        list[str] | None,
        opt.option("--rollouts", help="Answers to score; - reads stdin.", panel=opt.WHAT, metavar="ID"),
    ] = None,
    sets: opt.Sets = None,
    skip_bad_rows: opt.SkipBadRows = False,
    top_k: Annotated[
        int | None, opt.option("--top-k", help="Ids kept per token [50].", panel=opt.MUCH, metavar="K")
    ] = None,
    precision: Annotated[
        float | None,
        opt.option(
            "--precision", help="Step of stored log-probs in nats [1/32]; 0 is exact.", panel=opt.MUCH, metavar="NATS"
        ),
    ] = None,
    limit: opt.Limit = None,
    gpus: opt.Gpus = None,
    no_wait: opt.NoWait = False,
    refresh: opt.Refresh = False,
    tag: opt.Tag = None,
    dry_run: opt.DryRun = False,
) -> None:
    """Keep a teacher's top-k signal on given answers, so that training needs no teacher.

    adpa cache-teacher --teacher T --data pairs.jsonl · adpa cache-teacher --teacher T --rollouts R
    """
    from adpa_cli.cli.make import Options, make
    from adpa_cli.cli.streams import at_most_one, dashes, needed, one, several
    from adpa_cli.stages.requests import plan_capture

    extra = [f"{k}={v}" for k, v in (("top_k", top_k), ("precision", precision)) if v is not None]
    options = Options(
        [*(sets or ()), *extra], limit=limit, gpus=gpus, no_wait=no_wait, dry_run=dry_run, tag=tag,
        skip_bad_rows=skip_bad_rows, refresh=refresh,
    ).checked()  # fmt: skip
    read = dashes({
        "--teacher": [needed("--teacher", teacher)], "--reference": several(reference),
        "--rollouts": rollouts or [],
    })  # fmt: skip
    who = one("--teacher", read["--teacher"])
    below = at_most_one("--reference", read["--reference"])
    make(options, lambda names, given: plan_capture(names, given, who, below, data or (), read["--rollouts"], ()))
