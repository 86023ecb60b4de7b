"""`adpa reward-model`: a model with a scalar head that rewards answers."""

from __future__ import annotations

from typing import Annotated

from adpa_cli.cli.commands import Command
from adpa_cli.cli.console import options as opt
from adpa_cli.cli.console.streams import one_value


@opt.making(*opt.TRAINING)
def reward_model(
    model: Annotated[
        str | None,
        opt.option(
            "--model",
            "--teacher",
            help="The model to start from; an alias stands for its reference teacher [required].",
            metavar="MODEL",
        ),
    ] = None,
    data: opt.Data = None,
    sft_data: opt.SftData = None,
    *,
    options: opt.Options,
) -> opt.Request:
    """Train a reward model on preference pairs.

    A scalar head is put on the model and fitted with the Bradley–Terry loss.

    adpa reward-model --model tiny
    """
    from adpa_cli.planning.requests import plan_reward_model

    start = one_value("--model", model)
    return opt.Request(options, lambda names, given: plan_reward_model(names, given, start, data or (), sft_data or ()))


COMMAND = Command("reward-model", "Build", 3, reward_model)
