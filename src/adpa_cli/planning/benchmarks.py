"""The nodes of evaluations by tasks of lm-evaluation-harness: `adpa eval --suite lm-eval` and suites with tasks."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from adpa_cli import suites
from adpa_cli.data.files import EXTENSIONS
from adpa_cli.errors import UsageError
from adpa_cli.families import Alias, ReadyPair
from adpa_cli.hub.lm_tasks import LmTasks, TaskData, described, harness_version, task_data, task_folder
from adpa_cli.machine import expanded
from adpa_cli.planning import lineage
from adpa_cli.planning.evaluations import check_effect
from adpa_cli.planning.planner import Inputs, Model, Plan, Planner
from adpa_cli.planning.requests import model_of, planner_of
from adpa_cli.planning.resolve_inputs import Names
from adpa_cli.planning.settings import UserSettings, plain_spec, settable
from adpa_cli.spec import hashed
from adpa_cli.stages import Input, Node
from adpa_cli.stages.eval import EVAL
from adpa_cli.stages.lm_eval import LM_EVAL, TASK_DATA, TASK_FOLDER, LmEvalSpec
from adpa_cli.store.identity import canonical
from adpa_cli.suites import Suite

TASKS, INCLUDE_PATH = "--tasks", "--include-path"
COMPARED = ("harness", "tasks", "num_fewshot", "chat", "limit", "max_length")
"""Settings that two models must share for their numbers to be compared."""


@dataclass(frozen=True)
class Benchmark:
    """What `adpa eval` was asked for, where a suite measures tasks."""

    models: tuple[str, ...]
    suite: str | None = None
    tasks: str | None = None
    include_path: str | None = None

    @property
    def measuring(self) -> Suite | None:
        """The suite that measures tasks: the one that was named, or that `--tasks` asks for; None for any other."""
        if self.suite is not None:
            named = suites.every().get(self.suite)
            return named if named is not None and named.tasks is not None else None
        any_tasks = (suite for suite in suites.every().values() if suite.tasks == {})
        return next(any_tasks) if self.tasks is not None else None


@dataclass(frozen=True)
class Measuring:
    """The tasks of a command, what they read, and the suite that measures by them."""

    suite: Suite
    asked: Mapping[str, int | None]
    tasks: LmTasks
    data: TaskData
    folder: Input | None

    def node(self, planner: Planner, model: Model) -> Node:
        """The numbers of one model."""
        user = {
            key: value
            for key, value in planner.settings(LM_EVAL.name).items()
            if key in (*settable(LM_EVAL.name), "smoke")
        }
        fixed: dict[str, Any] = {
            "template": model.template.text, "end": model.template.end, "suite": self.suite.name,
            "harness": harness_version(), "tasks": dict(self.asked),
        }  # fmt: skip
        spec = plain_spec(LmEvalSpec, LM_EVAL.name, model.family, user, **fixed)
        inputs: Inputs = {"model": model.input}
        inputs |= {TASK_DATA: self.data.externals} if self.data.externals else {}
        inputs |= {TASK_FOLDER: self.folder} if self.folder is not None else {}
        leaves = {
            name: {"settings": leaf["settings"], "read": self.data.read.get(name, {})}
            for name, leaf in self.tasks.leaves.items()
        }
        hints = {
            "tasks": {**asdict(self.tasks), "leaves": leaves}, "about": self._about(spec), "watch": self._watch(),
        }  # fmt: skip
        return Node(LM_EVAL.name, spec, inputs, EVAL.name, model.input.label, hints)

    def _about(self, spec: LmEvalSpec) -> dict[str, Any]:
        """What is kept for people and for comparisons."""
        read = [item.content for item in (*self.data.externals, *([self.folder] if self.folder else []))]
        same = {key: value for key, value in hashed(spec).items() if key in COMPARED}
        measured = hashlib.sha256(canonical([same, sorted(read)])).hexdigest()[:16]
        return {"data": "", "scorer": f"lm_eval {spec.harness}", "measured": {"tasks": measured}}

    def _watch(self) -> list[str]:
        names = ", ".join(self.data.unknown)
        return (
            [f"{names}: code of the task fetches its data, so a change of these data does not change the id"]
            if names
            else []
        )


def plan_benchmark(names: Names, user: UserSettings, request: Benchmark, suite: Suite) -> Plan:
    """`adpa eval REF… --suite open-llm-v1`, or `--tasks NAME,…`: one artifact of numbers per model."""
    planner = planner_of(EVAL, names, user)
    asked = _asked(request, suite)
    models = [_model(planner, text) for text in request.models]
    folder = task_folder(expanded(request.include_path), names.store.hash_cache) if request.include_path else None
    settings = {name: {} if shots is None else {"num_fewshot": shots} for name, shots in asked.items()}
    tasks = described(settings, folder, names.store.hash_cache)
    measuring = Measuring(suite, asked, tasks, task_data(names, tasks), folder)
    nodes = tuple(measuring.node(planner, model) for model in models)
    check_effect(user, nodes)
    return Plan(nodes, models[0].template, notes=(suite.remark,) if suite.remark else ())


def _asked(request: Benchmark, suite: Suite) -> dict[str, int | None]:
    """The tasks that are measured, with their examples. UsageError where the suite and the command do not agree."""
    listed = [name for text in (request.tasks or "").split(",") if (name := text.strip())]
    if suite.tasks:
        if request.tasks is not None:
            raise UsageError(
                f"{TASKS} cannot be combined with --suite {suite.name}, which has tasks of its own",
                f"leave out one of the two, for example: {TASKS} {request.tasks}",
            )
        return dict(suite.tasks)
    if not listed:
        raise UsageError(
            f"--suite {suite.name} needs the names of tasks",
            f"name them: {TASKS} hellaswag,gsm8k (list all: lm-eval ls tasks)",
        )
    return dict.fromkeys(listed)


def _model(planner: Planner, text: str) -> Model:
    """The model that REF names. One without a chat template is measured too: prompts are no dialogues here."""
    if text.lower().endswith(EXTENSIONS):
        raise UsageError(f"{text} holds answers; benchmark tasks need a model", "name a model: adpa models, adpa show")
    meaning = planner.names.model(text, "REF")
    if isinstance(meaning, Alias | ReadyPair) or lineage.template_of(meaning, planner.user.templates) is not None:
        return model_of(planner, text, "REF")
    family = lineage.family_of(meaning, planner.names.store)
    return Model(meaning, family, planner.template(family, meaning))
