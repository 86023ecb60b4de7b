"""The plans of evaluations by a judge: who judges, by which prompts, and what is judged."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from adpa_cli import suites
from adpa_cli.data.questions import references_of
from adpa_cli.endpoint import JUDGE_URL
from adpa_cli.errors import NotFound, UsageError
from adpa_cli.families import GENERIC, stage_settings
from adpa_cli.hub import External
from adpa_cli.hub.externals import open_sources
from adpa_cli.judges.prompts import Kind, Template, chosen, stored, templates_of
from adpa_cli.machine import expanded
from adpa_cli.planning import lineage
from adpa_cli.planning.evaluations import (
    Evaluate,
    Evaluation,
    Measured,
    check_effect,
    plain_model,
    plan_eval,
)
from adpa_cli.planning.planner import Inputs, Model, Plan, Planner
from adpa_cli.planning.requests import model_of, planner_of
from adpa_cli.planning.resolve_inputs import Names
from adpa_cli.planning.settings import EVAL_ROLLOUT, UserSettings, plain_spec
from adpa_cli.stages import Artifact, Node, product_of
from adpa_cli.stages._judge_calls import PAIRS, REFERENCES
from adpa_cli.stages.eval import EVAL
from adpa_cli.stages.judge import JUDGEMENTS, LONG, SHORT, JudgeSpec
from adpa_cli.stages.rollout import ROLLOUT
from adpa_cli.stages.two_turns import QUESTIONS, TWO_TURNS, TwoTurnsSpec
from adpa_cli.suites import AGAINST, ROLLOUTS, EvalSpec, Suite

JUDGE, PROMPTS, REFERENCES_OPTION = "--judge", "--judge-prompts", "--references"


@dataclass(frozen=True)
class Judge:
    """What the command line says of a judge: its name, the file of its prompts and that of reference answers."""

    name: str | None = None
    prompts: str | None = None
    references: str | None = None

    @cached_property
    def templates(self) -> tuple[Template, ...]:
        """Of the file that was named, else ours."""
        return templates_of(expanded(self.prompts) if self.prompts else None)


def plan_evaluation(names: Names, user: UserSettings, request: Evaluate, judge: Judge) -> Plan:
    """`adpa eval REF…` by a judge, or by a suite that needs none. Raises UsageError for a judge who is not asked."""
    said = _said(names, request)
    if said:
        _check_said(request, judge, said)
    suite = _suite(request, judge, said)
    if suite is None:
        for option, value in ((JUDGE, judge.name), (PROMPTS, judge.prompts), (REFERENCES_OPTION, judge.references)):
            if value is not None:
                known = ", ".join(each.name for each in suites.every().values() if each.judged or each.judge_margins)
                raise UsageError(
                    f"{option} has no effect with --suite {request.suite}, which asks no judge",
                    f"leave it out, or choose a suite that asks one: --suite {known}",
                )
        return plan_eval(names, user, request)
    return _plan(names, user, request, judge, suite, said)


def _said(names: Names, request: Evaluate) -> list[Artifact]:
    """The artifacts of judgements that are measured. UsageError where others are among them."""
    found = []
    for text in request.models:
        with contextlib.suppress(NotFound):
            manifest = names.store.resolve(text)
            found += [Artifact(manifest)] if product_of(manifest.stage) == "judgements" else []
    if found and len(found) < len(request.models):
        raise UsageError("judgements and models cannot be measured by one command", "run one command for each kind")
    return found


def _suite(request: Evaluate, judge: Judge, said: Sequence[Artifact]) -> Suite | None:
    """The suite of a judge that was named, or that what was named belongs to; None where no judge has a part."""
    if request.suite is not None:
        EvalSpec("", "", request.suite)  # refuses a name that is none
        named = suites.every()[request.suite]
        return named if named.judged or (judge.name and named.judge_margins) else None
    kinds = {str(each.values.get("judged", "answers")) for each in said}
    if len(kinds) > 1:
        raise UsageError("judgements of several kinds cannot be measured by one command", "run one command for each")
    if kinds or judge.name:
        return suites.of_judgements(*(kinds or {"answers"}))
    return None


def _check_said(request: Evaluate, judge: Judge, said: Sequence[Artifact]) -> None:
    """Raise UsageError where judgements are not what the suite measures, and for an option without effect on them."""
    kind, label = str(said[0].values.get("judged", "answers")), said[0].label
    fitting = [suite.name for suite in suites.every().values() if suite.judged == kind]
    if not fitting:
        of_pairs = next(suite.name for suite in suites.every().values() if suite.judge_margins)
        raise UsageError(
            f"{label} holds judgements of preference pairs, which are measured together with their pairs",
            f"adpa eval --suite {of_pairs} {JUDGE} NAME --data PAIRS",
        )
    if request.suite not in (None, *fitting):
        raise UsageError(f"--suite {request.suite} cannot measure {label}", f"--suite {' or '.join(fitting)}")
    given = {
        "--against": request.against, "--reward-model": request.reward_model, "--teacher": request.teacher,
        "--reference": request.reference, "--data": " ".join(request.data), "--split": request.split,
        JUDGE: judge.name, PROMPTS: judge.prompts, REFERENCES_OPTION: judge.references,
    }  # fmt: skip
    for option, value in given.items():
        if value:
            raise UsageError(f"{option} has no effect on judgements that exist already", f"leave out {option} {value}")


@dataclass(frozen=True)
class Judging:
    """One evaluation by a judge: whom it asks, and what is measured by what it says."""

    planner: Planner
    judge: Judge
    evaluation: Evaluation

    def node(self, measured: Measured, inputs: Inputs, data: External | None, role: str) -> Node:
        """The figures of one model, of some answers or of a judge."""
        return self.evaluation.made(self.evaluation.suite, measured, inputs, data, role, {})

    def template_of(self, kind: Kind, two_turns: bool = False, reference: bool = False) -> Template:
        """What the judge is asked by. UsageError without a judge, and where its file holds no such template."""
        if not self.judge.name:
            suite = self.evaluation.suite.name
            raise UsageError(f"--suite {suite} needs a judge", f"name one: {JUDGE} NAME {JUDGE_URL} URL")
        return chosen(self.judge.templates, kind, two_turns, reference)

    def judgements(self, inputs: Inputs, kinds: Sequence[tuple[Kind, bool, bool]], **fixed: Any) -> Node:
        """What the judge says; `kinds` are those of the templates that it is asked by: (kind, two turns, reference)."""
        templates = [self.template_of(*kind) for kind in kinds]
        is_short = all(each.marks and not each.marks[0].startswith("[[") for each in templates)
        typed = {"max_tokens": SHORT if is_short else LONG, **self.planner.settings(JUDGEMENTS.name)}
        spec = plain_spec(
            JudgeSpec, JUDGEMENTS.name, GENERIC, typed, judge=self.judge.name, prompts=stored(templates), **fixed
        )
        asking = Node(JUDGEMENTS.name, dataclasses.replace(spec, unparsable="ask"), inputs, JUDGEMENTS.name)
        hints = {} if spec == asking.spec else {"calls_of": asking.recipe.id}
        return Node(JUDGEMENTS.name, spec, inputs, JUDGEMENTS.name, hints=hints)


def _plan(
    names: Names, user: UserSettings, request: Evaluate, judge: Judge, suite: Suite, said: Sequence[Artifact]
) -> Plan:
    """The plan of an evaluation by a judge."""
    planner = planner_of(EVAL, names, user, request.data or ([suite.prompts] if suite.prompts else ()))
    judging = Judging(planner, judge, Evaluation(planner, suite, split=request.split or "test"))
    if said:
        nodes = [judging.node(_measured(planner, each), {suites.JUDGEMENTS: each}, None, each.label) for each in said]
        check_effect(planner.user, nodes)
        return Plan(tuple(nodes), plain_model(planner, said[0]).template)
    if suite.judge_margins:
        return _of_pairs(judging, request)
    if not request.models:
        raise UsageError("no model is named to be measured", "adpa eval MODEL …")
    if suite.judged == "turns":
        return _of_turns(judging, request)
    return _of_answers(judging, request)


def _measured(planner: Planner, item: Artifact | External) -> Measured:
    return Measured(plain_model(planner, item), "answers")


def _of_pairs(judging: Judging, request: Evaluate) -> Plan:
    """How often the judge prefers the chosen answers of the pairs that were named."""
    planner, judge = judging.planner, judging.judge
    if request.models:
        raise UsageError(
            f"on pairs, either the judge {judge.name} or the model {request.models[0]} is measured, not both",
            "leave one of the two out",
        )
    if not request.data:
        raise UsageError("nothing says which pairs the judge should compare", "name them: --data SRC")
    data = planner.names.data(request.data)
    rows = {"limit": planner.user.limit, "skip_bad_rows": planner.user.skip_bad_rows, "split": request.split or "test"}
    given = judging.judgements({PAIRS: data}, [("pairwise", False, False)], judged="pairs", **rows)
    measured = _measured(planner, data)
    node = judging.node(measured, {"data": data, suites.JUDGEMENTS: given}, data, str(judge.name))
    check_effect(planner.user, [node])
    return Plan((node,), measured.model.template)


def _references(planner: Planner, text: str) -> External:
    """The data with reference answers; what is here already is read, so that no answer is drawn in vain."""
    data = planner.names.data((text,))
    if data.is_here:
        references_of(open_sources(data.where))
    return data


def _of_turns(judging: Judging, request: Evaluate) -> Plan:
    """What the judge gives to both answers of each model to questions of two turns."""
    planner, judge = judging.planner, judging.judge
    questions = planner.pairs_of(GENERIC)
    inputs: Inputs = {}
    if judge.references:
        inputs[REFERENCES] = _references(planner, judge.references)
    kinds: list[tuple[Kind, bool, bool]] = [
        ("single", two, reference) for reference in (False, True)[: 1 + len(inputs)] for two in (False, True)
    ]
    nodes = []
    models = [model_of(planner, text, "REF") for text in request.models]
    template = models[0].template
    for model in models:
        lineage.same_template(template, model.input, "model", planner.user.templates)
        answers = _two_turns(planner, model, questions)
        given = judging.judgements({ROLLOUTS: answers, **inputs}, kinds, judged="turns")
        read: Inputs = {"model": model.input, ROLLOUTS: answers, suites.JUDGEMENTS: given}
        nodes.append(judging.node(Measured(model), read, questions, model.input.label))
    check_effect(planner.user, nodes)
    return Plan(tuple(nodes), template)


def _two_turns(planner: Planner, model: Model, questions: External) -> Node:
    """The answers of a model to both turns of some questions."""
    family = stage_settings(model.family, ROLLOUT.name, EVAL_ROLLOUT)
    user = {key: family[key] for key in ("max_length",) if key in family}  # the rest is as the questions have it
    user |= {"limit": planner.user.limit} if planner.user.limit is not None else {}
    user |= {**planner.settings(TWO_TURNS.name), **planner.user.by_stage.get(EVAL_ROLLOUT, {})}
    fixed = {"template": model.template.text, "end": model.template.end}
    spec = plain_spec(TwoTurnsSpec, TWO_TURNS.name, model.family, user, **fixed)
    return Node(TWO_TURNS.name, spec, {"model": model.input, QUESTIONS: questions}, "rollouts")


def _of_answers(judging: Judging, request: Evaluate) -> Plan:
    """How often the judge prefers the answers of each model to those of the opponent; and their accuracy on pairs."""
    planner, suite = judging.planner, judging.evaluation.suite
    if not request.against:
        raise UsageError(
            f"--suite {suite.name} compares answers with those of an opponent, and none is named",
            "name it: --against REF",
        )
    judging.template_of("pairwise")

    def judged(inputs: Inputs) -> Node:
        return judging.judgements({role: inputs[role] for role in (ROLLOUTS, AGAINST)}, [("pairwise", False, False)])

    data = tuple(request.data or ([suite.prompts] if suite.prompts else ()))
    return plan_eval(planner.names, planner.user, replace(request, suite=suite.name, data=data), judged)
