"""Figures of trainings and of sweeps: curves, scores along a training, and scores by a setting."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from adpa_cli.report.curves import HELD_OUT, Curve, names_in
from adpa_cli.report.html.figures import COLOURS, Figure, Series, lines
from adpa_cli.report.html.measured import FIRST, Compared, Model, setting_words
from adpa_cli.report.scores import SEEDS, Column, Score

POINTS = 80
"""Of a curve; each is the mean of the steps around it."""
MOST, FEW = 12, 12
"""Numbers whose curves are drawn, and steps up to which every point is."""
LEAST_VALUES, WIDE = 3, 10
"""Values of a setting that make a curve, and how many times the least the greatest is where the axis is logarithmic."""


def training_curves(found: Compared) -> list[Figure]:
    """The numbers of the steps, a figure each with a line for every model."""
    models = [model for model in found.asked if found.curves.get(model.ref)]
    if not models:
        return []
    every = names_in([found.curves[model.ref] for model in models], "all")
    names = [name for name in every if not name.startswith(("grad_norm/", HELD_OUT))][:MOST]
    groups = grouped(found, models)
    drawn = []
    for name in names:
        own = [model for model in models if name in found.curves[model.ref]]
        span = [step for model in own for step in found.curves[model.ref][name].steps]
        series = []
        for model in own:
            curve = binned(found.curves[model.ref][name], min(span), max(span))
            label, colour = groups[model.ref]
            series.append(Series(label, curve.steps, curve.values, curve.bounds, colour, model.name))
        if max(len(each.xs) for each in series) < 2:
            continue
        stem = name.replace("/", "-").replace(" ", "-")
        drawn.append(lines(f"curve-{stem}", name, series, "step", name, marks=len(set(span)) <= FEW))
    return drawn


def binned(curve: Curve, first: float, last: float) -> Curve:
    """A curve on at most POINTS steps that are the same for every curve from `first` to `last`."""
    if len(curve.steps) <= POINTS or last <= first:
        return curve
    steps, values = np.array(curve.steps), np.array(curve.values)
    parts = np.minimum(((steps - first) / (last - first) * POINTS).astype(int), POINTS - 1)
    known = np.isfinite(values)
    counts = np.bincount(parts[known], minlength=POINTS)
    sums = np.bincount(parts[known], values[known], POINTS)
    kept = np.flatnonzero(counts)
    centres = [float(round(first + (part + 0.5) * (last - first) / POINTS)) for part in kept]
    return Curve(centres, [float(value) for value in sums[kept] / counts[kept]])


def grouped(found: Compared, models: Sequence[Model]) -> dict[str, tuple[str, int]]:
    """(label, colour) of each model by its ref: its own where there are few, else that of the first setting that
    divides them into few groups."""
    asked = [model for model in models if not model.role]
    own = {model.ref: (model.name, n) for n, model in enumerate(models)}
    if len(models) <= len(COLOURS):
        return own
    for key in found.keys:
        values = list(dict.fromkeys(model.settings.get(key, "–") for model in asked))
        if 1 < len(values) <= len(COLOURS) - 2 and key not in SEEDS:
            groups = {m.ref: m.settings.get(key, "–") for m in asked}
            around = {m.ref: (m.name, len(values) + n) for n, m in enumerate(m for m in models if m.role)}
            divided = {ref: (setting_words({key: value}), values.index(value)) for ref, value in groups.items()}
            return divided | around
    return own


def along_training(found: Compared) -> list[Figure]:
    """Scores of the points of trainings, as figure 4 of the paper has them, by the passes over the data."""
    drawn = []
    names = dict.fromkeys(n for model in found.asked for n in found.curves.get(model.ref, {}) if n.startswith(HELD_OUT))
    told = [HELD_OUT + metric.replace("_", " ") for metric in FIRST]
    for name in sorted(names, key=lambda name: told.index(name) if name in told else len(told)):
        series = []
        for n, model in enumerate(found.asked):
            curve = found.curves.get(model.ref, {}).get(name)
            if curve is not None and len(curve.steps) > 1:
                epochs = _epochs(found, model)
                xs = [step * epochs for step in curve.steps]
                series.append(Series(model.name, xs, curve.values, curve.bounds, n))
        if series:
            title = name.removeprefix(HELD_OUT)
            across = "epoch" if all(_epochs(found, model) != 1 for model in found.asked) else "step"
            drawn.append(lines(f"along-{title.replace(' ', '-')}", f"{title} along the training", series, across,
                               title, caption="Of the kept points, as figure 4 of the paper.", marks=True))  # fmt: skip
    return drawn


def _epochs(found: Compared, model: Model) -> float:
    """Passes over the data in one step; 1 where that is not known."""
    epochs, points = model.manifest.spec.get("epochs"), found.curves[model.ref].get("loss")
    if not epochs or points is None or model.manifest.spec.get("max_steps"):
        return 1.0
    return float(epochs) / max(points.steps)


def by_setting(found: Compared) -> list[Figure]:
    """Scores by each setting that has several values, as figure 5 of the paper has them."""
    drawn = []
    for key in found.keys:
        values = {number for model in found.asked if (number := _value(model, key)) is not None}
        if key in SEEDS or len(values) < LEAST_VALUES:
            continue
        is_log = min(values) > 0 and max(values) / min(values) >= WIDE
        for kind in found.merits[:MOST]:
            name, series = found.columns[kind], _by_others(found, key, kind)
            if series:
                is_share = any(m.scores[kind].is_share for m in found.asked if kind in m.scores)
                drawn.append(
                    lines(f"by-{key}-{name}".replace(" ", "-").replace("/", "-"), f"{name} by {key}", series,
                          f"{key} {_symbol(key)}".strip(), f"{name} [%]" if is_share else name, marks=True, log=is_log,
                          caption="Bands: 95 % interval of one model, or the standard deviation over seeds.")
                )  # fmt: skip
    return drawn


def _symbol(key: str) -> str:
    return {"alpha": "α", "beta": "β", "gamma": "γ"}.get(key, "")


def _value(model: Model, key: str) -> float | None:
    try:
        value = float(model.settings.get(key, "").replace(",", ""))
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _by_others(found: Compared, key: str, kind: Column) -> list[Series]:
    """A line for each combination of the other settings, seeds taken together."""
    groups: dict[str, dict[float, list[Score]]] = {}
    for model in found.asked:
        value = _value(model, key)
        if value is not None and kind in model.scores:
            others = {k: v for k, v in model.settings.items() if k != key and k not in SEEDS}
            groups.setdefault(setting_words(others), {}).setdefault(value, []).append(model.scores[kind])
    series = []
    for n, (label, by_value) in enumerate(groups.items()):
        if len(by_value) > 1:
            xs = sorted(by_value)
            scale = 100 if by_value[xs[0]][0].is_share else 1
            means = [scale * float(np.mean([score.value for score in by_value[x]])) for x in xs]
            bounds = [ends for x in xs if (ends := _bounds(by_value[x], scale)) is not None]
            series.append(Series(label or key, xs, means, bounds if len(bounds) == len(xs) else (), n))
    return series


def _bounds(scores: Sequence[Score], scale: float) -> tuple[float, float] | None:
    if len(scores) > 1:
        values = scale * np.array([score.value for score in scores])
        return float(values.mean() - values.std(ddof=1)), float(values.mean() + values.std(ddof=1))
    (score,) = scores
    return None if score.low is None or score.high is None else (scale * score.low, scale * score.high)
