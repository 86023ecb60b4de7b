"""`adpa dpo-teacher`."""

from __future__ import annotations

from typing import Annotated

from adpa_cli.cli import options as opt


def dpo_teacher(
    reference: Annotated[
        str | None,
        opt.option(
            "--reference", "--teacher", help="The fine-tuned teacher to align.", panel=opt.WHAT, metavar="MODEL"
        ),
    ] = None,
    data: opt.Data = None,
    sft_data: opt.SftData = None,
    sets: opt.Sets = None,
    skip_bad_rows: opt.SkipBadRows = False,
    seed: opt.Seed = None,
    limit: opt.Limit = None,
    max_steps: opt.MaxSteps = None,
    lr: opt.Lr = None,
    epochs: opt.Epochs = None,
    batch_size: opt.BatchSize = None,
    gpus: opt.Gpus = None,
    tokens_per_device: opt.Tokens = None,
    no_wait: opt.NoWait = False,
    refresh: opt.Refresh = False,
    tag: opt.Tag = None,
    dry_run: opt.DryRun = False,
) -> None:
    """Align the reference teacher with DPO: the aligned teacher.

    adpa dpo-teacher --reference sft/3f9c0a1b2c4d --data pairs.jsonl
    """
    from adpa_cli.cli.make import Options, make
    from adpa_cli.cli.streams import dashes, needed, one
    from adpa_cli.stages.requests import plan_dpo_teacher

    options = Options(
        sets=sets or (), lr=lr, epochs=epochs, batch_size=batch_size, max_steps=max_steps, limit=limit, seed=seed,
        gpus=gpus, tokens_per_device=tokens_per_device, no_wait=no_wait, dry_run=dry_run, tag=tag,
        skip_bad_rows=skip_bad_rows, refresh=refresh,
    ).checked()  # fmt: skip
    read = dashes({"--reference": [needed("--reference", reference)]})
    start = one("--reference", read["--reference"])
    make(options, lambda names, given: plan_dpo_teacher(names, given, start, data or (), sft_data or ()))
