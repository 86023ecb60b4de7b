"""What a training did, for the page of its artifact: the terms of its loss side by side, its speed and its memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adpa_cli.report import text

SHOWN = ("final", "gradients", "entropy", "speed", "memory")
"""The metrics that are told here."""


def lines(metrics: Mapping[str, Any], width: int) -> list[str]:
    """Nothing for what is no training, or was trained by a version that kept less."""
    rows = (("terms", _terms(metrics)), ("speed", _speed(metrics)), ("memory", _memory(metrics)))
    return [line for label, items in rows if items for line in text.wrap(label, items, width, " · ")]


def _terms(metrics: Mapping[str, Any]) -> list[str]:
    """Each number of the last tenth of the steps; of a term also its gradient, of a part also the entropy."""
    final, gradients, entropy = (metrics.get(name, {}) for name in SHOWN[:3])
    items = [f"loss {text.number(final['loss'])}"] if "loss" in final else []
    for name, norm in gradients.items():
        items.append(f"{name} {text.number(final.get(name))}, ∇ {text.number(norm)}")
    rest = {name: value for name, value in final.items() if name not in ("loss", *gradients)}
    items += [f"{name} {text.number(value)}" for name, value in rest.items()]
    return items + [f"entropy/{part} {text.number(value)}" for part, value in entropy.items()]


def _speed(metrics: Mapping[str, Any]) -> list[str]:
    """Tokens a second and where the time and the work went."""
    found = metrics.get("speed", {})
    if "tokens_per_s" not in found:
        return []
    mfu = [f"{_share(found['mfu'])} of the device's peak"] if found.get("mfu") is not None else []
    return [
        f"{text.number(round(found['tokens_per_s']))} tokens/s", *mfu, f"{_share(found['wait'])} waiting for data",
        f"{_share(found['padding'])} padding", f"{text.human_time(found['seconds'])} in steps",
    ]  # fmt: skip


def _memory(metrics: Mapping[str, Any]) -> list[str]:
    """The most that a process took, beside what was expected."""
    found = metrics.get("memory", {})
    if not found.get("peak"):
        return []
    expected = [f"{text.human_size(found['estimate'])} expected"] if found.get("estimate") else []
    return [f"{text.human_size(found['peak'])} at most ({found['device']})", *expected]


def _share(value: float) -> str:
    return f"{100 * value:.1f} %"
