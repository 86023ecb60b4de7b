"""`adpa distill` as a plan: its teachers, and each training with the answers and the signal that its method reads.

What a method needs is read off its file, under the parameters of its spec. Each need is served by what was named on the
command line where that fits, else by a stage that makes it. One template holds for the whole plan, that of the teachers
where there are any: student and teacher must see identical tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from adpa_cli import methods
from adpa_cli.data.templates import Template
from adpa_cli.errors import AdpaError, UsageError
from adpa_cli.families import CHAINS, Alias, Family, ReadyPair, chain_of, stage_settings
from adpa_cli.hub import External
from adpa_cli.methods import Method, Need
from adpa_cli.planning import alignment, lineage
from adpa_cli.planning.evaluations import family_evals
from adpa_cli.planning.planner import Inputs, Model, Plan, Planner, Teachers
from adpa_cli.planning.requests import (
    pairs_for,
    planner_of,
    recorded_data,
    reward_model_of,
    teachers_of,
)
from adpa_cli.planning.resolve_inputs import Names
from adpa_cli.planning.settings import (
    EVAL_ROLLOUT,
    UserSettings,
    kd_teacher,
    needs_of,
    params_of,
    preset_of,
    train_spec,
    with_effect,
)
from adpa_cli.spec import TrainSpec
from adpa_cli.stages import Artifact, Input, Made, Node, product_of
from adpa_cli.stages.cache_teacher import CACHE_TEACHER
from adpa_cli.stages.rollout import ROLLOUT, RolloutSpec
from adpa_cli.stages.training import DISTILL

BOTH = {"aligned", "reference"}


@dataclass(frozen=True)
class Distill:
    """What `adpa distill` was asked for."""

    method: str
    student: str
    teacher: str | None = None
    reference: str | None = None
    data: tuple[str, ...] = ()
    sft_data: tuple[str, ...] = ()
    rollouts: tuple[str, ...] = ()
    cache: tuple[str, ...] = ()
    evaluate: bool = True
    reward_model: str | None = None
    allow_foreign_rollouts: bool = False
    """Train on answers of another model than the one that is trained: a permission, for the rollouts are an input."""


def needed_methods(method: str) -> tuple[str, ...]:
    """The methods that a `--method` runs one after the other; UsageError for a word that is none."""
    words = chain_of(method)
    if len(words) == 1 and method not in methods.FILES:
        raise methods.unknown(method, sorted((*methods.names(), *CHAINS)))
    return tuple(methods.load(name).name for name in words)


def plan_distill(names: Names, user: UserSettings, request: Distill) -> Plan:
    """`adpa distill --method NAME --student S …`: whatever is missing, then the student."""
    chain = needed_methods(request.method)
    planner = planner_of(DISTILL, names, user, request.data, request.sft_data, chain, about=request.student)
    planner = replace(planner, preset=_preset_of_inputs(planner, chain))
    caches = [names.made(text, (CACHE_TEACHER.name,), "--cache") for text in request.cache]
    rollouts = [names.made(text, (ROLLOUT.name,), "--rollouts") for text in request.rollouts]
    model = names.model(request.student, "--student")
    if isinstance(model, ReadyPair):
        raise UsageError(
            f"--student {request.student} is a pair of teachers, not a student", f"--teacher {request.student}"
        )
    family = model.family if isinstance(model, Alias) else lineage.family_of(model, names.store)
    teachers = _teachers(planner, request, chain, caches, family)
    artifacts = (*caches, *rollouts)
    is_foreign = request.teacher is not None and teachers is not None and _is_foreign(planner, model, teachers, chain)
    template = teachers.template if teachers else lineage.template_of(artifacts[0]) if artifacts else None
    start = _start(planner, request, model, family, None if is_foreign else template)
    data = recorded_data(names, caches[0]) if caches and not request.data else pairs_for(planner, start)
    judge = reward_model_of(planner, request.reward_model) if request.reward_model else None
    builder = Builder(planner, request, start, data, teachers, caches, rollouts, judge, is_foreign)
    students: list[Node] = []
    for method in chain:
        students.append(builder.training(method, students[-1] if students else start.input, method == chain[-1]))
    _check_use(artifacts, students, request.method)
    measured = builder.measured_teachers(chain)
    notes = (*(teachers.notes if teachers else ()), *builder.carried_over(chain))
    evals: tuple[Node, ...] = ()
    if request.evaluate:
        evals, said = family_evals(planner, start, data, students, measured, judge)
        notes += said
    return Plan((students[-1],), start.template, evals, notes)


def _preset_of_inputs(planner: Planner, chain: Sequence[str]) -> dict[str, Any]:
    """What the presets of some methods say of all that they read: how long it may be."""
    inputs: dict[str, Any] = {}
    for method in chain:
        user = planner.settings(DISTILL.name, method)
        if "max_length" in (preset := preset_of(DISTILL.name, method, user)):
            inputs["max_length"] = user.get("max_length", preset["max_length"])
    return inputs


@dataclass(frozen=True)
class Builder:
    """Builds the trainings of one command.

    `start` is the model before them, with the family and the template of the whole plan. `teachers` are None where none
    was named or needed; `caches`, `rollouts` and `reward_model` are what was named.
    """

    planner: Planner
    request: Distill
    start: Model
    data: External
    teachers: Teachers | None
    caches: Sequence[Artifact]
    rollouts: Sequence[Artifact]
    reward_model: Input | None = None
    is_foreign: bool = False
    """Whether the teachers have another tokenizer than the student, which then reads their answers as text."""

    def training(self, method: str, start: Input, is_last: bool) -> Node:
        """One training with one method, from a model, with all that the method reads.

        Rollouts that were named are answers of one model, so they serve the last training of a chain alone; a cache
        serves any training that it covers.
        """
        stage, family, read = DISTILL.name, self.start.family, methods.load(method)
        user = self.planner.settings(stage, method)
        user = {**self._of_teacher(read, user), **user}
        spec = train_spec(stage, method, family, (stage, f"{stage}.{method}"), user, self.start.template)
        self._check_selection(spec, user)
        needs = read.needs_for(read.params(**spec.params))
        inputs: Inputs = {"model": start, "data": self.data}
        inputs |= self._signals_and_rollouts(needs, spec, kd_teacher(method, user), start, is_last)
        if any(need.online for need in needs):
            inputs |= self._teacher_models()
        if any(need.reward for need in needs):
            inputs["rewards"] = self.planner.rewards(self._judge(), self.data)
        if spec.select == "best" and self.reward_model is not None:
            inputs["reward_model"] = self.reward_model
            judged = stage_settings(family, ROLLOUT.name, EVAL_ROLLOUT)
            spec = replace(spec, judged_tokens=int(judged.get("max_new_tokens", RolloutSpec.max_new_tokens)))
        hints = {"gamma_rms": family.gamma_rms} if read.advantage_weight else {}
        derived = self.planner.derived(stage, spec, replace(self.start, input=start), self.data)
        return Node(stage, spec, inputs, f"{stage} {method}", hints=hints, derived=derived)

    def _signals_and_rollouts(
        self, needs: Sequence[Need], spec: TrainSpec, teacher: str, start: Input, is_last: bool
    ) -> Inputs:
        """The caches and the rollouts of one training.

        A part named `rollout` may be read from the data instead (`states`): then one capture covers it with the others.
        """
        signals: list[Made] = []
        inputs: Inputs = {}
        of_data = [need for need in needs if need.signal and spec.source(need.part) != "rollout"]
        if of_data:
            signals.append(self._signal(spec, of_data, {"data": self.data}, teacher))
        of_rollouts = [need for need in needs if spec.source(need.part) == "rollout" and not need.online][:1]
        if of_rollouts:
            is_text = not of_rollouts[0].signal
            rollouts = inputs["rollouts"] = self._rollouts(start, spec, teacher, is_last, is_text)
            if of_rollouts[0].signal:
                signals.append(self._signal(spec, of_rollouts, {"rollouts": rollouts}, teacher))
        return {**({"cache": tuple(signals)} if signals else {}), **inputs}

    def _check_selection(self, spec: TrainSpec, user: Mapping[str, Any]) -> None:
        """Raise UsageError where a preset selects by a reward model, and none is named."""
        selects = "select" in preset_of(DISTILL.name, spec.method, user) and "select" not in user
        if selects and self.reward_model is None:
            raise UsageError(
                f"preset={user['preset']} selects the checkpoint by a reward model, and no reward model is named",
                "name one: --reward-model MODEL\n or: --select last, which keeps the final weights",
            )

    # What is taken over from the teachers.

    def _aligned(self) -> alignment.Aligned | None:
        """The teacher of the signal of a pair that was named, else the one of the plan; None where there is none."""
        store = self.planner.names.store
        if signal := next((cache for cache in self.caches if "reference" in cache.manifest.inputs), None):
            return alignment.of_signal(signal, store)
        teachers = self._fitting_teachers()
        return alignment.of_input(teachers.aligned, teachers.reference, store) if teachers else None

    def _of_teacher(self, method: Method, user: Mapping[str, Any]) -> dict[str, Any]:
        """The β that a method takes over from its teacher, unless the user says one. Raises UsageError for no β."""
        key, params = method.teachers_beta, params_of(method.name, user)
        in_nats = vars(params).get("unit", alignment.NAT) == alignment.NAT
        if not key or key in user or key not in with_effect(params) or not in_nats:
            return {}
        teacher = self._aligned()
        return {key: alignment.teachers_beta(method, params, teacher, self.planner.names.store)} if teacher else {}

    def carried_over(self, chain: Sequence[str]) -> list[str]:
        """Remarks on weights that nobody typed, where the teacher is not the family's own."""
        read = [methods.load(name) for name in chain if methods.load(name).teachers_weight]
        weighed = [one for one in read if one.teachers_weight not in self.planner.settings(DISTILL.name, one.name)]
        teacher = self._aligned() if weighed and (self.request.teacher or self.caches) else None
        if teacher is None or teacher.base == self.start.family.teacher:
            return []
        store = self.planner.names.store
        return [alignment.carried_over(method, self.start.family, teacher, store) for method in weighed]

    # Rollouts.

    def _rollouts(self, start: Input, spec: TrainSpec, teacher: str, is_last: bool, is_text: bool) -> Made:
        """The rollouts that were named, by themselves or beneath a cache, else new ones of the student or a teacher.

        Where they are read as text (`is_text`) they may come from a model with another tokenizer and template.

        Raises UsageError for rollouts of another model, unless they are allowed. Where the states are a teacher's and
        none is named, or a signal is, the signal says whose answers these should be, else they themselves do.
        """
        by_teacher = spec.states == "teacher"
        teachers = self._fitting_teachers() if by_teacher else None
        author = self._teacher(teachers, teacher) if teachers else start
        named = (next(iter(self.rollouts), None) or self._beneath_caches()) if is_last else None
        if named is None:
            if by_teacher and teachers is None:
                raise UsageError(
                    f"{self.request.method} needs a teacher",
                    "name one: --teacher MODEL\n or: --rollouts R, its answers: adpa rollout --student T",
                )
            template = teachers.template if teachers and self.is_foreign else self.start.template
            return self.planner.rollout(replace(self.start, input=author, template=template), self.data)
        if not is_text:
            lineage.same_template(self.start.template, named, "rollouts")
        model, allowed = str(named.manifest.inputs["model"]), {author.content}
        if by_teacher and (teachers is None or self.caches):
            allowed = {str(cache.manifest.inputs.get("aligned")) for cache in self.caches} or {model}
        if model not in allowed and not self.request.allow_foreign_rollouts:
            raise self._foreign_rollouts(named, author, by_teacher)
        return named

    def _foreign_rollouts(self, rollouts: Artifact, author: Input, by_teacher: bool) -> UsageError:
        model = lineage.single(rollouts, "model", self.planner.names.store)
        purpose = f"--states teacher trains on answers of {author.label}"
        hint = f"adpa rollout --student {lineage.command_word(author)}, or --allow-foreign-rollouts"
        if not by_teacher:
            purpose = f"{self.request.method} trains {author.label} on its own answers"
            if self.teachers is not None and rollouts.manifest.inputs["model"] == self.teachers.aligned.content:
                hint += "\n or: --states teacher, which trains on the teacher's answers"
        return UsageError(
            f"the rollouts {rollouts.label} are answers of {model.label if model else 'another model'}, but {purpose}",
            hint,
        )

    def _beneath_caches(self) -> Artifact | None:
        """The rollouts that a cache was made on, if the store has them."""
        below = (lineage.single(cache, "rollouts", self.planner.names.store) for cache in self.caches)
        return next((rollouts for rollouts in below if isinstance(rollouts, Artifact)), None)

    # Signal.

    def _signal(self, spec: TrainSpec, needs: Sequence[Need], answers: Mapping[str, Input], teacher: str) -> Made:
        """A cache that was named and covers some needs, else a capture. Raises UsageError for ids of another kind.

        A capture is of more than one method reads, so that it serves as many as it can: of both answers to a pair, and
        of both teachers on rollouts, which costs little there.
        """
        method = methods.load(spec.method)
        parts = tuple(spec.source(need.part) for need in needs)
        roles = tuple(dict.fromkeys(role for need in needs for role in need.signal))
        for cache in self.caches:
            if set(parts) <= set(cache.values["parts"]) and set(roles) <= {"aligned", *cache.manifest.inputs}:
                lineage.same_template(self.start.template, cache, "signal")
                return _readable(cache, method, needs)
        teachers, on_data = self._fitting_teachers(), "data" in answers
        if teachers is None:
            raise UsageError(
                f"no --cache artifact holds the {' and '.join(roles)} teacher on the {' and '.join(parts)} answers",
                f"make it: adpa cache-teacher --teacher T {'--data SRC' if on_data else '--rollouts R'}",
            )
        support = needs[0].support
        as_pair = "reference" in roles or (not on_data and teacher == "aligned" and support == "topk")
        captured = replace(
            teachers, aligned=self._teacher(teachers, teacher), reference=teachers.reference if as_pair else None,
            family=self.start.family, template=self.start.template,
        )  # fmt: skip
        parts = ("chosen", "rejected") if on_data else parts
        exact = any(need.exact for need in needs)
        capture = self.planner.capture(captured, answers, parts, self.start.input, teacher, support, exact)
        return _readable(capture, method, needs)

    # Teachers and judges.

    def _fitting_teachers(self) -> Teachers | None:
        """The teachers that were named, else the family's if they fit."""
        if self.teachers is not None or not self.start.family.alias:
            return self.teachers
        teachers = teachers_of(self.planner, self.start.family, None, None)
        return teachers if teachers.template == self.start.template else None

    def _teacher(self, teachers: Teachers, name: str) -> Input:
        """The model that a `kd_teacher` names."""
        if name == "aligned":
            return teachers.aligned
        if teachers.reference is None:
            raise UsageError(
                f"kd_teacher={name} needs the model that the teacher was aligned from", "name it: --reference MODEL"
            )
        if name == "reference":
            return teachers.reference
        reference = Model(teachers.reference, teachers.family, self.start.template)
        return self.planner.sft(reference, self.data, "teacher", f"{name} teacher")

    def _teacher_models(self) -> Inputs:
        """Both teachers, for a method that asks them while it trains."""
        if self.teachers is None or self.teachers.reference is None:
            raise UsageError(
                f"{self.request.method} runs both teachers during training, so both must be named",
                "--teacher MODEL --reference MODEL",
            )
        return {"aligned": self.teachers.aligned, "reference": self.teachers.reference}

    def measured_teachers(self, chain: Sequence[str]) -> list[tuple[Input, str]]:
        """The teachers that are measured beside the students, with their roles."""
        if self.teachers is None or self.is_foreign:
            return []
        learned = {kd_teacher(method, self.planner.settings(DISTILL.name, method)) for method in chain}
        names = ["reference"] if self.teachers.reference is not None else []
        names += [name for name in ("sft-chosen", "aligned") if name in learned]
        return [(self._teacher(self.teachers, name), f"{name} teacher") for name in names]

    def _judge(self) -> Model:
        """The reward model that was named, else one that is trained from the reference teacher."""
        if self.reward_model is not None:
            return replace(self.start, input=self.reward_model)
        teachers = self._fitting_teachers()
        if teachers is None or teachers.reference is None:
            raise UsageError(
                f"{self.request.method} needs a reward model",
                "name one: --reward-model MODEL\n or: a teacher to train one from: --teacher MODEL --reference MODEL",
            )
        reference = Model(teachers.reference, teachers.family, teachers.template)
        return replace(self.start, input=self.planner.reward_model(reference, self.data))


def _readable(signal: Made, method: Method, needs: Sequence[Need]) -> Made:
    """The signal, if its ids are of the kind that a method reads (a top k, or drawn ones), and its numbers as exact as
    it needs them. Raises UsageError."""
    steps = [signal.values.get(key) for key in ("precision", "pair_precision")]
    if any(need.exact for need in needs) and any(steps):
        coarse = "precision and pair_precision" if isinstance(signal, Node) else f"--cache {signal.label}"
        raise UsageError(
            f"{method.name} learns the token with the largest advantage, which rounding can change; {signal.label} is "
            f"rounded to steps of {' and '.join(_step(step) for step in steps if step)} nat",
            f"leave out {coarse}; {method.name} then stores an exact signal",
        )
    support, other = needs[0].support, str(signal.values.get("support", "topk"))
    if other == support:
        return signal
    sampled = " ".join(f"--set {key}={value}" for key, value in method.sampled.items())
    if support == "sampled":
        defaults = {f.name: f.default for f in dataclasses.fields(method.params)}
        listed = " ".join(f"--set {key}={defaults[key]}" for key in method.sampled)
        hint = f"{listed}\n or: use a signal made with adpa cache-teacher --set support=sampled"
    elif sampled:
        hint = f"{sampled}, which reads such ids"
    else:
        readers = " and ".join(name for name in methods.names() if methods.load(name).sampled)
        hint = f"leave out --set {CACHE_TEACHER.name}.support=sampled, which only {readers} can read"
    words = {"topk": "a top k", "sampled": "ids drawn from the teacher"}
    raise UsageError(f"{method.name} reads {words[support]}; the signal {signal.label} has {words[other]}", hint)


def _step(step: Any) -> str:
    """A step of stored numbers as people write it."""
    return f"1/{1 / step:g}" if isinstance(step, float) and step < 1 else str(step)


def _start(
    planner: Planner, request: Distill, model: Alias | Artifact | External, family: Family,
    teacher_template: Template | None,
) -> Model:  # fmt: skip
    """The model that training starts from, with the plan's template: the teacher's, else the student's or family's.

    An alias, and a base model whose SFT data are named, are fine-tuned first with that template.
    """
    if isinstance(model, Alias):
        return planner.fine_tuned(model, teacher_template)
    choice = planner.user.templates
    template = lineage.template_of(model, choice)
    if template is not None:
        lineage.same_template(teacher_template or template, model, "student", choice)
        return Model(model, family, teacher_template or template)
    if not request.sft_data:
        alias = lineage.alias_of(model)
        raise UsageError(
            f"--student {model.label} is a base model: it has no chat template and must be fine-tuned first",
            (f"--student {alias}, which is fine-tuned first\n or: " if alias else "")
            + f"--student {request.student} --sft-data DIALOGUES, which fine-tunes it first"
            "\n or: --template FILE|NAME, where it was trained with one that its folder lacks",
        )
    base = Model(model, family, teacher_template or planner.template(family, model))
    return replace(base, input=planner.sft(base, planner.dialogues_of(family), "student", "student"))


def _check_use(artifacts: Sequence[Artifact], nodes: Sequence[Node], method: str) -> None:
    """Raise UsageError for a cache or rollouts that serve no training: what was named must not be passed over."""
    used = {item.content for node in nodes for _, item in node.flat_inputs()}
    for artifact in artifacts:
        if artifact.content not in used:
            parts = f" ({'+'.join(artifact.values['parts'])})" if product_of(artifact.stage) == "signal" else ""
            raise UsageError(
                f"the method {method} does not read {artifact.label}{parts}",
                f"leave it out, or see what {method} reads: adpa methods {method}",
            )


def _teachers(
    planner: Planner, request: Distill, chain: Sequence[str], caches: Sequence[Artifact], family: Family
) -> Teachers | None:
    """The teachers; None where nothing needs them, or where the caches named may cover everything."""
    roles = {role for method in chain for role in _needed_roles(planner, method, bool(request.rollouts))}
    online = any(need.online for method in chain for need in methods.load(method).needs)  # no signal stands in
    if request.teacher is None and (not roles or (caches and not online) or not family.alias):
        if request.reference is not None:
            raise UsageError(
                "--reference is given without --teacher", "name both: --teacher MODEL --reference MODEL, or neither"
            )
        if online or (roles and not caches):
            raise UsageError(
                f"{request.method} needs a teacher, and none can be guessed for this student",
                "name one: --teacher MODEL"
                + ("" if online else f"\n or: give what a teacher made: {_makes(chain[-1])}"),
            )
        return None
    teachers = teachers_of(planner, family, request.teacher, request.reference)
    if "reference" in roles and teachers.reference is None:
        raise _no_reference(planner, request, teachers.aligned)
    return teachers


def _reads_text(planner: Planner, method: str) -> bool:
    """Whether a method reads no signal and asks no teacher: answers may then come from any model, as text."""
    needs = needs_of(method, planner.settings(DISTILL.name, method))
    return not any(need.signal or need.online for need in needs)


def _is_foreign(
    planner: Planner, student: Alias | Artifact | External, teachers: Teachers, chain: Sequence[str]
) -> bool:
    """Whether the teachers have another tokenizer than the student, whose method reads their answers as text.

    Raises AdpaError where it reads their signal, which is of their tokens.
    """
    store = planner.names.store
    start = planner.names.base(student.model) if isinstance(student, Alias) else student
    problem = lineage.vocabulary_problem(start, teachers.aligned, store)
    if problem is None or all(_reads_text(planner, method) for method in chain):
        return problem is not None
    loaded = [methods.load(name) for name in methods.names()]
    by_text = [read.name for read in loaded if read.states == "teacher" and _reads_text(planner, read.name)]
    raise AdpaError(
        problem.message,
        f"{problem.hint}\n or: a method that reads a teacher's answers as text: --method {' or '.join(by_text)}",
    )


def _needed_roles(planner: Planner, method: str, has_rollouts: bool) -> set[str]:
    """The teachers whose signal a method reads or, unless rollouts were named, whose answers."""
    read, user = methods.load(method), planner.settings(DISTILL.name, method)
    needs = needs_of(method, user)
    if any(need.online for need in needs) or kd_teacher(method, user) != "aligned":
        return BOTH
    by_teacher = read.sources and user.get("states", read.states) == "teacher" and not has_rollouts
    return {*(role for need in needs for role in need.signal), *({"aligned"} if by_teacher else ())}


def _makes(method: str) -> str:
    """The option that stands in for a teacher, with the stage that makes it."""
    needs = methods.load(method).needs
    if not any(need.signal for need in needs):
        return "--rollouts ID (adpa rollout --student T)"
    on = "--rollouts R" if any(need.part == "rollout" for need in needs) else "--data SRC"
    return f"--cache ID (adpa cache-teacher --teacher T {on})"


def _no_reference(planner: Planner, request: Distill, aligned: Input) -> UsageError:
    """The teacher does not say what it was aligned from; its card may, and one method does without."""
    what = aligned.label
    if isinstance(aligned, External) and aligned.facts.get("commit"):
        what = f"the hub model {aligned.facts['name']}"
    hint = lineage.reference_hint(aligned, planner.names.store)
    if other := methods.load(needed_methods(request.method)[-1]).without_reference:
        hint += f"\n or: --method {other}, which does not need it"
    said = f"{request.method} needs the model that the teacher was aligned from, and {what} does not name it"
    return UsageError(said, hint)
