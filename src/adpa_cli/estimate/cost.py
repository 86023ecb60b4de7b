"""What one stage of a plan takes: bytes on disk and memory, asked of its stage in terms of sizes, and time.

Time is the stage's arithmetic, over what this machine did in stages of its kind, or does in a product. The first is
measured by finished stages of the store, the second by one product of matrices of a fraction of a second, times the
share of it that a stage of that kind reached where it was measured.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from adpa_cli import stages
from adpa_cli.disk import write_atomic
from adpa_cli.engine.costs import REACHED, answer_share, training_disk
from adpa_cli.engine.training.schedule import whole_steps
from adpa_cli.errors import AdpaError
from adpa_cli.estimate.row_lengths import RowLengths
from adpa_cli.machine import Machine
from adpa_cli.planning.lineage import model_in_folder, model_size
from adpa_cli.sizes import Disk, Memory, Row, Rows, Where
from adpa_cli.spec import Runtime
from adpa_cli.stages import DECODER_ROLES, MODEL_ROLES, Artifact, Input, Load, Node, Stage
from adpa_cli.store.manifest import Manifest
from adpa_cli.store.store import Store

START_SECONDS = 1.0  # of a stage, besides its arithmetic
REMEMBERED = ".speed.json"
RECENT, TELLING_SECONDS = 3, 5.0
"""How many finished stages are asked, and how long one must have worked to tell a speed."""
DID, GUESSED = "from what this machine did", "guessed from the model sizes"

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


def past_speed(store: Store, kind: str, machine: Machine, made: list[Manifest], share: float) -> float | None:
    """Operations a second of the last finished stages of a kind on this machine, or None without any.

    A manifest tells its answer tokens; `share` of all its tokens they are taken to be, as in the plan.
    """
    speeds = []
    for manifest in made:
        stage = stages.every().get(manifest.stage)
        if stage and stage.kind == kind and machine.made(manifest.made) and _worked(manifest) >= TELLING_SECONDS:
            flops = _flops_of(manifest, stage, store, share)
            if flops:
                speeds.append(flops / _worked(manifest))
        if len(speeds) == RECENT:
            break
    return statistics.median(speeds) if speeds else None


def _worked(manifest: Manifest) -> float:
    return float(manifest.made["seconds"]) - START_SECONDS


def _flops_of(manifest: Manifest, stage: Stage, store: Store, share: float) -> float:
    """Operations of a finished stage; 0 where its manifest does not tell."""
    metrics, spec = manifest.metrics, manifest.spec
    tokens = float(metrics.get("tokens") or 0) / max(share, 1e-3)
    if not tokens:
        return 0.0
    if stage.kind == "training":
        if "aligned" in manifest.inputs:
            return 0.0  # most of its work was not training
        rows = int(metrics["examples"])
        steps = whole_steps(rows, spec["epochs"], spec["batch_size"], spec["max_steps"])
        passes = float(min(steps * spec["batch_size"] / rows, spec["epochs"]))
        return 6 * float(metrics["parameters"]) * tokens * passes
    total = 0.0
    for role in DECODER_ROLES:
        content = manifest.inputs.get(role)
        if isinstance(content, str):
            total += 2 * _parameters(content, store) * tokens
    return total


def _parameters(content: str, store: Store) -> float:
    model: Input | None = None
    if content.startswith("artifact:"):
        manifest = store.get(content)
        model = Artifact(manifest) if manifest else None
    else:
        model = model_in_folder(content, {}, store)
    try:
        return 0.0 if model is None else float(model_size(model, store).parameters)
    except AdpaError:
        return 0.0


def product_speed(store: Store, machine: Machine) -> float:
    """Operations a second of a float32 product on this machine, measured once a store and remembered there."""
    path = store.root / REMEMBERED
    key = f"{machine.host} {machine.name} {os.environ.get('OMP_NUM_THREADS', '')}".strip()
    remembered: dict[str, float] = {}
    with contextlib.suppress(OSError, ValueError):
        remembered = dict(json.loads(path.read_bytes()))
    with contextlib.suppress(KeyError, TypeError, ValueError):
        return float(remembered[key])
    speed = _product_on_card() if machine.kind == "cuda" else _product_here()
    if store.root.exists():
        with contextlib.suppress(OSError):
            write_atomic(Path(path), json.dumps({**remembered, key: speed}).encode())
    return speed


def _product_here(side: int = 512, times: int = 3) -> float:
    import numpy as np

    matrix = np.random.Generator(np.random.PCG64(0)).standard_normal((side, side), dtype=np.float32)
    best = float("inf")
    for _ in range(times):
        start = time.perf_counter()
        matrix @ matrix
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best


def _product_on_card(side: int = 4096, times: int = 5) -> float:
    import torch

    matrix = torch.randn(side, side, device="cuda", dtype=torch.bfloat16)
    best = float("inf")
    for _ in range(times):
        torch.cuda.synchronize()
        start = time.perf_counter()
        matrix @ matrix
        torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best


class Clock:
    """Speeds by kind of stage, looked up once a plan."""

    def __init__(self, store: Store, machine: Machine) -> None:
        self.store, self.machine = store, machine
        self.made = store.artifacts(on_error=lambda error: None)
        self.guessed = False

    @property
    def basis(self) -> str:
        """Where the speeds come from, in words."""
        return GUESSED if self.guessed else DID

    @cached_property
    def product(self) -> float:
        """Measured only where nothing else tells."""
        return product_speed(self.store, self.machine)

    def seconds(self, kind: str, flops: float, share: float, processes: int) -> float:
        """How long `flops` operations of a kind of stage take; `share` of its tokens are answers."""
        past = past_speed(self.store, kind, self.machine, self.made, share)
        if past:
            return START_SECONDS + flops / past
        self.guessed = True
        at_once = processes if self.machine.kind == "cuda" else 1  # on a CPU they share its cores
        return START_SECONDS + flops / (self.product * REACHED[kind] * at_once)
