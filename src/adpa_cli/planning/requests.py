"""One function per making command: from the words of the command line to a `Plan`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from adpa_cli import stages, suites
from adpa_cli.errors import UsageError
from adpa_cli.families import GENERIC, Alias, Family, ReadyPair
from adpa_cli.hub import External
from adpa_cli.planning import lineage
from adpa_cli.planning.planner import Plan, Planner, Template
from adpa_cli.planning.resolve_inputs import Names
from adpa_cli.planning.settings import Given, check_own, plain_spec
from adpa_cli.stages import Artifact, Input, Node, Stage
from adpa_cli.stages.cache_teacher import CACHE_TEACHER
from adpa_cli.stages.eval import EVAL
from adpa_cli.stages.rollout import ROLLOUT
from adpa_cli.stages.training import DPO_TEACHER, REWARD_MODEL, SFT
from adpa_cli.suites import EvalSpec, Suite


def planner_of(stage: Stage, names: Names, given: Given, of_methods: Sequence[str] | None = None) -> Planner:
    """The planner of a command about one stage, with some of its methods. Raises UsageError for an unknown setting."""
    check_own(given, stage.name, stage.methods() if of_methods is None else of_methods)
    return Planner(names, given, stage.name)


def plan_sft(names: Names, given: Given, model: str, data: Sequence[str]) -> Plan:
    """`adpa sft --model M [--data D]`."""
    planner = planner_of(SFT, names, given)
    found = names.model(model, "--model")
    if isinstance(found, ReadyPair):
        raise UsageError(
            f"--model {model}: a ready pair is trained already", f"give it to --teacher: adpa distill --teacher {model}"
        )
    if isinstance(found, Alias):
        base: Input = planner.base(found)
        family, side = found.family, found.side
    else:
        base, family, side = found, lineage.family_of(found, names.store), "student"
    own = lineage.template_of(base)
    template = own or planner.family_template(family, base)
    notes = (
        ()
        if own or family is not GENERIC
        else (f"{base.label} has no chat template; the default one (zephyr) is set and saved",)
    )
    texts = data or ((family.sft_data,) if family.alias else (GENERIC.sft_data,))
    # Nothing tells which side of a pair a folder or hub model is going to be.
    role = ("reference teacher" if side == "teacher" else "student") if isinstance(found, Alias) else SFT.name
    return Plan((planner.sft(base, names.data(texts), family, side, template, role),), template, notes=notes)


def plan_dpo_teacher(names: Names, given: Given, reference: str, data: Sequence[str], sft_data: Sequence[str]) -> Plan:
    """`adpa dpo-teacher --reference R [--data D]`."""
    planner = planner_of(DPO_TEACHER, names, given)
    start, family, template = reference_model(planner, reference, sft_data, "--reference")
    pairs = planner.family_data(data, family, "pairs")
    return Plan((planner.dpo_teacher(start, pairs, family, template),), template)


def reference_model(
    planner: Planner, text: str, sft_data: Sequence[str], option: str
) -> tuple[Input, Family, Template]:
    """What an option for the reference teacher means: the model, its family, its template."""
    found = planner.names.model(text, option)
    if isinstance(found, ReadyPair):
        hub = planner.names.hub_model(found.reference)
        return hub, GENERIC, needed_template(hub, option)
    if isinstance(found, Alias):
        teacher = replace(found, side="teacher")
        template = planner.family_template(found.family, planner.base(teacher))
        data = planner.family_data(sft_data, found.family, "dialogues")
        return planner.sft_of(teacher, data, template), found.family, template
    return found, lineage.family_of(found, planner.names.store), needed_template(found, option)


def needed_template(model: Input, option: str) -> Template:
    """The template of a model that is used as it is; UsageError for a base model, which has none."""
    template = lineage.template_of(model)
    if template is None:
        alias = lineage.alias_of(model)
        raise UsageError(
            f"{option} {model.label} has no chat template: it is a base model",
            f"fine-tune it first: adpa sft --model {lineage.typed(model)}"
            + (f"\n or: {option} {alias}, which is fine-tuned first" if alias else ""),
        )
    return template


@dataclass(frozen=True)
class Teachers:
    """The aligned teacher, the model it was aligned from (None when nothing tells), and their template."""

    aligned: Input
    reference: Input | None
    template: Template
    family: Family


def teachers(
    planner: Planner,
    teacher: str | None,
    reference: str | None,
    family: Family,
    data: Sequence[str],
    sft_data: Sequence[str],
) -> Teachers:
    """The teachers that a command names, or its family's."""
    names = planner.names
    text = teacher or family.alias
    if not text:
        raise UsageError("no teacher is named, and the student belongs to no family", "name one: --teacher MODEL")
    found = names.model(text, "--teacher")
    if isinstance(found, Alias):
        start, owner, template = reference_model(planner, reference or found.family.alias, sft_data, "--reference")
        pairs = planner.family_data(data, found.family, "pairs")
        return Teachers(planner.dpo_teacher(start, pairs, found.family, template), start, template, owner)
    if isinstance(found, ReadyPair):
        aligned = names.hub_model(found.aligned)
        below = reference_model(planner, reference or text, sft_data, "--reference")[0]
        return Teachers(aligned, below, needed_template(aligned, "--teacher"), GENERIC)
    below_found: Input | None
    if reference:
        below_found = reference_model(planner, reference, sft_data, "--reference")[0]
    else:
        below_found = lineage.reference_of(found, names.store)
    own = lineage.family_of(found, names.store)
    return Teachers(found, below_found, needed_template(found, "--teacher"), own)


def plan_capture(
    names: Names,
    given: Given,
    teacher: str,
    reference: str | None,
    data: Sequence[str],
    rollouts: Sequence[str],
    sft_data: Sequence[str],
) -> Plan:
    """`adpa cache-teacher --teacher T [--reference R] (--data D or --rollouts A)`."""
    planner = planner_of(CACHE_TEACHER, names, given)
    found = teachers(planner, teacher, reference, GENERIC, data, sft_data)
    if data and rollouts:
        raise UsageError("both --data and --rollouts are given", "one cache covers one of them; run the command twice")
    if rollouts:
        targets = []
        for text in rollouts:
            answers = names.made(text, (ROLLOUT.name,), "--rollouts")
            lineage.same_template(found.template, answers, "rollouts")
            targets.append(planner.capture(
                found.aligned, found.reference, {"rollouts": answers}, ("rollout",), found.family, found.template
            ))  # fmt: skip
        return Plan(tuple(targets), found.template)
    pairs = planner.family_data(data, found.family, "pairs")
    node = planner.capture(
        found.aligned,
        found.reference if reference else None,
        {"data": pairs},
        ("chosen", "rejected"),
        found.family,
        found.template,
    )
    return Plan((node,), found.template)


def plan_rollout(
    names: Names, given: Given, student: str, data: Sequence[str], sft_data: Sequence[str], split: str
) -> Plan:
    """`adpa rollout --student S [--data D]`."""
    planner = planner_of(ROLLOUT, names, given)
    found = names.model(student, "--student")
    if isinstance(found, ReadyPair):
        found = names.hub_model(found.aligned)
    if isinstance(found, Alias):
        family = found.family
        template = planner.family_template(family, planner.base(found))
        model: Input = planner.sft_of(found, planner.family_data(sft_data, family, "dialogues"), template)
    else:
        model, family, template = found, lineage.family_of(found, names.store), needed_template(found, "--student")
    pairs = data_for(planner, model, data, family)
    return Plan((planner.rollout(model, pairs, family, template, split),), template)


def data_for(planner: Planner, model: Input, data: Sequence[str], family: Family) -> External:
    """The given preference data, else those the model was trained on, else the family's."""
    if not data and isinstance(model, Artifact) and _is_fitted_to_pairs(model.stage):
        return data_of(planner.names, model)
    return planner.family_data(data, family, "pairs")


def _is_fitted_to_pairs(stage: str) -> bool:
    """Whether a stage trains models on preferences."""
    declared = stages.every()[stage]
    return declared.makes == "model" and declared.reads == "pairs"


def data_of(names: Names, made: Artifact) -> External:
    """The data that an artifact was made from, found again; through its rollouts if it has them."""
    content = made.manifest.inputs.get("data")
    if content is None:
        below = names.store.get(str(made.manifest.inputs.get("rollouts")))
        if below is None:
            raise UsageError(f"{made.label} does not tell its data", "name them: --data SRC")
        return data_of(names, Artifact(below))
    return names.data_of(made.manifest.sources[str(content)], str(content))


OPTION = "--reward-model"


def plan_reward_model(names: Names, given: Given, model: str, data: Sequence[str], sft_data: Sequence[str]) -> Plan:
    """`adpa reward-model --model M [--data D]`."""
    planner = planner_of(REWARD_MODEL, names, given)
    node = trained_from(planner, model, data, sft_data, "--model")
    return Plan((node,), (node.spec.template, node.spec.end))


def trained_from(planner: Planner, text: str, data: Sequence[str], sft_data: Sequence[str], option: str) -> Node:
    """A reward model that starts from what `text` means: of a family or a ready pair its reference teacher."""
    start, family, template = reference_model(planner, text, sft_data, option)
    return planner.reward_model(start, data_for(planner, start, data, family), family, template)


def judge(planner: Planner, text: str, data: Sequence[str] = (), sft_data: Sequence[str] = ()) -> Input:
    """The reward model that `--reward-model` names: an artifact, a folder or hub model, or an alias, for its family's.

    Raises UsageError and NotFound as `Names.model` does.
    """
    found = planner.names.model(text, OPTION, (REWARD_MODEL.name,))
    if isinstance(found, Alias | ReadyPair):
        return trained_from(planner, text, data, sft_data, OPTION)
    return found


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
    suite, scorers = suites.every()[family.suite], None
    if judge is not None and suite.rewards is None:
        suite, scorers = suites.judged_by("reward_model"), {"reward_model": judge}
    models: list[tuple[Input, str]] = [(start, "start"), *((n, n.what.split(" from ")[0]) for n in nodes)]
    if suite.with_teachers:
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
    suite: Suite,
    scorers: dict[str, Input] | None = None,
) -> Node:
    """The numbers of one model; its answers are judged against those of `against` where the suite judges answers."""
    inputs: dict[str, Input | tuple[Input, ...]] = {"model": model, "data": data, **(scorers or {})}
    if suite.rewards is not None:
        inputs["rollouts"] = planner.rollout(model, data, family, template, "test", judged=True)
        if against is not None and against.content != model.content:
            inputs["against"] = planner.rollout(against, data, family, template, "test", judged=True)
    stage, fixed = EVAL.name, {"template": template[0], "end": template[1], "suite": suite.name}
    spec = plain_spec(EvalSpec, stage, family, (stage,), planner.user(stage), fixed)
    return Node(stage, spec, inputs, stage, f"{suite.name} of {role}")


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
    planner = planner_of(EVAL, names, given)
    found = [_model(planner, text, "REF") for text in asked.models]
    family = found[0][1]
    template = found[0][2]
    suite = _suite(asked, family)
    scorers = _scorers(planner, asked, family, suite)
    against = _model(planner, asked.against, "--against")[0] if asked.against else None
    if against is not None:
        lineage.same_template(template, against, "opponent")
    nodes = []
    for model, own_family, own_template in found:
        lineage.same_template(template, model, "model")
        data = data_for(planner, model, asked.data, own_family)
        nodes.append(eval_node(planner, own_family, own_template, data, model, model.label, against, suite, scorers))
    return Plan(tuple(nodes), template)


def _suite(asked: Evaluate, family: Family) -> Suite:
    """The suite that was named, else the one that judges by what was named, else the family's."""
    if asked.suite is not None:
        EvalSpec("", "", asked.suite)  # refuses a name that is none
        return suites.every()[asked.suite]
    if asked.reward_model:
        return suites.judged_by("reward_model")
    return suites.judged_by("aligned", "reference") if asked.teacher else suites.every()[family.suite]


def _scorers(planner: Planner, asked: Evaluate, family: Family, suite: Suite) -> dict[str, Input]:
    """The models that a suite judges by, as they were named."""
    found: dict[str, Input] = {}
    if "reward_model" in suite.scorers:
        if not asked.reward_model:
            raise UsageError(
                f"the suite {suite.name} needs a reward model",
                "give --reward-model MODEL (a folder, hub id or artifact), or make one: adpa reward-model --model M",
            )
        found["reward_model"] = judge(planner, asked.reward_model, asked.data)
    if "aligned" in suite.scorers:
        who = teachers(planner, asked.teacher, asked.reference, family, asked.data, ())
        if who.reference is None:
            raise UsageError(
                "the implicit reward needs the model the teacher was aligned from", "give --reference MODEL"
            )
        found |= {"aligned": who.aligned, "reference": who.reference}
    return found


def _model(planner: Planner, text: str, option: str) -> tuple[Input, Family, Template]:
    """A model to measure: an alias is its fine-tuned student."""
    found = planner.names.model(text, option)
    if isinstance(found, ReadyPair):
        hub = planner.names.hub_model(found.aligned)
        return hub, GENERIC, needed_template(hub, option)
    if isinstance(found, Alias):
        template = planner.family_template(found.family, planner.base(found))
        node = planner.sft_of(found, planner.family_data((), found.family, "dialogues"), template)
        return node, found.family, template
    return reference_model(planner, text, (), option)
