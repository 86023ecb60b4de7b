"""`adpa rollout`: a model's answers to the prompts of the data."""

from __future__ import annotations

from typing import Annotated

from adpa_cli.cli.commands import Command
from adpa_cli.cli.console import options as opt
from adpa_cli.cli.console.streams import one_value
from adpa_cli.errors import UsageError


@opt.making(*opt.INFERENCE, "seed")
def rollout(
    student: Annotated[
        str | None, opt.option("--student", help="The model that answers; - reads stdin [required].", metavar="MODEL")
    ] = None,
    data: opt.Data = None,
    split: Annotated[
        str, opt.option("--split", help="Which side of the data: train or test [train].", metavar="SIDE")
    ] = "train",
    temperature: Annotated[float | None, opt.much("--temperature", help="0 is greedy [family].", metavar="T")] = None,
    top_p: Annotated[float | None, opt.much("--top-p", help="Mass of the nucleus [1].", metavar="P")] = None,
    max_new_tokens: Annotated[int | None, opt.count("--max-new-tokens", help="Tokens of an answer at most.")] = None,
    *,
    options: opt.Options,
) -> opt.Request:
    """Let a model answer every prompt of the data, once.

    adpa rollout --student distill/c0ffee123456 --data pairs.jsonl
    """
    from adpa_cli.planning.requests import plan_rollout

    if split not in ("train", "test"):
        raise UsageError(f"--split {split} is no side of the data", "it is train or test")
    model = one_value("--student", student)
    options = options.setting(temperature=temperature, top_p=top_p, max_new_tokens=max_new_tokens)
    return opt.Request(options, lambda names, given: plan_rollout(names, given, model, data or (), (), split))


COMMAND = Command("rollout", "Build", 5, rollout)
