"""What makes a stage fit that does not: settings and ways of running, in the order of what they cost.

What only moves rounding is tried first, then what makes another recipe; each way alone, then with others. A stage is
planned again under a change, with all that it rests on, and its memory is asked for as ever: nothing here knows which
way is of use to which stage.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from adpa_cli.engine.lora import INSTALL
from adpa_cli.errors import AdpaError, UsageError
from adpa_cli.estimate.cost import Cost, as_it_runs, has_room, waiting_bytes, with_adapter
from adpa_cli.families import READY_PAIRS
from adpa_cli.machine import BOUNDLESS, Machine
from adpa_cli.planning.adapters import check_adapters
from adpa_cli.planning.frozen_models import check_stored
from adpa_cli.sizes import Where, size_words
from adpa_cli.spec import Runtime
from adpa_cli.stages import MODEL_ROLES, Input, Load, Node
from adpa_cli.store.store import Store

SMALLEST = 256  # tokens: nobody is told to go below
INDENT = "\n    "
BLOCK = "block_tokens"
LORA: Mapping[str, Any] = {"weights": "float32", "lora": 16}
RECIPES: Sequence[Mapping[str, Any]] = (
    {}, {"weights": "bfloat16"}, LORA, {**LORA, "quantise": "nf4"}, {"quantise": "int8"}, {"quantise": "nf4"}
)  # fmt: skip
"""Settings with which a stage takes less memory, in the order in which they are tried."""
RUNS: Sequence[Mapping[str, Any]] = ({}, {"recompute": True}, {"offload": "cpu"}, {"offload": "disk"})
"""Ways of running with which it does, likewise."""
LIBRARIES = {"lora": "peft", "quantise": "bitsandbytes"}
"""What must be installed for a setting."""
OPTIONS = {"processes": "--gpus", "tokens_per_device": "--tokens-per-device"}
"""What sets a field of a runtime that is no key of `--runtime`."""


@dataclass(frozen=True)
class Change:
    """Settings by stage and key, and how all stages run."""

    runtime: Runtime
    settings: Mapping[tuple[str, str], Any] = field(default_factory=dict)

    def spec_of(self, stage: str, spec: Any) -> Any:
        """A stage's spec with its settings. Raises UsageError for some that exclude each other."""
        own = {key: value for (name, key), value in self.settings.items() if name == stage}
        return replace(spec, **own) if own else spec

    def words(self, before: Runtime) -> str:
        """What to type for it where stages would run as `before`."""
        typed = [f"--set {stage}.{key}={value}" for (stage, key), value in self.settings.items()]
        return " ".join([*typed, *self._running(before)])

    def command(self, line: str, before: Runtime, in_recipe: bool) -> str:
        """A command line with it, after what it needs is installed; settings stand in the recipe that it is of."""
        lacking = f"{INSTALL} && " if self.is_lacking else ""
        if not in_recipe or not self.settings:
            return f"{lacking}{line} {self.words(before)}"
        lines = ", ".join(f"{stage}.{key} = {json.dumps(value)}" for (stage, key), value in self.settings.items())
        return f"write {lines} into the recipe, then {lacking}{' '.join([line, *self._running(before)])}"

    def _running(self, before: Runtime) -> Iterator[str]:
        for each in dataclasses.fields(Runtime):
            value = getattr(self.runtime, each.name)
            if value != getattr(before, each.name):
                text = str(value).lower()
                yield f"{OPTIONS[each.name]} {text}" if each.name in OPTIONS else f"--runtime {each.name}={text}"

    @property
    def is_lacking(self) -> bool:
        """Whether a library that it needs is not installed."""
        needed = {LIBRARIES[key] for _, key in self.settings if key in LIBRARIES}
        return any(importlib.util.find_spec(library) is None for library in needed)

    def effect(self, before: Runtime) -> str:
        """What it does to a result that was made as `before`, in words."""
        if any(key != BLOCK for _, key in self.settings):
            return "gives another result, under another id"
        if self.settings:
            return "changes the result by rounding, and the id"
        if replace(self.runtime, recompute=before.recompute, offload=before.offload) != before:
            return "changes the result by rounding at most, and not the id"
        return "does not change the result"

    def without(self, nodes: Sequence[Node]) -> Change:
        """The same without settings that each of some nodes has already."""
        kept = {
            (stage, key): value for (stage, key), value in self.settings.items()
            if any(node.stage == stage and getattr(node.spec, key) != value for node in nodes)
        }  # fmt: skip
        return replace(self, settings=kept)


@dataclass(frozen=True)
class Found:
    """The first change with which a stage fits, None without one; and the one with which it needs the `least` bytes."""

    change: Change | None
    smallest: Change
    least: int


@dataclass(frozen=True)
class Room:
    """A machine, whose `disk` is what a plan leaves of it to layers that wait, the store in which models are, and the
    trainings that decide how what they derive is made, by its id."""

    machine: Machine
    store: Store
    owners: Mapping[str, Node] = field(default_factory=dict)

    def owner_of(self, node: Node) -> Node:
        """The stage that decides how another one is made: mostly itself."""
        return self.owners.get(node.recipe.id, node)

    def load_of(self, node: Node, load: Load, change: Change) -> tuple[Node, Load]:
        """A stage and its load as they would be planned with a change."""
        owner = self.owner_of(node)
        derived = {made.recipe.id: name for name, made in owner.derived.items()}
        remade_owner = remade(owner, change)
        node = remade_owner if owner is node else remade_owner.derived[derived[node.recipe.id]]
        read = [item for role, item in node.flat_inputs() if role in MODEL_ROLES]
        is_other = bool(change.settings) and any(isinstance(item, Node) for item in read)
        models = tuple(with_adapter(item, self.store) for item in read) if is_other else load.models
        where = Where(load.where.kind, node.declared.processes(node.spec, change.runtime))
        return node, as_it_runs(node, Load(load.rows, models, change.runtime, where), self.machine)

    def needs(self, node: Node, load: Load, change: Change) -> tuple[int, bool]:
        """The bytes that a stage would take on the device, and whether it then fits on the machine.

        A change under which the stage would be refused for another reason takes more than there is.
        """
        waited = load.runtime.offload == "disk"
        try:
            node, load = self.load_of(node, load, change)
            check_adapters(node, self.store)
            check_stored(node, self.store)
        except UsageError:
            if change.settings:
                return BOUNDLESS, False
        except AdpaError:
            pass  # the checks of the plan say what else is missing
        memory = node.declared.memory(node, load)
        waits = 0 if waited else waiting_bytes(node, load)  # where they do already, that is said of the whole plan
        return memory.device, has_room(node, load, self.machine) and (not waits or waits <= self.machine.disk)

    def has_room(self, node: Node, load: Load, change: Change) -> bool:
        """Whether a stage fits under a change; a training that only needs smaller micro-batches does on a card: it
        halves them by itself."""
        halves = self.machine.kind == "cuda" and node.declared.kind == "training"
        trials = [change, *(list(halvings(change, node))[-1:] if halves else ())]
        return any(self.needs(node, load, trial)[1] for trial in trials)

    def first(self, node: Node, load: Load, change: Change) -> Found:
        """The first of what can be changed further with which a stage fits."""
        smallest, least = change, self.needs(node, load, change)[0]
        for trial in trials(change, self.owner_of(node)):
            halves = list(halvings(trial, node))
            need, fits = self.needs(node, load, trial)
            if fits:
                return Found(trial, trial, need)
            need, fits = self.needs(node, load, halves[-1]) if halves else (need, False)
            if fits:
                half = next(half for half in halves if self.needs(node, load, half)[1])
                return Found(half, half, need)
            if need < least:
                smallest, least = trial, need
        smallest = next((h for h in halvings(smallest, node) if self.needs(node, load, h)[0] == least), smallest)
        return Found(None, smallest, least)


def owners_of(nodes: Sequence[Node]) -> dict[str, Node]:
    """The trainings among some stages that others are derived of, by the ids of these."""
    return {made.recipe.id: node for node in nodes for made in node.derived.values()}


def remade(node: Node, change: Change, known: dict[int, Node] | None = None) -> Node:
    """A stage, and all that it rests on and is to be built, as they would be planned with a change."""
    known = {} if known is None else known
    if not change.settings:
        return node
    if id(node) not in known:

        def again(item: Input) -> Input:
            return remade(item, change, known) if isinstance(item, Node) else item

        inputs = {
            role: tuple(map(again, item)) if isinstance(item, tuple) else again(item)
            for role, item in node.inputs.items()
        }
        spec = node.spec if node.is_settled else change.spec_of(node.stage, node.spec)
        derived = {
            name: replace(remade(made, change, known), spec=_followed(made, node.spec, spec, change))
            for name, made in node.derived.items()
        }
        known[id(node)] = replace(node, spec=spec, inputs=inputs, derived=derived)
    return known[id(node)]


def _followed(made: Node, before: Any, after: Any, change: Change) -> Any:
    """The spec of what a training derives: it has the settings of the training that it has had, as they are then."""
    names = [f.name for f in dataclasses.fields(made.spec) if hasattr(before, f.name)]
    same = {name: getattr(after, name) for name in names if getattr(before, name) == getattr(made.spec, name)}
    return change.spec_of(made.stage, replace(made.spec, **same))


def trials(change: Change, owner: Node) -> Iterator[Change]:
    """What can be changed further, in the order of what it costs; a change of nothing is the first."""
    counts = (change.runtime.processes, 1) if change.runtime.processes > 1 else (1,)
    known = {f.name for f in dataclasses.fields(owner.spec)}
    for recipe in RECIPES:
        if set(recipe) - known:
            continue
        settings = {
            (node.stage, key): _kept(node, key, value) for node in _goes_on(owner, change, recipe)
            for key, value in recipe.items()
        }  # fmt: skip
        more = replace(change, settings={**change.settings, **settings})
        try:
            more.spec_of(owner.stage, owner.spec)
        except UsageError:
            continue
        for processes in counts:
            for run in RUNS:
                yield replace(more, runtime=replace(change.runtime, **run, processes=processes))


def _kept(node: Node, key: str, value: Any) -> Any:
    """A setting of a recipe for a stage, which keeps a rank that is lower already."""
    return min(value, node.spec.lora or value) if key == "lora" else value


def _goes_on(node: Node, change: Change, recipe: Mapping[str, Any]) -> Iterator[Node]:
    """A stage, and the trainings before it whose adapter it goes on with, which is made the same way."""
    yield node
    start = node.inputs.get("model")
    if "lora" in recipe and isinstance(start, Node) and change.spec_of(start.stage, start.spec).lora:
        yield from _goes_on(start, change, recipe)


def halvings(change: Change, node: Node) -> Iterator[Change]:
    """The same with half of the tokens at a time, half of those, and so on."""
    if node.declared.kind == "training":
        tokens = change.runtime.tokens_per_device // 2
    else:
        tokens = change.spec_of(node.stage, node.spec).block_tokens // 2
    while tokens >= SMALLEST:
        if node.declared.kind == "training":
            yield replace(change, runtime=replace(change.runtime, tokens_per_device=tokens))
        else:
            yield replace(change, settings={**change.settings, (node.stage, BLOCK): tokens})
        tokens //= 2


def advise(
    costs: Sequence[Cost], machine: Machine, store: Store, runtime: Runtime, download: int = 0
) -> tuple[list[AdpaError], Change | None]:
    """What of some stages to be built does not fit in memory, an error with its hint for each; and the change under
    which all of it would, None where there is none. `download` are bytes to fetch."""
    told = [
        (cost.node, replace(cost.load, runtime=runtime))
        for cost in costs if cost.memory is not None and cost.load is not None
    ]  # fmt: skip
    nodes = [node for node, _ in told]
    taken = sum(cost.disk.keeps for cost in costs if cost.disk) + (download if machine.cache is None else 0)
    room = Room(replace(machine, disk=machine.disk - taken), store, owners_of(nodes))

    before = Change(runtime)
    lacking = list(_lacking(room, told, before))
    is_lost = any(found.change is None for *_, found in lacking)
    problems = [_problem(node, load, found, machine, nodes, is_lost) for node, load, found in lacking]
    change = _together(room, told, before) if problems and not is_lost else None
    return problems, change.without(nodes) if change else None


Told = Sequence[tuple[Node, Load]]
"""Stages with what they work on."""


def _lacking(room: Room, told: Told, change: Change) -> Iterator[tuple[Node, Load, Found]]:
    """The stages that do not fit under a change, with what would have to be changed further."""
    for node, load in told:
        if not room.has_room(node, load, change):
            yield node, load, room.first(node, load, change)


def _together(room: Room, told: Told, before: Change) -> Change | None:
    """A change under which all of some stages fit; None where none was found."""
    change = before
    for _ in range(2 * len(told)):  # what a later stage needs may undo what an earlier one had
        *_, found = next(_lacking(room, told, change), (None,))
        if found is None:
            return _needed(room, told, change, before)
        if found.change is None:
            break
        change = found.change
    return None


def _needed(room: Room, told: Told, change: Change, before: Change) -> Change:
    """What of a change is needed: what one stage had first, it may do without after what others needed."""
    as_it_is = [room.needs(node, load, change)[1] for node, load in told]  # where no training halves anything

    def is_enough(less: Change) -> bool:
        return all(
            room.needs(node, load, less)[1] or (not fits and room.has_room(node, load, less))
            for (node, load), fits in zip(told, as_it_is, strict=True)
        )

    for key in change.settings:
        less = replace(change, settings={other: value for other, value in change.settings.items() if other != key})
        change = less if is_enough(less) else change
    for each in dataclasses.fields(Runtime):
        less = replace(change, runtime=replace(change.runtime, **{each.name: getattr(before.runtime, each.name)}))
        change = less if less != change and is_enough(less) else change
    return change


def _problem(node: Node, load: Load, found: Found, machine: Machine, nodes: Sequence[Node], is_lost: bool) -> AdpaError:
    """What a stage, one of all `nodes`, needs and what is there, with what to type; no hint where all `is_lost`, for
    another stage fits with nothing."""
    memory = node.declared.memory(node, load)
    needs, has = f"{size_words(memory.device)} of memory", f"{machine.name} has {size_words(machine.memory)}"
    if memory.device <= machine.memory:
        needs = f"{size_words(memory.host)} of memory beside the GPU's"
        has = f"{size_words(machine.host_memory)} are available"
    elif machine.kind == "cpu":
        has = f"this machine has {size_words(machine.memory)} available"
    message = f"{node.role} ({node.label}) needs about {needs}; {has}"
    change = (found.change or found.smallest).without(nodes)
    words = change.words(load.runtime)
    if found.change is None:
        least = f"it would need at least {size_words(found.least)}" + (f", with {words}" if words else "")
        return AdpaError(f"{message};{INDENT}{least}", _other_model(node, machine))
    effect = change.effect(load.runtime) + (f", and needs {INSTALL}" if change.is_lacking else "")
    return AdpaError(f"{message};{INDENT}it fits with {words}, which {effect}", "" if is_lost else words)


def _other_model(node: Node, machine: Machine) -> str:
    """What is left where nothing makes a stage fit."""
    more = "; more GPUs do not help, since each holds the whole model"
    if node.declared.shares(node.spec):
        more = "; or more GPUs, each of which then holds a part of it: --gpus N"
    more = more if machine.kind == "cuda" else ""
    if node.role in ("aligned teacher", "reference teacher"):
        *others, last = (pair.alias for pair in READY_PAIRS)
        ready = f"{', '.join(others)} or {last}"
        pair = f"a ready pair of teachers, which need no training (adpa distill --teacher {ready})"
        return f"use {pair}, or a smaller teacher{more}"
    kind = "student" if node.declared.kind == "training" else "model"
    return f"use a smaller {kind} (adpa models lists them), or a machine with more memory{more}"
