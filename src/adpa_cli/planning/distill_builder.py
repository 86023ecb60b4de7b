"""`adpa distill` as a plan: its teachers, and each training with the answers and the signal that its method reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from adpa_cli import methods
from adpa_cli.errors import UsageError
from adpa_cli.families import Alias, Family, ReadyPair, chain_of
from adpa_cli.hub import External
from adpa_cli.hub import repository as hub
from adpa_cli.methods import Method, Support
from adpa_cli.planning import lineage
from adpa_cli.planning.planner import Plan, Planner, Template
from adpa_cli.planning.requests import Teachers, data_for, data_of, family_evals, judge, planner_of, teachers
from adpa_cli.planning.resolve_inputs import Names
from adpa_cli.planning.settings import Given, kd_teacher, needs_of, train_spec
from adpa_cli.spec import TrainSpec
from adpa_cli.stages import Artifact, Input, Made, Node, product_of
from adpa_cli.stages.cache_teacher import CACHE_TEACHER
from adpa_cli.stages.rollout import ROLLOUT
from adpa_cli.stages.training import DISTILL


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


@dataclass(frozen=True)
class Chain:
    """Builds the trainings of one command from what is known about its teachers, and from what was given by hand."""

    planner: Planner
    family: Family
    template: Template
    data: External
    asked: Distill
    start: Input
    who: Teachers | None
    caches: Sequence[Artifact]
    rollouts: Sequence[Artifact]
    judge: Input | None = None
    """The reward model that was named."""

    def step(self, method: str, start: Input, last: bool) -> Node:
        """One training with one method; what was given by hand serves the last one of a chain, or any it fits."""
        stage, read = DISTILL.name, methods.load(method)
        user = self.planner.user(stage, method)
        spec = train_spec(stage, method, self.family, (stage, f"{stage}.{method}"), user, self.template)
        learned = kd_teacher(method, user)
        needs = read.needs_for(read.params(**spec.params))
        used: list[Made] = []
        fixed = [need for need in needs if need.signal and spec.source(need.part) != "rollout"]
        if fixed:
            roles = tuple(dict.fromkeys(role for need in fixed for role in need.signal))
            parts = tuple(spec.source(need.part) for need in fixed)
            used.append(self._signal(parts, roles, {"data": self.data}, learned, read, fixed[0].support))
        rollouts: Made | None = None
        sampled = next((need for need in needs if spec.source(need.part) == "rollout" and not need.online), None)
        if sampled:
            rollouts = self._answers(start, spec, learned, last)
            if sampled.signal:
                answers: dict[str, Input] = {"rollouts": rollouts}
                used.append(self._signal(("rollout",), sampled.signal, answers, learned, read, sampled.support))
        others = self._models() if any(need.online for need in needs) else {}
        if any(need.reward for need in needs):
            others["rewards"] = self.planner.rewards(self._judge(), self.data, self.family, self.template)
        if spec.select == "best" and self.judge is not None:
            others["reward_model"] = self.judge
        return self.planner.distill(method, start, self.data, used, rollouts, self.family, self.template, others)

    def _judge(self) -> Input:
        """The reward model that was given, else one that is trained from the reference teacher."""
        if self.judge is not None:
            return self.judge
        who = self._known()
        if who is None or who.reference is None:
            raise UsageError(
                f"{self.asked.method} needs a reward model", "name one: --reward-model MODEL, or a teacher of its own"
            )
        return self.planner.reward_model(who.reference, self.data, who.family, who.template)

    def _models(self) -> dict[str, Input]:
        """Both teachers, for a method that asks them while it trains."""
        if self.who is None or self.who.reference is None:
            raise UsageError(
                f"{self.asked.method} needs both teachers at hand", "name them: --teacher MODEL --reference MODEL"
            )
        return {"aligned": self.who.aligned, "reference": self.who.reference}

    def judged(self, chain: Sequence[str]) -> list[tuple[Input, str]]:
        """The teachers that are measured beside the students, with their roles."""
        if self.who is None:
            return []
        learned = {kd_teacher(method, self.planner.user(DISTILL.name, method)) for method in chain}
        words = [word for word in ("reference", "sft-chosen", "aligned") if word == "reference" or word in learned]
        if self.who.reference is None:
            words.remove("reference")
        return [(self._teacher(self.who, word), f"{word} teacher") for word in words]

    def _answers(self, start: Input, spec: TrainSpec, learned: str, last: bool) -> Made:
        """The rollouts that were given, by themselves or beneath a cache, else new ones. Refused when foreign."""
        given = (next(iter(self.rollouts), None) or self._beneath_caches()) if last else None
        who = self._known() if spec.states == "teacher" else None
        by = self._teacher(who, learned) if who else start
        if given is None:
            if spec.states == "teacher" and who is None:
                raise self._unknown_teacher("--rollouts R, its answers: adpa rollout --student T")
            return self.planner.rollout(by, self.data, self.family, self.template)
        lineage.same_template(self.template, given, "rollouts")
        model, own = str(given.manifest.inputs["model"]), {by.content}
        if spec.states == "teacher" and (who is None or self.caches):
            # Then the signal says whose answers these should be, or they themselves do.
            own = {str(made.manifest.inputs.get("aligned")) for made in self.caches} or {model}
        if model not in own and not self.asked.allow_foreign_rollouts:
            raise self._foreign(given, by, spec.states)
        return given

    def _foreign(self, given: Artifact, by: Input, states: str) -> UsageError:
        found = lineage.single(given, "model", self.planner.names.store)
        meant = f"--states teacher reads those of {by.label}"
        hint = f"adpa rollout --student {lineage.typed(by)}, or --allow-foreign-rollouts"
        if states != "teacher":
            meant = f"{self.asked.method} trains {by.label} on its own"
            taught = self.who is not None and given.manifest.inputs["model"] == self.who.aligned.content
            hint += "\n or: --states teacher, which reads the teacher's" if taught else ""
        return UsageError(
            f"the rollouts {given.label} are answers of {found.label if found else 'another model'}; {meant}", hint
        )

    def _beneath_caches(self) -> Artifact | None:
        for cache in self.caches:
            below = lineage.single(cache, "rollouts", self.planner.names.store)
            if isinstance(below, Artifact):
                return below
        return None

    def _known(self) -> Teachers | None:
        """The teachers that were named, else the family's if they fit."""
        if self.who is not None or not self.family.alias:
            return self.who
        found = teachers(self.planner, None, None, self.family, self.asked.data, self.asked.sft_data)
        return found if found.template == self.template else None

    def _teacher(self, who: Teachers, learned: str) -> Input:
        """The model that `kd_teacher` names."""
        if learned == "aligned":
            return who.aligned
        if who.reference is None:
            raise UsageError(f"kd_teacher={learned} needs the reference teacher", "name it: --reference MODEL")
        if learned == "reference":
            return who.reference
        role = f"{learned} teacher"
        return self.planner.sft(who.reference, self.data, who.family, "teacher", self.template, role)

    def _unknown_teacher(self, signal: str) -> UsageError:
        return UsageError(f"{self.asked.method} needs a teacher", f"name one: --teacher MODEL\n or: {signal}")

    def _signal(
        self,
        parts: tuple[str, ...],
        roles: tuple[str, ...],
        answers: dict[str, Input],
        learned: str,
        method: Method,
        support: Support,
    ) -> Made:
        """`_found_signal`, if its ids are what the method reads: a top k, or drawn ones. Raises UsageError."""
        made = self._found_signal(parts, roles, answers, learned, support)
        other = str(made.values.get("support", "topk"))
        if other == support:
            return made
        drawn = " ".join(f"--set {key}={value}" for key, value in method.sampled.items())
        if support == "sampled":
            fields = {f.name: f.default for f in dataclasses.fields(method.params)}
            listed = " ".join(f"--set {key}={fields[key]}" for key in method.sampled)
            hint = f"{listed}, or a signal of --support sampled"
        elif drawn:
            hint = f"{drawn}, which reads such ids"
        else:
            readers = " and ".join(name for name in methods.names() if methods.load(name).sampled)
            hint = f"leave away {CACHE_TEACHER.name}.support=sampled: only {readers} read such ids"
        words = {"topk": "a top k", "sampled": "ids drawn from the teacher"}
        raise UsageError(f"{method.name} reads {words[support]}; the signal {made.label} has {words[other]}", hint)

    def _found_signal(
        self, parts: tuple[str, ...], roles: tuple[str, ...], answers: dict[str, Input], learned: str, support: Support
    ) -> Made:
        """A cache that was given and covers this, else a capture. One capture serves as many methods as it can."""
        for cache in self.caches:
            covers = set(parts) <= set(cache.values["parts"]) and set(roles) <= {"aligned", *cache.manifest.inputs}
            if covers:
                lineage.same_template(self.template, cache, "signal")
                return cache
        who = self._known()
        if who is None:
            role = " and ".join(roles)
            raise UsageError(
                f"none of the caches given covers the {role} teacher on {'+'.join(parts)}",
                "make it: adpa cache-teacher --teacher T "
                + ("--rollouts R" if "rollouts" in answers else "--data SRC"),
            )
        both = "reference" in roles or ("rollouts" in answers and learned == "aligned" and support == "topk")
        on = ("chosen", "rejected") if "data" in answers else parts
        return self.planner.capture(
            self._teacher(who, learned), who.reference if both else None, answers, on, self.family, self.template,
            student=self.start, name=learned, support=support,
        )  # fmt: skip


def needed_methods(method: str) -> tuple[str, ...]:
    """The methods that a `--method` runs one after the other; UsageError for a word that is none."""
    return tuple(methods.load(name).name for name in chain_of(method))


def plan_distill(names: Names, given: Given, asked: Distill) -> Plan:
    """`adpa distill --method NAME --student S …`: whatever is missing, then the student."""
    chain = needed_methods(asked.method)
    planner = planner_of(DISTILL, names, given, chain)
    caches = [names.made(text, (CACHE_TEACHER.name,), "--cache") for text in asked.cache]
    rollouts = [names.made(text, (ROLLOUT.name,), "--rollouts") for text in asked.rollouts]
    found = names.model(asked.student, "--student")
    if isinstance(found, ReadyPair):
        raise UsageError(f"--student {asked.student} is a pair of teachers", f"use it as --teacher {asked.student}")
    family = found.family if isinstance(found, Alias) else lineage.family_of(found, names.store)
    who = _teachers(planner, asked, chain, caches, family)
    taught = who.template if who else _given_template((*caches, *rollouts))
    start, template = _start(planner, asked, found, family, taught)
    data = _data(planner, asked, caches, start, family)
    named = judge(planner, asked.reward_model, asked.data, asked.sft_data) if asked.reward_model else None
    builder = Chain(planner, family, template, data, asked, start, who, caches, rollouts, named)
    nodes: list[Node] = []
    for method in chain:
        nodes.append(builder.step(method, nodes[-1] if nodes else start, last=method == chain[-1]))
    _all_used((*caches, *rollouts), nodes, asked.method)
    judged = builder.judged(chain)
    evals = family_evals(planner, family, template, data, start, nodes, judged, named) if asked.evaluate else ()
    return Plan((nodes[-1],), template, evals)


def _given_template(given: Sequence[Artifact]) -> Template | None:
    return lineage.template_of(given[0]) if given else None


def _start(
    planner: Planner, asked: Distill, found: Alias | Artifact | External, family: Family, taught: Template | None
) -> tuple[Input, Template]:
    """The model that training starts from, and the plan's template: the teacher's, else the student's or family's.

    An alias, and a base model whose SFT data are named, are fine-tuned first with that template.
    """
    if isinstance(found, Alias):
        template = taught or planner.family_template(family, planner.base(found))
        return planner.sft_of(found, planner.family_data(asked.sft_data, family, "dialogues"), template), template
    own = lineage.template_of(found)
    if own is not None:
        lineage.same_template(taught or own, found, "student")
        return found, taught or own
    if not asked.sft_data:
        alias = lineage.alias_of(found)
        raise UsageError(
            f"--student {found.label} is a base model without chat template",
            (f"--student {alias}, which is fine-tuned first\n or: " if alias else "")
            + f"--student {asked.student} --sft-data DIALOGUES, which fine-tunes it first",
        )
    template = taught or planner.family_template(family, found)
    data = planner.names.data(asked.sft_data)
    return planner.sft(found, data, family, "student", template, "student"), template


def _all_used(given: Sequence[Artifact], nodes: Sequence[Node], method: str) -> None:
    """Raise UsageError for a cache or rollouts that serve no training: what was named must not be passed over."""
    used = {item.content for node in nodes for _, item in node.flat_inputs()}
    for made in given:
        if made.content not in used:
            parts = f" ({'+'.join(made.values['parts'])})" if product_of(made.stage) == "signal" else ""
            raise UsageError(
                f"{method} has no use for {made.label}{parts}", "leave it out; adpa methods NAME says what one reads"
            )


def _teachers(
    planner: Planner, asked: Distill, chain: Sequence[str], caches: Sequence[Artifact], family: Family
) -> Teachers | None:
    """The teachers; None where nothing needs them, or where the caches given may cover everything."""
    wanted = {role for method in chain for role in _wanted(planner, method, bool(asked.rollouts))}
    at_hand = any(need.online for method in chain for need in methods.load(method).needs)  # no signal stands in
    if asked.teacher is None and (not wanted or (caches and not at_hand) or not family.alias):
        if asked.reference is not None:
            raise UsageError("--reference is given without --teacher", "name both teachers, or neither")
        if at_hand or (wanted and not caches):
            raise UsageError(
                f"{asked.method} needs a teacher, and the student belongs to no family",
                "name one: --teacher MODEL" + ("" if at_hand else f"\n or: give what it makes: {_makes(chain[-1])}"),
            )
        return None
    found = teachers(planner, asked.teacher, asked.reference, family, asked.data, asked.sft_data)
    if "reference" in wanted and found.reference is None:
        raise _no_reference(planner, asked, found.aligned)
    return found


def _wanted(planner: Planner, method: str, answered: bool) -> set[str]:
    """The teachers whose signal or, unless they were `answered` already, whose answers a method reads."""
    read, user = methods.load(method), planner.user(DISTILL.name, method)
    needs = needs_of(method, user)
    found: set[str] = {role for need in needs for role in need.signal}
    if any(need.online for need in needs):
        found |= {"aligned", "reference"}
    if read.sources and user.get("states", read.states) == "teacher" and not answered:
        found.add("aligned")
    return found if kd_teacher(method, user) == "aligned" else found | {"aligned", "reference"}


def _makes(method: str) -> str:
    """The option that stands in for a teacher, with the stage that makes it."""
    needs = methods.load(method).needs
    if not any(need.signal for need in needs):
        return "--rollouts ID (adpa rollout --student T)"
    on = "--rollouts R" if any(need.part == "rollout" for need in needs) else "--data SRC"
    return f"--cache ID (adpa cache-teacher --teacher T {on})"


def _no_reference(planner: Planner, asked: Distill, aligned: Input) -> UsageError:
    """The teacher does not say what it was aligned from; its card may, and one method does without."""
    commit = aligned.facts.get("commit") if isinstance(aligned, External) else None
    what = "a hub model" if commit else "a folder" if isinstance(aligned, External) else aligned.label
    named = ""
    if isinstance(aligned, External) and commit:
        named = hub.base_of(str(aligned.facts["name"]), str(commit), planner.names.store.hash_cache)
    hint = f"… --reference {named}     (its card names this one; check it)" if named else "… --reference MODEL"
    if other := methods.load(needed_methods(asked.method)[-1]).without_reference:
        hint += f"\n or: --method {other}, which does without"
    return UsageError(f"{asked.method} needs the model that the teacher was aligned from; {what} does not say", hint)


def _data(planner: Planner, asked: Distill, caches: Sequence[Artifact], start: Input, family: Family) -> External:
    if asked.data or not caches:
        return data_for(planner, start, asked.data, family)
    return data_of(planner.names, caches[0])
