"""Execution of a surveyed plan: every stage that the store lacks, one after the other, inputs before what uses them.

Each stage writes its progress to a log of its own and to the screen of the command.
"""

from __future__ import annotations

import contextlib
import os
import platform
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from adpa_cli.data.tables import WATCH, heeding, watching
from adpa_cli.errors import AdpaError, ComeAgain, Stopped, UsageError, hints_for
from adpa_cli.estimate.cost import Cost
from adpa_cli.estimate.survey import Survey, check
from adpa_cli.hub import External, Located
from adpa_cli.hub import repository as hub
from adpa_cli.machine import versions
from adpa_cli.planning.adapters import libraries_of
from adpa_cli.planning.lineage import locate
from adpa_cli.planning.settings import TRACKERS_FOLDER
from adpa_cli.running import processes
from adpa_cli.sizes import size_words
from adpa_cli.spec import Dtype, Runtime, make
from adpa_cli.stages import Artifact, Job, Monitor, Node, compute, every
from adpa_cli.store.build import LOG, Work
from adpa_cli.store.lock import reserved
from adpa_cli.store.manifest import Manifest, utc
from adpa_cli.store.parts import Part, PartDone
from adpa_cli.store.store import Store

SETTINGS = ("scores", "measured", "step")
"""Metrics that are no numbers of their own for a tracker: they hold others, or repeat settings."""
EVERY_SECONDS, EVERY_SHARE, LEAST_SECONDS = 60.0, 0.05, 5.0
SAVE_SECONDS = 5.0
"""How old the progress may be that a killed stage leaves behind for `adpa show`."""


class Pace:
    """Lets a line of progress through every minute, or every 5 % where those take 5 s at least."""

    def __init__(self) -> None:
        self._at, self._share = time.monotonic(), 0.0

    def is_due(self, share: float) -> bool:
        """Whether to say that `share` (0 to 1) of the work is done."""
        waited = time.monotonic() - self._at
        if waited < EVERY_SECONDS and not (share - self._share >= EVERY_SHARE and waited >= LEAST_SECONDS):
            return False
        self._at, self._share = time.monotonic(), share
        return True


class Log:
    """Appends lines with their time to a file; a file that cannot be written is no reason to stop."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._pace = Pace()

    def say(self, text: str) -> None:
        """Add lines."""
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        with contextlib.suppress(OSError), self.path.open("a", encoding="utf-8", errors="replace") as file:
            file.writelines(f"{now}  {line}\n" for line in text.splitlines())

    def progress(self, step: int, of: int, numbers: Mapping[str, float]) -> None:
        """Add a line of progress, when it is due and at the end."""
        if step == of or self._pace.is_due(step / max(of, 1)):
            self.say("  ".join([f"step {step} of {of}", *(f"{name} {value:.4g}" for name, value in numbers.items())]))


@dataclass(frozen=True)
class Show:
    """How a plan's progress is shown: at the start and the end of a stage, in between, and remarks."""

    start: Callable[[Node, int, int], None]
    done: Callable[[Node, Manifest, bool], None]
    progress: Callable[[int, int, Mapping[str, float]], None]
    note: Callable[[str], None]
    stop: Callable[[], str | None]
    so_far: Callable[[Node, Manifest], None] = lambda node, manifest: None
    """Called for figures that are made of what there is of an input: they are shown, and no artifact."""
    working: Callable[[bool], None] = lambda busy: None
    """Called when a stage begins and ends to compute: meanwhile the stage looks at `stop` itself."""
    again: str = ""
    """The command that goes on after a stop, from any folder."""


def execute(survey: Survey, command: str, request: Mapping[str, Any], show: Show) -> dict[str, Manifest]:
    """Make every stage of a plan that the store lacked when it was surveyed; returns the manifests by full id.

    `request` is the command in a form that can be read, which is recorded with each. `show.done` is called for each
    stage as soon as it is committed, or if it exists. Where a check sees a problem nothing is started, and one error
    lists all of them. What does not rest on a stage that another run has to finish is made before that is raised.
    """
    finished: dict[str, Manifest] = {}
    begun: dict[str, AdpaError] = {}
    in_parts, in_work = survey.runtime.part[1] > 1, 0
    left = len(survey.building)
    with reserved(survey.store.root, _needed(survey), command):
        check(survey, show.note)
        if in_parts:
            _check_parts(survey)
        for n, cost in enumerate(survey.costs, 1):
            manifest, is_new = cost.artifact, False
            if manifest is None:
                left -= 1
                if in_parts and cost.node.declared.missing is None:
                    begun[cost.node.recipe.id] = PartDone("")
                    continue
                if lacking := _unfinished(cost.node, begun):
                    begun[cost.node.recipe.id] = lacking
                    _show_so_far(cost.node, begun, survey.store, show)
                    continue
                show.start(cost.node, n, len(survey.costs))
                try:
                    manifest, is_new = _build(cost, survey, command, request, show)
                except (ComeAgain, PartDone) as error:
                    begun[cost.node.recipe.id] = error
                    if isinstance(error, PartDone):
                        in_work += 1
                        show.note(error.message)
                    continue
            finished[cost.node.recipe.id] = manifest
            show.done(cost.node, manifest, is_new)
            if left and (name := show.stop()):
                message = f"{Stopped.opening(name)} after {manifest.ref}; {left} more to make. Finished work is saved"
                raise Stopped(name, message, show.again or command)
    for unfinished in begun.values():
        if not isinstance(unfinished, PartDone):
            raise unfinished
    if len(begun) > in_work:
        show.note("When all parts are done, repeat the command without --shard; it makes the rest.")
    return finished


def _check_parts(survey: Survey) -> None:
    """Raise UsageError where nothing can be computed in parts before something else is made whole."""
    whole: dict[str, Node] = {}
    for node in (cost.node for cost in survey.building):
        below = [item.recipe.id for _, item in node.reads() if isinstance(item, Node)]
        if node.declared.missing is not None and not any(recipe in whole for recipe in below):
            return
        whole[node.recipe.id] = node
    if whole:
        first = next(iter(whole.values()))
        raise UsageError(
            f"--shard has nothing to share out: {first.label} ({first.role}) must be made first, by one job",
            "run the command once without --shard, or make that artifact by its own command first",
        )


def _unfinished(node: Node, begun: Mapping[str, AdpaError]) -> AdpaError | None:
    """What an input of a node lacks; None where all are whole."""
    inputs = (item for _, item in node.reads() if isinstance(item, Node))
    return next((begun[item.recipe.id] for item in inputs if item.recipe.id in begun), None)


def _show_so_far(node: Node, begun: Mapping[str, AdpaError], store: Store, show: Show) -> None:
    """Show the figures of a node by what there is of its inputs."""
    if node.declared.makes != "scores":
        return
    inputs: dict[str, tuple[Located, ...]] = {}
    for role, item in node.flat_inputs():
        error = begun.get(item.recipe.id) if isinstance(item, Node) else None
        if isinstance(error, ComeAgain) and error.folder is not None and isinstance(item, Node):
            located = Located("artifact", item.content, item.label, (str(error.folder),), item.values)
        else:
            located = locate(item, store)
        inputs[role] = (*inputs.get(role, ()), located)
    with tempfile.TemporaryDirectory() as folder:
        metrics = node.declared.finish(Job(node.stage, node.label, node.recipe.spec, inputs, folder, hints=node.hints))
    recipe = node.recipe.to_json()
    made = {"at": utc(time.time())}
    show.so_far(node, Manifest(id=node.recipe.id, **recipe, sources={}, files={}, metrics=metrics, made=made))


def _needed(survey: Survey) -> list[str]:
    """Full ids of the stages and of the artifacts that they use."""
    inputs = (item for node in survey.nodes for _, item in node.flat_inputs())
    artifacts = [item.manifest.id for item in inputs if isinstance(item, Artifact)]
    return [*(node.recipe.id for node in survey.nodes), *artifacts]


def _build(cost: Cost, survey: Survey, command: str, request: Mapping[str, Any], show: Show) -> tuple[Manifest, bool]:
    """(the manifest of one artifact, whether it was made here); waits for another process that makes it already."""
    node, store, runtime = cost.node, survey.store, cost.load.runtime if cost.load else survey.runtime
    threads = threads_per_process(runtime)
    machine = {
        "machine": platform.machine(), "device": _device(), "threads": threads, "dtype": _arithmetic(node.spec.dtype),
        "versions": versions(libraries_of(node, store)),
    }  # fmt: skip
    environment = {} if node.declared.is_remote else machine  # another machine is no reason to ask a judge again
    with (
        store.build(
            node.recipe,
            command=command,
            environment=environment,
            wait=runtime.wait,
            announce=show.note,
            again=show.again,
            part=Part(*runtime.part) if runtime.part[1] > 1 else None,
        ) as work,
        contextlib.ExitStack() as alone,
    ):
        if work.hit is not None:
            return work.hit, False
        inputs = _located(node, store, show.note)
        memory = cost.memory_of_process
        hints = {**node.hints, **({} if memory is None else {"memory": memory})}
        logs = str(store.root / TRACKERS_FOLDER)
        job = Job(node.stage, node.label, node.recipe.spec, inputs, str(work.dir), runtime, hints, logs)
        log = Log(work.dir / LOG)
        log.say(f"$ {command}\n{node.role}: {node.what}  {node.label}")
        if memory is not None:
            log.say(f"expected memory: about {size_words(memory)}{' a process' * (runtime.processes > 1)}")
        work.save_state(work.progress or {"step": 0, "of": 0})
        show.working(True)
        try:
            metrics = _computed(job, work, threads, log, show, alone)
            if work.hit is not None:
                return work.hit, False
            sources = {i.content: dict(i.facts) for _, i in node.flat_inputs() if isinstance(i, External)}
            worked = round(work.progress.get("worked", 0.0), 3)
            about = {**machine, **_about(node, runtime), "request": request, **({"worked": worked} if worked else {})}
            return work.commit({**metrics, "what": _what(node)}, sources, about), True
        finally:
            show.working(False)


def _computed(job: Job, work: Work, threads: int, log: Log, show: Show, alone: contextlib.ExitStack) -> dict[str, Any]:
    """The metrics of a stage, after its work; what stops it is recorded. Until `alone` ends no other job has a part in
    that work; where one finished it meanwhile the work is a hit."""
    saved = float("-inf")

    def progress(step: int, of: int, numbers: Mapping[str, float]) -> None:
        nonlocal saved
        work.progress |= {"step": step, "of": of}
        if time.monotonic() - saved >= SAVE_SECONDS:
            saved = time.monotonic()
            work.save_state(work.progress)
        log.progress(step, of, numbers)
        show.progress(step, of, numbers)

    def worked(seconds: float) -> None:
        work.progress["worked"] = work.progress.get("worked", 0.0) + seconds

    def note(text: str) -> None:
        log.say(text)
        show.note(text)

    def finishes() -> bool:
        _check_whole(job)
        alone.enter_context(work.finishing(note))
        return work.hit is None

    try:
        with watching(heeding(show.stop, WATCH.get())), hints_for(job.stage):
            metrics = run(job, Monitor(progress, note, show.stop, worked), threads, finishes)
    except PartDone:
        work.save_state(work.progress)
        raise
    except AdpaError as error:
        if isinstance(error, ComeAgain):
            error.folder = work.dir
        log.say(error.message)
        by = Stopped.words(error.signal_name) if isinstance(error, Stopped) else error.message.splitlines()[0]
        work.save_state(work.progress, stopped=by)
        if isinstance(error, Stopped):
            raise Stopped(error.signal_name, error.message, work.again) from None
        raise
    for text in (*metrics.get("say", ()), *metrics.get("watch", ()), "done"):
        log.say(text)
    return metrics


def _check_whole(job: Job) -> None:
    """Raise PartDone where this job has a part in a stage that lacks blocks of other parts."""
    missing = every()[job.stage].missing
    if job.runtime.part[1] > 1 and missing is not None and (left := missing(job)):
        words = Part(*job.runtime.part).words
        blocks = "1 block is" if left == 1 else f"{left:,} blocks are"
        rest = f"{blocks} left to the other parts, the last of which completes it"
        raise PartDone(f"{words} of {job.ref} is done; {rest}")


def run(job: Job, monitor: Monitor, threads: int, finishes: Callable[[], bool] = lambda: True) -> dict[str, Any]:
    """Compute a stage in this process, or in as many as the runtime asks for, and finish it here, if it `finishes`.

    Trackers hear of a training step by step, from itself, and of any other stage when it is finished.
    """
    from adpa_cli.engine.device import prepare
    from adpa_cli.engine.trackers import numbers, tracking

    stage = every()[job.stage]
    prepare(threads)
    names, ref, logs, settings = job.tracked
    with tracking([] if stage.kind == "training" else names, ref, logs, settings, monitor.note) as track:
        if processes.team is not None and stage.processes(make(stage.spec, job.spec), job.runtime) > 1:
            processes.team.compute(job, monitor, threads)
        else:
            compute(job, monitor, 0, 1)
        if not finishes():
            return {}
        metrics = stage.finish(job)
        told = {**metrics, **metrics.get("scores", {})}
        track(0, numbers({name: value for name, value in told.items() if name not in SETTINGS}))
    return metrics


def threads_per_process(runtime: Runtime) -> int:
    """Those of each process of this machine, of which a launcher may have started fewer than there are in all."""
    return processes.threads_of(int(os.environ.get("LOCAL_WORLD_SIZE", runtime.processes)))


def _device() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def _arithmetic(dtype: Dtype) -> str:
    """What a stage computes in on this machine: float16 has two ways."""
    import torch

    from adpa_cli.engine.arithmetic import path_of
    from adpa_cli.engine.device import device

    return path_of(dtype, torch.device(device()))


def _about(node: Node, runtime: Runtime) -> dict[str, Any]:
    """What is recorded of a stage besides its recipe."""
    about: dict[str, Any] = {"role": node.role, "processes": runtime.processes}
    if node.spec.smoke:
        about["smoke"] = True
    if node.derived:
        about["derived"] = {role: derived.recipe.id for role, derived in node.derived.items()}
    return about


def _what(node: Node) -> str:
    """What a stage makes, for people; of a base model that was fine-tuned also for which role."""
    is_fine_tuned = node.declared.reads == "dialogues" and node.role != node.stage
    return f"{node.role}: {node.what}" if is_fine_tuned else node.what


def _located(node: Node, store: Store, note: Callable[[str], None]) -> dict[str, tuple[Located, ...]]:
    """Where the inputs of a stage are, once what the hub has of them is here and checked."""
    by_role: dict[str, list[Located]] = {}
    for role, item in node.reads():
        if isinstance(item, External):
            hub.fetch(item.files, store.hash_cache, note)
        by_role.setdefault(role, []).append(locate(item, store))
    return {role: tuple(items) for role, items in by_role.items()}
