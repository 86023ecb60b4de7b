"""What `adpa run` does with the cells of a recipe: plan all, make one after the other, end with a table."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from adpa_cli.cli.console.make import Console, ask_if_large, carry_out, check_tag_fits, console, created, hand_over
from adpa_cli.cli.console.options import Request
from adpa_cli.cli.console.plan_screen import plan_text
from adpa_cli.cli.console.streams import GLOBALS, command_line, terminal_width
from adpa_cli.cli.recipes.grid import Cell, as_text
from adpa_cli.errors import AdpaError, Stopped, UsageError
from adpa_cli.estimate.preflight import refuse
from adpa_cli.estimate.survey import Survey, check, survey
from adpa_cli.planning.planner import Plan
from adpa_cli.report import scores as report
from adpa_cli.report import text
from adpa_cli.report.scores import scores
from adpa_cli.stages import Node
from adpa_cli.store.manifest import Manifest
from adpa_cli.store.store import Store

UNCUT = 10_000  # columns of what is no terminal


@dataclass(frozen=True)
class Step:
    """One cell with its plan; `number` is its place in the grid, from 1."""

    number: int
    cell: Cell
    request: Request
    plan: Plan

    @property
    def settings(self) -> dict[str, str]:
        """Every key of the recipe with its value here, for people."""
        return {key: as_text(value) for key, value in self.cell.settings.items()}

    @property
    def identity(self) -> tuple[str, ...]:
        """What tells two cells apart: the ids of what they make and measure."""
        return tuple(node.recipe.id for node in (*self.plan.targets, *self.plan.evals))


def plan_cells(requests: Sequence[tuple[Cell, Request]], store: Store, shard: tuple[int, int]) -> list[Step]:
    """Plan every cell of this shard. Cells that come to the same artifacts are one; UsageError for two of one tag."""
    steps: dict[tuple[str, ...], Step] = {}
    for cell, request in requests:
        plan = request.plan(store)
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
    ends = dict.fromkeys(plan.template.end for plan in plans)
    notes = list(dict.fromkeys(note for plan in plans for note in plan.notes))
    if len(ends) > 1:
        notes.append(f"the cells have {len(ends)} templates, which end with {', '.join(ends)}")
    targets = {node.recipe.id: node for plan in plans for node in plan.targets}
    evals = {node.recipe.id: node for plan in plans for node in plan.evals}
    ignored = frozenset[str]().union(*(plan.ignored for plan in plans))
    return Plan(tuple(targets.values()), plans[0].template, tuple(evals.values()), tuple(notes), ignored)


@dataclass(frozen=True)
class Failure:
    """A cell that did not come to an end: the stage where it stopped, and why."""

    step: Step
    stage: str
    error: AdpaError


def sweep(
    requests: Sequence[tuple[Cell, Request]], shard: tuple[int, int], dry_run: bool, pins: Mapping[str, str]
) -> None:
    """Plan all cells, make one after the other, print their ids in grid order, end with a table.

    `pins` are the commits that names of the hub have in the recipe.
    A cell that fails does not keep the others from being made; AdpaError at the end names those that did.
    """
    store = replace(Store.find_or_empty(GLOBALS.store), pinned=pins)
    options = requests[0][1].options
    with console(store, options.runtime(look=False).stop_after) as desk:
        steps = plan_cells(requests, store, shard)
        if not steps:
            desk.screen.say("this shard has no cell")
            return
        if dry_run:
            show_cells(steps, _whole(steps, store), desk)
            return
        store = created(store, desk.screen)
        whole = _whole(steps, store)
        if whole.building:
            desk.screen.say(plan_text(whole, terminal_width()))
            ask_if_large(whole, options.yes)
            check(whole, desk.screen.say)
        else:
            desk.screen.say(f"found, nothing to do: {len(steps)} cell{'s' * (len(steps) != 1)}")
        failures = _failures(steps, whole, desk)
        width = terminal_width() if sys.stderr.isatty() else UNCUT
        desk.screen.say(report.screen(_lines(steps, store, failures), width))
        if failures:
            raise _summary(failures, steps)


def _whole(steps: Sequence[Step], store: Store) -> Survey:
    """The survey of all cells together."""
    runtime = steps[0].request.options.runtime()
    return survey(together(steps), store, runtime, command=GLOBALS.command, in_recipe=True)


def _failures(steps: Sequence[Step], whole: Survey, desk: Console) -> list[Failure]:
    """Make one cell after the other; those that fail, and those that need what failed in one before them."""
    failures: list[Failure] = []
    for place, step in enumerate(steps, 1):
        failed = {failure.stage: failure.step for failure in failures}
        surveyed = whole.of(step.plan)
        labels = [node.label for node in surveyed.nodes]
        blocked = next((label for label in labels if label in failed), None)
        if blocked is not None:
            why = f"needs {blocked}, which failed in cell {failed[blocked].number}"
            failures.append(Failure(step, blocked, AdpaError(why)))
            continue
        if surveyed.building:
            desk.screen.say(f"cell {place} of {len(steps)}: {command_line(step.cell.words)}")
        error = _error(step, surveyed, desk)
        if error is not None:
            missing = next((label for label in labels if whole.store.get(label) is None), "")
            failures.append(Failure(step, missing, error))
            desk.screen.say(f"cell {place} failed: {error.message}")
    return failures


def _error(step: Step, surveyed: Survey, desk: Console) -> AdpaError | None:
    """Make one cell; the error that it failed with, if it did. Raises Stopped."""

    def committed(manifest: Manifest) -> None:
        settings = {"settings": dict(step.cell.settings)}
        hand_over(manifest, surveyed.store, step.request.options.tag, desk.output, settings)

    try:
        with _typed(step.cell.words):
            carry_out(surveyed, desk, committed)
    except Stopped as stopped:
        if "-" not in GLOBALS.argv:  # a recipe from a pipe is gone: then the cell's own command goes on
            stopped.hint = GLOBALS.again(surveyed.store.root)
        raise
    except BrokenPipeError:
        raise
    except AdpaError as error:
        return error
    except Exception as error:  # a bug, or memory that ran out, in one cell: the others may still work
        traceback.print_exc(file=sys.stderr)
        return AdpaError(f"{type(error).__name__}: {error}")
    return None


@contextlib.contextmanager
def _typed(words: Sequence[str]) -> Iterator[None]:
    """A cell is a command: what it makes says so, and can be made without the recipe."""
    before = GLOBALS.argv, GLOBALS.words
    GLOBALS.argv = [*words, *(["--store", str(GLOBALS.store)] if GLOBALS.store else [])]
    GLOBALS.words = list(words)
    try:
        yield
    finally:
        GLOBALS.argv, GLOBALS.words = before


def show_cells(steps: Sequence[Step], whole: Survey, desk: Console) -> None:
    """What --dry-run prints: number, found or build, id, settings of every cell. What cannot be carried out is refused,
    as a build would."""
    if whole.problems:
        desk.screen.say(plan_text(whole, terminal_width()))
        refuse(whole.problems, whole.command)
    output, store = desk.output, whole.store
    rows = [
        (str(step.number), "found" if store.get(target.label) else "build", target.label, step.cell.settings)
        for step in steps
        for target in step.plan.targets
    ]
    if GLOBALS.json:
        keys = ("cell", "state", "ref", "settings")
        output.line(json.dumps([dict(zip(keys, row, strict=True)) for row in rows], ensure_ascii=False, indent=1))
    elif os.isatty(output.descriptor):
        varying = report.differing([step.settings for step in steps])
        head = ("", "", "ID", *map(str.upper, varying))
        cells = [(*row[:3], *(as_text(row[3].get(key, "")) for key in varying)) for row in rows]
        table = text.table(head, cells, terminal_width(), flexible=2, floor=27)
        output.line("\n".join([plan_text(whole, terminal_width()), "", *table]))
    else:
        pairs = [(*row[:3], " ".join(f"{key}={as_text(value)}" for key, value in row[3].items())) for row in rows]
        output.line(text.tsv(pairs).rstrip("\n"))


def _lines(steps: Sequence[Step], store: Store, failures: Sequence[Failure]) -> list[report.Line]:
    """The rows of the closing table: every cell, then the other models that were measured with them."""
    failed = {failure.step.number for failure in failures}
    tags: dict[str, list[str]] = {}
    for tag, artifact in store.tags().items():
        tags.setdefault(artifact, []).append(tag)
    lines: list[report.Line] = []
    others: dict[str, report.Line] = {}
    for step in steps:
        note = "failed" if step.number in failed else ""
        settings = {key: value for key, value in step.settings.items() if key != "tag"}
        for target in step.plan.targets:
            evals = [node for node in step.plan.evals if node.inputs["model"] == target]
            numbers = tuple(score for node in (target, *evals) for score in _scores(node, store))
            lines.append(report.Line(settings, target.label, numbers, tuple(tags.get(target.recipe.id, ())), note=note))
        for node in step.plan.evals:
            model = node.inputs["model"]
            if model not in step.plan.targets and not isinstance(model, tuple) and (numbers := _scores(node, store)):
                others.setdefault(node.label, report.Line({}, model.label, numbers, name=node.about))
    cells = {line.ref for line in lines}
    return [*lines, *(line for line in others.values() if line.ref not in cells)]


def _scores(node: Node, store: Store) -> tuple[Any, ...]:
    manifest = store.get(node.label)
    return tuple(scores(manifest)) if manifest else ()


def _summary(failures: Sequence[Failure], steps: Sequence[Step]) -> AdpaError:
    """The error of a sweep, which names each cell that failed by its settings."""
    varying = [key for key in report.differing([step.settings for step in steps]) if key != "tag"]
    lines = []
    for failure in failures:
        settings = failure.step.settings
        cell = " ".join([str(failure.step.number), *(f"{key}={settings[key]}" for key in varying if key in settings)])
        lines.append(f"\n  cell {cell}: {failure.error.message}")
    hints = dict.fromkeys(failure.error.hint for failure in failures if failure.error.hint)
    again = f"{GLOBALS.command}   (finished cells are found)"
    return AdpaError(f"{len(failures)} of {len(steps)} cells failed{''.join(lines)}", "\n or: ".join([*hints, again]))
