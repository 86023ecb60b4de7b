"""`adpa rollout`: a model's answers to the prompts of the data."""

from __future__ import annotations

from typing import Annotated

from adpa_cli.cli.commands import Command
from adpa_cli.cli.console import options as opt
from adpa_cli.cli.console.streams import one_value
from adpa_cli.errors import UsageError


@opt.making(*opt.INFERENCE, opt.SHARED, "seed", "base_url")
def rollout(
    student: Annotated[
        str | None,
        opt.option("--student", help="The model that writes the answers; - reads stdin [required].", metavar="MODEL"),
    ] = None,
    data: opt.Data = None,
    split: Annotated[
        str, opt.option("--split", help="Which prompts: train or test [train].", metavar="SIDE")
    ] = "train",
    temperature: Annotated[
        float | None, opt.much("--temperature", help="Sampling temperature; 0 is greedy [the family's].", metavar="T")
    ] = None,
    top_p: Annotated[
        float | None, opt.much("--top-p", help="Sample from the most likely tokens up to this mass [1].", metavar="P")
    ] = None,
    max_new_tokens: Annotated[int | None, opt.count("--max-new-tokens", help="Longest answer, in tokens.")] = None,
    engine: Annotated[
        str | None,
        opt.option(
            "--engine",
            help="What draws the answers: hf, or vllm with --base-url or --set rollout.vllm=PATH [hf].",
            metavar="hf|vllm",
        ),
    ] = None,
    *,
    options: opt.Options,
) -> opt.Request:
    """Let a model answer every prompt of the data once.

    adpa rollout --student distill/c0ffee123456 --data pairs.jsonl
    """
    from adpa_cli.planning.requests import plan_rollout

    if split not in ("train", "test"):
        raise UsageError(f"--split must be train or test; got {split}", "leave --split out for train")
    model = one_value("--student", student)
    options = options.setting(temperature=temperature, top_p=top_p, max_new_tokens=max_new_tokens, engine=engine)
    return opt.Request(options, lambda names, given: plan_rollout(names, given, model, data or (), (), split))


COMMAND = Command(
    "rollout", "Build", 5, rollout, also=("generate", "infer", "inference", "predict", "sample", "answer")
)
