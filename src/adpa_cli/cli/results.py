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
    found = [(node, manifest.metrics["scores"]) for node in evals if (manifest := store.get(node.label))]
    if not found:
        return "nothing was measured"
    shown = [column for column in COLUMNS if any(column[0] in scores for _, scores in found)]
    rows = [("MODEL", *(title for _, title, _, _ in shown), "ID")]
    for node, scores in found:
        model = node.inputs["model"]
        cells = tuple(_cell(scores.get(key), scale, digits) for key, _, scale, digits in shown)
        name = node.what.removeprefix(f"{node.spec.suite} of ")
        rows.append((name, *cells, "" if isinstance(model, tuple) else model.label))
    size = max(score["n"] for _, scores in found for score in scores.values())
    widths = [max(map(text.width_of, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(text.pad(cell, width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    won = any(key == "win_rate" for key, *_ in shown)
    judged = "win rate against start in %, 50 = nothing gained" if won else "accuracy in %"
    return "\n".join([f"held-out prompts: {size}; {judged}; ± half of a 95 % interval", *map(str.rstrip, lines)])


def _cell(score: Any, scale: float, digits: int) -> str:
    if score is None:
        return ""
    half = (score["high"] - score["low"]) / 2 * scale
    return f"{score['value'] * scale:.{digits}f} ±{half:.{digits}f}"
