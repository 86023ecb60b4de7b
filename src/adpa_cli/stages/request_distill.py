"""`adpa distill` as a plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from adpa_cli import methods
from adpa_cli.errors import UsageError
from adpa_cli.families import Alias, Family, ReadyPair
from adpa_cli.stages import hub, lineage
from adpa_cli.stages.graph import Artifact, External, Input, Made, Node
from adpa_cli.stages.names import Names
from adpa_cli.stages.plan import Plan, Planner, Template
from adpa_cli.stages.request_eval import family_evals
from adpa_cli.stages.requests import Teachers, data_for, data_of, teachers
from adpa_cli.stages.settings import Given, check_own, train_spec


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
    allow_foreign_rollouts: bool = False
    """Train on answers of another model than the one that is trained: a permission, for the rollouts are an input."""


def needed_methods(method: str) -> tuple[str, ...]:
    """The methods that a `--method` runs one after the other."""
    if method in ("adpa+", "adpa-plus"):
        return ("dckd", "adpa")
    return (methods.load(method).name,)


def plan_distill(names: Names, given: Given, asked: Distill) -> Plan:
    """`adpa distill --method NAME --student S …`: whatever is missing, then the student."""
    chain = needed_methods(asked.method)
    planner = Planner(names, given, ("distill",))
    check_own(given, [("distill", method) for method in chain])
    caches = [names.made(text, ("cache-teacher",), "--cache") for text in asked.cache]
    rollouts = [names.made(text, ("rollout",), "--rollouts") for text in asked.rollouts]
    found = names.model(asked.student, "--student")
    if isinstance(found, ReadyPair):
        raise UsageError(f"--student {asked.student} is a pair of teachers", f"use it as --teacher {asked.student}")
    family = found.family if isinstance(found, Alias) else lineage.family_of(found, names.store)
    who = _teachers(planner, asked, chain, caches, family)
    start, template = _start(planner, asked, found, family, who.template if who else _cached_template(caches))
    data = _data(planner, asked, caches, start, family)
    builder = _Chain(planner, family, template, data, asked, start, who, caches, rollouts)
    nodes: list[Node] = []
    for method in chain:
        nodes.append(builder.step(method, nodes[-1] if nodes else start, last=method == chain[-1]))
    _all_used((*caches, *rollouts), nodes, asked.method)
    evals = family_evals(planner, family, template, data, start, nodes, who) if asked.evaluate else ()
    return Plan((nodes[-1],), template, evals)


def _cached_template(caches: Sequence[Artifact]) -> Template | None:
    return lineage.template_of(caches[0]) if caches else None


def _start(
    planner: Planner, asked: Distill, found: Alias | Artifact | External, family: Family, taught: Template | None
) -> tuple[Input, Template]:
    """The model that training starts from, and the plan's template: the teacher's, else the student's or family's.

    An alias, and a base model whose SFT data are named, are fine-tuned first with that template.
    """
    if isinstance(found, Alias):
        template = taught or planner.family_template(family, planner.base(found))
        return planner.sft_of(found, planner.family_data(asked.sft_data, family, "sft"), template), template
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
            parts = f" ({'+'.join(made.values['parts'])})" if made.stage == "cache-teacher" else ""
            raise UsageError(
                f"{method} has no use for {made.label}{parts}", "leave it out; adpa methods NAME says what one reads"
            )


def _teachers(
    planner: Planner, asked: Distill, chain: Sequence[str], caches: Sequence[Artifact], family: Family
) -> Teachers | None:
    """The teachers; None where nothing needs them, or where the caches given may cover everything."""
    wanted = {role for m in chain for need in methods.load(m).needs for role in need.signal}
    if asked.teacher is None and (not wanted or caches or not family.alias):
        if asked.reference is not None:
            raise UsageError("--reference is given without --teacher", "name both teachers, or neither")
        if wanted and not caches:
            raise UsageError(
                f"{asked.method} needs a teacher, and the student belongs to no family",
                "name one: --teacher MODEL, or give its signal: --cache ID",
            )
        return None
    found = teachers(planner, asked.teacher, asked.reference, family, asked.data, asked.sft_data)
    if "reference" in wanted and found.reference is None:
        raise _no_reference(planner, asked, found.aligned)
    return found


def _no_reference(planner: Planner, asked: Distill, aligned: Input) -> UsageError:
    """The teacher does not say what it was aligned from; its card may, and one method does without."""
    commit = aligned.facts.get("commit") if isinstance(aligned, External) else None
    what = "a hub model" if commit else "a folder" if isinstance(aligned, External) else aligned.label
    named = ""
    if isinstance(aligned, External) and commit:
        named = hub.base_of(str(aligned.facts["name"]), str(commit), planner.names.store.hash_cache)
    hint = f"… --reference {named}     (its card names this one; check it)" if named else "… --reference MODEL"
    if needed_methods(asked.method)[-1] == "adpa":
        hint += "\n or: --method adpa-noref, which does without"
    return UsageError(f"{asked.method} needs the model that the teacher was aligned from; {what} does not say", hint)


def _data(planner: Planner, asked: Distill, caches: Sequence[Artifact], start: Input, family: Family) -> External:
    if asked.data or not caches:
        return data_for(planner, start, asked.data, family)
    return data_of(planner.names, caches[0])


@dataclass(frozen=True)
class _Chain:
    """Builds the distillation stages, giving each the answers and the signal that its method needs."""

    planner: Planner
    family: Family
    template: Template
    data: External
    asked: Distill
    start: Input
    who: Teachers | None
    caches: Sequence[Artifact]
    rollouts: Sequence[Artifact]

    def step(self, method: str, start: Input, last: bool) -> Node:
        """One training with one method; what was given by hand serves the last one of a chain, or any it fits."""
        user = self.planner.user("distill", method)
        read = methods.load(method)
        keys = ("distill", f"distill.{method}")
        params = train_spec("distill", method, self.family, keys, user, self.template).params
        needs = read.needs_for(read.params(**params))
        used: list[Made] = []
        fixed = [need for need in needs if need.part != "rollout" and need.signal]
        if fixed:
            used.append(self._signal(tuple(n.part for n in fixed), fixed[0].signal, {"data": self.data}))
        rollouts: Made | None = None
        on_policy = next((need for need in needs if need.part == "rollout"), None)
        if on_policy:
            rollouts = self._rollouts(start) if last else None
            if rollouts is None:
                rollouts = self.planner.rollout(start, self.data, self.family, self.template)
            if on_policy.signal:
                used.append(self._signal(("rollout",), on_policy.signal, {"rollouts": rollouts}))
        return self.planner.distill(method, start, self.data, used, rollouts, self.family, self.template)

    def _rollouts(self, start: Input) -> Made | None:
        """The rollouts that were given, by themselves or beneath a cache; refused when `start` did not answer."""
        given = next(iter(self.rollouts), None) or self._beneath_caches()
        if given is not None:
            lineage.same_template(self.template, given, "rollouts")
            if given.manifest.inputs["model"] != start.content and not self.asked.allow_foreign_rollouts:
                by = lineage.single(given, "model", self.planner.names.store)
                raise UsageError(
                    f"the rollouts {given.label} are answers of {by.label if by else 'another model'}; "
                    f"{self.asked.method} trains {start.label} on its own",
                    f"adpa rollout --student {lineage.typed(start)}, or --allow-foreign-rollouts",
                )
        return given

    def _beneath_caches(self) -> Artifact | None:
        for cache in self.caches:
            below = lineage.single(cache, "rollouts", self.planner.names.store)
            if isinstance(below, Artifact):
                return below
        return None

    def _signal(self, parts: tuple[str, ...], roles: tuple[str, ...], answers: dict[str, Input]) -> Made:
        for cache in self.caches:
            covers = set(parts) <= set(cache.values["parts"]) and set(roles) <= {"aligned", *cache.manifest.inputs}
            if covers:
                lineage.same_template(self.template, cache, "signal")
                return cache
        who = self.who
        if who is None and self.family.alias:
            who = teachers(self.planner, None, None, self.family, self.asked.data, self.asked.sft_data)
            if who.template != self.template:
                who = None
        if who is None:
            role = " and ".join(roles)
            raise UsageError(
                f"none of the caches given covers the {role} teacher on {'+'.join(parts)}",
                "make it: adpa cache-teacher --teacher T "
                + ("--rollouts R" if "rollouts" in answers else "--data SRC"),
            )
        reference = who.reference if "reference" in roles else None
        if "data" in answers:
            parts = ("chosen", "rejected")  # one capture serves every method
        return self.planner.capture(
            who.aligned, reference, answers, parts, self.family, self.template, student=self.start
        )
