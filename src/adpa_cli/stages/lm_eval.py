"""The `lm-eval` stage: tasks of lm-evaluation-harness with one model, one task after the other, in this process.

A finished task is kept in the work folder, and the replies to the requests of the one under way: work that was cut off
goes on there. The version of the harness is in the id, since its tasks are a part of it, and so is the content of the
data and of a folder that adds tasks; the versions of the tasks, which follow from these, are among the metrics.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from adpa_cli import suites
from adpa_cli.disk import write_json
from adpa_cli.engine.costs import Held, requests_memory
from adpa_cli.errors import AdpaError
from adpa_cli.hub.lm_tasks import task_manager
from adpa_cli.sizes import Disk, Memory, Rows
from adpa_cli.spec import Dtype, Quantise, make, quantise
from adpa_cli.stages import Job, Lengths, Load, Monitor, Node, Stage, stop_if_asked, stored_words
from adpa_cli.stages.eval import SCORES
from adpa_cli.suites.lm_eval import DONE, TASKS, finished, groups, tasks_in

TASK_DATA, TASK_FOLDER = "task_data", "task_folder"
"""The roles of the data that tasks read, and of the folder that adds tasks."""
RESULTS = "results.json"
"""The harness's numbers of every task."""
MOST_TOKENS = 2048
"""Of a request with its examples, for estimates."""
KEPT_BYTES = 4_000_000
"""Of the rows of some 30,000 documents."""


@dataclass(frozen=True)
class LmEvalSpec:
    """One `lm-eval` stage: the tasks, how they are asked, and what the model computes in."""

    suite: str
    harness: str
    """The version of lm-evaluation-harness."""
    tasks: dict[str, Any]
    """By the name of a task or a group how many examples stand before each question; None for as many as it says."""
    template: str = ""
    end: str = ""
    num_fewshot: int | None = field(default=None, metadata={"low": 0})
    chat: bool = False
    """Whether prompts are rendered by the chat template, examples as turns."""
    limit: int | None = None
    """The most documents of each task."""
    batch_size: int = field(default=4, metadata={"low": 1})
    max_length: int | None = field(default=None, metadata={"low": 2})
    """The most tokens of a request; None for as many as the model sees."""
    dtype: Dtype = "bfloat16"
    quantise: Quantise | None = quantise()
    bootstrap: int = 2000
    seed: int = 0
    """Of the bootstrap; the seeds of the harness are its own."""
    smoke: bool = field(default=False, metadata={"neutral": False})

    def without_effect(self) -> set[str]:
        """A template that nothing is rendered by, and a number of examples where each task has its own."""
        idle = set() if self.chat else {"template", "end"}
        return {*idle, "num_fewshot"} if any(shots is not None for shots in self.tasks.values()) else idle


def compute(job: Job, monitor: Monitor, rank: int = 0, processes: int = 1) -> None:
    """Leave one file per finished task in the work folder; those that are there are kept. Run by one process only."""
    spec = make(LmEvalSpec, job.spec)
    tasks: Mapping[str, Any] = job.hints["tasks"]
    write_json(job.folder / TASKS, {"groups": tasks["groups"]})
    (job.folder / DONE).mkdir(exist_ok=True)
    todo = [name for name in tasks["leaves"] if not _done(job, name).exists()]
    if not todo:
        return
    given = job.inputs.get(TASK_FOLDER, ())
    where, content = (str(given[0].path), given[0].content) if given else (None, "")
    manager = task_manager(where, content, tasks["with_own"])
    first = loaded_task(manager, todo[0], tasks["leaves"][todo[0]], spec)  # whose data may be missing: before the model
    asked, count = _asked(job, spec), len(tasks["leaves"])
    for n, name in enumerate(todo, count - len(todo)):
        task = first if name == todo[0] else loaded_task(manager, name, tasks["leaves"][name], spec)
        _measure(job, spec, asked, task, functools.partial(_heard, monitor, n, count))
        monitor.progress(n + 1, count, {})
        if n + 1 < count:
            stop_if_asked(monitor, n + 1, count)


def _done(job: Job, task: str) -> Path:
    return job.folder / DONE / f"{quote(task, safe='')}.json"


def _asked(job: Job, spec: LmEvalSpec) -> Any:
    """The model as the harness asks one."""
    from adpa_cli.data.templates import Template
    from adpa_cli.engine.device import device
    from adpa_cli.engine.lm_eval_model import harness_model

    chat = Template(spec.template, spec.end) if spec.chat else None
    return harness_model(
        job.one("model").path, spec.dtype, device(), spec.quantise, spec.batch_size, spec.max_length, chat
    )


def _heard(monitor: Monitor, number: int, count: int, done: int, of: int) -> None:
    """Show how far a task is, and stop where a signal came: the replies so far are kept."""
    monitor.progress(number, count, {"of the task": done / of})
    if done < of:
        stop_if_asked(monitor, number, count)


def loaded_task(manager: Any, name: str, leaf: Mapping[str, Any], spec: LmEvalSpec) -> Any:
    """A task of the harness with its data, its examples counted and seeded as `lm_eval run` does it.

    Raises AdpaError where it does not load.
    """
    from adpa_cli.data.files import quiet_datasets
    from adpa_cli.engine.lm_eval_model import seeded

    quiet_datasets()
    seed = seeded()
    member = {"task": name, **leaf["settings"], **leaf["read"]}
    try:
        with contextlib.redirect_stdout(None):
            task = manager.load([{"group": "asked", "task": [member]}])["tasks"][name]
    except Exception as error:  # the code of tasks, and of what they import, raises anything
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise AdpaError(
            f"the task {name} cannot be loaded: {first}",
            "if its data are missing, download them on a machine with a network: adpa plan eval … --fetch",
        ) from error
    own = task.get_config("num_fewshot")
    if own is None or (spec.num_fewshot is not None and own != 0 and "num_fewshot" not in leaf["settings"]):
        task.set_config("num_fewshot", spec.num_fewshot or 0)
    task.set_fewshot_seed(seed)
    return task


def _measure(job: Job, spec: LmEvalSpec, asked: Any, task: Any, heard: Any) -> None:
    """Measure one task and keep what was found; the replies to its requests are no longer needed then."""
    from adpa_cli.engine.lm_eval_model import measured
    from adpa_cli.engine.overflow import overflow_named

    name, requests = task.task_name, job.folder / f"_requests-{quote(task.task_name, safe='')}.db"
    smaller = f"--set eval.batch_size={spec.batch_size // 2}" if spec.batch_size > 1 else "--set eval.max_length=N"
    try:
        with overflow_named(asked.model, spec.dtype, "eval"):
            found, rows = measured(asked, task, requests, heard, spec.limit, spec.chat, smaller)
    except (ValueError, AssertionError, ImportError) as error:  # how the harness, and the code of tasks, refuse
        raise AdpaError(
            f"the task {name} cannot be measured: {error}", "remove the task, or fix what the message names"
        ) from error
    numbers = {
        key: float(value) for key, value in found["results"][name].items()
        if "," in key and "_stderr," not in key and isinstance(value, int | float)
    }  # fmt: skip
    version, shots = task.VERSION, task.get_config("num_fewshot")
    about = {"documents": found["n-samples"][name]["effective"], "version": str(version), "shots": shots}
    write_json(_done(job, name), {"task": name, "numbers": numbers, "rows": rows, **about})
    requests.unlink(missing_ok=True)


def finish(job: Job) -> dict[str, Any]:
    """The figures of the suite, what they may be compared by, and the versions of all that was measured."""
    spec = make(LmEvalSpec, job.spec)
    suite: Any = suites.every()[spec.suite]
    found = suite.figures(job.firsts, spec, job.folder)
    kept = {each["task"]: each for each in finished(job.folder)}
    about = ("numbers", "documents", "version", "shots")
    write_json(job.folder / RESULTS, {task: {key: each[key] for key in about} for task, each in kept.items()})
    write_json(job.folder / SCORES, {"rows": found.rows, "prompts": found.prompts})
    watch = [*found.watch, *job.hints.get("watch", ())]
    known = groups(job.folder)
    return {
        "suite": spec.suite, **job.hints["about"], "scores": found.scores, **({"watch": watch} if watch else {}),
        "tasks": {name: _facts([kept[task] for task in tasks_in(name, known)]) for name in spec.tasks},
    }  # fmt: skip


def _facts(measured: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What was measured under one name: the versions of the tasks, their examples, and all documents."""
    versions = sorted({each["version"] for each in measured})
    shots = sorted({str(each["shots"]) for each in measured})
    documents = sum(each["documents"] for each in measured)
    return {"version": ", ".join(versions), "shots": ", ".join(shots), "documents": documents}


def rows(node: Node, lengths: Lengths) -> Rows:
    """Nobody knows what tasks ask before they are loaded."""
    return {}


def disk(node: Node, load: Load) -> Disk:
    """Of the numbers of all documents, and of replies while they are asked for."""
    return Disk(KEPT_BYTES, KEPT_BYTES)


def memory(node: Node, load: Load) -> Memory:
    """Of a batch of requests with all of their logits."""
    tokens = node.spec.batch_size * min(MOST_TOKENS, node.spec.max_length or MOST_TOKENS)
    return requests_memory(load.models[0], tokens, Held.by(node.spec, load.runtime, load.where), load.where)


def what(node: Node) -> str:
    """Which tasks, and with whom."""
    names = node.spec.suite if suites.every()[node.spec.suite].tasks else ", ".join(node.spec.tasks)
    return f"{names} of {node.about}{stored_words(node.spec)}{', chat template' if node.spec.chat else ''}"


LM_EVAL = Stage(
    "lm-eval", 12, 1, LmEvalSpec, "scoring", "scores", compute, finish, rows, disk, memory,
    flops=lambda node, load: None, what=what, one_process=True, set_by="eval", follows=("limit",), is_result=True,
)  # fmt: skip
STAGES = (LM_EVAL,)
