"""What one stage of a plan takes: bytes on disk and memory, asked of its stage in terms of sizes, and time.

Time is the stage's arithmetic, over what this machine did in stages of its kind, or does in a product. The first is
measured by finished stages of the store that computed in the same dtype, the second by products of matrices of a
fraction of a second, times the share of them that a stage of that kind reached where it was measured.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import re
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from adpa_cli import stages
from adpa_cli.disk import write_atomic
from adpa_cli.engine.costs import (
    COMING,
    REACHED,
    Held,
    answer_share,
    layer_passes,
    low_rank,
    reached,
    trained_part,
    training_disk,
    waiting_disk,
    waiting_seconds,
)
from adpa_cli.engine.lora import EXPERTS, is_expert
from adpa_cli.engine.training.schedule import whole_steps
from adpa_cli.errors import AdpaError
from adpa_cli.estimate.row_lengths import RowLengths
from adpa_cli.hub.model_folder import ModelFolder
from adpa_cli.machine import OTHER_DRIVER, Machine
from adpa_cli.planning.adapters import adapter_of
from adpa_cli.planning.lineage import folder_of, model_in_folder, model_size
from adpa_cli.sizes import Disk, Memory, ModelSize, Row, Rows, Where
from adpa_cli.spec import Runtime
from adpa_cli.stages import DECODER_ROLES, MODEL_ROLES, Artifact, Input, Load, Node, Stage
from adpa_cli.store.manifest import Manifest
from adpa_cli.store.store import Store

START_SECONDS = 0.3  # of a stage, besides its arithmetic
REMEMBERED = ".speed.json"
RECENT, TELLING_SECONDS = 3, 5.0
"""How many finished stages are asked, and how long one must have worked to tell a speed."""
MEASUREMENTS, BUSY_SECONDS, OLD_SECONDS = 5, 60.0, 7 * 86400.0
"""How often the speed of a CPU's products is measured at first, how long after one another, and when it is old."""
MUCH_FASTER = 2.0
"""A finished stage that was so many times as fast as a product lets one expect shows that it was measured badly."""
FEWEST_TRIES, MOST_TRIES, AGREEING = 4, 16, 1.1
SPACE_SECONDS, MOST_SECONDS = 0.01, 0.5
"""Of one measurement: its tries, how close the two best must come, the time between tries and of all of them."""
DID, GUESSED = "measured on this machine", "guessed from the model sizes"

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
    try:
        models = tuple(with_adapter(item, store) for role, item in node.flat_inputs() if role in MODEL_ROLES)
    except CANNOT_TELL:
        return Cost(node)
    rows, is_read = planned_rows(node, store, runtime)
    load = as_it_runs(node, Load(rows, models, runtime, _where(node, runtime, machine.kind)), machine)
    memory, changed = stage.memory(node, load), trained_part(models[0], node.spec) if stage.kind == "training" else None
    trained = changed.parameters if changed else 0
    if not is_read:
        disk = training_disk(changed, min(node.spec.max_steps or UNREAD_STEPS, UNREAD_STEPS), 1) if changed else None
        return Cost(node, None, disk, memory, trained=trained, load=load)
    flops = stage.flops(node, load)
    whole = None
    if flops is not None and not stage.is_remote:
        parameters = max((model.parameters for model in models), default=0)
        count = 1 if stage.one_process else runtime.processes  # where they share models out all do the same
        seconds = clock.seconds(stage.kind, flops, answer_share(rows), count, node.spec.dtype, parameters)
        whole = seconds + waiting(node, load)
    return Cost(node, None, disk_of(node, load), memory, whole, load.count, trained, load)


def as_it_runs(node: Node, load: Load, machine: Machine) -> Load:
    """What a stage works on; where one process has no room for the models that it reads, and several have room for
    their parts, these share them out."""
    runtime, can = load.runtime, node.declared.kind != "training" and node.declared.shares(node.spec)
    is_open = runtime.shard == "auto" and runtime.processes > 1 and runtime.offload == "none"
    is_stored = getattr(node.spec, "quantise", None) or any(model.quantise for model in load.models)
    if not (can and is_open) or is_stored or has_room(node, load, machine):
        return load
    shared = replace(runtime, shard="all")
    parts = replace(load, runtime=shared, where=_where(node, shared, machine.kind))
    return parts if has_room(node, parts, machine) else load


def has_room(node: Node, load: Load, machine: Machine) -> bool:
    """Whether a machine has the memory of a stage."""
    memory = node.declared.memory(node, load)
    return memory.device <= machine.memory and memory.host <= machine.host_memory


def _where(node: Node, runtime: Runtime, kind: str) -> Where:
    return Where(kind, node.declared.processes(node.spec, runtime))


def shared_words(cost: Cost, runtime: Runtime, machine: Machine) -> list[str]:
    """What is said of a stage whose models processes share out though a command's `runtime` does not say so."""
    if cost.load is None or cost.load.runtime == runtime:
        return []
    who = "this machine has" if machine.kind == "cpu" else f"{machine.name} has"
    return [
        f"{cost.node.role}: {runtime.processes} processes share out each model that it reads, since {who} no room for "
        "whole ones in each of them; this gives the same bytes, and takes longer"
    ]


def disk_of(node: Node, load: Load) -> Disk:
    """What a stage takes on the disk, the layers among it that wait there."""
    disk = node.declared.disk(node, load)
    return replace(disk, extra=disk.extra + waiting_bytes(node, load))


def waiting_bytes(node: Node, load: Load) -> int:
    """What layers take on the disk that wait there, those of each process of a stage."""
    if node.declared.kind == "training":
        return 0
    return load.where.processes * waiting_disk(load.models, Held.by(node.spec, load.runtime, load.where))


def waiting(node: Node, load: Load) -> float:
    """Seconds in which layers come to the device that wait elsewhere, in each of the processes of a stage."""
    if node.declared.kind == "training" or load.runtime.offload == "none":
        return 0.0
    held, is_drawn = Held.by(node.spec, load.runtime, load.where), node.declared.kind == "generating"
    times = layer_passes(load.rows, node.spec.block_tokens, is_drawn) / load.where.processes
    return waiting_seconds(load.models, held, load.where, times)


LAYER = re.compile(r"\.\d+\.(.*\.)?(\w+)\.weight")
"""Names of what belongs to a layer, with the end of that of the module."""
EXPERT = re.compile(r"\.experts\.\d+\.")
"""Names of what belongs to one expert, in folders that have each apart."""


def with_adapter(item: Input, store: Store) -> ModelSize:
    """The size of a model, built or not, with the layers that low-rank matrices can be beside and those that are.

    Raises as `model_size` does, and as an adapter whose base is not here.
    """
    folder = ModelFolder.of(folder_of(item, store))
    size, shapes = model_size(item, store), folder.shapes
    sides: dict[str, int] = {}
    for name, shape in shapes.items():
        if len(shape) == 2 and not is_expert(name, shape) and (layer := LAYER.search(name)):
            sides[layer[2]] = sides.get(layer[2], 0) + sum(shape)
    unpacked = sum(math.prod(shape) for name, shape in shapes.items() if is_expert(name, shape))
    is_fused = any(map(EXPERT.search, shapes))
    if not shapes and any((folder.config.get(name) or 1) > 1 for name in EXPERTS):  # as most folders have experts
        unpacked, is_fused = size.body, True
    size = replace(size, linear=tuple(sides.items()), unpacked=unpacked, is_fused=is_fused)
    made = adapter_of(item, store)
    own = low_rank(size, made.lora, made.lora_targets) if made else 0
    return replace(size, adapter=own, quantise=made.quantise if made else None)


def waiting_words(cost: Cost) -> list[str]:
    """What is said of a stage whose layers wait elsewhere: nobody has measured how fast they come."""
    waits = waiting(cost.node, cost.load) if cost.load and cost.seconds else 0.0
    if cost.load is None or not waits:
        return []
    offload = cost.load.runtime.offload
    share = f"{waits / 60:,.0f} min of its time" if waits >= 90 else f"{waits:,.0f} s of its time"
    return [
        f"{cost.node.role}: with offload={offload}, moving layers to the device takes {share}, assuming "
        f"{COMING[offload] / 1e9:.0f} GB per second"
    ]


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


def past_speed(
    store: Store, kind: str, machine: Machine, made: Sequence[Manifest], share: float, dtype: str
) -> float | None:
    """Operations a second of the last finished stages of a kind on this machine in a dtype, or None without any."""
    of_kind = (manifest for manifest in made if _kind(manifest) == kind)
    speeds = [speed for _, speed in itertools.islice(_speeds(store, machine, of_kind, share, dtype), RECENT)]
    return statistics.median(speeds) if speeds else None


def shown_speed(
    store: Store, machine: Machine, made: Sequence[Manifest], share: float, dtype: str, since: float
) -> float:
    """The most operations a second of a product that the last stages finished `since` a time let one expect; else 0."""
    newer = (manifest for manifest in made if manifest.at > since)
    found = itertools.islice(_speeds(store, machine, newer, share, dtype), RECENT)
    return max(
        (
            speed / REACHED[_kind(manifest)] / at_once(machine, int(manifest.made.get("processes", 1)))
            for manifest, speed in found
        ),
        default=0.0,
    )


def _kind(manifest: Manifest) -> str:
    """What the time of a finished stage depends on; "" for a stage that is unknown here."""
    stage = stages.every().get(manifest.stage)
    return stage.kind if stage else ""


def at_once(machine: Machine, processes: int) -> int:
    """How many devices some processes work on; on a CPU they share its cores."""
    return processes if machine.kind == "cuda" else 1


def _speeds(
    store: Store, machine: Machine, made: Iterable[Manifest], share: float, dtype: str
) -> Iterator[tuple[Manifest, float]]:
    """(manifest, operations a second) of the stages that worked long enough on this machine to tell, in their order.

    A manifest tells its answer tokens; `share` of all its tokens they are taken to be, as in the plan.
    """
    form = products_of(dtype, machine.kind)
    for manifest in made:
        stage = stages.every().get(manifest.stage)
        worked = _worked(manifest)
        if stage is None or not machine.made(manifest.made) or worked < TELLING_SECONDS:
            continue
        if products_of(str(manifest.spec.get("dtype")), machine.kind) != form:
            continue
        if flops := _flops_of(manifest, stage, store, share):
            yield manifest, flops / worked


def _worked(manifest: Manifest) -> float:
    """Seconds of a finished stage in its steps or its blocks alone: what else it did grows with other sizes. 0 where
    its manifest does not tell."""
    return float(manifest.metrics.get("speed", {}).get("seconds") or manifest.made.get("worked") or 0.0)


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
        return 2 * (2 if spec.get("lora") else 3) * float(metrics["parameters"]) * tokens * passes
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


@dataclass(frozen=True)
class Product:
    """What is remembered of a product: the best speed of some measurements, and when the last one was."""

    speed: float
    """Operations a second."""
    measured: int
    at: float

    def is_due(self, now: float, often: bool, shown: Callable[[float], float]) -> bool:
        """Whether to measure again: a machine that was busy seemed slow.

        That is after a while, where it is measured `often` until a few measurements are there; else when the last one
        is old, or when a stage that was finished since has `shown` a much higher speed.
        """
        waited = abs(now - self.at)
        if waited > OLD_SECONDS or (often and self.measured < MEASUREMENTS and waited > BUSY_SECONDS):
            return True
        return shown(self.at) > MUCH_FASTER * self.speed


def product_speed(
    store: Store, machine: Machine, dtype: str = "float32", shown: Callable[[float], float] = lambda since: 0.0
) -> float:
    """Operations a second of a product of matrices on this machine, in the arithmetic that a `dtype` takes there.

    The best of the measurements that a store remembers. `shown` tells what finished stages since a time let one
    expect; a CPU is measured a few times at first, since that takes a fraction of a second and loads no torch.
    """
    path, form = store.root / REMEMBERED, products_of(dtype, machine.kind)
    threads = os.environ.get("OMP_NUM_THREADS") or _cores()
    key = f"{machine.host} {machine.name} {form} {threads}"
    remembered = _remembered(path)
    before, now = remembered.get(key), time.time()
    is_cpu = machine.kind == "cpu"
    if before is not None and not before.is_due(now, is_cpu, shown):
        return before.speed
    speed, times = _product_here() if is_cpu else _product_on_card(machine, form), 1
    if before is not None:
        speed, times = max(speed, before.speed), before.measured + 1
    if store.root.exists():
        kept = {name: asdict(product) for name, product in {**remembered, key: Product(speed, times, now)}.items()}
        with contextlib.suppress(OSError):
            write_atomic(path, json.dumps(kept).encode())
    return speed


def products_of(dtype: str, kind: str) -> str:
    """The arithmetic of the products that a `dtype` takes on a kind of device, by which speeds are told apart.

    A CPU makes the roundings of float16 and tf32 around float32 products; on a card both two-byte formats are as fast.
    """
    if kind == "cpu":
        return "bfloat16" if dtype == "bfloat16" else "float32"
    return "float16" if dtype == "bfloat16" else dtype


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _remembered(path: Path) -> dict[str, Product]:
    """What a store remembers by machine, arithmetic and threads; nothing that cannot be read."""
    products: dict[str, Product] = {}
    with contextlib.suppress(OSError, ValueError, AttributeError):
        for key, entry in json.loads(path.read_bytes()).items():
            with contextlib.suppress(TypeError, KeyError, ValueError):
                products[key] = Product(float(entry["speed"]), int(entry["measured"]), float(entry["at"]))
    return {key: product for key, product in products.items() if product.speed > 0}


def _quickest(product: Callable[[], object]) -> float:
    """Seconds of the quickest of several tries.

    They are spaced out, so that a busy moment does not decide, and end when the two best agree.
    """
    tries: list[float] = []
    begun = time.perf_counter()
    while True:
        start = time.perf_counter()
        product()
        tries = sorted([*tries, time.perf_counter() - start])
        enough = len(tries) >= FEWEST_TRIES and tries[1] <= AGREEING * tries[0]
        if enough or len(tries) == MOST_TRIES or time.perf_counter() - begun > MOST_SECONDS:
            return tries[0]
        time.sleep(SPACE_SECONDS)


def check_card(machine: Machine) -> None:
    """Raise AdpaError for a machine with a card that torch cannot open, as beside too old a driver; it loads torch."""
    if machine.kind == "cuda":
        import torch

        try:
            torch.empty(0, device="cuda")
        except (RuntimeError, AssertionError) as error:
            why = str(error).partition(". ")[0].rstrip(".")
            message = f"torch {torch.__version__} cannot use the GPU of this machine, {machine.name}: {why}"
            raise AdpaError(message, OTHER_DRIVER) from error


def _product_here(side: int = 512) -> float:
    """In float32 by numpy, which has no other format that is fast: a plan on a CPU loads no torch."""
    import numpy as np

    matrix = np.random.Generator(np.random.PCG64(0)).standard_normal((side, side), dtype=np.float32)
    return 2 * side**3 / _quickest(lambda: matrix @ matrix)


def _product_on_card(machine: Machine, form: str, side: int = 4096) -> float:
    import torch

    check_card(machine)
    matrix = torch.randn(side, side, device="cuda", dtype=torch.float16 if form == "float16" else torch.float32)
    usual = torch.get_float32_matmul_precision()

    def product() -> None:
        matrix @ matrix
        torch.cuda.synchronize()

    torch.set_float32_matmul_precision("high" if form == "tf32" else "highest")
    try:
        return 2 * side**3 / _quickest(product)
    finally:
        torch.set_float32_matmul_precision(usual)


class Clock:
    """Speeds by kind of stage, looked up once a plan."""

    def __init__(self, store: Store, machine: Machine) -> None:
        self.store, self.machine = store, machine
        self.made = store.artifacts(on_error=lambda error: None)
        self.guessed = False
        self.products: dict[str, float] = {}

    @property
    def basis(self) -> str:
        """Where the speeds come from, in words."""
        return GUESSED if self.guessed else DID

    def product(self, dtype: str, share: float) -> float:
        """Operations a second of a product in the arithmetic of a dtype, looked at only where nothing else tells."""
        form = products_of(dtype, self.machine.kind)
        if form not in self.products:
            self.products[form] = product_speed(
                self.store, self.machine, dtype,
                lambda since: shown_speed(self.store, self.machine, self.made, share, dtype, since),
            )  # fmt: skip
        return self.products[form]

    def seconds(self, kind: str, flops: float, share: float, processes: int, dtype: str, parameters: int) -> float:
        """How long `flops` operations of a kind of stage take in a dtype with models of so many `parameters`; `share`
        of its tokens are answers."""
        past = past_speed(self.store, kind, self.machine, self.made, share, dtype)
        if past:
            return START_SECONDS + flops / past
        self.guessed = True
        if not flops:
            return START_SECONDS
        speed = self.product(dtype, share) * reached(kind, parameters) * at_once(self.machine, processes)
        return START_SECONDS + flops / speed
