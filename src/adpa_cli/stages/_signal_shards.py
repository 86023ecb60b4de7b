"""The shards of a signal, each written once all of its blocks are there, and what is reported of their answers.

Several processes may leave blocks in one work folder. Whoever leaves the last block of a shard encodes it, and removes
its blocks: the sums over its answers are kept, so that nothing needs them any more.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adpa_cli.disk import write_json

if TYPE_CHECKING:
    from adpa_cli.signal.rows import AdvantageShape, AnswerKey, SignalRows, SignalSpec

    Captured = Sequence[tuple[AnswerKey, SignalRows]]

FEWEST_STEPS = 8  # below this the rounding of a stored difference is felt in the gradient


@dataclass
class Facts:
    """Sums over the answers of a signal, or of one shard of it, gathered block by block."""

    answers: int = 0
    tokens: int = 0
    mass: float = 0.0
    outside: int = 0
    squares: float = 0.0
    entropy: float = 0.0
    shape: AdvantageShape | None = None
    """Of a pair."""
    width: int = 0
    """Ids that a block has for each token."""
    most_ids: int = 1
    """Most ids that were drawn for one token."""

    def add(self, block: Captured) -> None:
        """Take in the answers of one block."""
        import numpy as np

        from adpa_cli.signal.rows import AdvantageShape, entropy, rms_advantage

        for _, rows in block:
            self.mass += float(np.exp(rows.logps).sum())
            there = rows.ids == rows.label_ids[:, None]
            self.outside += int((~(there if rows.weights is None else there & (rows.weights > 0)).any(1)).sum())
            self.tokens += len(rows)
            if rows.weights is None:
                self.entropy += float(entropy(rows).sum())
            else:
                self.most_ids = max(self.most_ids, int(np.count_nonzero(rows.weights, axis=1).max()))
        self.answers += len(block)
        self.width = int(block[0][1].ids.shape[1])
        if block[0][1].difference is not None:
            self.squares += rms_advantage(rows for _, rows in block) ** 2 * sum(len(rows) for _, rows in block)
            shape = AdvantageShape.of(rows for _, rows in block)
            self.shape = shape if self.shape is None else self.shape + shape

    def __add__(self, other: Facts) -> Facts:
        total = Facts(width=other.width, most_ids=max(self.most_ids, other.most_ids))
        for name in ("answers", "tokens", "mass", "outside", "squares", "entropy"):
            setattr(total, name, getattr(self, name) + getattr(other, name))
        total.shape = self.shape + other.shape if self.shape and other.shape else self.shape or other.shape
        return total

    def metrics(self, signal: SignalSpec, stage: str) -> dict[str, Any]:
        """Means per token; the size of the advantage against the step it is stored with, and a warning when coarse."""
        metrics: dict[str, Any] = {
            "answers": self.answers, "tokens": self.tokens, "k": signal.k, "mean_mass": self.mass / self.tokens,
            "taken_outside": self.outside / self.tokens, "step": signal.step, **signal.greatest_errors, "say": [],
        }  # fmt: skip
        if signal.draws:
            metrics |= {"draws": signal.draws, "say": [f"{signal.draws} draws per token, at most {signal.k} ids"]}
        else:
            metrics["teacher_entropy"] = self.entropy / self.tokens
        if self.shape is None:
            return metrics
        rms = metrics["rms_advantage"] = (self.squares / self.tokens) ** 0.5
        metrics["advantage"] = self.shape.shares()
        said = f"RMS of the advantage {rms:.3g} nat"
        if signal.difference_step:
            steps = metrics["rms_advantage_steps"] = rms / signal.difference_step
            said += f", {steps:.3g} times the storage resolution"
            if steps < FEWEST_STEPS:
                metrics["watch"] = [
                    f"the advantage is only {steps:.2g} times the storage resolution, so rounding matters; "
                    f"--set {stage}.pair_precision={signal.difference_step / 8:g}"
                ]
        metrics["say"].append(said)
        return metrics


def facts_of(folder: Path, shards: Sequence[Sequence[Path]]) -> Facts:
    """The sums over all shards, given the files of the blocks of each, which are there where a shard is not."""
    return sum((_facts(folder, number, blocks) for number, blocks in enumerate(shards)), Facts())


def encode(folder: Path, number: int, signal_of: Callable[[Facts], SignalSpec], blocks: Sequence[Path]) -> None:
    """Write one shard from its blocks, unless it is there, and remove them. `signal_of` is given the sums over it."""
    from adpa_cli.signal import block_files

    block_files.write(folder, number, signal_of(_facts(folder, number, blocks)), blocks)
    for path in blocks:
        path.unlink(missing_ok=True)


def encode_if_whole(
    folder: Path, number: int, signal_of: Callable[[Facts], SignalSpec], blocks: Sequence[Path]
) -> None:
    """The same where all blocks are there and no other process has taken the shard on.

    One that was taken on by a process that was killed waits for the end of the stage.
    """
    if all(path.exists() for path in blocks):
        try:
            (folder / f"_taken-{number:05d}").touch(exist_ok=False)
        except FileExistsError:
            return
        encode(folder, number, signal_of, blocks)


def _facts(folder: Path, number: int, blocks: Sequence[Path]) -> Facts:
    """The sums over one shard, which are kept."""
    from adpa_cli.signal.block_files import load_block
    from adpa_cli.signal.rows import AdvantageShape

    path = folder / f"_facts-{number:05d}.json"
    if path.exists():
        kept = json.loads(path.read_bytes())
        return Facts(**{**kept, "shape": kept["shape"] and AdvantageShape(**kept["shape"])})
    facts = Facts()
    for block in blocks:
        facts.add(load_block(block))
    write_json(path, asdict(facts))
    return facts
