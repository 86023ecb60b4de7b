"""What a finished training says of itself beside its loss: what its terms pull, its speed, what memory it took."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

GRADIENTS_APART = 30.0
"""Times that the gradient of one term may exceed that of another before it is worth a warning."""


def measured(work: Path, step: int, device: str) -> dict[str, Any]:
    """From what a training left in `work` after `step` steps: `gradients` of the terms at the logits and `entropy` of
    the student's tokens, means over the steps where they were measured; `speed`; and `memory` in bytes."""
    from adpa_cli.engine.speed import Speed
    from adpa_cli.engine.steplog import ENTROPY, GRADIENT, METRICS, StepLog

    log, speed = StepLog(work / METRICS, step, False), Speed.load(work)
    cells = [row["tokens"] / (1 - row["padding"]) for row in log.rows]
    padding = 1 - sum(row["tokens"] for row in log.rows) / max(1.0, sum(cells))
    told = {"mfu": None, **speed.told(), "padding": padding, "seconds": speed.seconds}
    known = {"gradients": log.measured(GRADIENT), "entropy": log.measured(ENTROPY)}
    return {
        **{name: found for name, found in known.items() if found},
        "speed": told, "memory": {"peak": speed.memory, "device": device},
    }  # fmt: skip


def apart(gradients: Mapping[str, float]) -> list[str]:
    """A warning where the gradients of two terms are of different scales: the smaller one hardly trains."""
    pulling = sorted((norm, name) for name, norm in gradients.items() if norm > 0)
    if len(pulling) < 2 or pulling[-1][0] <= GRADIENTS_APART * pulling[0][0]:
        return []
    (least, weak), (most, strong) = pulling[0], pulling[-1]
    return [
        f"the gradient of {strong} is {most / least:.0f} times that of {weak} ({most:.2g} and {least:.2g} at the "
        f"logits): {weak} hardly trains; weigh them otherwise, or leave it out"
    ]
