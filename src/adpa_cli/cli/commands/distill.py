"""`adpa distill`."""

from __future__ import annotations

from typing import Annotated

from adpa_cli.cli.commands import Command
from adpa_cli.cli.console import options as opt


@opt.making(*opt.TRAINING, "seed_all")
def distill(
    method: Annotated[
        str | None,
        opt.option(
            "--method", help="dckd, adpa, adpa+, dpo, … All: adpa methods [required].", panel=opt.WHAT, metavar="NAME"
        ),
    ] = None,
    student: Annotated[
        str | None,
        opt.option(
            "--student",
            help="Alias (is fine-tuned first) or a model to start from [required].",
            panel=opt.WHAT,
            metavar="MODEL",
        ),
    ] = None,
    teacher: opt.Teacher = None,
    reference: opt.Reference = None,
    data: opt.Data = None,
    sft_data: opt.SftData = None,
    rollouts: Annotated[
        list[str] | None, opt.option("--rollouts", help="Use these rollouts.", panel=opt.WHAT, metavar="ID")
    ] = None,
    cache: Annotated[
        list[str] | None,
        opt.option("--cache", help="Use this signal; may be repeated; - reads stdin.", panel=opt.WHAT, metavar="ID"),
    ] = None,
    states: Annotated[
        str | None,
        opt.option(
            "--states",
            help="Whose answers stand in for rollouts [student].",
            panel=opt.WHAT,
            metavar="student|chosen|rejected|teacher",
        ),
    ] = None,
    allow_foreign_rollouts: Annotated[
        bool,
        opt.option("--allow-foreign-rollouts", help="Train on answers of another model.", panel=opt.WHAT),
    ] = False,
    reward_model: Annotated[
        str | None,
        opt.option(
            "--reward-model",
            help="Judges in the closing eval, for --select best and ddpo.",
            panel=opt.WHAT,
            metavar="MODEL",
        ),
    ] = None,
    no_eval: Annotated[
        bool, opt.option("--no-eval", help="Leave out the evaluation at the end.", panel=opt.AFTER)
    ] = False,
    *,
    options: opt.Options,
) -> opt.Request:
    """Train a small model on a larger model's preferences. Builds whatever is missing first.

    adpa distill --method adpa+ --student tiny                                minutes, offline, CPU
    adpa distill --method adpa+ --student llama-3.2-1b --teacher tulu-3-8b    one 24 GB GPU
    adpa distill --method dckd --student $S --cache -                         in a pipe
    """
    from adpa_cli.cli.console.streams import at_most_one, dashes, needed, one, several
    from adpa_cli.planning.distill_builder import Distill, needed_methods, plan_distill

    chosen = needed("--method", method)
    needed_methods(chosen)
    read = dashes({
        "--student": [needed("--student", student)], "--teacher": several(teacher), "--reference": several(reference),
        "--rollouts": rollouts or [], "--cache": cache or [], "--reward-model": several(reward_model),
    })  # fmt: skip
    asked = Distill(
        method=chosen, student=one("--student", read["--student"]), teacher=at_most_one("--teacher", read["--teacher"]),
        reference=at_most_one("--reference", read["--reference"]), data=tuple(data or ()),
        sft_data=tuple(sft_data or ()), rollouts=tuple(read["--rollouts"]), cache=tuple(read["--cache"]),
        evaluate=not no_eval, allow_foreign_rollouts=allow_foreign_rollouts,
        reward_model=at_most_one("--reward-model", read["--reward-model"]),
    )  # fmt: skip
    return opt.Request(options.setting(states=states), lambda names, given: plan_distill(names, given, asked))


COMMAND = Command("distill", "Build", 6, distill)
