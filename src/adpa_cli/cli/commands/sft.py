"""`adpa sft`: a base model fine-tuned on dialogues."""

from __future__ import annotations

from typing import Annotated

from adpa_cli.cli.commands import Command
from adpa_cli.cli.console import options as opt
from adpa_cli.cli.console.streams import needed


@opt.making(*opt.TRAINING)
def sft(
    model: Annotated[
        str | None,
        opt.option("--model", help="The base model: an alias, a folder or a hub id [required].", metavar="MODEL"),
    ] = None,
    data: Annotated[
        list[str] | None,
        opt.option(
            "--data",
            help="Dialogues, or preference data (its chosen answers are used) [of an alias: its family's].",
            metavar="SRC",
        ),
    ] = None,
    *,
    options: opt.Options,
) -> opt.Request:
    """Fine-tune a base model on dialogues.

    The result is a student to start from, or the reference teacher that adpa dpo-teacher aligns.

    adpa sft --model ./small --data dialogues.jsonl
    adpa sft --model tiny                              offline, a minute on a CPU
    """
    from adpa_cli.planning.requests import plan_sft

    base = needed("--model", model)
    return opt.Request(options, lambda names, given: plan_sft(names, given, base, data or ()))


COMMAND = Command("sft", "Build", 1, sft, also=("finetune", "fine-tune", "tune"))
