"""`adpa distill`: a student trained with a method, and everything that this rests on."""

from __future__ import annotations

from typing import Annotated

from adpa_cli.cli.commands import Command
from adpa_cli.cli.console import complete
from adpa_cli.cli.console import options as opt
from adpa_cli.cli.console.streams import dashes, needed


@opt.making(*opt.TRAINING, opt.SHARED, "seed_all", "base_url")
def distill(
    method: Annotated[
        str | None,
        opt.option(
            "--method",
            help="For example dckd, adpa or adpa+; adpa methods lists all [required].",
            metavar="NAME",
            completion=complete.methods,
        ),
    ] = None,
    student: Annotated[
        str | None,
        opt.option("--student", help="The model to train; an alias is fine-tuned first [required].", metavar="MODEL"),
    ] = None,
    teacher: opt.Teacher = None,
    reference: opt.Reference = None,
    data: opt.Data = None,
    sft_data: opt.SftData = None,
    rollouts: Annotated[
        list[str] | None,
        opt.option(
            "--rollouts",
            help="Train on the answers of this rollout.",
            metavar="ID",
            completion=complete.artifacts("answers"),
        ),
    ] = None,
    cache: Annotated[
        list[str] | None,
        opt.option(
            "--cache",
            help="Use this stored signal; may be repeated; - reads stdin.",
            metavar="ID",
            completion=complete.artifacts("signal"),
        ),
    ] = None,
    states: Annotated[
        str | None,
        opt.option(
            "--states",
            help="Whose answers to train on [student].",
            metavar="student|chosen|rejected|teacher",
        ),
    ] = None,
    allow_foreign_rollouts: Annotated[
        bool, opt.option("--allow-foreign-rollouts", help="Allow --rollouts that another model wrote.")
    ] = False,
    reward_model: Annotated[
        str | None, opt.reward_model(help="A reward model for the evaluation, for --select best and for ddpo.")
    ] = None,
    no_eval: Annotated[bool, opt.after("--no-eval", help="Skip the evaluation at the end.")] = False,
    *,
    options: opt.Options,
) -> opt.Request:
    """Train a small model on a larger model's preferences, and build whatever that needs first.

    adpa distill --method adpa+ --student tiny                                minutes, offline, CPU
    adpa distill --method adpa+ --student llama-3.2-1b --teacher tulu-3-8b    with a ready pair
    adpa distill --method dckd --student ./small --data pairs.jsonl --teacher tulu-3-8b
    """
    from adpa_cli.planning.distill_builder import Distill, needed_methods, plan_distill

    method = needed("--method", method)
    needed_methods(method)
    values = dashes({
        "--student": needed("--student", student), "--teacher": teacher, "--reference": reference,
        "--rollouts": rollouts, "--cache": cache, "--reward-model": reward_model,
    })  # fmt: skip
    inputs = Distill(
        method=method, student=values.one("--student"), teacher=values.optional("--teacher"),
        reference=values.optional("--reference"), data=tuple(data or ()), sft_data=tuple(sft_data or ()),
        rollouts=tuple(values["--rollouts"]), cache=tuple(values["--cache"]), evaluate=not no_eval,
        allow_foreign_rollouts=allow_foreign_rollouts, reward_model=values.optional("--reward-model"),
    )  # fmt: skip
    return opt.Request(options.setting(states=states), lambda names, given: plan_distill(names, given, inputs))


COMMAND = Command("distill", "Build", 6, distill, also=("train", "fit", "align", "kd", "distillation"))
