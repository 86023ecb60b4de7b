"""What the recipes of this folder measured, as a store has it: the models of each row, and differences between rows."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from adpa_cli.cli.recipes.closing import measured_lines
from adpa_cli.cli.recipes.grid import read_recipe, request_of, requests
from adpa_cli.cli.recipes.sweep import plan_cells
from adpa_cli.report.differences import rows_of
from adpa_cli.report.evaluation import entries
from adpa_cli.report.scores import REWARD
from adpa_cli.statistics import crossed_bootstrap, holm, sign_flip_p
from adpa_cli.store.store import Store

SAMPLED, GREEDY = "sampled", "greedy"
LEVEL = 0.05


@dataclass
class Model:
    """What was measured of one line of a table: a row, at one seed and one point of its settings."""

    row: str
    seed: str
    point: str
    ref: str
    chosen: dict[str, str]
    scores: dict[tuple[str, str], float] = field(default_factory=dict)
    """By metric and decoding."""
    prompts: dict[str, dict[str, float]] = field(default_factory=dict)
    """By decoding, the reward of each answer by its prompt."""


Group = dict[str, Model]
"""The models of one row and point by their seeds."""
Mean = tuple[float, float]
"""Mean and standard deviation over the seeds."""


@dataclass(frozen=True)
class Gap:
    """By how much one row exceeds another, paired by seed and prompt."""

    worse: str
    better: str
    value: float
    low: float
    high: float
    seeds: int
    of: int
    p: float

    @property
    def verdict(self) -> str:
        """`<` where the second is better, `>` where the first one is, `≈` where that is not decided."""
        if self.p >= LEVEL or self.low <= 0 <= self.high:
            return "≈"
        return "<" if self.value > 0 else ">"


class Measured:
    """The closing table of a recipe, as the store has it."""

    def __init__(self, path: Path, store: Store) -> None:
        """Read a recipe; the table is empty unless every line of it was measured."""
        recipe = read_recipe(str(path))
        steps, _ = plan_cells(recipe, requests(recipe), lambda words: request_of(recipe, words), store, (1, 1))

        def found(words: Sequence[str]) -> Any:
            plan = request_of(recipe, words).plan(store)
            nodes = (*plan.targets, *plan.evals)
            return entries(store, nodes) if all(store.get(node.label) for node in nodes) else None

        table = measured_lines(recipe, steps, store, found, {})
        self.store = store
        self.lines, self.missing = len(table), sum(not line.scores or bool(line.note) for line in table)
        self.groups: dict[tuple[str, str], Group] = {}
        seeds = next((key for key in ("seed-all", "seed") if key in recipe.values), "seed")
        for line in () if self.missing else table:
            settings = dict(line.settings)
            row, seed = settings.pop("row", ""), settings.pop(seeds, "0")
            chosen = {key: settings.pop(key) for key in recipe.choose if key in settings}
            point = ", ".join(settings.values())
            model = Model(row, seed, point, line.ref, chosen)
            for score in line.scores:
                decoding = self._decoding(score.ref)
                model.scores[score.metric, decoding] = score.value
                if score.metric == REWARD:
                    model.prompts[decoding] = dict(rows_of(store.folder(score.ref), REWARD).numbers)
            self.groups.setdefault((row, point), {})[seed] = model

    @property
    def by_row(self) -> dict[str, Group]:
        """The models by row, where each row has one point."""
        return {row: group for (row, _), group in self.groups.items()}

    def _decoding(self, evaluation: str) -> str:
        """How the answers of an evaluation were drawn; "" where it reads none."""
        made = self.store.get(evaluation)
        content = made.inputs.get("rollouts") if made else None
        rollouts = self.store.get(content) if isinstance(content, str) else None
        return "" if rollouts is None else SAMPLED if rollouts.spec["temperature"] else GREEDY

    def mean(self, group: Group, metric: str, decoding: str = "") -> Mean | None:
        """Mean and standard deviation over the seeds."""
        values = [m.scores[metric, decoding] for m in group.values() if (metric, decoding) in m.scores]
        return (statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0) if values else None

    def words(self, group: Group, metric: str, decoding: str = "", scale: float = 1.0) -> str:
        """0.812 ± 0.004, or nothing."""
        found, digits = self.mean(group, metric, decoding), 3 if scale == 1 else 1
        return "" if found is None else f"{found[0] * scale:.{digits}f} ± {found[1] * scale:.{digits}f}"

    def signal(self, group: Group) -> dict[str, float]:
        """The facts of the signal that a row was trained on, and of its training: means over the seeds."""
        found: dict[str, list[float]] = {}
        for model in group.values():
            made = self.store.get(model.ref)
            if made is None:
                continue
            entropy = made.metrics.get("entropy", {}).get("rollout")
            facts = {"student entropy": entropy, "γ × RMS": made.metrics.get("gamma_rms")}
            caches = made.inputs.get("cache", [])
            for content in [caches] if isinstance(caches, str) else caches:
                signal = self.store.get(content)
                if signal is None or "rms_advantage" not in signal.metrics:
                    continue
                shape = signal.metrics.get("advantage", {})
                facts |= {
                    "RMS(A)": signal.metrics["rms_advantage"], "A < 0": shape.get("negative"),
                    "RMS(A) clamped": shape.get("clamped_rms"),
                    "teacher entropy": signal.metrics.get("teacher_entropy"),
                    "noise of A": signal.metrics.get("noise", {}).get("advantage", {}).get("error"),
                }  # fmt: skip
            for name, value in facts.items():
                if value is not None:
                    found.setdefault(name, []).append(float(value))
        return {name: statistics.fmean(values) for name, values in found.items()}


def differences(groups: dict[str, Group], pairs: Sequence[tuple[str, str]], decoding: str) -> list[Gap]:
    """Better minus worse for each pair of rows that are there, on the seeds and prompts of both; Holm over all."""
    found = []
    for worse, better in pairs:
        if worse not in groups or better not in groups:
            continue
        seeds = [seed for seed in groups[worse] if seed in groups[better]]
        tables = [[groups[row][seed].prompts.get(decoding, {}) for seed in seeds] for row in (better, worse)]
        prompts = sorted(set.intersection(*(set(each) for own in tables for each in own))) if seeds else []
        if not prompts:
            continue
        ours, theirs = (np.array([[each[prompt] for prompt in prompts] for each in own]) for own in tables)
        gap = ours - theirs
        mean, by_seed = crossed_bootstrap(gap), gap.mean(1)
        p = sign_flip_p(gap.ravel(), prompts * len(seeds))
        alike = int((by_seed * mean["value"] > 0).sum())
        found.append(Gap(worse, better, mean["value"], mean["low"], mean["high"], alike, len(seeds), p))
    corrected = holm([gap.p for gap in found])
    return [replace(gap, p=p) for gap, p in zip(found, corrected, strict=True)]
