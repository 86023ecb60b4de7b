"""What a training logged and measured: curves of its steps, its terms, speed, memory, and the points to select from."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adpa_cli.report import text

FILE_NAME = "metrics.jsonl"
METRICS = ("final", "gradients", "entropy", "speed", "memory", "selection")
"""The metrics of a manifest that the lines of this file show."""
_NOT_CURVES = {"step", "epoch", "lr", "seconds", "time", "at", "tokens", "of", "rows", "tokens_per_device", "padding"}
_FIRST = ("loss", "advantage", "entropy", "length")
_LAST = "grad_norm"
_OF_POINTS = ("reward", "accuracy", "margin", "nll")

Curves = Mapping[str, Sequence[float | None]]


def read_curves(folder: Path) -> dict[str, list[float | None]]:
    """Every number of every step by name, None where a step has none; empty without the file.

    Lines that are no JSON object (a file cut off by a crash) are skipped.
    """
    try:
        lines = (folder / FILE_NAME).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    steps = []
    for line in lines:
        with contextlib.suppress(ValueError):
            if isinstance(step := json.loads(line), dict):
                steps.append({name: value for name, value in text.flat(step).items() if isinstance(value, int | float)})
    names = dict.fromkeys(name for step in steps for name, value in step.items() if not isinstance(value, bool))
    return {name: [float(step[name]) if name in step else None for step in steps] for name in names}


def curve_lines(curves: Curves, width: int, count: int = 4) -> list[str]:
    """`name  first curve last`: the loss first, then up to `count` - 1 other numbers that change."""
    names = [name for name in curves if name not in _NOT_CURVES and name.rpartition(".")[2] not in _NOT_CURVES]
    names.sort(key=_place)
    varied = [name for name in names if name == "loss" or len(set(curves[name]) - {None}) > 1]
    items = [f"{name} {_curve(curves[name])}" for name in varied[:count]]
    return text.wrap("curves", items, width, "    ") if items else []


def _place(name: str) -> int:
    begin = name.partition("/")[0]
    return _FIRST.index(begin) if begin in _FIRST else len(_FIRST) + begin.startswith(_LAST)


def _curve(every: Sequence[float | None]) -> str:
    values = [value for value in every if value is not None]  # some are measured on some steps only
    tenth = max(1, len(values) // 10)
    first, last = text.mean(values[:tenth]), text.mean(values[-tenth:])
    return f"{text.number(first)} {text.sparkline(values)} {text.number(last)}"


def training_lines(metrics: Mapping[str, Any], width: int) -> list[str]:
    """Nothing for what is no training, or was trained by a version that kept less."""
    rows = (("terms", _terms(metrics)), ("speed", _speed(metrics)), ("memory", _memory(metrics)))
    return [line for label, items in rows if items for line in text.wrap(label, items, width, " · ")]


def _terms(metrics: Mapping[str, Any]) -> list[str]:
    """Each number of the last tenth of the steps; of a term also its gradient, of a part also the entropy."""
    final, gradients, entropy = (metrics.get(name, {}) for name in METRICS[:3])
    items = [f"loss {text.number(final['loss'])}"] if "loss" in final else []
    items += [f"{name} {text.number(final.get(name))}, ∇ {text.number(norm)}" for name, norm in gradients.items()]
    rest = {name: value for name, value in final.items() if name not in ("loss", *gradients)}
    items += [f"{name} {text.number(value)}" for name, value in rest.items()]
    return items + [f"entropy/{part} {text.number(value)}" for part, value in entropy.items()]


def _speed(metrics: Mapping[str, Any]) -> list[str]:
    """Tokens a second and where the time and the work went."""
    speed = metrics.get("speed", {})
    if "tokens_per_s" not in speed:
        return []
    mfu = [f"{_percent(speed['mfu'])} of the device's peak"] if speed.get("mfu") is not None else []
    return [
        f"{text.number(round(speed['tokens_per_s']))} tokens/s", *mfu, f"{_percent(speed['wait'])} waiting for data",
        f"{_percent(speed['padding'])} padding", f"{text.human_time(speed['seconds'])} in steps",
    ]  # fmt: skip


def _memory(metrics: Mapping[str, Any]) -> list[str]:
    """The most that a process took, beside what was expected."""
    memory = metrics.get("memory", {})
    if not memory.get("peak"):
        return []
    expected = [f"{text.human_size(memory['estimate'])} expected"] if memory.get("estimate") else []
    return [f"{text.human_size(memory['peak'])} at most ({memory['device']})", *expected]


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def selection_lines(metrics: Mapping[str, Any], width: int) -> list[str]:
    """Whose weights were selected, and what was measured at each point of the training."""
    selection = metrics.get("selection")
    if not selection:
        return []
    items = [f"step {selection['step']} ({selection['rule']})"]
    for point in selection["points"]:
        numbers = [f"{name} {text.number(value)}" for name, value in point.items() if name in _OF_POINTS]
        items.append(" ".join([f"{point['step']}:", *numbers]) if numbers else f"step-{point['step']:06d}")
    return text.wrap("selected", items, width, " · ")
