"""What the recipes of this folder measured, as a store has it: the models of each row, and differences between rows."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from adpa_cli.cli.recipes.closing import measured_lines
from adpa_cli.cli.recipes.grid import AGAINST, Recipe, read_recipe, request_of, requests
from adpa_cli.cli.recipes.sweep import plan_cells
from adpa_cli.report.differences import rows_of
from adpa_cli.report.evaluation import entries
from adpa_cli.report.scores import REWARD
from adpa_cli.statistics import crossed_interval, holm, sign_flip_p
from adpa_cli.store.store import Store

SAMPLED, GREEDY = "sampled", "greedy"
LEVEL = 0.05
LESS, MORE, UNDECIDED = "<", ">", "?"
RMS, NOISE, NEGATIVE, CLAMPED_RMS = "RMS(A)", "noise of A", "share of A < 0", "RMS(A) after clamping"
PULL, TEACHER, STUDENT = "γ × RMS(A)", "teacher entropy", "student entropy"
FACTS = (RMS, NOISE, NEGATIVE, CLAMPED_RMS, PULL, TEACHER, STUDENT)
"""What is measured of a signal and the training on it."""


@dataclass
class Model:
    """What was measured of one line of a table: a row, at one seed and one point of its settings."""

    ref: str
    chosen: dict[str, str]
    """The values that were chosen, with an arrow at the greatest or least that was tried."""
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
    """The second row less the first, paired by seed and prompt: the mean, the ends of its 95 % interval, on how many
    of the seeds it has this sign, and the corrected p."""

    first: str
    second: str
    value: float
    low: float
    high: float
    seeds: int
    of: int
    p: float

    @property
    def sign(self) -> str:
        """LESS where the second row is better, MORE where the first one is, or UNDECIDED."""
        if self.p >= LEVEL or self.low <= 0 <= self.high:
            return UNDECIDED
        return LESS if self.value > 0 else MORE


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
        self.against = str((recipe.report or {}).get(AGAINST, ""))
        """The row with whose answers those of the others are compared."""
        self.lines, self.missing = len(table), sum(not line.scores or bool(line.note) for line in table)
        self.groups: dict[tuple[str, str], Group] = {}
        seeds = next((key for key in ("seed-all", "seed") if key in recipe.values), "seed")
        for line in () if self.missing else table:
            settings = dict(line.settings)
            row, seed = settings.pop("row", ""), settings.pop(seeds, "0")
            values = {key: settings.pop(key) for key in recipe.choose if key in settings}
            chosen = {key: short(value) + _arrow(recipe, row, key, value) for key, value in values.items()}
            point = ", ".join(short(value) for value in settings.values())
            model = Model(line.ref, chosen)
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

    def words(self, group: Group, metric: str, decoding: str = "", scale: float = 1.0, digits: int = 3) -> str:
        """0.812 ± 0.004, or nothing."""
        found = self.mean(group, metric, decoding)
        return "" if found is None else f"{found[0] * scale:.{digits}f} ± {found[1] * scale:.{digits}f}"

    def signal(self, group: Group) -> dict[str, float]:
        """The facts of the signal that a row was trained on, and of its training: means over the seeds.

        A training that reads several signals is described by the one with an advantage.
        """
        found: dict[str, list[float]] = {}
        for model in group.values():
            made = self.store.get(model.ref)
            if made is None:
                continue
            entropy = made.metrics.get("entropy", {}).get("rollout")
            facts = {STUDENT: entropy, PULL: made.metrics.get("gamma_rms")}
            caches = made.inputs.get("cache", [])
            for content in [caches] if isinstance(caches, str) else caches:
                signal = self.store.get(content)
                if signal is None or "rms_advantage" not in signal.metrics:
                    continue
                shape = signal.metrics.get("advantage", {})
                facts |= {
                    RMS: signal.metrics["rms_advantage"], NEGATIVE: shape.get("negative"),
                    CLAMPED_RMS: shape.get("clamped_rms"), TEACHER: signal.metrics.get("teacher_entropy"),
                    NOISE: signal.metrics.get("noise", {}).get("advantage", {}).get("error"),
                }  # fmt: skip
            for name, value in facts.items():
                if value is not None:
                    found.setdefault(name, []).append(float(value))
        return {name: statistics.fmean(values) for name, values in found.items()}


def short(text: str) -> str:
    """A number as the recipes write it: 4e-3 and 5e-6, but 0.25; any other text as it is."""
    try:
        number = float(text)
    except ValueError:
        return text
    if number == 0 or abs(number) >= 0.01:
        return f"{number:g}"
    mantissa, _, exponent = f"{number:.3e}".partition("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def _arrow(recipe: Recipe, row: str, key: str, value: str) -> str:
    """Where a chosen value is the greatest or the least of those that were tried for a row."""
    tried = next((each for each in recipe.rows if each.is_tried and each.name == f"{row} (tried)"), None)
    grid = {**recipe.values, **tried.values}.get(key) if tried else None
    if not isinstance(grid, list) or not all(isinstance(each, int | float) for each in grid):
        return ""
    return {max(grid): " ↑", min(grid): " ↓"}.get(float(value), "")


def differences(groups: dict[str, Group], pairs: Sequence[tuple[str, str]], decoding: str) -> list[Gap]:
    """The difference of each pair of rows that are there, on the seeds and prompts of both; p corrected over all."""
    found = []
    for first, second in pairs:
        if first not in groups or second not in groups:
            continue
        seeds = [seed for seed in groups[first] if seed in groups[second]]
        tables = [[groups[row][seed].prompts.get(decoding, {}) for seed in seeds] for row in (second, first)]
        prompts = sorted(set.intersection(*(set(each) for own in tables for each in own))) if seeds else []
        if not prompts:
            continue
        ours, theirs = (np.array([[each[prompt] for prompt in prompts] for each in own]) for own in tables)
        gap = ours - theirs
        mean, low, high = crossed_interval(gap)
        alike = int((gap.mean(1) * mean > 0).sum())
        p = sign_flip_p(gap.ravel(), prompts * len(seeds))
        found.append(Gap(first, second, mean, low, high, alike, len(seeds), p))
    return [replace(gap, p=p) for gap, p in zip(found, holm([gap.p for gap in found]), strict=True)]
