"""What a capture reports about its signal, and the step that a wanted error asks for."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from adpa_cli.signal import AnswerKey, Shard, SignalRows, SignalSpec, load_block, rms_advantage, write_shard
from adpa_cli.signal.rows import Floats
from adpa_cli.stages.spool import narrowed

FEWEST_STEPS = 8  # below this the rounding of a stored difference is felt in the gradient
STEPS = (1 / 8, 1 / 16, 1 / 32, 1 / 64, 1 / 128, 1 / 256)
"""Those that `--precision auto=…` tries, coarsest first; then exact."""
SAMPLE_ANSWERS = 64

Captured = Sequence[tuple[AnswerKey, SignalRows]]


@dataclass
class Facts:
    """Sums over the answers of a capture, gathered block by block."""

    answers: int = 0
    tokens: int = 0
    mass: float = 0.0
    outside: int = 0
    squares: float = 0.0
    pair: bool = False
    most_ids: int = 1
    """Most ids that were drawn for one token."""

    def add(self, block: Captured) -> None:
        """Take in the answers of one block."""
        import numpy as np

        for _, rows in block:
            self.mass += float(np.exp(rows.logps).sum())
            there = rows.ids == rows.label_ids[:, None]
            self.outside += int((~(there if rows.weights is None else there & (rows.weights > 0)).any(1)).sum())
            self.tokens += len(rows)
            if rows.weights is not None:
                self.most_ids = max(self.most_ids, int(np.count_nonzero(rows.weights, axis=1).max()))
        self.answers += len(block)
        self.pair = block[0][1].difference is not None
        if self.pair:
            self.squares += rms_advantage(rows for _, rows in block) ** 2 * sum(len(rows) for _, rows in block)

    def metrics(self, signal: SignalSpec) -> dict[str, Any]:
        """Means per token; the size of the advantage against the step it is stored with, and a warning when coarse."""
        found: dict[str, Any] = {
            "answers": self.answers, "tokens": self.tokens, "k": signal.k, "mean_mass": self.mass / self.tokens,
            "taken_outside": self.outside / self.tokens, "step": signal.step, "say": [],
        }  # fmt: skip
        if signal.draws:
            found |= {"draws": signal.draws, "say": [f"{signal.draws} draws per token, at most {signal.k} ids"]}
        if not self.pair:
            return found
        rms = found["rms_advantage"] = (self.squares / self.tokens) ** 0.5
        said = f"RMS of the advantage {rms:.3g} nat"
        if signal.difference_step:
            steps = found["rms_advantage_steps"] = rms / signal.difference_step
            said += f", {steps:.3g} steps of the stored difference"
            if steps < FEWEST_STEPS:
                found["watch"] = [
                    f"the advantage is only {steps:.2g} steps of the stored difference: rounding is felt; "
                    f"--pair-precision {signal.difference_step / 8:g}"
                ]
        found["say"].append(said)
        return found


def fitting(signal: SignalSpec, paths: Sequence[Path], target: float) -> tuple[SignalSpec, dict[str, Any]]:
    """The signal with the coarsest step that meets a target, on answers spread over all blocks; what is said of it."""
    sample: list[tuple[AnswerKey, SignalRows]] = []
    for path in (paths[n] for n in spread(len(paths))):
        block = [(key, narrowed(rows, signal.k)) for key, rows in load_block(path)]
        sample += [block[n] for n in spread(len(block), max(1, SAMPLE_ANSWERS // min(SAMPLE_ANSWERS, len(paths))))]
    step, error = coarsest(signal, sample, target)
    word = f"1/{round(1 / step)}" if step else "0 (exact)"
    said = f"step {word}: mean KL error {error:.2g} nat on {len(sample)} answers, {target:g} allowed"
    return replace(signal, step=step), {"kl_error": error, "say": [said]}


def coarsest(signal: SignalSpec, sample: Captured, target: float) -> tuple[float, float]:
    """(the coarsest of STEPS, else 0, whose stored signal is within a mean KL of `target` nats; that KL).

    The KL is of what a reader gives from what the aligned teacher said, over its ids, the label and the rest.
    """
    error = 0.0
    for step in (*STEPS, 0.0):
        error = _mean_kl(replace(signal, step=step), sample)
        if error <= target:
            return step, error
    return 0.0, error


def _mean_kl(signal: SignalSpec, sample: Captured) -> float:
    """Mean over tokens of the KL that storing the sample costs, in nats."""
    import numpy as np

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sample.adpa"
        write_shard(path, signal, sample)
        shard = Shard(path)
        each = [_kl(rows, shard.read(i)) for i, (_, rows) in enumerate(sample)]
        shard.close()
    return float(np.concatenate(each).mean())


def _kl(given: SignalRows, read: SignalRows) -> Any:
    """[T] KL of the classes as read from those that were given, float64."""
    import numpy as np

    p, q = _classes(given), _classes(read)
    with np.errstate(invalid="ignore"):
        gaps = np.where(p > -np.inf, np.exp(p) * (p - q), 0.0)
    return gaps.sum(1)


def _classes(rows: SignalRows) -> Any:
    """[T, K + 2] float64 log-probs of the ids by number, the label where it is none of them, and the rest."""
    import numpy as np

    logps: Floats = np.take_along_axis(rows.logps, rows.ids.argsort(1), 1)
    outside = (rows.ids != rows.label_ids[:, None]).all(1)
    label = np.where(outside, rows.label_logps, -np.inf)
    return np.concatenate([logps, label[:, None], rows.rest_logps[:, None]], 1).astype(np.float64)


def spread(count: int, most: int = SAMPLE_ANSWERS) -> list[int]:
    """At most `most` of `count` numbers, evenly spread."""
    size = min(count, most)
    return [number * count // size for number in range(size)]
