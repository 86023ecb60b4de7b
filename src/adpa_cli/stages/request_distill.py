"""`adpa distill` as a plan."""

from __future__ import annotations

from collections.abc import Sequence

from adpa_cli import methods
from adpa_cli.errors import UsageError
from adpa_cli.families import Alias, Family, ReadyPair, chain_of
from adpa_cli.stages import hub, lineage
from adpa_cli.stages.chain import Chain, Distill
from adpa_cli.stages.graph import Artifact, External, Input, Node
from adpa_cli.stages.names import Names
from adpa_cli.stages.plan import Plan, Planner, Template
from adpa_cli.stages.request_eval import family_evals
from adpa_cli.stages.request_reward import judge
from adpa_cli.stages.requests import Teachers, data_for, data_of, teachers
from adpa_cli.stages.settings import Given, check_own, kd_teacher, needs_of


def needed_methods(method: str) -> tuple[str, ...]:
    """The methods that a `--method` runs one after the other; UsageError for a word that is none."""
    return tuple(methods.load(name).name for name in chain_of(method))


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
    read, user = methods.load(method), planner.user("distill", method)
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
    if needed_methods(asked.method)[-1] == "adpa":
        hint += "\n or: --method adpa-noref, which does without"
    return UsageError(f"{asked.method} needs the model that the teacher was aligned from; {what} does not say", hint)


def _data(planner: Planner, asked: Distill, caches: Sequence[Artifact], start: Input, family: Family) -> External:
    if asked.data or not caches:
        return data_for(planner, start, asked.data, family)
    return data_of(planner.names, caches[0])
