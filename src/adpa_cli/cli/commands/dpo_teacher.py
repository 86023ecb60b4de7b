"""`adpa dpo-teacher`: the aligned teacher, trained with DPO from its reference."""

from __future__ import annotations

from typing import Annotated

from adpa_cli.cli.commands import Command
from adpa_cli.cli.console import options as opt
from adpa_cli.cli.console.streams import one_value


@opt.making(*opt.TRAINING, opt.SHARED)
def dpo_teacher(
    reference: Annotated[
        str | None, opt.teacher("--reference", "--teacher", help="The fine-tuned teacher to align [required].")
    ] = None,
    data: opt.Data = None,
    sft_data: opt.SftData = None,
    *,
    options: opt.Options,
) -> opt.Request:
    """Align a fine-tuned teacher with DPO, which makes the aligned teacher.

    adpa dpo-teacher --reference sft/3f9c0a1b2c4d --data pairs.jsonl
    """
    from adpa_cli.planning.requests import plan_dpo_teacher

    start = one_value("--reference", reference)
    return opt.Request(options, lambda names, given: plan_dpo_teacher(names, given, start, data or (), sft_data or ()))


COMMAND = Command("dpo-teacher", "Build", 2, dpo_teacher, also=("teacher",))
