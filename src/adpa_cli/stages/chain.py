"""The trainings of `adpa distill`, each with the answers and the signal that its method reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from adpa_cli import methods
from adpa_cli.errors import UsageError
from adpa_cli.families import Family
from adpa_cli.spec import TrainSpec
from adpa_cli.stages import lineage
from adpa_cli.stages.graph import Artifact, External, Input, Made, Node
from adpa_cli.stages.plan import Planner, Template
from adpa_cli.stages.requests import Teachers, teachers
from adpa_cli.stages.settings import kd_teacher, train_spec


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
        user = self.planner.user("distill", method)
        read = methods.load(method)
        spec = train_spec("distill", method, self.family, ("distill", f"distill.{method}"), user, self.template)
        learned = kd_teacher(method, user)
        needs = read.needs_for(read.params(**spec.params))
        used: list[Made] = []
        fixed = [need for need in needs if need.signal and spec.source(need.part) != "rollout"]
        if fixed:
            roles = tuple(dict.fromkeys(role for need in fixed for role in need.signal))
            parts = tuple(spec.source(need.part) for need in fixed)
            used.append(self._signal(parts, roles, {"data": self.data}, learned, spec))
        rollouts: Made | None = None
        sampled = next((need for need in needs if spec.source(need.part) == "rollout" and not need.online), None)
        if sampled:
            rollouts = self._answers(start, spec, learned, last)
            if sampled.signal:
                used.append(self._signal(("rollout",), sampled.signal, {"rollouts": rollouts}, learned, spec))
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
        learned = {kd_teacher(method, self.planner.user("distill", method)) for method in chain}
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
        self, parts: tuple[str, ...], roles: tuple[str, ...], answers: dict[str, Input], learned: str, spec: TrainSpec
    ) -> Made:
        """`_found_signal`, if its ids are what the method reads: a top k, or drawn ones where its `tail` says so."""
        wanted = "sampled" if spec.params.get("tail") == "sampled" else "topk"
        made = self._found_signal(parts, roles, answers, learned, wanted)
        found = str(made.values.get("support", "topk"))
        if found == wanted:
            return made
        if wanted == "sampled":
            hint = "--set tail=bucket, or a signal of --support sampled"
        elif "tail" in spec.params:
            hint = "--set tail=sampled, which reads such ids"
        else:
            hint = "leave away cache-teacher.support=sampled: only dckd and vanilla-kd read such ids, with tail=sampled"
        words = {"topk": "a top k", "sampled": "ids drawn from the teacher"}
        raise UsageError(f"{spec.method} reads {words[wanted]}; the signal {made.label} has {words[found]}", hint)

    def _found_signal(
        self, parts: tuple[str, ...], roles: tuple[str, ...], answers: dict[str, Input], learned: str, support: str
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
