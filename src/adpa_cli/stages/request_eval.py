"""`adpa eval` as a plan, and the evaluation that a distillation ends with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from adpa_cli.errors import UsageError
from adpa_cli.families import GENERIC, Alias, Family, ReadyPair
from adpa_cli.spec import EvalSpec
from adpa_cli.stages import lineage
from adpa_cli.stages.graph import External, Input, Node
from adpa_cli.stages.names import Names
from adpa_cli.stages.plan import Plan, Planner, Template
from adpa_cli.stages.request_reward import judge
from adpa_cli.stages.requests import data_for, needed_template, reference_model, teachers
from adpa_cli.stages.settings import Given, check_own, plain_spec


def family_evals(
    planner: Planner,
    family: Family,
    template: Template,
    data: External,
    start: Input,
    nodes: Sequence[Node],
    teachers: Sequence[tuple[Input, str]],
    judge: Input | None = None,
) -> tuple[Node, ...]:
    """The family's evaluation of the start, of every student trained, and of its teachers with their roles.

    A reward model judges where the family has no judge of its own.
    """
    suite, scorers = family.suite, None
    if judge is not None and suite == "accuracy":
        suite, scorers = "reward-model", {"reward_model": judge}
    models: list[tuple[Input, str]] = [(start, "start"), *((n, n.what.split(" from ")[0]) for n in nodes)]
    if family.suite == "tiny":
        models += teachers
    return tuple(eval_node(planner, family, template, data, m, role, start, suite, scorers) for m, role in models)


def eval_node(
    planner: Planner,
    family: Family,
    template: Template,
    data: External,
    model: Input,
    role: str,
    against: Input | None,
    suite: str,
    scorers: dict[str, Input] | None = None,
) -> Node:
    """The numbers of one model; its answers are judged against those of `against` where the suite judges answers."""
    inputs: dict[str, Input | tuple[Input, ...]] = {"model": model, "data": data, **(scorers or {})}
    if suite != "accuracy":
        inputs["rollouts"] = planner.rollout(model, data, family, template, "test", judged=True)
        if against is not None and against.content != model.content:
            inputs["against"] = planner.rollout(against, data, family, template, "test", judged=True)
    fixed = {"template": template[0], "end": template[1], "suite": suite}
    spec = plain_spec(EvalSpec, "eval", family, ("eval",), planner.user("eval"), fixed)
    return Node("eval", spec, inputs, "eval", f"{suite} of {role}")


@dataclass(frozen=True)
class Evaluate:
    """What `adpa eval` was asked for."""

    models: tuple[str, ...]
    suite: str | None = None
    against: str | None = None
    reward_model: str | None = None
    teacher: str | None = None
    reference: str | None = None
    data: tuple[str, ...] = ()


def plan_eval(names: Names, given: Given, asked: Evaluate) -> Plan:
    """`adpa eval REF… [--suite NAME] [--against REF]`: one numbers artifact per model."""
    planner = Planner(names, given, ("eval",))
    check_own(given, [("eval", "")])
    found = [_model(planner, text, "REF") for text in asked.models]
    family = found[0][1]
    template = found[0][2]
    suite = asked.suite or ("reward-model" if asked.reward_model else "implicit" if asked.teacher else family.suite)
    scorers: dict[str, Input] = {}
    if suite == "reward-model":
        if not asked.reward_model:
            raise UsageError(
                "the suite reward-model needs one",
                "give --reward-model MODEL (a folder, hub id or artifact), or make one: adpa reward-model --model M",
            )
        scorers["reward_model"] = judge(planner, asked.reward_model, asked.data)
    if suite == "implicit":
        who = teachers(planner, asked.teacher, asked.reference, family, asked.data, ())
        if who.reference is None:
            raise UsageError(
                "the implicit reward needs the model the teacher was aligned from", "give --reference MODEL"
            )
        scorers |= {"aligned": who.aligned, "reference": who.reference}
    against = _model(planner, asked.against, "--against")[0] if asked.against else None
    if against is not None:
        lineage.same_template(template, against, "opponent")
    nodes = []
    for model, own_family, own_template in found:
        lineage.same_template(template, model, "model")
        data = data_for(planner, model, asked.data, own_family)
        nodes.append(eval_node(planner, own_family, own_template, data, model, model.label, against, suite, scorers))
    return Plan(tuple(nodes), template)


def _model(planner: Planner, text: str, option: str) -> tuple[Input, Family, Template]:
    """A model to measure: an alias is its fine-tuned student."""
    found = planner.names.model(text, option)
    if isinstance(found, ReadyPair):
        hub = planner.names.hub_model(found.aligned)
        return hub, GENERIC, needed_template(hub, option)
    if isinstance(found, Alias):
        template = planner.family_template(found.family, planner.base(found))
        node = planner.sft_of(found, planner.family_data((), found.family, "sft"), template)
        return node, found.family, template
    return reference_model(planner, text, (), option)
