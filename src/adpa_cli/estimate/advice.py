"""What makes a stage fit that does not: settings and ways of running, in the order of what they cost.

What only moves rounding is tried first, then what makes another recipe; each way alone, then with others. A stage is
planned again under a change, with all that it rests on, and its memory is asked for as ever: nothing here knows which
way is of use to which stage.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from adpa_cli.errors import AdpaError, UsageError
from adpa_cli.estimate.cost import Cost, disk_of, with_adapter
from adpa_cli.families import READY_PAIRS
from adpa_cli.machine import BOUNDLESS, Machine
from adpa_cli.planning.adapters import check_adapters
from adpa_cli.planning.frozen_models import check_stored
from adpa_cli.sizes import Where, size_words
from adpa_cli.spec import Runtime
from adpa_cli.stages import MODEL_ROLES, Input, Load, Node
from adpa_cli.store.store import Store

SMALLEST = 256  # tokens: nobody is told to go below
BLOCK = "block_tokens"
LORA: Mapping[str, Any] = {"weights": "float32", "lora": 16}
RECIPES: Sequence[Mapping[str, Any]] = (
    {}, {"weights": "bfloat16"}, LORA, {**LORA, "quantise": "nf4"}, {"quantise": "int8"}, {"quantise": "nf4"}
)  # fmt: skip
"""Settings with which a stage takes less memory, in the order in which they are tried."""
RUNS: Sequence[Mapping[str, Any]] = ({}, {"recompute": True}, {"offload": "cpu"}, {"offload": "disk"})
"""Ways of running with which it does, likewise."""
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
        for each in dataclasses.fields(Runtime):
            value = getattr(self.runtime, each.name)
            if value != getattr(before, each.name):
                text = str(value).lower()
                typed.append(
                    f"{OPTIONS[each.name]} {text}" if each.name in OPTIONS else f"--runtime {each.name}={text}"
                )
        return " ".join(typed)

    @property
    def what(self) -> str:
        """What it does to the result, in words."""
        if all(key == BLOCK for _, key in self.settings):
            return "changes no more than rounding"
        return "makes another recipe, with another result and id"

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
class Advice:
    """What does not fit in memory, an error with its hint for each stage; and the options under which all of it would,
    "" where there are none."""

    problems: tuple[AdpaError, ...] = ()
    together: str = ""


@dataclass(frozen=True)
class Room:
    """A machine, and the store in which the models of a plan are."""

    machine: Machine
    store: Store

    def load_of(self, node: Node, load: Load, change: Change) -> tuple[Node, Load]:
        """A stage and its load as they would be planned with a change."""
        node = remade(node, change)
        read = [item for role, item in node.flat_inputs() if role in MODEL_ROLES]
        is_other = bool(change.settings) and any(isinstance(item, Node) for item in read)
        models = tuple(with_adapter(item, self.store) for item in read) if is_other else load.models
        processes = 1 if node.declared.one_process else change.runtime.processes
        return node, replace(load, models=models, runtime=change.runtime, where=Where(load.where.kind, processes))

    def needs(self, node: Node, load: Load, change: Change) -> tuple[int, bool]:
        """The bytes that a stage would take on the device, and whether it then fits on the machine.

        A change under which the stage would be refused for another reason takes more than there is.
        """
        node, load = self.load_of(node, load, change)
        try:
            check_adapters(node, self.store)
            check_stored(node, self.store)
        except UsageError:
            if change.settings:
                return BOUNDLESS, False
        except AdpaError:
            pass  # the checks of the plan say what else is missing
        memory = node.declared.memory(node, load)
        fits = memory.device <= self.machine.memory and memory.host <= self.machine.host_memory
        return memory.device, fits and disk_of(node, load).extra <= self.machine.disk

    def first_or_none(self, node: Node, load: Load, change: Change, owner: Node) -> Found | None:
        """`first` for a stage that does not fit under a change; None for one that does.

        A training that only needs smaller micro-batches does on a card: it halves them by itself.
        """
        if self.needs(node, load, change)[1]:
            return None
        halves = self.machine.kind == "cuda" and node.declared.kind == "training"
        if halves and any(self.needs(node, load, half)[1] for half in list(halvings(change, node))[-1:]):
            return None
        return self.first(node, load, change, owner)

    def first(self, node: Node, load: Load, change: Change, owner: Node) -> Found:
        """The first of what can be changed further with which a stage fits; its recipe is decided by its `owner`."""
        smallest, least = change, self.needs(node, load, change)[0]
        for trial in trials(change, owner):
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
        spec = change.spec_of(node.stage, node.spec)
        derived = {name: _follower(made, node.spec, spec, change) for name, made in node.derived.items()}
        known[id(node)] = replace(node, spec=spec, inputs=inputs, derived=derived)
    return known[id(node)]


def _follower(made: Node, before: Any, after: Any, change: Change) -> Node:
    """What a training derives: it has the settings of the training that it has had, as they are then."""
    names = [f.name for f in dataclasses.fields(made.spec) if hasattr(before, f.name)]
    same = {name: getattr(after, name) for name in names if getattr(before, name) == getattr(made.spec, name)}
    return replace(made, spec=change.spec_of(made.stage, replace(made.spec, **same)))


def trials(change: Change, owner: Node) -> Iterator[Change]:
    """What can be changed further, in the order of what it costs; a change of nothing is the first."""
    counts = (change.runtime.processes, 1) if change.runtime.processes > 1 else (1,)
    known = {f.name for f in dataclasses.fields(owner.spec)}
    for recipe in RECIPES:
        if set(recipe) - known:
            continue
        settings = {
            (node.stage, key): value for node in _goes_on(owner, change, recipe) for key, value in recipe.items()
        }
        more = replace(change, settings={**change.settings, **settings})
        try:
            more.spec_of(owner.stage, owner.spec)
        except UsageError:
            continue
        for processes in counts:
            for run in RUNS:
                yield replace(more, runtime=replace(change.runtime, **run, processes=processes))


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


def advise(costs: Sequence[Cost], machine: Machine, store: Store) -> Advice:
    """What of some stages to be built does not fit in memory, and what would."""
    told = [(cost.node, cost.load) for cost in costs if cost.memory is not None and cost.load is not None]
    owners = {made.recipe.id: node for node, _ in told for made in node.derived.values()}
    room, problems = Room(machine, store), list[AdpaError]()
    for node, load in told:
        found = room.first_or_none(node, load, Change(load.runtime), owners.get(node.recipe.id, node))
        if found is not None:
            problems.append(_problem(node, load, found, machine, [node for node, _ in told]))
    if not problems:
        return Advice()
    before = together = Change(told[0][1].runtime)
    for node, load in told * 2:  # what a later stage needs may undo what an earlier one had
        found = room.first_or_none(node, load, together, owners.get(node.recipe.id, node))
        if found is not None and found.change is None:
            return Advice(tuple(problems))
        together = found.change if found is not None and found.change is not None else together
    if any(room.first_or_none(node, load, together, node) is not None for node, load in told):
        return Advice(tuple(problems))
    return Advice(tuple(problems), together.without([node for node, _ in told]).words(before.runtime))


def _problem(node: Node, load: Load, found: Found, machine: Machine, nodes: Sequence[Node]) -> AdpaError:
    """What a stage, one of all `nodes`, needs and what is there, with what to type."""
    memory = node.declared.memory(node, load)
    needs, has = f"{size_words(memory.device)} of memory", f"{machine.name} has {size_words(machine.memory)}"
    if memory.device <= machine.memory:
        needs = f"{size_words(memory.host)} of memory beside the GPU's"
        has = f"{size_words(machine.host_memory)} are available"
    elif machine.kind == "cpu":
        has = f"this machine has available {size_words(machine.memory)}"
    message = f"{node.role} ({node.label}) needs about {needs}; {has}"
    if found.change is not None:
        change = found.change.without(nodes)
        return AdpaError(message, f"{change.words(load.runtime)}     ({node.role}: {change.what})")
    words = found.smallest.without(nodes).words(load.runtime)
    least = f"{size_words(found.least)} at least" + (f", with {words}" if words else "")
    return AdpaError(f"{message}; it would take {least}", _other_model(node, machine))


def _other_model(node: Node, machine: Machine) -> str:
    """What is left where nothing makes a stage fit."""
    more = "; more GPUs are no help, for each holds the whole model" if machine.kind == "cuda" else ""
    if node.role in ("aligned teacher", "reference teacher"):
        ready = " or ".join(pair.alias for pair in READY_PAIRS)
        return f"a ready pair, which is not trained: --teacher {ready}; or a smaller teacher{more}"
    kind = "student" if node.declared.kind == "training" else "model"
    return f"a smaller {kind} (adpa models), or a machine with more memory{more}"
