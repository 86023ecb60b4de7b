"""The step that a signal is stored with where a user gives the error that it may have, in nats, instead of a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adpa_cli.sizes import spread

if TYPE_CHECKING:
    from adpa_cli.signal.rows import AnswerKey, Floats, SignalRows, SignalSpec

    Captured = Sequence[tuple[AnswerKey, SignalRows]]

STEPS = (1 / 8, 1 / 16, 1 / 32, 1 / 64, 1 / 128, 1 / 256)
"""Those that `--precision auto=…` tries, coarsest first; then exact."""
SAMPLE_ANSWERS = 64


def fitting(signal: SignalSpec, paths: Sequence[Path], target: float) -> tuple[SignalSpec, dict[str, Any]]:
    """The signal with the coarsest step that meets a target, on answers spread over all blocks; what is said of it."""
    from adpa_cli.signal.block_files import load_block, narrowed

    sample: list[tuple[AnswerKey, SignalRows]] = []
    for path in (paths[n] for n in spread(len(paths), SAMPLE_ANSWERS)):
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
    import tempfile

    import numpy as np

    from adpa_cli.signal.shard import Shard, write_shard

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
