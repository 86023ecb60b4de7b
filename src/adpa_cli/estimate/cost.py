"""What one stage of a plan takes: bytes on disk, memory, time. Asked of its stage, in terms of sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from adpa_cli.engine.costs import answer_share, training_disk
from adpa_cli.errors import AdpaError
from adpa_cli.estimate.row_lengths import RowLengths
from adpa_cli.estimate.speed import Clock
from adpa_cli.machine import Machine
from adpa_cli.planning.lineage import model_size
from adpa_cli.sizes import Disk, Memory, Row, Rows, Where
from adpa_cli.spec import Runtime
from adpa_cli.stages import MODEL_ROLES, Load, Node
from adpa_cli.store.manifest import Manifest
from adpa_cli.store.store import Store

UNREAD_STEPS = 1000
CANNOT_TELL = (AdpaError, OSError, KeyError, IndexError)
"""What a model or data that are not here, or not sound, raise; the checks before the work say which."""


@dataclass(frozen=True)
class Cost:
    """One stage of a plan: its artifact where it exists, else what building it takes (None: nobody can tell)."""

    node: Node
    artifact: Manifest | None = None
    disk: Disk | None = None
    memory: Memory | None = None
    seconds: float | None = None
    rows: int | None = None
    trained: int = 0
    """Parameters of the model that it trains."""
    load: Load | None = None
    """What it works on, by which its memory was told."""

    @property
    def memory_of_process(self) -> int | None:
        """Bytes that each of its processes may need on the device."""
        if self.memory is None or self.load is None:
            return None
        return self.memory.device // (self.load.where.processes if self.load.where.kind == "cpu" else 1)


def cost_of(node: Node, store: Store, runtime: Runtime, machine: Machine, clock: Clock) -> Cost:
    """What one stage takes; only what can be told, when its data or its model cannot be read yet."""
    stage = node.declared
    where = Where(machine.kind, 1 if stage.one_process else runtime.processes)
    try:
        models = tuple(model_size(item, store) for role, item in node.flat_inputs() if role in MODEL_ROLES)
    except CANNOT_TELL:
        return Cost(node)
    rows, is_read = planned_rows(node, store, runtime)
    load = Load(rows, models, runtime, where)
    memory, trained = stage.memory(node, load), models[0].parameters if stage.kind == "training" else 0
    if not is_read:
        steps = min(node.spec.max_steps or UNREAD_STEPS, UNREAD_STEPS) if trained else 0
        disk = training_disk(models[0], steps, 1) if trained else None
        return Cost(node, None, disk, memory, trained=trained, load=load)
    seconds = clock.seconds(stage.kind, stage.flops(node, load), answer_share(rows), where.processes)
    return Cost(node, None, stage.disk(node, load), memory, seconds, load.count, trained, load)


def planned_rows(node: Node, store: Store, runtime: Runtime) -> tuple[Rows, bool]:
    """The rows of a stage and True; for data that cannot be read yet rows of full length, and False."""
    try:
        return node.declared.rows(node, RowLengths(node, store)), True
    except CANNOT_TELL:
        longest = node.spec.max_length
        row = Row(longest / 2, longest / 2)
        tokens = max(runtime.tokens_per_device, getattr(node.spec, "block_tokens", 0))
        return {part: [row] * max(1, tokens // longest) for part in node.declared.parts(node.spec)}, False


def fullest(costs: Sequence[Cost]) -> tuple[int, Cost | None]:
    """Bytes on the disk at the fullest moment of building some stages in turn, and the stage that is built then."""
    kept, most, at = 0, 0, None
    for cost in costs:
        if cost.disk is not None:
            kept += cost.disk.keeps
            if kept + cost.disk.extra > most:
                most, at = kept + cost.disk.extra, cost
    return most, at
