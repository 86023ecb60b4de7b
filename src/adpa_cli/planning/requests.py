"""One function per making command: from the words of the command line to a `Plan`. `adpa distill` has its own file.

A name stands for a model by the role that its option asks for: an alias of a family is a base model to `adpa sft`, a
fine-tuned student to `adpa rollout`, and an aligned teacher, with all it takes, to `adpa cache-teacher`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from adpa_cli import stages, suites
from adpa_cli.errors import UsageError
from adpa_cli.families import GENERIC, Alias, Family, ReadyPair, ready_pairs
from adpa_cli.hub import External
from adpa_cli.planning import lineage
from adpa_cli.planning.planner import SIDES, Inputs, Model, Plan, Planner, Teachers
from adpa_cli.planning.resolve_inputs import Names
from adpa_cli.planning.settings import UserSettings, check_keys, plain_spec
from adpa_cli.stages import Artifact, Input, Node, Stage
from adpa_cli.stages.cache_teacher import CACHE_TEACHER
from adpa_cli.stages.eval import ELSEWHERE, EVAL, SELECTED_ON
from adpa_cli.stages.rollout import ROLLOUT
from adpa_cli.stages.training import DPO_TEACHER, REWARD_MODEL, SFT, method_words
from adpa_cli.store.store import Store
from adpa_cli.suites import EvalSpec, Suite

REWARD_MODEL_OPTION = "--reward-model"


def planner_of(
    stage: Stage, names: Names, user: UserSettings, pairs: Sequence[str] = (), dialogues: Sequence[str] = (),
    of_methods: Sequence[str] | None = None,
) -> Planner:  # fmt: skip
    """The planner of a command about one stage, with some of its methods. Raises UsageError for an unknown setting."""
    check_keys(user, stage.name, stage.methods() if of_methods is None else of_methods)
    return Planner(names, user, stage.name, pairs, dialogues)


# What the words of an option mean.


def model_of(planner: Planner, text: str, option: str, as_reference: bool = False) -> Model:
    """The model that an option names; one of a family is fine-tuned.

    `as_reference` a family and a ready pair stand for their reference teacher, else for their student and aligned
    teacher. Raises UsageError for a base model that nobody fine-tuned.
    """
    model = planner.names.model(text, option)
    if isinstance(model, Alias):
        return planner.fine_tuned(replace(model, side="teacher") if as_reference else model)
    if isinstance(model, ReadyPair):
        model = planner.names.hub_model(model.reference if as_reference else model.aligned)
    return _as_it_is(planner, model, option)


def _as_it_is(planner: Planner, model: Artifact | External, option: str) -> Model:
    """A model that is used without training it; UsageError for a base model, which has no template."""
    family = lineage.family_of(model, planner.names.store)
    template = lineage.template_of(model, planner.user.templates)
    if template is None:
        alias = lineage.alias_of(model)
        hint = f"fine-tune it first: adpa sft --model {lineage.command_word(model)}"
        hint += f"\n or: {option} {alias}, which is fine-tuned first" if alias else ""
        hint += "\n or: --template FILE|NAME, where it was trained with one that its folder lacks"
        raise lineage.missing_template(f"{option} {model.label}", hint, "it is a base model")
    return Model(model, family, template)


def teachers_of(planner: Planner, family: Family, teacher: str | None, reference: str | None) -> Teachers:
    """The teachers that a command names, or the family's."""
    names, text = planner.names, teacher or family.alias
    if not text:
        raise UsageError("no teacher is named, and the student belongs to no family", "name one: --teacher MODEL")
    model = names.model(text, "--teacher")
    if isinstance(model, Alias):
        start = model_of(planner, reference or model.family.alias, "--reference", as_reference=True)
        aligned = planner.dpo_teacher(replace(start, family=model.family), planner.pairs_of(model.family))
        return Teachers(aligned, start.input, start.family, start.template)
    if isinstance(model, ReadyPair):
        model, reference = names.hub_model(model.aligned), reference or text
    below: Input | None
    if reference:
        below = model_of(planner, reference, "--reference", as_reference=True).input
    else:
        below = lineage.reference_of(model, names.store)
    aligned_as_is = _as_it_is(planner, model, "--teacher")
    notes = _of_reference(planner, aligned_as_is, below) if below is not None else ()
    return Teachers(model, below, aligned_as_is.family, aligned_as_is.template, notes)


def _of_reference(planner: Planner, aligned: Model, reference: Input) -> tuple[str, ...]:
    """What is to be said of a reference that an aligned model is compared with. UsageError for another template."""
    model = aligned.input
    if not lineage.is_base(reference):
        lineage.same_template(aligned.template, reference, "reference", planner.user.templates)
        return ()
    if not isinstance(model, External) or lineage.is_base(model):
        return ()
    return (
        f"the reference {reference.label} is a base model: what sets {model.label} apart from it is mostly "
        "instruction tuning, not preference; name the model that the teacher was aligned from: --reference MODEL",
    )


def reward_model_of(planner: Planner, text: str) -> Input:
    """The reward model that `--reward-model` names: an artifact, a folder or hub model, or an alias, for its family's.

    Raises UsageError and NotFound as `Names.model` does.
    """
    model = planner.names.model(text, REWARD_MODEL_OPTION, (REWARD_MODEL.name,))
    if isinstance(model, Alias | ReadyPair):
        start = model_of(planner, text, REWARD_MODEL_OPTION, as_reference=True)
        return planner.reward_model(start, pairs_for(planner, start))
    return model


def pairs_for(planner: Planner, model: Model) -> External:
    """The preference data that were named, else those that a model was trained on, else the family's."""
    training = lineage.training_of(model.input, planner.names.store)
    if not planner.pairs and isinstance(training, Artifact):
        stage = stages.every()[training.stage]
        if stage.makes == "model" and stage.reads == "pairs":
            return recorded_data(planner.names, training)
    return planner.pairs_of(model.family)


def recorded_data(names: Names, artifact: Artifact) -> External:
    """The data that an artifact was made from, by content; through its rollouts if it has them."""
    content = artifact.manifest.inputs.get("data")
    if content is not None:
        return names.data_of(artifact.manifest.sources[str(content)], str(content))
    rollouts = names.store.get(str(artifact.manifest.inputs.get("rollouts")))
    if rollouts is None:
        raise UsageError(f"{artifact.label} does not tell its data", "name them: --data SRC")
    return recorded_data(names, Artifact(rollouts))


# The commands.


def plan_sft(names: Names, user: UserSettings, model: str, data: Sequence[str]) -> Plan:
    """`adpa sft --model M [--data D]`."""
    planner = planner_of(SFT, names, user, dialogues=data)
    meaning = names.model(model, "--model")
    if isinstance(meaning, ReadyPair):
        raise UsageError(
            f"--model {model}: a ready pair is trained already", f"give it to --teacher: adpa distill --teacher {model}"
        )
    if isinstance(meaning, Alias):
        base, side, role = planner.base(meaning), meaning.side, SIDES[meaning.side]
    else:
        # Nothing tells which side of a pair a folder or hub model is going to be.
        family = lineage.family_of(meaning, names.store)
        base, side, role = Model(meaning, family, planner.template(family, meaning)), "student", SFT.name
    notes: tuple[str, ...] = ()
    if not base.family.alias and lineage.template_of(base.input, user.templates) is None:
        notes = (f"{base.input.label} has no chat template; the default one (zephyr) is set and saved",)
    node = planner.sft(base, planner.dialogues_of(base.family), side, role)
    return Plan((node,), base.template, notes=notes)


def plan_dpo_teacher(
    names: Names, user: UserSettings, reference: str, data: Sequence[str], sft_data: Sequence[str]
) -> Plan:
    """`adpa dpo-teacher --reference R [--data D]`."""
    planner = planner_of(DPO_TEACHER, names, user, data, sft_data)
    start = model_of(planner, reference, "--reference", as_reference=True)
    return Plan((planner.dpo_teacher(start, planner.pairs_of(start.family)),), start.template)


def plan_capture(
    names: Names,
    user: UserSettings,
    teacher: str,
    reference: str | None,
    data: Sequence[str],
    rollouts: Sequence[str],
    sft_data: Sequence[str],
) -> Plan:
    """`adpa cache-teacher --teacher T [--reference R] (--data D or --rollouts A)`."""
    planner = planner_of(CACHE_TEACHER, names, user, data, sft_data)
    teachers = teachers_of(planner, GENERIC, teacher, reference)
    if data and rollouts:
        raise UsageError("both --data and --rollouts are given", "one cache covers one of them; run the command twice")
    if not rollouts:
        pair = teachers if reference else replace(teachers, reference=None)
        node = planner.capture(pair, {"data": planner.pairs_of(teachers.family)}, ("chosen", "rejected"))
        return Plan((node,), teachers.template, notes=pair.notes if pair.reference is not None else ())
    targets = []
    for text in rollouts:
        answers = names.made(text, (ROLLOUT.name,), "--rollouts")
        lineage.same_template(teachers.template, answers, "rollouts")
        targets.append(planner.capture(teachers, {"rollouts": answers}, ("rollout",)))
    return Plan(tuple(targets), teachers.template, notes=teachers.notes)


def plan_rollout(
    names: Names, user: UserSettings, student: str, data: Sequence[str], sft_data: Sequence[str], split: str
) -> Plan:
    """`adpa rollout --student S [--data D]`."""
    planner = planner_of(ROLLOUT, names, user, data, sft_data)
    model = model_of(planner, student, "--student")
    return Plan((planner.rollout(model, pairs_for(planner, model), split),), model.template)


def plan_reward_model(
    names: Names, user: UserSettings, model: str, data: Sequence[str], sft_data: Sequence[str]
) -> Plan:
    """`adpa reward-model --model M [--data D]`."""
    planner = planner_of(REWARD_MODEL, names, user, data, sft_data)
    start = model_of(planner, model, "--model", as_reference=True)
    return Plan((planner.reward_model(start, pairs_for(planner, start)),), start.template)


# Evaluation, by itself or after a distillation.


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


def plan_eval(names: Names, user: UserSettings, request: Evaluate) -> Plan:
    """`adpa eval REF… [--suite NAME] [--against REF]`: one numbers artifact per model."""
    planner = planner_of(EVAL, names, user, request.data)
    models = [model_of(planner, text, "REF") for text in request.models]
    family, template = models[0].family, models[0].template
    suite = _suite(request, family)
    _check_read(request, suite)
    judges = _scorers(planner, request, family, suite)
    against = model_of(planner, request.against, "--against").input if request.against else None
    if against is not None:
        lineage.same_template(template, against, "opponent", user.templates)
    nodes: list[Node] = []
    notes: tuple[str, ...] = (suite.remark,) if suite.remark else ()
    sources = [pairs_for(planner, model) for model in models]
    opponents = [] if against is None else [against]
    is_halved = any(
        selected_on(measured, data, names.store)
        for model, data in zip(models, sources, strict=True)
        for measured in (model.input, *opponents)
    )
    for text, model, data in zip(request.models, models, sources, strict=True):
        lineage.same_template(template, model.input, "model", user.templates)
        scorers = dict(judges)
        if "reference" in suite.scorers and "reference" not in scorers:
            scorers["reference"] = below = _reference_for(planner, request, suite, text, model)
            notes += _of_reference(planner, model, below)
        nodes.append(_eval_node(planner, model, data, model.input.label, against, suite, scorers, is_halved))
    return Plan(tuple(nodes), template, notes=notes)


def _reference_for(planner: Planner, request: Evaluate, suite: Suite, text: str, model: Model) -> Input:
    """The model that a measured one was trained from: the one that was named, else what is recorded."""
    measured, named = model.input, request.reference or (text if text in ready_pairs() else None)
    if named:
        reference: Input | None = model_of(planner, named, "--reference", as_reference=True).input
    else:
        training = lineage.training_of(measured, planner.names.store)
        reference = None if training is None else lineage.start_of(training, planner.names.store)
    if reference is None:
        raise UsageError(
            f"the suite {suite.name} compares a model with the one that it was aligned from; {measured.label} comes "
            "from outside and does not say which that is",
            lineage.reference_hint(measured, planner.names.store),
        )
    if reference.content == measured.content:
        raise UsageError(
            f"{measured.label} is compared with itself: every margin would be 0",
            "name the model that it was aligned from: --reference MODEL",
        )
    return reference


def family_evals(
    planner: Planner,
    start: Model,
    data: External,
    students: Sequence[Node],
    teachers: Sequence[tuple[Input, str]],
    reward_model: Input | None = None,
) -> tuple[Node, ...]:
    """The family's evaluation of the start, of every student trained, and of its teachers with their roles.

    A reward model judges where the family has no judge of its own.
    """
    suite, scorers = suites.every()[start.family.suite], dict[str, Input]()
    if reward_model is not None and suite.rewards is None:
        suite, scorers = suites.judged_by("reward_model"), {"reward_model": reward_model}
    models: list[tuple[Input, str]] = [
        (start.input, "start"),
        *((student, method_words(student.spec)) for student in students),
    ]
    if suite.with_teachers:
        models += teachers
    is_halved = any(selected_on(model, data, planner.names.store) for model, _ in models)
    return tuple(
        _eval_node(planner, replace(start, input=model), data, role, start.input, suite, scorers, is_halved)
        for model, role in models
    )


def selected_on(model: Input, data: External, store: Store) -> str:
    """The held-out prompts that selected a model, one that it was trained from, or the points of which it is one.

    One of `SELECTED_ON`. Other data than those at hand may hold the same prompts, which are of the same half there.
    """
    found, below = set[str](), lineage.training_of(model, store)
    while below is not None:
        inputs = below.manifest.inputs if isinstance(below, Artifact) else below.recipe.inputs
        if below.values.get("select") == "best":
            elsewhere = "" if inputs.get("data") == data.content else ELSEWHERE
            found.add(below.values.get("select_on", "all") + elsewhere)
        start = lineage.single(below, "model", store)
        below = lineage.training_of(start, store) if start is not None else None
    return next((prompts for prompts in SELECTED_ON if prompts in found), "")


def _eval_node(
    planner: Planner,
    model: Model,
    data: External,
    role: str,
    against: Input | None,
    suite: Suite,
    scorers: Mapping[str, Input],
    is_halved: bool = False,
) -> Node:
    """The numbers of one model; its answers are judged against those of `against` where the suite judges answers.

    Where `is_halved`, prompts by which a model was selected are left out, for every model alike.
    """
    inputs: Inputs = {"model": model.input, "data": data, **scorers}
    if suite.rewards is not None:
        inputs["rollouts"] = planner.eval_rollout(model, data)
        if against is not None and against.content != model.input.content:
            inputs["against"] = planner.eval_rollout(replace(model, input=against), data)
    fixed = {"template": model.template.text, "end": model.template.end, "suite": suite.name}
    user = {**({"measure_on": "report"} if is_halved else {}), **planner.settings(EVAL.name)}
    spec = plain_spec(EvalSpec, EVAL.name, model.family, user, **fixed)
    hints = {"selected_on": selected_on(model.input, data, planner.names.store)}
    return Node(EVAL.name, spec, inputs, EVAL.name, role, hints)


def _suite(request: Evaluate, family: Family) -> Suite:
    """The suite that was named, else the one that judges by what was named, else the family's."""
    if request.suite is not None:
        EvalSpec("", "", request.suite)  # refuses a name that is none
        return suites.every()[request.suite]
    if request.reward_model:
        return suites.judged_by("reward_model")
    if request.teacher:
        return suites.judged_by("aligned", "reference")
    return suites.judged_by("reference") if request.reference else suites.every()[family.suite]


def _check_read(request: Evaluate, suite: Suite) -> None:
    """Raise UsageError for a model that was named and that the suite does not ask."""
    what = "judges no answers" if suite.rewards is None else "judges by other means"
    if request.against is not None and suite.rewards is None:
        raise UsageError(
            f"--against {request.against} would not be used: the suite {suite.name} {what}",
            "name who judges: --reward-model MODEL, or --teacher T --reference R for its implicit reward",
        )
    asked = {
        "--reward-model": (request.reward_model, "reward_model"),
        "--teacher": (request.teacher, "aligned"),
        "--reference": (request.reference, "reference"),
    }
    for option, (named, role) in asked.items():
        if named is not None and role not in suite.scorers:
            readers = " or ".join(suites.judging_by(role))
            raise UsageError(
                f"{option} {named} would not be used: the suite {suite.name} {what}",
                f"leave it out, or choose a suite that reads it: --suite {readers}",
            )


def _scorers(planner: Planner, request: Evaluate, family: Family, suite: Suite) -> dict[str, Input]:
    """The models that a suite judges by, as they were named, whatever model it measures."""
    scorers: dict[str, Input] = {}
    if "reward_model" in suite.scorers:
        if not request.reward_model:
            raise UsageError(
                f"the suite {suite.name} needs a reward model",
                "give --reward-model MODEL (a folder, hub id or artifact), or make one: adpa reward-model --model M",
            )
        scorers["reward_model"] = reward_model_of(planner, request.reward_model)
    if "aligned" in suite.scorers:
        teachers = teachers_of(planner, family, request.teacher, request.reference)
        if teachers.reference is None:
            raise UsageError(
                "the implicit reward needs the model the teacher was aligned from", "give --reference MODEL"
            )
        scorers |= {"aligned": teachers.aligned, "reference": teachers.reference}
    return scorers
