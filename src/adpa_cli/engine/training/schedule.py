"""Which examples make up an optimizer step, and its learning rate: functions of the spec alone."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from adpa_cli.methods import passes_of
from adpa_cli.spec import TrainSpec

if TYPE_CHECKING:  # plans ask for the number of steps, and read no example
    from numpy.typing import NDArray

    from adpa_cli.engine.layout.examples import Example


class Feed(Protocol):
    """Where the rows of an optimizer step come from; the same in every process."""

    @property
    def experience(self) -> Mapping[str, Mapping[str, NDArray[Any]]]:
        """What is known of drawn answers, by example id, as far as the last step asked for needs it."""

    @property
    def known(self) -> bool:
        """Whether a step may be asked for before those before it are done."""

    def at(self, step: int) -> tuple[list[Example], Mapping[str, float]]:
        """The global batch of a step, counted from 0, and numbers to log with it. Asked for in order."""


@dataclass
class Fixed:
    """Rows that are there from the beginning."""

    examples: Sequence[Example]
    spec: TrainSpec
    experience: Mapping[str, Mapping[str, NDArray[Any]]] = field(default_factory=dict)
    known: bool = True

    def at(self, step: int) -> tuple[list[Example], Mapping[str, float]]:
        """A slice of the permuted epochs, and nothing to log."""
        return [self.examples[i] for i in step_rows(len(self.examples), self.spec, step)], {}


def steps_of(rows: int, spec: TrainSpec) -> int:
    """Optimizer steps of a training: as many for each pass over the same answers as a method makes."""
    steps = whole_steps(rows, spec.epochs, spec.batch_size) * passes_of(spec.method, spec.params)
    return min(steps, spec.max_steps) if spec.max_steps else steps


def whole_steps(rows: int, epochs: float, batch_size: int, max_steps: int | None = None) -> int:
    """Optimizer steps of a run, at least one; the last one may be short."""
    steps = math.ceil(_rows_met(rows, epochs) / batch_size)
    return min(steps, max_steps) if max_steps else steps


def half_epoch(rows: int, batch_size: int) -> int:
    """Steps of half a pass over the data, at least one."""
    return max(1, math.ceil(rows / batch_size / 2))


def evaluation_steps(rows: int, batch_size: int, end: int) -> frozenset[int]:
    """The steps after which a run that ends with step `end` is evaluated: each half epoch, and the end."""
    every = half_epoch(rows, batch_size)
    return frozenset({*range(every, end, every), end})


def rank(record: Mapping[str, Any]) -> tuple[float, ...]:
    """What a point is chosen by, the higher the better: its reward; or its accuracy, at a tie its margin; or its
    likelihood."""
    signs = {"reward": 1, "accuracy": 1, "margin": 1, "nll": -1}
    return tuple(sign * float(record.get(name, 0.0)) for name, sign in signs.items())


def _rows_met(rows: int, epochs: float) -> int:
    return max(1, round(rows * epochs))


def step_rows(rows: int, spec: TrainSpec, step: int) -> list[int]:
    """Row numbers of one optimizer step: a slice of the epochs' permutations laid end to end."""
    start, stop = step * spec.batch_size, min((step + 1) * spec.batch_size, _rows_met(rows, spec.epochs))
    picked: list[int] = []
    for epoch in range(start // rows, (stop - 1) // rows + 1):
        order = _order(rows, spec.seed, epoch)
        low, high = max(start - epoch * rows, 0), min(stop - epoch * rows, rows)
        picked += [int(i) for i in order[low:high]]
    return picked


@functools.lru_cache(maxsize=2)
def _order(rows: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The permutation of an epoch; a step may need the ends of two."""
    return np.random.Generator(np.random.PCG64([seed, epoch])).permutation(rows)


def learning_rate(step: int, steps: int, peak: float, warmup_ratio: float) -> float:
    """Linear warm-up to `peak` over `warmup_ratio` of the steps, then a cosine to 0; `step` counts from 0."""
    warmup = math.ceil(warmup_ratio * steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
