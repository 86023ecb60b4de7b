"""How long a stage will take: its arithmetic, over what this machine did in stages of its kind, or does in a product.

The first is measured by finished stages of the store, the second by one product of matrices of a fraction of a second,
times the share of it that a stage of that kind reached where it was measured.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adpa_cli.disk import write_atomic
from adpa_cli.engine.training.schedule import steps_of, whole_steps
from adpa_cli.errors import AdpaError
from adpa_cli.machine import Machine
from adpa_cli.planning.lineage import model_size
from adpa_cli.sizes import ModelSize, Row, Rows
from adpa_cli.store.manifest import Manifest
from adpa_cli.store.store import Store

KINDS = {
    "sft": "training", "dpo-teacher": "training", "distill": "training", "cache-teacher": "scoring",
    "eval": "scoring", "rollout": "generating", "reward-model": "training", "rewards": "scoring",
    "start-logps": "scoring",
}  # fmt: skip
REACHED = {"training": 0.35, "scoring": 0.35, "generating": 0.1}
"""Share of a product's speed that each kind of stage reached with models of 12 M parameters on a CPU."""
START_SECONDS = 1.0  # of a stage, besides its arithmetic
REMEMBERED = ".speed.json"
RECENT, TELLING_SECONDS = 3, 5.0
"""How many finished stages are asked, and how long one must have worked to tell a speed."""
DID, GUESSED = "from what this machine did", "guessed from the model sizes"


@dataclass(frozen=True)
class Work:
    """Floating-point operations of a stage, and which kind of stage it is."""

    kind: str
    flops: float


def training_flops(model: ModelSize, rows: Rows, passes: float) -> float:
    """Forward and backward over all parts `passes` times."""
    return 3 * passes * sum(forward_flops(model, row) for part in rows.values() for row in part)


def forward_flops(model: ModelSize, row: Row) -> float:
    """Two per parameter and token, the head at answer tokens only, and the attention over all earlier tokens."""
    attention = 2 * model.layers * model.hidden * row.whole
    return row.whole * (2 * model.body + attention) + 2 * model.head * row.answer


def passes(spec: Any, rows: int) -> float:
    """How often a training sees its rows."""
    again = spec.params.get("ppo_epochs", 1)
    return float(min(steps_of(rows, spec) * spec.batch_size / rows, spec.epochs * again))


def online_flops(models: Sequence[ModelSize], rows: Sequence[Row], passes: float, drawn: float) -> float:
    """What the answers `rows` cost that are drawn in training, beside the student's own steps.

    The critic trains on them `passes` times. `drawn` times they are generated, which is slower than training by as much
    as is known of both, and read by the student, the critic, the start model and the two teachers.
    """
    student, *teachers = models
    slower = REACHED["training"] / REACHED["generating"]
    once = sum(forward_flops(student, row) for row in rows)
    taught = sum(forward_flops(teacher, row) for teacher in teachers for row in rows)
    return once * (3 * passes + (slower + 3) * drawn) + taught * drawn


def past_speed(store: Store, kind: str, machine: Machine, made: list[Manifest], share: float) -> float | None:
    """Operations a second of the last finished stages of a kind on this machine, or None without any.

    A manifest tells its answer tokens; `share` of all its tokens they are taken to be, as in the plan.
    """
    found = []
    for manifest in made:
        if KINDS.get(manifest.stage) == kind and machine.made(manifest.made) and _worked(manifest) >= TELLING_SECONDS:
            flops = _flops_of(manifest, store, share)
            if flops:
                found.append(flops / _worked(manifest))
        if len(found) == RECENT:
            break
    return statistics.median(found) if found else None


def _worked(manifest: Manifest) -> float:
    return float(manifest.made["seconds"]) - START_SECONDS


def _flops_of(manifest: Manifest, store: Store, share: float) -> float:
    """Operations of a finished stage; 0 where its manifest does not tell."""
    metrics, spec = manifest.metrics, manifest.spec
    tokens = float(metrics.get("tokens") or 0) / max(share, 1e-3)
    if not tokens:
        return 0.0
    if KINDS[manifest.stage] == "training":
        if "aligned" in manifest.inputs:
            return 0.0  # most of its work was not training
        rows = int(metrics["examples"])
        steps = whole_steps(rows, spec["epochs"], spec["batch_size"], spec["max_steps"])
        seen = float(min(steps * spec["batch_size"] / rows, spec["epochs"]))
        return 6 * float(metrics["parameters"]) * tokens * seen
    total = 0.0
    for role in ("model", "aligned", "reference"):
        content = manifest.inputs.get(role)
        if isinstance(content, str):
            total += 2 * _parameters(content, store) * tokens
    return total


def _parameters(content: str, store: Store) -> float:
    from adpa_cli.hub import External
    from adpa_cli.stages import Artifact, Input

    found: Input | None = None
    if content.startswith("artifact:"):
        manifest = store.get(content)
        found = Artifact(manifest) if manifest else None
    else:
        folder = store.hash_cache.locate(content.removeprefix("model:"))
        found = External(content, folder.name, (str(folder),)) if folder else None
    try:
        return 0.0 if found is None else float(model_size(found, store).parameters)
    except AdpaError:
        return 0.0


def product_speed(store: Store, machine: Machine) -> float:
    """Operations a second of a float32 product on this machine, measured once a store and remembered there."""
    path = store.root / REMEMBERED
    key = f"{machine.host} {machine.name} {os.environ.get('OMP_NUM_THREADS', '')}".strip()
    known: dict[str, float] = {}
    with contextlib.suppress(OSError, ValueError):
        known = dict(json.loads(path.read_bytes()))
    with contextlib.suppress(KeyError, TypeError, ValueError):
        return float(known[key])
    speed = _product_on_card() if machine.kind == "cuda" else _product_here()
    if store.root.exists():
        with contextlib.suppress(OSError):
            write_atomic(Path(path), json.dumps({**known, key: speed}).encode())
    return speed


def _product_here(side: int = 768, times: int = 3) -> float:
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
