"""How the numbers of a training moved: those of its steps, and what was measured of its points."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from adpa_cli.errors import UsageError
from adpa_cli.report.page import POINT_METRICS, curve_names, read_curves
from adpa_cli.report.scores import scores
from adpa_cli.store.manifest import Manifest
from adpa_cli.store.store import Store

STEP = "step"
HELD_OUT = "held-out "
"""What the names of numbers begin with that were measured on held-out data at the points of a training."""
USUAL = 4
"""Numbers that are drawn where none are asked for."""


@dataclass(frozen=True)
class Curve:
    """One number of a training: its values by step, and the bounds of their intervals where these are known."""

    steps: Sequence[float]
    values: Sequence[float]
    bounds: Sequence[tuple[float, float]] = ()

    def averaged(self, most: int) -> Curve:
        """The same curve with at most `most` points, each the mean of its neighbours."""
        count = len(self.values)
        if count <= most:
            return self
        parts = [slice(count * i // most, count * (i + 1) // most) for i in range(most)]
        return Curve([_mean(self.steps[part]) for part in parts], [_mean(self.values[part]) for part in parts])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def curves_of(store: Store, manifest: Manifest, artifacts: Iterable[Manifest] = ()) -> dict[str, Curve]:
    """Every number of a training by name, the most telling first; `artifacts` are searched for evaluations of its
    points. Empty for what is no training."""
    columns = read_curves(store.folder(manifest.ref))
    steps = columns.get(STEP, [])
    found: dict[str, Curve] = {}
    for name in curve_names(columns):
        pairs = [(x, y) for x, y in zip(steps, columns[name], strict=False) if x is not None and y is not None]
        if pairs:
            found[name] = Curve([x for x, _ in pairs], [y for _, y in pairs])
    return found | _of_points(manifest) | _of_evaluated(manifest, artifacts)


def _of_points(manifest: Manifest) -> dict[str, Curve]:
    """What the points of a training were selected by."""
    points = manifest.metrics.get("selection", {}).get("points", ())
    found = {}
    for name in POINT_METRICS:
        pairs = [(float(point[STEP]), float(point[name])) for point in points if _is_number(point.get(name))]
        if pairs:
            found[HELD_OUT + name] = Curve([x for x, _ in pairs], [y for _, y in pairs])
    return found


def _of_evaluated(manifest: Manifest, artifacts: Iterable[Manifest]) -> dict[str, Curve]:
    """The scores of the kept points that were evaluated as models of their own, each metric from its newest suite."""
    measured: dict[str, dict[float, tuple[float, float, float]]] = {}
    for other in sorted(artifacts, key=lambda one: one.at):
        facts = other.sources.get(str(other.inputs.get("model")), {})
        _, mark, step = str(facts.get("name", "")).rpartition("@")
        if facts.get("point_of") != manifest.ref or not mark or not step.isdigit():
            continue
        for score in scores(other):
            low, high = (score.value if end is None else end for end in (score.low, score.high))
            name = HELD_OUT + score.metric.replace("_", " ")
            measured.setdefault(name, {})[float(step)] = (score.value, low, high)
    return {
        name: Curve(sorted(by), [by[step][0] for step in sorted(by)], [by[step][1:] for step in sorted(by)])
        for name, by in measured.items()
    }


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def names_in(trainings: Sequence[Mapping[str, Curve]], asked: str = "") -> list[str]:
    """The numbers to draw of some trainings: those `asked` for (`loss,reward`; the part before a slash stands for all
    with it, `all` for every one), else the most telling ones that change.

    Raises UsageError that lists what there is.
    """
    every = list(dict.fromkeys(name for curves in trainings for name in curves))
    if not every:
        raise UsageError("there is nothing to plot: no numbers of steps are kept", "plot a training: adpa show")
    if asked == "all":
        return every
    if not asked:
        varied = [name for name in every if any(len(set(c[name].values)) > 1 for c in trainings if name in c)]
        return [*varied[:USUAL], *(name for name in varied[USUAL:] if name.startswith(HELD_OUT))] or every[:1]
    chosen: dict[str, None] = {}
    for word in asked.split(","):
        alike = [name for name in every if word in (name, name.partition("/")[0], name.removeprefix(HELD_OUT))]
        if not alike:
            raise UsageError(f"--plot {word}: there is no such number", f"choose from {', '.join(every)}, or all")
        chosen |= dict.fromkeys(alike)
    return list(chosen)
