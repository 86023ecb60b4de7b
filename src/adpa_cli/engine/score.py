"""Label log-probs of given answers under one model, without gradient."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from adpa_cli.engine.batch import collate
from adpa_cli.engine.memory import ROOM, fitting
from adpa_cli.engine.schedule import Example, micro_batches
from adpa_cli.engine.student import Student
from adpa_cli.errors import AdpaError
from adpa_cli.methods import Need, Part
from adpa_cli.signal import SignalRows

LabelLogps = dict[tuple[str, str], NDArray[np.float32]]
"""Float32 log-probs [T], in nats, of the answer tokens of (example id, part)."""


@torch.no_grad()
def label_logps(
    student: Student, examples: Sequence[Example], parts: Sequence[Part], tokens: int, device: torch.device | str
) -> LabelLogps:
    """Score every part of every example in length-sorted batches of at most `tokens` padded tokens."""
    needs = [Need(part) for part in parts]
    found: LabelLogps = {}
    student.to(device)
    for positions in micro_batches([example.length for example in examples], len(parts), tokens)[0]:
        chosen = [examples[p] for p in positions]
        batch = collate(chosen, needs, -1, _none, {}).to(torch.device(device))
        logps, *_ = student(batch.pieces, batch.ids)
        flat = logps[:, 0].float().cpu().numpy()
        for name, part in batch.parts.items():
            where, mask = part.where.cpu().numpy(), part.mask.cpu().numpy()
            for i, example in enumerate(chosen):
                found[example.id, name] = flat[where[i][mask[i]]]
    return found


def halving_logps(
    student: Student, examples: Sequence[Example], parts: Sequence[Part], tokens: int, device: torch.device | str
) -> LabelLogps:
    """`label_logps` with half the `tokens` at a time as often as memory runs out; AdpaError when a row does not fit.

    Each process scores by itself, so none need agree.
    """
    while True:
        found = fitting(functools.partial(label_logps, student, examples, parts, tokens, device))
        if found is not None:
            return found
        longest = max(example.length for example in examples)
        if tokens <= longest * len(parts):
            raise AdpaError(f"a row of {len(parts)} × {longest:,} tokens does not fit in memory", f"use {ROOM}")
        tokens //= 2


def pair_margins(logps: LabelLogps, examples: Sequence[Example]) -> dict[str, float]:
    """Mean log-prob per token of the chosen answer minus that of the rejected, in nats, by example id."""
    means = {key: float(values.mean()) for key, values in logps.items()}
    return {e.id: means[e.id, "chosen"] - means[e.id, "rejected"] for e in examples}


def wins(margins: NDArray[np.float64]) -> NDArray[np.float64]:
    """[n] 1 where the margin [n] prefers the chosen answer, one half at a tie, else 0: their mean is the accuracy."""
    won: NDArray[np.float64] = (margins > 0) + 0.5 * (margins == 0)
    return won


def _none(example_id: str, part: str) -> Any | SignalRows:
    raise KeyError((example_id, part))
