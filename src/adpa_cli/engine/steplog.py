"""The numbers of each training step, and how many tokens at a time it took when memory ran out."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from adpa_cli.store.disk import write_atomic

METRICS = "metrics.jsonl"
TOKENS = "tokens_per_device"
GRADIENT, ENTROPY, LENGTH = "grad_norm/", "entropy/", "length/"
SOMETIMES = (GRADIENT, ENTROPY)
ABOUT = ("step", "lr", "tokens", "padding", TOKENS)


@dataclass
class Budget:
    """Padded tokens of a micro-batch: as many as asked for, or fewer since memory ran out."""

    tokens: int
    asked: int

    def record(self) -> dict[str, float]:
        """What a step's line says of it: nothing, unless it differs from what was asked for."""
        return {} if self.tokens == self.asked else {TOKENS: self.tokens}


class StepLog:
    """metrics.jsonl: one line per step, cut back to the resume point when a run goes on."""

    def __init__(self, path: Path, done: int, writes: bool) -> None:
        self.path = path
        self.writes = writes
        lines = path.read_text().splitlines() if done and path.exists() else []
        self.rows: list[dict[str, float]] = [row for row in map(json.loads, lines) if row["step"] <= done]

    def add(self, row: dict[str, float]) -> None:
        self.rows.append(row)

    def flush(self) -> None:
        """Write every line so far, whole."""
        if self.writes:
            write_atomic(self.path, "".join(json.dumps(row) + "\n" for row in self.rows).encode())

    def budget(self, asked: int) -> Budget:
        """The tokens to go on with: a run that was cut down stays so, or its bytes would depend on where it resumed."""
        return Budget(min(asked, int(self.rows[-1].get(TOKENS, asked))) if self.rows else asked, asked)

    def summary(self, steps: int) -> dict[str, float]:
        """Mean of each number over the last tenth of the steps, and the tokens at a time if they had to be fewer.

        What is measured on some steps only is left out: see `measured`.
        """
        tail = [row for row in self.rows if row["step"] > steps - max(1, steps // 10)]
        if not tail:
            return {}
        names = [name for name in tail[0] if name not in ABOUT and not name.startswith(SOMETIMES)]
        means = {name: sum(row[name] for row in tail) / len(tail) for name in names}
        return {**means, **{name: value for name, value in tail[-1].items() if name == TOKENS}}

    def measured(self, prefix: str) -> dict[str, float]:
        """Mean of each number with this prefix, which is left out of its name, over the steps that have it."""
        names = dict.fromkeys(name for row in self.rows for name in row if name.startswith(prefix))
        found = {name: [row[name] for row in self.rows if name in row] for name in names}
        return {name.removeprefix(prefix): sum(values) / len(values) for name, values in found.items()}
