"""The table a distillation ends with: what each model scores on the held-out prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from adpa_cli.report import text
from adpa_cli.stages.graph import Node
from adpa_cli.store.store import Store

COLUMNS = (
    ("mean_reward", "MEAN REWARD", 1.0, 3),
    ("win_rate", "WIN RATE", 100.0, 1),
    ("reward_accuracy", "REWARD ACCURACY", 100.0, 1),
)


def results(store: Store, evals: Sequence[Node]) -> str:
    """One row per evaluated model, in the plan's order; ± is half of the 95 % interval."""
    rows: list[tuple[str, ...]] = []
    size = 0
    for node in evals:
        found = store.get(node.label)
        if found is None:
            continue
        scores = found.metrics["scores"]
        model = node.inputs["model"]
        size = max(score["n"] for score in scores.values())
        name = node.what.removeprefix(f"{node.spec.suite} of ")
        cells = tuple(_cell(scores.get(key), scale, digits) for key, _, scale, digits in COLUMNS)
        rows.append((name, *cells, "" if isinstance(model, tuple) else model.label))
    head = ("MODEL", *(title for _, title, _, _ in COLUMNS), "ID")
    widths = [max(text.width_of(row[i]) for row in (head, *rows)) for i in range(len(head))]
    lines = ["  ".join(text.pad(cell, width) for cell, width in zip(row, widths, strict=True)) for row in (head, *rows)]
    judged = "win rate against start, in %" if any(row[2] for row in rows) else "accuracy in %"
    return "\n".join([f"held-out prompts: {size}; {judged}; ± half of a 95 % interval", *map(str.rstrip, lines)])


def _cell(score: Any, scale: float, digits: int) -> str:
    if score is None:
        return ""
    half = (score["high"] - score["low"]) / 2 * scale
    return f"{score['value'] * scale:.{digits}f} ±{half:.{digits}f}"
