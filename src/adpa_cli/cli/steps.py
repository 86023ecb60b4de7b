"""The cells of a grid with their plans."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from adpa_cli.cli.grid import Cell
from adpa_cli.cli.make import check_tag_fits
from adpa_cli.cli.options import Request
from adpa_cli.cli.plan import plan_in
from adpa_cli.cli.recipe import as_text
from adpa_cli.errors import UsageError
from adpa_cli.report import sweep as report
from adpa_cli.stages.plan import Plan
from adpa_cli.store.store import Store


@dataclass(frozen=True)
class Step:
    """One cell with its plan; `number` is its place in the grid, from 1."""

    number: int
    cell: Cell
    request: Request
    plan: Plan

    @property
    def settings(self) -> dict[str, str]:
        return {key: as_text(value) for key, value in self.cell.settings.items()}

    @property
    def identity(self) -> tuple[str, ...]:
        """What tells two cells apart: the ids of what they make and measure."""
        return tuple(node.recipe.id for node in (*self.plan.targets, *self.plan.evals))


def plan_cells(requests: Sequence[tuple[Cell, Request]], store: Store, shard: tuple[int, int]) -> list[Step]:
    """Plan every cell of this shard. Cells that come to the same artifacts are one; UsageError for two of one tag."""
    steps: dict[tuple[str, ...], Step] = {}
    for cell, request in requests:
        plan = plan_in(store, request.options, request.planned)
        check_tag_fits(plan, request.options.tag)
        step = Step(len(steps) + 1, cell, request, plan)
        steps.setdefault(step.identity, step)
    tags: dict[str, Step] = {}
    for step in steps.values():
        tag = step.request.options.tag
        if tag and tags.setdefault(tag, step) is not step:
            varying = report.differing([other.settings for other in steps.values()])
            example = "-".join(f"{{{key}}}" for key in varying if key != "tag")
            raise UsageError(f"several cells would carry the tag {tag}", f'tell them apart: tag = "{tag}-{example}"')
    index, count = shard
    return list(steps.values())[index - 1 :: count]


def together(steps: Sequence[Step]) -> Plan:
    """One plan for all cells, so that what they share is shown once."""
    plans = [step.plan for step in steps]
    ends = dict.fromkeys(plan.template[1] for plan in plans)
    notes = list(dict.fromkeys(note for plan in plans for note in plan.notes))
    if len(ends) > 1:
        notes.append(f"the cells have {len(ends)} templates, which end with {', '.join(ends)}")
    targets = {node.recipe.id: node for plan in plans for node in plan.targets}
    evals = {node.recipe.id: node for plan in plans for node in plan.evals}
    return Plan(tuple(targets.values()), plans[0].template, tuple(evals.values()), tuple(notes))
