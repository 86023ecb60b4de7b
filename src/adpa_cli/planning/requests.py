"""One function per making command: from the words of the command line to a `Plan`. `adpa distill` and `adpa eval`
have files of their own.

A name stands for a model by the role that its option asks for: an alias of a family is a base model to `adpa sft`, a
fine-tuned student to `adpa rollout`, and an aligned teacher, with all it takes, to `adpa cache-teacher`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

from adpa_cli import stages
from adpa_cli.errors import AdpaError, UsageError
from adpa_cli.families import GENERIC, Alias, Family, ReadyPair, aliases, family_of_base
from adpa_cli.hub import External
from adpa_cli.planning import lineage
from adpa_cli.planning.planner import SIDES, Model, Plan, Planner, Teachers
from adpa_cli.planning.resolve_inputs import Names
from adpa_cli.planning.settings import UserSettings, check_keys
from adpa_cli.stages import Artifact, Input, Stage
from adpa_cli.stages.cache_teacher import CACHE_TEACHER
from adpa_cli.stages.rollout import ROLLOUT
from adpa_cli.stages.training import DPO_TEACHER, REWARD_MODEL, SFT

REWARD_MODEL_OPTION = "--reward-model"


def planner_of(
    stage: Stage, names: Names, user: UserSettings, pairs: Sequence[str] = (), dialogues: Sequence[str] = (),
    of_methods: Sequence[str] | None = None, about: str = "",
) -> Planner:  # fmt: skip
    """The planner of a command about one stage, with some of its methods, and `about` a model.

    Raises UsageError for an unknown setting, with the defaults for that model.
    """
    known = stage.methods() if of_methods is None else of_methods
    check_keys(user, stage.name, known, lambda: _family_named(names, about))
    return Planner(names, user, stage.name, pairs, dialogues)


def _family_named(names: Names, text: str) -> Family:
    """The family of the model that a word names; the paper's settings where nothing tells."""
    if alias := aliases().get(text):
        return alias.family
    with suppress(AdpaError, OSError):
        return lineage.family_of(Artifact(names.store.resolve(text)), names.store)
    return family_of_base(text) or GENERIC


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
    return as_it_is(planner, model, option)


def as_it_is(planner: Planner, model: Artifact | External, option: str) -> Model:
    """A model that is used without training it; UsageError for a base model, which has no template."""
    family = lineage.family_of(model, planner.names.store)
    template = lineage.template_of(model, planner.user.templates)
    if template is None:
        alias = lineage.alias_of(model)
        hint = f"fine-tune it first: adpa sft --model {lineage.command_word(model)} --data FILE.jsonl"
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
    aligned_as_is = as_it_is(planner, model, "--teacher")
    notes = reference_words(planner, aligned_as_is, below) if below is not None else ()
    return Teachers(model, below, aligned_as_is.family, aligned_as_is.template, notes)


def reference_words(planner: Planner, aligned: Model, reference: Input) -> tuple[str, ...]:
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
        if stage.makes in ("model", "reward model") and stage.reads == "pairs":
            return recorded_data(planner.names, training)
    return planner.pairs_of(model.family)


def recorded_data(names: Names, artifact: Artifact) -> External:
    """The data that an artifact was made from, by content; through its rollouts if it has them."""
    content = artifact.manifest.inputs.get("data")
    if content is not None:
        return names.data_of(artifact.manifest.sources[str(content)], str(content))
    rollouts = names.store.get(str(artifact.manifest.inputs.get("rollouts")))
    if rollouts is None:
        raise UsageError(f"{artifact.label} does not record its data", "name them: --data SRC")
    return recorded_data(names, Artifact(rollouts))


# The commands.


def plan_sft(names: Names, user: UserSettings, model: str, data: Sequence[str]) -> Plan:
    """`adpa sft --model M [--data D]`."""
    planner = planner_of(SFT, names, user, dialogues=data, about=model)
    meaning = names.model(model, "--model")
    if isinstance(meaning, ReadyPair):
        raise UsageError(
            f"--model {model} is a ready pair of two trained models, not a base model",
            f"give it to --teacher: adpa distill --teacher {model}",
        )
    if isinstance(meaning, Alias):
        base, side, role = planner.base(meaning), meaning.side, SIDES[meaning.side]
    else:
        if not data:
            word = lineage.command_word(meaning)
            raise UsageError(
                f"--model {model} is no alias, so there is no data to fall back on: adpa sft needs --data",
                f"adpa sft --model {word} --data FILE.jsonl",
            )
        # Nothing tells which side of a pair a folder or hub model is going to be.
        family = lineage.family_of(meaning, names.store)
        base, side, role = Model(meaning, family, planner.template(family, meaning)), "student", SFT.name
    notes: tuple[str, ...] = ()
    if not base.family.alias and lineage.template_of(base.input, user.templates) is None:
        notes = (
            f"{base.input.label} has no chat template; the default one (zephyr) is used, and saved with the model",
        )
    node = planner.sft(base, planner.dialogues_of(base.family), side, role)
    return Plan((node,), base.template, notes=notes)


def plan_dpo_teacher(
    names: Names, user: UserSettings, reference: str, data: Sequence[str], sft_data: Sequence[str]
) -> Plan:
    """`adpa dpo-teacher --reference R [--data D]`."""
    planner = planner_of(DPO_TEACHER, names, user, data, sft_data, about=reference)
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
    planner = planner_of(CACHE_TEACHER, names, user, data, sft_data, about=teacher)
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
    planner = planner_of(ROLLOUT, names, user, data, sft_data, about=student)
    model = model_of(planner, student, "--student")
    return Plan((planner.rollout(model, pairs_for(planner, model), split),), model.template)


def plan_reward_model(
    names: Names, user: UserSettings, model: str, data: Sequence[str], sft_data: Sequence[str]
) -> Plan:
    """`adpa reward-model --model M [--data D]`."""
    planner = planner_of(REWARD_MODEL, names, user, data, sft_data, about=model)
    start = model_of(planner, model, "--model", as_reference=True)
    return Plan((planner.reward_model(start, pairs_for(planner, start)),), start.template)
