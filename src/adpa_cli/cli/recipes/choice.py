"""The cells of a grid with their plans, and which of them is chosen: the best by the prompts that select.

Gao et al. 2025 choose the setting and the checkpoint by one score (section 4.1). A training that selects its best point
has that score in its manifest, so that nothing is measured again to choose among cells.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from adpa_cli.cli.console.options import Request
from adpa_cli.cli.recipes.grid import Cell, Recipe, as_text, settled
from adpa_cli.errors import UsageError
from adpa_cli.planning.planner import Plan
from adpa_cli.report.scores import ACCURACY, REWARD, scores
from adpa_cli.stages import Node
from adpa_cli.store.manifest import Manifest
from adpa_cli.store.store import Store

Ask = Callable[[Sequence[str]], Request]
"""What a command line of the recipe asks for."""
ROW, NO_EVAL, TAG = "row", "no-eval", "tag"


@dataclass(frozen=True)
class Step:
    """One cell with its plan; `number` is its place in the grid, from 1."""

    number: int
    cell: Cell
    request: Request
    plan: Plan

    @property
    def settings(self) -> dict[str, str]:
        """The same as text."""
        return {key: as_text(value) for key, value in self.shown.items()}

    @property
    def shown(self) -> dict[str, Any]:
        """Its row, and every key of the recipe with its value here."""
        row = {ROW: self.cell.row.name} if self.cell.row.name else {}
        return row | {key: value for key, value in self.cell.settings.items() if key != NO_EVAL}

    @property
    def identity(self) -> tuple[str, ...]:
        """What tells two cells apart: their rows, and the ids of what they make and measure."""
        made = (node.recipe.id for node in (*self.plan.targets, *self.plan.evals))
        return (self.cell.row.name, *self.cell.follows.values(), *made)

    @property
    def target(self) -> Node:
        """What it makes."""
        return self.plan.targets[0]


def check_choices(recipe: Recipe, steps: Sequence[Step]) -> None:
    """Raise UsageError where a recipe chooses a key that no cell has, or among trainings without a score, or measures
    points that are not kept."""
    held = list(dict.fromkeys(key for step in steps for key in step.settings))
    if unknown := [key for key in recipe.choose if key not in held]:
        raise recipe.refused(
            "choose",
            f"no combination has a key {', '.join(unknown)}",
            f"choose by one of these keys: {', '.join(held)}",
        )
    for candidates in lines([step for step in steps if not step.cell.row.is_tried], recipe.choose).values():
        if len(candidates) > 1 and any(step.target.spec.select != "best" for step in candidates):
            varying = ", ".join(recipe.choose)
            problem = f"{varying} cannot be chosen among trainings that select no checkpoint"
            raise recipe.refused("choose", problem, 'add select = "best", which scores each on the selection prompts')
    if recipe.points and any(step.target.spec.keep != "all" for step in steps):
        raise recipe.refused("points", "the checkpoints to measure are not kept by every training", 'add keep = "all"')


def lines(steps: Sequence[Step], choose: Sequence[str]) -> dict[tuple[Any, ...], list[Step]]:
    """The steps of each line of the closing table: those of one row that differ in what is chosen only."""
    found: dict[tuple[Any, ...], list[Step]] = {}
    for step in steps:
        kept = (item for item in step.settings.items() if item[0] not in (*choose, TAG))
        found.setdefault(tuple(kept), []).append(step)
    return found


def best_of(candidates: Sequence[Step], store: Store) -> Step | None:
    """The best of some cells by the prompts that select, the first of equals; None while one of several is not made."""
    from adpa_cli.engine.training.schedule import rank

    if len(candidates) == 1:
        return candidates[0]
    made = [store.get(step.target.label) for step in candidates]
    ranks = [rank(selected_point(manifest)) for manifest in made if manifest is not None]
    return candidates[ranks.index(max(ranks))] if len(ranks) == len(candidates) else None


def best_tried(candidates: Sequence[Step], choose: Sequence[str], store: Store) -> Step | None:
    """A step with the values that are best on the prompts that select, by the mean over what else differs, such as
    seeds; the first of equals. None while one of several is not measured.

    The trainings select nothing, so each is judged by its evaluation: by the mean reward, else the reward accuracy.
    """
    found: dict[tuple[str, ...], list[float]] = {}
    first: dict[tuple[str, ...], Step] = {}
    for step in candidates:
        score = _tried_score(step, store)
        if score is None:
            return None
        key = tuple(step.settings.get(name, "") for name in choose)
        found.setdefault(key, []).append(score)
        first.setdefault(key, step)
    return first[max(found, key=lambda key: statistics.fmean(found[key]))] if found else None


def _tried_score(step: Step, store: Store) -> float | None:
    """What the evaluation of a tried training says of it; None while there is none."""
    nodes = [node for node in step.plan.evals if node.inputs.get("model") == step.target]
    made = [manifest for node in nodes if (manifest := store.get(node.label)) is not None]
    numbers = {score.metric: score.value for manifest in made for score in scores(manifest)}
    return next((numbers[metric] for metric in (REWARD, ACCURACY) if metric in numbers), None)


def selected_point(manifest: Manifest) -> Mapping[str, Any]:
    """What was measured of the point whose weights an artifact has."""
    selection = manifest.metrics["selection"]
    point: Mapping[str, Any] = next(point for point in selection["points"] if point["step"] == selection["step"])
    return point


def are_alike(one: Mapping[str, str], other: Mapping[str, str]) -> bool:
    """Whether two cells have the same values of the settings that both have."""
    return all(one[key] == other[key] for key in one.keys() & other.keys())


def following(step: Step, steps: Sequence[Step], recipe: Recipe, ask: Ask, store: Store) -> Step | None:
    """A step with the values that were chosen in the rows which it follows; None while one of these is not chosen.

    Raises UsageError for a row that has several lines beside it.
    """
    values: dict[str, Any] = {}
    for key, name in step.cell.follows.items():
        beside = [s for s in steps if s.cell.row.name == name and are_alike(s.cell.shared, step.cell.shared)]
        tried = [s for s in beside if s.cell.row.is_tried]
        found = lines(beside, (*recipe.choose, *(recipe.tuning if tried else ())))
        if len(found) != 1:
            problem = f"it takes the value that the row {name} chose, but that row has {len(found)} lines in the table"
            raise recipe.refused(
                key, problem, 'name a row of one line, or let its best line be chosen: choose = ["KEY"]'
            )
        candidates = next(iter(found.values()))
        best = best_tried(candidates, recipe.choose, store) if tried else best_of(candidates, store)
        if best is None:
            return None
        values[key] = best.cell.settings[key]
    return planned(replace(step, cell=settled(recipe, step.cell, values)), ask, store) if values else step


def planned(step: Step, ask: Ask, store: Store) -> Step:
    """A step whose cell has changed, with the request and the plan of that cell."""
    request = ask(step.cell.words)
    return replace(step, request=request, plan=request.plan(store))


def check_one_tag(steps: Sequence[Step], varying: Sequence[str]) -> None:
    """Raise UsageError for two cells that would carry one tag."""
    tags: dict[str, Step] = {}
    for step in steps:
        tag = step.request.options.tag
        if tag and tags.setdefault(tag, step) is not step:
            example = "-".join(f"{{{key}}}" for key in varying if key not in (TAG, ROW))
            raise UsageError(
                f"several combinations would get the tag {tag}", f'give each its own: tag = "{tag}-{example}"'
            )
