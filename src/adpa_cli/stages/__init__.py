"""What a stage is: a function from a spec and some artifacts to one artifact. One file here is one stage, or a family.

A stage file ends with its `STAGES`. Each says all that the rest must know about it: its name, version and spec, what
it reads and makes, what it costs in terms of sizes, what one does with its artifact, and how it is computed. Files are
found by listing the folder; those that begin with `_` are parts of others. None imports torch, numpy or transformers
at module level, so that plans and `adpa show` answer at once.

A `Node` is a stage of a plan, built already or not; a `Job` is one that is being computed, as plain JSON, so that it
runs in this process or in several others alike.
"""

from __future__ import annotations

import functools
import importlib
import json
import pkgutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

from adpa_cli.data.items import Purpose
from adpa_cli.engine.costs import Held, scoring_in_turn
from adpa_cli.errors import AdpaError, Stopped
from adpa_cli.hub import External, Located
from adpa_cli.sizes import Disk, Memory, ModelSize, Row, Rows, RowTable, Where, forward_flops, joined
from adpa_cli.spec import Runtime, hashed, tracker_names
from adpa_cli.store.identity import Recipe
from adpa_cli.store.manifest import Manifest

T = TypeVar("T")
Kind = Literal["training", "scoring", "generating"]
"""What the time of a stage depends on."""
Product = Literal[
    "model", "reward model", "signal", "answers", "rewards", "start log-probs", "judgements", "dialogues", "scores"
]
DECODER_ROLES = ("model", "aligned", "reference")
"""The inputs of any stage that are language models."""
MODEL_ROLES = (*DECODER_ROLES, "reward_model")
"""Those that are models, which a stage loads one after the other."""


class Lengths(Protocol):
    """How long the rows of one node's inputs are, measured or guessed. Raises AdpaError where data cannot be read."""

    def dialogues(self) -> RowTable:
        """Of the dialogues that it trains on, within its `max_length`, or packed into rows of it."""

    def pairs(self, split: str) -> dict[str, RowTable]:
        """Of the chosen and of the rejected answer to every pair of one side, within its `max_length`."""

    def prompts(self, split: str) -> RowTable:
        """Of the prompts of one side, each once and whole, with the chosen answer, or with an endless one."""

    def answers(self) -> RowTable:
        """Of its rollouts, one a prompt."""


@dataclass(frozen=True)
class Load:
    """What a node has to work on: rows by part, the models that it reads in turn, and how and where it runs."""

    rows: Rows
    models: tuple[ModelSize, ...]
    runtime: Runtime
    where: Where

    @property
    def count(self) -> int:
        """Examples."""
        return max(map(len, self.rows.values()), default=0)

    @cached_property
    def flat(self) -> Sequence[Row]:
        """The rows of all parts."""
        return joined(self.rows)


def read_once_flops(node: Node, load: Load) -> float:
    """Operations of a stage that passes every row through each of its models once."""
    return sum(forward_flops(model, load.flat) for model in load.models)


def scoring_memory(node: Node, load: Load) -> Memory:
    """Of a stage that reads blocks of given answers with one model after the other."""
    held = Held.by(node.spec, load.runtime, load.where)
    return scoring_in_turn(load.models, load.rows, held, node.spec.block_tokens, 1, load.where)


@dataclass(frozen=True)
class Stage:
    """All that the rest asks of a stage.

    `rows` are what a node of it works on, by part; `disk`, `memory` and `flops` what it then takes. `compute` fills
    the work folder of a job and may be killed at any time; it is given its rank among how many processes. `finish` is
    run by one process at the end and returns the metrics.
    """

    name: str
    place: int
    """Where it stands in lists of all stages."""
    version: int
    spec: type[Any]
    kind: Kind
    makes: Product
    compute: Callable[[Job, Monitor, int, int], None]
    finish: Callable[[Job], dict[str, Any]]
    rows: Callable[[Node, Lengths], Rows]
    disk: Callable[[Node, Load], Disk]
    memory: Callable[[Node, Load], Memory] = scoring_memory
    flops: Callable[[Node, Load], float | None] = read_once_flops
    """None where nobody can tell."""
    what: Callable[[Node], str] = lambda node: node.about
    """Its artifact in a line."""
    next_commands: Callable[[str], list[str]] = lambda name: []
    """What one does with its artifact, of that name."""
    methods: Callable[[], tuple[str, ...]] = lambda: ("",)
    """The methods that it may train with; "" for a stage that trains nothing."""
    any_method: bool = False
    """Whether the user chooses the method, and where its inputs come from."""
    reads: Purpose = "pairs"
    parts: Callable[[Any], tuple[str, ...]] = lambda spec: ("chosen", "rejected")
    """The parts of a spec's rows where the data cannot be read yet."""
    split: Callable[[Any], str] = lambda spec: "train"
    """The side of the data that a spec reads."""
    one_process: bool = False
    """Whether more processes are of no use, but to share models out."""
    shares: Callable[[Any], bool] = lambda spec: False
    """Whether processes can share out the models that a spec reads."""
    missing: Callable[[Job], int] | None = None
    """How many blocks of its work are not there yet; None where it is not made of blocks that jobs can share."""
    check: Callable[[Any, Runtime], None] = lambda spec, runtime: None
    """Raises AdpaError for what a spec lacks of how it runs, before any work."""
    is_remote: bool = False
    """Whether it is computed elsewhere: nothing of this machine has a part in its bytes or tells how long it takes."""
    set_by: str = ""
    """The stage among whose settings people find those of this one."""
    vocabulary_of: str = ""
    """The input whose vocabulary the ids in its artifact are of."""
    follows: tuple[str, ...] = ()
    """Settings of the stages that a command is about which this one takes over, for they decide what those read."""
    is_result: bool = False
    """Whether its artifacts are what people are after, which `adpa gc` keeps."""

    def processes(self, spec: Any, runtime: Runtime) -> int:
        """How many processes compute it."""
        is_alone = self.one_process and not (runtime.shard == "all" and self.shares(spec))
        return 1 if is_alone else runtime.processes


@functools.cache
def every() -> dict[str, Stage]:
    """All stages by name, in their order."""
    files = [
        importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__) if m.name[0] != "_"
    ]
    stages: list[Stage] = [stage for file in files for stage in file.STAGES]
    return {stage.name: stage for stage in sorted(stages, key=lambda stage: stage.place)}


def names() -> tuple[str, ...]:
    """The names of all stages, in their order."""
    return tuple(every())


def making(*products: Product) -> tuple[str, ...]:
    """The names of the stages that make one of some kinds of artifacts."""
    return tuple(stage.name for stage in every().values() if stage.makes in products)


def product_of(stage: str) -> Product | None:
    """What a stage makes; None for a name that is none here, such as that of a later version's stage."""
    return every()[stage].makes if stage in every() else None


@dataclass(frozen=True)
class Job:
    """A stage's spec, its inputs by role, the folder to work in, and how to run."""

    stage: str
    ref: str
    spec: Mapping[str, Any]
    inputs: Mapping[str, tuple[Located, ...]]
    work: str
    runtime: Runtime = Runtime()
    hints: Mapping[str, Any] = field(default_factory=dict)
    """What helps to judge the result; never hashed."""
    logs: str = ""
    """Where trackers write, which is no part of the artifact."""

    @property
    def folder(self) -> Path:
        return Path(self.work)

    def one(self, role: str) -> Located:
        """The input of a role; AdpaError when the stage was given none."""
        if not self.inputs.get(role):
            raise AdpaError(f"{self.ref} has no input {role}")
        return self.inputs[role][0]

    def own(self, blocks: Sequence[T], rank: int, processes: int) -> Sequence[T]:
        """The blocks of one process of this job, which may have a part of them only."""
        part, parts = self.runtime.part
        return blocks[part * processes + rank :: parts * processes]

    @property
    def firsts(self) -> dict[str, Located]:
        """The first input of each role that has one."""
        return {role: items[0] for role, items in self.inputs.items() if items}

    @property
    def tracked(self) -> tuple[list[str], str, Path, dict[str, Any]]:
        """The trackers that hear of the job, the name of its run there, where they write, and the run's settings."""
        inputs = {role: item.label for role, item in self.firsts.items()}
        logs = Path(self.logs or self.folder / "_trackers")
        return tracker_names(self.runtime.trackers), self.ref, logs, {**inputs, **self.spec}

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Job:
        raw = json.loads(text)
        inputs = {
            role: tuple(Located(**{**item, "where": tuple(item["where"])}) for item in items)
            for role, items in raw["inputs"].items()
        }
        return cls(**{**raw, "inputs": inputs, "runtime": Runtime(**raw["runtime"])})


def compute(job: Job, monitor: Monitor, rank: int, processes: int) -> None:
    """Do the work of a job, or the share of one process in it. The layers of models that it only reads wait where its
    runtime says; a training has its models on the device."""
    from adpa_cli.engine.offload import layers_wait

    stage = every()[job.stage]
    with layers_wait("none" if stage.kind == "training" else job.runtime.offload, job.folder):
        stage.compute(job, monitor, rank, processes)


def stored_words(spec: Any) -> str:
    """How a stage stores the weights that it reads, to stand behind the name of a model; "" where as they are held."""
    return f" in {spec.quantise}" if spec.quantise else ""


def _silent(step: int, of: int, numbers: Mapping[str, float]) -> None:
    """Shows nothing."""


@dataclass(frozen=True)
class Monitor:
    """How a stage speaks while it works: progress with a few numbers, remarks, whether it was asked to stop, and the
    seconds that each block took by itself, without what was read, tokenised and loaded for it."""

    progress: Callable[[int, int, Mapping[str, float]], None] = _silent
    note: Callable[[str], None] = lambda text: None
    stop: Callable[[], str | None] = lambda: None
    worked: Callable[[float], None] = lambda seconds: None


def stop_if_asked(monitor: Monitor, done: int, of: int) -> None:
    """Raise Stopped between two blocks of an inference stage when a signal came."""
    signal = monitor.stop()
    if signal:
        raise Stopped(signal, f"{Stopped.opening(signal)} after block {done} of {of}; finished blocks are saved")


def with_progress(items: Sequence[T], monitor: Monitor, done: int = 0, of: int = 0) -> Iterator[T]:
    """The items one by one: progress is shown after each, `done` of `of` before the first, and a signal stops between.

    Raises Stopped.
    """
    of = of or done + len(items)
    for n, item in enumerate(items, done + 1):
        began = time.monotonic()
        yield item
        monitor.worked(time.monotonic() - began)
        monitor.progress(n, of, {})
        if n < done + len(items):
            stop_if_asked(monitor, n, of)


@dataclass(frozen=True)
class Artifact:
    """A complete artifact of the store, used exactly as it is."""

    manifest: Manifest

    @property
    def content(self) -> str:
        return f"artifact:{self.manifest.id}"

    @property
    def label(self) -> str:
        return self.manifest.ref

    @property
    def stage(self) -> str:
        return self.manifest.stage

    @property
    def values(self) -> Mapping[str, Any]:
        """The spec that made it."""
        return self.manifest.spec


@dataclass(frozen=True)
class Node:
    """A stage with its spec and inputs, whether it is built already or not. `role` and `about` are for people."""

    stage: str
    spec: Any
    inputs: Mapping[str, Input | tuple[Input, ...]]
    role: str
    about: str = ""
    """What neither the spec nor the inputs tell: which teacher it is of, or whose figures."""
    hints: Mapping[str, Any] = field(default_factory=dict)
    """What helps to judge the result; never hashed."""
    derived: Mapping[str, Node] = field(default_factory=dict)
    """What it reads besides its inputs and is built before it. It follows from the recipe, and is no part of it."""
    is_settled: bool = False
    """Whether settings of its stage are for others: evaluations compare answers that are all drawn in one way."""

    @property
    def declared(self) -> Stage:
        """The stage that it is a node of."""
        return every()[self.stage]

    @cached_property
    def recipe(self) -> Recipe:
        """What the node's id is the hash of."""
        contents: dict[str, str | list[str]] = {}
        for name, value in self.inputs.items():
            contents[name] = [item.content for item in value] if isinstance(value, tuple) else value.content
        return Recipe(self.stage, self.declared.version, hashed(self.spec), contents)

    @property
    def content(self) -> str:
        return f"artifact:{self.recipe.id}"

    @property
    def label(self) -> str:
        return self.recipe.ref

    @property
    def values(self) -> Mapping[str, Any]:
        """The spec as it is hashed."""
        return self.recipe.spec

    @property
    def what(self) -> str:
        """What it makes, in a line."""
        return self.declared.what(self)

    def label_of(self, role: str) -> str:
        """The label of the one input of a role."""
        item = self.inputs[role]
        return "" if isinstance(item, tuple) else item.label

    def flat_inputs(self) -> Iterator[tuple[str, Input]]:
        """(role, input) of every input, lists laid out."""
        for name, value in self.inputs.items():
            for item in value if isinstance(value, tuple) else (value,):
                yield name, item

    def reads(self) -> Iterator[tuple[str, Input]]:
        """(role, input) of every input, then of what is derived."""
        yield from self.flat_inputs()
        yield from self.derived.items()


Input = External | Artifact | Node
Made = Artifact | Node


def in_order(targets: tuple[Node, ...], have: Callable[[Node], bool]) -> list[Node]:
    """The targets and the stages they rest on, each once, inputs before what uses them; none beneath one we `have`."""
    nodes: dict[str, Node] = {}

    def visit(node: Node) -> None:
        if node.recipe.id in nodes:
            return
        for _, item in node.reads() if not have(node) else ():
            if isinstance(item, Node):
                visit(item)
        nodes[node.recipe.id] = node

    for target in targets:
        visit(target)
    return list(nodes.values())
