"""`adpa sft`."""

from __future__ import annotations

from typing import Annotated

from adpa_cli.cli import options as opt


def sft(
    model: Annotated[
        str | None,
        opt.option("--model", help="The base model: alias, folder or hub id.", panel=opt.WHAT, metavar="MODEL"),
    ] = None,
    data: Annotated[
        list[str] | None,
        opt.option(
            "--data", help="Dialogues, or preference data (their chosen answers).", panel=opt.WHAT, metavar="SRC"
        ),
    ] = None,
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
    """Fine-tune a base model on dialogues: the student to start from, or the reference teacher.

    adpa sft --model ./small --data dialogues.jsonl
    """
    from adpa_cli.cli.make import Options, make
    from adpa_cli.cli.streams import needed
    from adpa_cli.stages.requests import plan_sft

    options = Options(
        sets=sets or (), lr=lr, epochs=epochs, batch_size=batch_size, max_steps=max_steps, limit=limit, seed=seed,
        gpus=gpus, tokens_per_device=tokens_per_device, no_wait=no_wait, dry_run=dry_run, tag=tag,
        skip_bad_rows=skip_bad_rows, refresh=refresh,
    ).checked()  # fmt: skip
    base = needed("--model", model)
    make(options, lambda names, given: plan_sft(names, given, base, data or ()))
