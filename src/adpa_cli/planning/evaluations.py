"""The nodes of evaluations, by the inputs that their suites read: `adpa eval`, and what closes a distillation.

Answers, their rewards and a judge's replies are nodes of their own, which evaluations share by their ids. Where the
data hold pairs, reward accuracy is measured beside a suite that judges answers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from adpa_cli import stages, suites
from adpa_cli.data.files import EXTENSIONS
from adpa_cli.data.templates import TEMPLATES
from adpa_cli.engine.costs import Held, scoring_memory
from adpa_cli.errors import AdpaError, UsageError
from adpa_cli.families import GENERIC, Family, ready_pairs, reward_models
from adpa_cli.hub import External
from adpa_cli.hub.externals import has_pairs
from adpa_cli.hub.model_folder import ModelFolder
from adpa_cli.machine import Machine
from adpa_cli.planning import lineage
from adpa_cli.planning.comparable import about, selected_on, selection_behind
from adpa_cli.planning.planner import SHARED_BY_ROLLOUTS, Inputs, Model, Plan, Planner
from adpa_cli.planning.requests import (
    REWARD_MODEL_OPTION,
    model_of,
    pairs_for,
    planner_of,
    recorded_data,
    reference_words,
    reward_model_of,
    teachers_of,
)
from adpa_cli.planning.resolve_inputs import Names
from adpa_cli.planning.settings import EVAL_ROLLOUT, UserSettings, plain_spec, settable
from adpa_cli.sizes import Row, Where
from adpa_cli.spec import Runtime
from adpa_cli.stages import Artifact, Input, Node, product_of
from adpa_cli.stages.eval import EVAL
from adpa_cli.stages.rewards import REWARDS, RewardsSpec
from adpa_cli.stages.rollout import ROLLOUT
from adpa_cli.stages.training import method_words
from adpa_cli.suites import AGAINST, AGAINST_REWARDS, JUDGEMENTS, ROLLOUTS, EvalSpec, Suite

Judged = Callable[[Inputs], Node]
"""(answers and those of the opponent, by role) -> what a judge says of them."""
ROLES = {"model": "model", "reward model": "reward_model"}
"""The role of what is measured among the inputs of an evaluation; answers have that of rollouts."""


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
    split: str | None = None


@dataclass(frozen=True)
class Measured:
    """What is measured, or compared with: a model, answers that are there, or a reward model."""

    model: Model
    kind: Literal["model", "answers", "reward model"] = "model"

    @property
    def input(self) -> Input:
        """What was named, or what it stands for."""
        return self.model.input


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of several models: what they are measured by and compared with.

    `judges` are the models that a suite judges by, whatever it measures. Where `is_halved`, prompts by which a model
    was selected are left out, for every model alike.
    """

    planner: Planner
    suite: Suite
    judges: Mapping[str, Input] = field(default_factory=dict)
    against: Measured | None = None
    is_halved: bool = False
    split: str = "test"
    judged: Judged | None = None

    def node(self, measured: Measured, data: External | None, role: str, own: Mapping[str, Input]) -> Node:
        """The figures of one model on some data, by the common judges and by its `own`."""
        suite, planner = self.suite, self.planner
        scorers = {**self.judges, **own}
        inputs: Inputs = {} if measured.kind == "answers" else {ROLES[measured.kind]: measured.input}
        if suite.margins is not None and data is not None:
            inputs |= {"data": data, **scorers}
            if measured.kind == "reward model":
                inputs[suites.REWARDS] = planner.rewards(measured.model, data, self.split)
        if ROLLOUTS in suite.reads:
            inputs[ROLLOUTS] = self._answers(measured, data)
            if self.against is not None and self.against.input.content != measured.input.content:
                inputs[AGAINST] = self._answers(self.against, data)
                if self.judged is not None:
                    inputs[JUDGEMENTS] = self.judged(inputs)
            if suites.REWARDS in suite.reads:
                for answers, rewards in ((ROLLOUTS, suites.REWARDS), (AGAINST, AGAINST_REWARDS)):
                    given = inputs.get(answers)
                    if given is not None and not isinstance(given, tuple):
                        inputs[rewards] = planner.answer_rewards(suite, measured.model, given, scorers)
        return self.made(suite, measured, inputs, data, role, scorers)

    def accuracy(self, measured: Measured, data: External | None, role: str) -> Node | None:
        """The reward accuracy of a model beside what a suite says of its answers; None where nobody can measure it."""
        suite = suites.of_pairs()
        if self.suite.margins is not None or measured.kind != "model" or data is None or not has_pairs(data):
            return None
        return self.made(suite, measured, {"model": measured.input, "data": data}, data, role, {})

    def _answers(self, measured: Measured, data: External | None) -> Input:
        """The answers of a model to the held-out prompts of the data, or those that are there."""
        if measured.kind == "answers":
            return measured.input
        if data is None:
            raise UsageError(
                f"nothing says which prompts {measured.input.label} should answer", "name them: --data SRC"
            )
        return self.planner.eval_rollout(measured.model, data, self.suite.decoding)

    def made(
        self, suite: Suite, measured: Measured, inputs: Inputs, data: External | None, role: str,
        scorers: Mapping[str, Input],
    ) -> Node:  # fmt: skip
        model = measured.model
        fixed: dict[str, Any] = {"template": model.template.text, "end": model.template.end, "suite": suite.name}
        if suite.margins is not None:
            fixed["split"] = self.split
        user = {**({"measure_on": "report"} if self.is_halved else {}), **self.planner.settings(EVAL.name)}
        spec = plain_spec(EvalSpec, EVAL.name, model.family, user, **fixed)
        hints = {
            "selected_on": selection_behind(model.input, measured.kind == "answers", data, self.planner.names.store),
            "about": about(spec, inputs, data, scorers),
        }
        return Node(EVAL.name, spec, inputs, EVAL.name, role, hints)


def plan_eval(names: Names, user: UserSettings, request: Evaluate, judged: Judged | None = None) -> Plan:
    """`adpa eval REF… [--suite NAME] [--against REF]`: one numbers artifact per model, and its accuracy on pairs."""
    planner = planner_of(EVAL, names, user, request.data)
    if request.reward_model and (not request.models or _ranks_pairs(request.suite)):  # it is what is measured
        request = replace(request, models=(*request.models, request.reward_model), reward_model=None)
    every = [measured_of(planner, text, "REF") for text in request.models]
    against = measured_of(planner, request.against, "--against") if request.against else None
    named = [*every, *([against] if against else [])]
    first = next((each for each in named if each.kind == "model"), every[0])
    suite = _suite(request, first)
    _check_read(request, suite)
    _check_asked(request, suite, named)
    for each in named:
        _check_measured(each, suite)
        if each.kind == "model":
            role = "model" if each is not against else "opponent"
            lineage.same_template(first.model.template, each.input, role, user.templates)
    every = [
        replace(each, model=replace(first.model, input=each.input)) if each.kind == "answers" else each
        for each in every
    ]
    judges = _scorers(planner, request, first.model.family, suite)
    asked = _asked_by(planner, request, [*named[len(every) :], *every])
    sources = [asked or pairs_for(planner, each.model) if each.kind != "answers" else asked for each in every]
    store = names.store
    is_halved = any(
        selection_behind(measured.input, measured.kind == "answers", data, store)
        for each, data in zip(every, sources, strict=True)
        for measured in (each, *([against] if against else []))
    )
    evaluation = Evaluation(planner, suite, judges, against, is_halved, request.split or "test", judged)
    nodes: list[Node] = []
    beside: list[Node] = []
    notes: tuple[str, ...] = (suite.remark,) if suite.remark else ()
    for text, each, data in zip(request.models, every, sources, strict=True):
        own, said = _own_scorers(planner, request, suite, text, each, judges)
        notes += said
        nodes.append(evaluation.node(each, data, each.input.label, own))
        if accuracy := evaluation.accuracy(each, data, each.input.label):
            beside.append(accuracy)
    check_effect(user, [*nodes, *beside])
    return Plan(tuple(nodes), first.model.template, tuple(beside), notes)


def family_evals(
    planner: Planner,
    start: Model,
    data: External,
    students: Sequence[Node],
    teachers: Sequence[tuple[Input, str]],
    reward_model: Input | None = None,
) -> tuple[tuple[Node, ...], tuple[str, ...]]:
    """The family's evaluation of the start, of every student trained, and of its teachers with their roles; and what is
    to be said of it.

    A reward model judges where the family has no judge of its own: the one that was named, else one that fits.
    """
    suite, judges, notes = suites.every()[start.family.suite], dict[str, Input](), tuple[str, ...]()
    if reward_model is None and suite.rewards is None and start.family.alias:
        reward_model, notes = fitting_judge(planner, start)
    if reward_model is not None and suite.rewards is None:
        suite, judges = suites.judged_by("reward_model"), {"reward_model": reward_model}
    models: list[tuple[Input, str]] = [
        (start.input, "start"),
        *((student, method_words(student.spec)) for student in students),
    ]
    if suite.with_teachers:
        models += teachers
    store = planner.names.store
    is_halved = any(selected_on(model, data.content, store) for model, _ in models)
    evaluation = Evaluation(planner, suite, judges, Measured(start), is_halved)
    nodes: list[Node] = []
    for model, role in models:
        measured = Measured(replace(start, input=model))
        nodes.append(evaluation.node(measured, data, role, {}))
        nodes += [node] if (node := evaluation.accuracy(measured, data, role)) else []
    return tuple(nodes), notes


def fitting_judge(planner: Planner, start: Model) -> tuple[Input | None, tuple[str, ...]]:
    """The largest reward model with an alias that fits this machine's card, or the smallest without a card, and what is
    said of it; None where the hub gives none, and then why.

    It is not asked for by a setting, so that a plan is not refused for it.
    """
    names, machine = replace(planner.names, access=None), Machine.here(planner.names.store.root)
    usual = plain_spec(RewardsSpec, REWARDS.name, start.family, {}, template="", end="")
    where = Where(machine.kind)
    held = Held.by(usual, Runtime(), where)
    rows = {"rollout": [Row(usual.max_length / 2, usual.max_length / 2)] * (usual.block_tokens // usual.max_length)}
    known = list(reward_models().items())
    fitting = known[-1:]
    if machine.kind == "cuda":
        needs = {alias: scoring_memory(model.size, rows, held, usual.block_tokens, 1, where) for alias, model in known}
        fitting = [(alias, model) for alias, model in known if needs[alias].device <= machine.memory]
    why = "none with an alias fits this machine"
    for alias, model in fitting:
        try:
            judge = names.hub_model(model.name)
        except AdpaError as error:
            why = error.message
            continue
        said = f"{alias} judges the answers; it is the largest built-in reward model that fits this machine"
        return judge, (f"{said} (to choose another: {REWARD_MODEL_OPTION} MODEL)",)
    return None, (f"no reward model judges the answers, since {why}; name one: {REWARD_MODEL_OPTION} MODEL",)


# What the words of the command mean.


def measured_of(planner: Planner, text: str, option: str) -> Measured:
    """The model, the reward model or the answers that REF or `--against` names.

    Answers are those of a rollout artifact, or of a file in AlpacaEval's format. Raises UsageError and NotFound.
    """
    names = planner.names
    if text.lower().endswith(EXTENSIONS):
        return Measured(plain_model(planner, names.data((text,))), "answers")
    made_by = stages.making("model", "answers", "reward model")
    meant = names.model(text, option, made_by, may_reward=True)
    if isinstance(meant, Artifact) and (product := product_of(meant.stage)) != "model":
        return Measured(plain_model(planner, meant), "answers" if product == "answers" else "reward model")
    if isinstance(meant, External) and meant.is_open and ModelFolder.of(Path(meant.where[0])).is_classifier:
        return Measured(plain_model(planner, meant), "reward model")
    return Measured(model_of(planner, text, option))


def plain_model(planner: Planner, item: Artifact | External) -> Model:
    """Answers, or a reward model, with the template that they were made under, else the usual one."""
    template = None
    if "template" in item.values if isinstance(item, Artifact) else item.content.startswith("model:"):
        template = lineage.template_of(item, planner.user.templates)
    default = TEMPLATES[GENERIC.template]
    is_model = template is not None and product_of(getattr(item, "stage", "")) != "answers"
    family = lineage.family_of(item, planner.names.store) if is_model else GENERIC
    return Model(item, family, template or planner.user.templates.applied(default, {"eos_token": default.end}))


def _asked_by(planner: Planner, request: Evaluate, every: Sequence[Measured]) -> External | None:
    """The data whose prompts were answered where answers are compared with those of models, unless data were named."""
    given = next((each.input for each in every if each.kind == "answers"), None)
    if given is None or request.data or all(each.kind == "answers" for each in every):
        return None
    if isinstance(given, Artifact):
        return recorded_data(planner.names, given)
    return given if isinstance(given, External) else None


def _ranks_pairs(suite: str | None) -> bool:
    """Whether a suite of that name measures reward models by the pairs that they rank."""
    named = suites.every().get(suite or "")
    return named is not None and named.margins is not None and suites.REWARDS in named.reads


def _suite(request: Evaluate, first: Measured) -> Suite:
    """The suite that was named, else the one that judges by what was named, else the family's."""
    if request.suite is not None:
        EvalSpec("", "", request.suite)  # refuses a name that is none
        return suites.every()[request.suite]
    if first.kind == "reward model":
        return suites.judged_by("reference")
    if request.reward_model:
        return suites.judged_by("reward_model")
    if request.teacher:
        return suites.judged_by("aligned", "reference")
    return suites.judged_by("reference") if request.reference else suites.every()[first.model.family.suite]


def _check_measured(each: Measured, suite: Suite) -> None:
    """Raise UsageError for answers that a suite does not read, and for a reward model that it does not measure."""
    if each.kind == "answers" and ROLLOUTS not in suite.reads:
        raise UsageError(
            f"{each.input.label} holds answers, and the suite {suite.name} measures models only",
            f"choose a suite that judges answers, or name a judge: {REWARD_MODEL_OPTION} MODEL",
        )
    if each.kind == "reward model" and not _ranks_pairs(suite.name):
        measuring = " or ".join(filter(_ranks_pairs, suites.every()))
        raise UsageError(
            f"{each.input.label} is a reward model, which cannot write answers",
            f"measure it on pairs: --suite {measuring}",
        )


def _check_read(request: Evaluate, suite: Suite) -> None:
    """Raise UsageError for a model that was named and that the suite does not ask."""
    what = "does not judge answers" if ROLLOUTS not in suite.reads else "judges in another way"
    if request.against is not None and ROLLOUTS not in suite.reads:
        raise UsageError(
            f"--against has no effect with --suite {suite.name}, which {what}",
            "name a judge: --reward-model MODEL\n or: --teacher T --reference R, whose implicit reward then judges",
        )
    if request.split is not None and suite.margins is None:
        raise UsageError(
            f"--split has no effect with --suite {suite.name}, which does not measure pairs",
            "leave it out: held-out prompts are always answered",
        )
    asked = {
        REWARD_MODEL_OPTION: (request.reward_model, "reward_model"),
        "--teacher": (request.teacher, "aligned"),
        "--reference": (request.reference, "reference"),
    }
    for option, (named, role) in asked.items():
        if named is None or role in suite.scorers:
            continue
        raise UsageError(
            f"{option} has no effect with --suite {suite.name}, which {what}",
            f"leave it out, or choose a suite that uses it: --suite {' or '.join(suites.judging_by(role))}",
        )


def _check_asked(request: Evaluate, suite: Suite, named: Sequence[Measured]) -> None:
    """Raise UsageError for data that were named though no model answers their prompts."""
    if suite.margins is not None or request.data in ((), (suite.prompts,)):
        return
    if all(each.kind == "answers" for each in named):
        raise UsageError(
            f"--data {' '.join(request.data)} has no effect: given answers are measured on their own prompts",
            "leave out --data",
        )


def _scorers(planner: Planner, request: Evaluate, family: Family, suite: Suite) -> dict[str, Input]:
    """The models that a suite judges by, as they were named, whatever model it measures."""
    scorers: dict[str, Input] = {}
    if request.reward_model:
        scorers["reward_model"] = reward_model_of(planner, request.reward_model)
    elif "reward_model" in suite.scorers:
        raise UsageError(
            f"--suite {suite.name} needs a reward model",
            "name one: --reward-model MODEL\n or: train one: adpa reward-model --model M",
        )
    if "aligned" in suite.scorers:
        teachers = teachers_of(planner, family, request.teacher, request.reference)
        if teachers.reference is None:
            raise UsageError(
                "the implicit reward needs the model that the teacher was aligned from", "name it: --reference MODEL"
            )
        scorers |= {"aligned": teachers.aligned, "reference": teachers.reference}
    return scorers


def _own_scorers(
    planner: Planner, request: Evaluate, suite: Suite, text: str, each: Measured, judges: Mapping[str, Input]
) -> tuple[dict[str, Input], tuple[str, ...]]:
    """(what a model is judged by that no other is, what is to be said of it)."""
    if each.kind != "model" or "reference" not in suite.scorers or judges:
        return {}, ()
    below = _reference_for(planner, request, suite, text, each.model)
    return {"reference": below}, reference_words(planner, each.model, below)


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
            f"--suite {suite.name} compares a model with the one that it was aligned from, which {measured.label} does "
            "not name",
            lineage.reference_hint(measured, planner.names.store),
        )
    if reference.content == measured.content:
        raise UsageError(
            f"{measured.label} would be compared with itself, so every margin would be 0",
            "name the model that it was aligned from: --reference MODEL",
        )
    return reference


# What was typed and moves nothing.


def check_effect(user: UserSettings, nodes: Sequence[Node]) -> None:
    """Raise UsageError for a setting of the evaluations, or of the answers or rewards that they read, that moves none.

    What a pipeline says to all of its commands is let through.
    """
    effective: dict[str, set[str]] = {}
    for node in (each for one in nodes for each in _built(one)):
        idle = node.spec.without_effect() if hasattr(node.spec, "without_effect") else set()
        known = {f.name for f in dataclasses.fields(node.spec)} - (idle - {"noise_answers"})
        for stage in filter(None, (node.stage, node.declared.set_by)):
            effective.setdefault(stage, set()).update(known)
    of_rewards = effective.get(REWARDS.name, set()) & set(settable(REWARDS.name))
    own = effective.get(EVAL.name, set()) | of_rewards
    given = (
        ("", user.bare, own | (effective.get(ROLLOUT.name, set()) & set(EVAL.follows))),
        (f"{EVAL.name}.", user.by_stage.get(EVAL.name, {}), own),
        (
            f"{ROLLOUT.name}.",
            user.by_stage.get(ROLLOUT.name, {}),
            effective.get(ROLLOUT.name, set()).union(SHARED_BY_ROLLOUTS),
        ),
        (f"{EVAL_ROLLOUT}.", user.by_stage.get(EVAL_ROLLOUT, {}), effective.get(ROLLOUT.name, set())),
        (f"{REWARDS.name}.", user.by_stage.get(REWARDS.name, {}), effective.get(REWARDS.name, set())),
    )
    if user.limit is not None and not any("limit" in known for known in effective.values()):
        raise UsageError(
            f"--limit {user.limit} has no effect on this evaluation",
            "leave --limit out; all of the given answers are measured",
        )
    for prefix, settings, known in given:
        for key, value in settings.items():
            if key not in known:
                moves = ", ".join(sorted(known & set(settable(prefix.rstrip(".").rpartition(".")[2] or EVAL.name))))
                raise UsageError(
                    f"--set {prefix}{key}={value} has no effect on this evaluation",
                    f"leave it out; settings with an effect here: {moves}" if moves else "leave it out",
                )


def _built(node: Node) -> Iterator[Node]:
    """An evaluation, and what it reads that is computed for evaluations alone."""
    yield node
    for _, item in node.flat_inputs():
        if isinstance(item, Node) and item.declared.makes in ("answers", "rewards", "judgements", "dialogues"):
            yield from _built(item)
