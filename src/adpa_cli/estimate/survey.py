"""What one stage of a plan takes: bytes on disk, memory, time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from adpa_cli import methods
from adpa_cli.coerce import auto_target
from adpa_cli.engine import costs as disk
from adpa_cli.engine import costs as memory
from adpa_cli.engine.training import schedule
from adpa_cli.errors import AdpaError
from adpa_cli.estimate import speed as times
from adpa_cli.estimate.row_lengths import rows_of
from adpa_cli.hub import External
from adpa_cli.machine import Machine, first_card
from adpa_cli.planning.lineage import folder_of, model_size
from adpa_cli.planning.planner import Plan
from adpa_cli.sizes import Disk, Memory, ModelSize, Row, Rows, Where
from adpa_cli.spec import Runtime
from adpa_cli.stages import ALONE, Node
from adpa_cli.store.manifest import Manifest
from adpa_cli.store.store import Store

UNREAD_STEPS = 1000
CANNOT_TELL = (AdpaError, OSError, KeyError, IndexError)
"""What a model or data that are not here, or not sound, raise; the checks before the work say which."""


@dataclass(frozen=True)
class Cost:
    """One stage of a plan: the artifact where it is found, else what building it takes (None: nobody can tell)."""

    node: Node
    found: Manifest | None = None
    disk: Disk | None = None
    memory: Memory | None = None
    seconds: float | None = None
    rows: int | None = None
    trained: int = 0
    """Parameters of the model that it trains."""


class Clock:
    """Speeds by kind of stage, looked up once a plan."""

    def __init__(self, store: Store, machine: Machine) -> None:
        self.store, self.machine = store, machine
        self.made = store.artifacts(on_error=lambda error: None)
        self.guessed = False

    @property
    def basis(self) -> str:
        return times.GUESSED if self.guessed else times.DID

    @cached_property
    def product(self) -> float:
        """Measured only where nothing else tells."""
        return times.product_speed(self.store, self.machine)

    def seconds(self, kind: str, flops: float, share: float, processes: int) -> float:
        past = times.past_speed(self.store, kind, self.machine, self.made, share)
        if past:
            return times.START_SECONDS + flops / past
        self.guessed = True
        speed = self.product * times.REACHED[kind]
        at_once = processes if self.machine.kind == "cuda" else 1  # on a CPU they share its cores
        return times.START_SECONDS + flops / (speed * at_once)


def cost_of(node: Node, store: Store, runtime: Runtime, machine: Machine, clock: Clock) -> Cost:
    """What one stage takes; only what can be told, when its data or its model cannot be read yet."""
    where = Where(machine.kind, 1 if node.stage in ALONE else runtime.processes)
    try:
        models = models_of(node, store)
    except CANNOT_TELL:
        return Cost(node)
    rows, read = planned_rows(node, store, runtime)
    needs = memory_of(node, rows, models, runtime, where)
    kind = times.KINDS[node.stage]
    trained = models[0].parameters if kind == "training" else 0
    if not read:
        steps = min(node.spec.max_steps or UNREAD_STEPS, UNREAD_STEPS) if trained else 0
        return Cost(node, None, disk.training_disk(models[0], steps, 1) if trained else None, needs, trained=trained)
    seconds = clock.seconds(kind, _flops(node, rows, models), memory.answer_share(rows), where.processes)
    count = max(map(len, rows.values()), default=0)
    return Cost(node, None, _disk(node, rows, models, runtime, store), needs, seconds, count, trained)


def expected_memory(node: Node, store: Store, runtime: Runtime) -> int | None:
    """Bytes that each process of a stage may need on the device; None where nobody can tell."""
    kind = "cpu" if first_card() is None else "cuda"
    where = Where(kind, 1 if node.stage in ALONE else runtime.processes)
    try:
        found = memory_of(node, planned_rows(node, store, runtime)[0], models_of(node, store), runtime, where)
    except CANNOT_TELL:
        return None
    return found.device // (where.processes if kind == "cpu" else 1)


def planned_rows(node: Node, store: Store, runtime: Runtime) -> tuple[Rows, bool]:
    """The rows of a stage and True; for data that cannot be read yet rows of full length, and False."""
    try:
        return rows_of(node, store), True
    except CANNOT_TELL:
        longest = node.spec.max_length
        row = Row(longest / 2, longest / 2)
        parts = {"sft": ("chosen",), "rollout": ("rollout",)}.get(node.stage, ("chosen", "rejected"))
        if node.stage == "distill" and is_online(node.spec):
            parts = ("chosen", "rollout")
        tokens = max(runtime.tokens_per_device, getattr(node.spec, "block_tokens", 0))
        return {part: [row] * max(1, tokens // longest) for part in parts}, False


def models_of(node: Node, store: Store) -> list[ModelSize]:
    """The sizes of the models that a stage loads, one after the other."""
    roles = ("model", "aligned", "reference", "reward_model")
    return [model_size(item, store) for role, item in node.flat_inputs() if role in roles]


def is_online(spec: Any) -> bool:
    """Whether a training draws answers while it goes on."""
    read = methods.load(spec.method)
    return any(need.online for need in read.needs_for(read.params(**spec.params)))


def signal_ids(node: Node) -> int:
    """Ids that a training reads per position: the label, and those of its signal."""
    caches = [item for role, item in node.flat_inputs() if role == "cache" and not isinstance(item, External)]
    return 1 + max((int(cache.values.get("top_k") or cache.values["samples"]) for cache in caches), default=0)


def _flops(node: Node, rows: Rows, models: Sequence[ModelSize]) -> float:
    if times.KINDS[node.stage] == "training":
        read = methods.load(node.spec.method)
        needs = read.needs_for(read.params(**node.spec.params))
        used: Rows = {str(need.part): rows[need.part] for need in needs if need.part in rows} or rows
        count = max(map(len, used.values()), default=0)
        passes = times.passes(node.spec, count) if count else 0.0
        flops = times.training_flops(models[0], used, passes)
        if any(need.online for need in needs):
            flops += times.online_flops(models, used["rollout"], passes, passes / node.spec.params["ppo_epochs"])
        return flops
    return sum(times.forward_flops(m, row) for m in models for part in rows.values() for row in part)


def _disk(node: Node, rows: Rows, models: Sequence[ModelSize], runtime: Runtime, store: Store) -> Disk:
    spec = node.spec
    count = max(map(len, rows.values()), default=0)
    if times.KINDS[node.stage] == "training":
        steps = schedule.steps_of(count, spec)
        looked_at = spec.keep == "all" or spec.select == "best"
        points = len(schedule.points(count, spec.batch_size, steps)) if looked_at else 0
        every = runtime.checkpoint_steps or schedule.half_epoch(count, spec.batch_size)
        return disk.training_disk(models[0], steps, every, points, spec.keep == "all", critic=is_online(spec))
    flat = [row for part in rows.values() for row in part]
    if node.stage == "rollout":
        return disk.rollout_disk(flat, models[0].vocabulary)
    if node.stage == "eval":
        return disk.scores_disk(count, 1 + ("rollouts" in node.inputs) + ("against" in node.inputs))
    if node.stage == "rewards":
        return disk.scores_disk(count, len(rows))
    if node.stage == "start-logps":
        return disk.start_logps_disk(flat)
    aligned = node.inputs["aligned"]
    pair = spec.pair_precision if "reference" in node.inputs else None
    tokenizer = 0 if isinstance(aligned, tuple) else _tokenizer_bytes(node, store)
    k = min(spec.top_k if spec.support == "topk" else spec.samples, models[0].vocabulary)
    step = spec.precision if auto_target(spec.precision) is None else 1 / 32
    per_token = disk.signal_bytes_per_token(models[0].vocabulary, k, step, pair)
    return disk.signal_disk(flat, per_token, k, pair is not None, tokenizer)


def _tokenizer_bytes(node: Node, store: Store) -> int:
    aligned = node.inputs["aligned"]
    path = None if isinstance(aligned, tuple) else folder_of(aligned, store) / "tokenizer.json"
    return path.stat().st_size if path and path.exists() else 0


def memory_of(node: Node, rows: Rows, models: Sequence[ModelSize], runtime: Runtime, where: Where) -> Memory:
    """The largest of the models of a stage, which are loaded one after the other."""
    spec = node.spec
    if times.KINDS[node.stage] == "training":
        read = methods.load(spec.method)
        used = {str(need.part) for need in read.needs_for(read.params(**spec.params))}
        own: Rows = {part: found for part, found in rows.items() if part in used} or rows
        if is_online(spec):
            return memory.online_memory(models, own, spec, runtime, where)
        return memory.training_memory(models[0], own, spec, runtime, signal_ids(node), where)
    if node.stage == "rollout":
        return memory.generating_memory(
            models[0], rows["rollout"], spec.dtype, spec.block_tokens, spec.max_new_tokens, spec.max_length, where
        )
    ids = 1 + getattr(spec, "top_k", 0)
    each = [memory.scoring_memory(model, rows, spec.dtype, spec.block_tokens, ids, where) for model in models]
    return memory.one_after_the_other(models, each, where)


LARGE_BYTES, LARGE_SECONDS, LARGE_TRAINING = 10e9, 1800.0, 1e9


@dataclass(frozen=True)
class Estimate:
    """A plan in numbers. `basis` says where its seconds come from."""

    costs: tuple[Cost, ...]
    machine: Machine
    externals: tuple[External, ...] = ()
    basis: str = ""

    @property
    def building(self) -> tuple[Cost, ...]:
        return tuple(cost for cost in self.costs if cost.found is None)

    @property
    def download(self) -> int:
        """Bytes to fetch."""
        return sum(external.download for external in self.externals)

    @property
    def keeps(self) -> int | None:
        """Bytes that stay in the store; None when a stage cannot tell."""
        known = [cost.disk.keeps for cost in self.building if cost.disk is not None]
        return sum(known) if len(known) == len(self.building) else None

    @property
    def peak(self) -> int | None:
        """Bytes at the fullest moment, what is kept by then included; downloads come on top."""
        return self.fullest[0] if self.keeps is not None else None

    @property
    def fullest(self) -> tuple[int, Cost | None]:
        """Bytes at the fullest moment, and the stage that is built then."""
        kept, most, at = 0, 0, None
        for cost in self.building:
            if cost.disk is not None:
                kept += cost.disk.keeps
                if kept + cost.disk.extra > most:
                    most, at = kept + cost.disk.extra, cost
        return most, at

    @property
    def memory(self) -> int | None:
        """Bytes that the device must hold at most; None when a stage cannot tell."""
        known = [cost.memory.device for cost in self.building if cost.memory is not None]
        return max(known, default=0) if len(known) == len(self.building) else None

    @property
    def seconds(self) -> float | None:
        """Of all stages together; None when one cannot tell."""
        known = [cost.seconds for cost in self.building if cost.seconds is not None]
        return sum(known) if len(known) == len(self.building) else None

    @property
    def large(self) -> bool:
        """Whether a person at a terminal is asked before it begins."""
        trained = max((cost.trained for cost in self.building), default=0)
        space = self.download + (self.keeps or 0)
        return space > LARGE_BYTES or (self.seconds or 0) > LARGE_SECONDS or trained > LARGE_TRAINING


def estimate(plan: Plan, store: Store, runtime: Runtime, machine: Machine | None = None) -> Estimate:
    """The plan in numbers. Only stages that are to be built are looked into; a plan that is found costs nothing."""
    nodes = plan.nodes(store)
    found = {node.recipe.id: store.get(node.label) for node in nodes}
    machine = machine or Machine.here(store.root)
    build = [node for node in nodes if found[node.recipe.id] is None]
    externals = {item.content: item for node in build for _, item in node.flat_inputs() if isinstance(item, External)}
    clock = Clock(store, machine) if build else None
    costs = tuple(
        cost_of(node, store, runtime, machine, clock)
        if clock and found[node.recipe.id] is None
        else Cost(node, found[node.recipe.id])
        for node in nodes
    )
    return Estimate(costs, machine, tuple(externals.values()), clock.basis if clock else "")
