"""What `adpa run` does with the cells of a recipe: plan all, make one after the other, end with a table."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from adpa_cli.cli.console.make import Console, carry_out, check_tag_fits, console, created, hand_over, show_and_ask
from adpa_cli.cli.console.options import Request
from adpa_cli.cli.console.plan_screen import plan_text
from adpa_cli.cli.console.streams import GLOBALS, command_line, is_coloured, terminal_width
from adpa_cli.cli.recipes.choice import ROW, Ask, Step, check_choices, check_one_tag, following
from adpa_cli.cli.recipes.closing import measured_lines
from adpa_cli.cli.recipes.grid import Cell, Recipe, as_text
from adpa_cli.errors import AdpaError, Stopped
from adpa_cli.estimate.preflight import refuse
from adpa_cli.estimate.survey import Survey, check, survey
from adpa_cli.planning.planner import Plan
from adpa_cli.planning.settings import TRACKERS_FOLDER
from adpa_cli.report import scores as report
from adpa_cli.report import text
from adpa_cli.report.evaluation import Entry, entries
from adpa_cli.report.scores import scores
from adpa_cli.spec import tracker_names
from adpa_cli.stages import Node
from adpa_cli.store.manifest import Manifest
from adpa_cli.store.store import Store

UNCUT = 10_000  # columns of what is no terminal


def plan_cells(
    recipe: Recipe, requests: Sequence[tuple[Cell, Request]], ask: Ask, store: Store, shard: tuple[int, int]
) -> tuple[list[Step], list[Step]]:
    """Plan every cell, as (all of them, those of this shard); cells that come to the same artifacts are one.

    A cell that follows a choice has the values that were chosen, where these are known, else the first ones. Raises
    UsageError for two of one tag, and for a choice that cannot be made.
    """
    steps: dict[tuple[str, ...], Step] = {}
    for cell, request in requests:
        plan = request.plan(store)
        check_tag_fits(plan, request.options.tag)
        step = Step(len(steps) + 1, cell, request, plan)
        if cell.follows:
            step = following(step, list(steps.values()), recipe, ask, store) or step
        steps.setdefault(step.identity, step)
    every = list(steps.values())
    check_one_tag(every, report.differing([step.settings for step in every]))
    if recipe.report is not None:
        check_choices(recipe, every)
    index, count = shard
    return every, every[index - 1 :: count]


def together(steps: Sequence[Step]) -> Plan:
    """One plan for all cells, so that what they share is shown once."""
    plans = [step.plan for step in steps]
    ends = dict.fromkeys(plan.template.end for plan in plans)
    notes = list(dict.fromkeys(note for plan in plans for note in plan.notes))
    if len(ends) > 1:
        notes.append(f"the combinations use {len(ends)} chat templates, which end with {', '.join(ends)}")
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
    recipe: Recipe, requests: Sequence[tuple[Cell, Request]], ask: Ask, shard: tuple[int, int], dry_run: bool
) -> None:
    """Plan all cells, make one after the other, print their ids in grid order, end with a table.

    A cell that fails does not keep the others from being made; AdpaError at the end names those that did.
    """
    store = replace(Store.find_or_empty(GLOBALS.store), pinned=recipe.pins)
    options = requests[0][1].options
    with console(store, options.runtime(look=False).stop_after) as desk:
        every, steps = plan_cells(recipe, requests, ask, store, shard)
        if not steps:
            desk.screen.say("This shard has no combination to run.")
            return
        if dry_run:
            show_cells(steps, _whole(steps, store), desk)
            return
        store = created(store, desk.screen)
        whole = _whole(steps, store)
        if whole.building:
            closing = "The rows of the closing table are measured when their models are built."
            show_and_ask(whole, desk, options.yes, closing if recipe.report is not None else "")
            check(whole, desk.screen.say)
        else:
            desk.screen.say(f"Nothing to do: all {len(steps)} combinations are there.")
        making = Making(recipe, ask, whole, desk, {step.number: step for step in every})
        failures = making.failures(steps)
        steps = [making.steps[step.number] for step in steps]
        if recipe.report is None or shard != (1, 1):
            table = _lines(steps, store, failures)
        else:
            table = measured_lines(recipe, steps, store, making.measured, _tags(store))
        for line in table if GLOBALS.json else ():
            desk.output.line(json.dumps(line.record(), ensure_ascii=False))
        width = terminal_width() if sys.stderr.isatty() else UNCUT
        desk.screen.say(report.screen(table, width, is_coloured(sys.stderr)))
        _track(table, recipe, whole, desk)
        if recipe.report is not None and shard != (1, 1):
            desk.screen.say("The rows are measured when all shards are done. Repeat the command without --shard then.")
        if failures or making.unmeasured:
            raise _summary(failures, steps, making.unmeasured)


def _whole(steps: Sequence[Step], store: Store) -> Survey:
    """The survey of all cells together."""
    runtime = steps[0].request.options.runtime()
    return survey(together(steps), store, runtime, command=GLOBALS.command, in_recipe=True)


@dataclass
class Making:
    """The making of cells, and the evaluations that close it; `steps` are all of the grid by number, as they are now.

    `unmeasured` are the errors of evaluations that failed.
    """

    recipe: Recipe
    ask: Ask
    whole: Survey
    desk: Console
    steps: dict[int, Step]
    unmeasured: list[AdpaError] = field(default_factory=list)

    def failures(self, steps: Sequence[Step]) -> list[Failure]:
        """Make one cell after the other; those that fail, and those that need what failed in one before them."""
        failures: list[Failure] = []
        for place, planned in enumerate(steps, 1):
            failed = {failure.stage: failure.step for failure in failures}
            step = self._followed(planned)
            if step is None:
                rows = " and ".join(dict.fromkeys(planned.cell.follows.values()))
                failures.append(
                    Failure(planned, "", AdpaError(f"it needs the values chosen for {rows}, and none could be chosen"))
                )
                continue
            self.steps[step.number] = step
            surveyed = self.whole.of(step.plan) if step is planned else self._surveyed(step.plan)
            labels = [node.label for node in surveyed.nodes]
            blocked = next((label for label in labels if label in failed), None)
            if blocked is not None:
                why = f"needs {blocked}, which failed in combination {failed[blocked].number}"
                failures.append(Failure(step, blocked, AdpaError(why)))
                continue
            if surveyed.building:
                self.desk.screen.say(f"Combination {place} of {len(steps)}: {command_line(step.cell.words)}")
            error = self._error(step, surveyed)
            if error is not None:
                missing = next((label for label in labels if self.whole.store.get(label) is None), "")
                failures.append(Failure(step, missing, error))
                self.desk.screen.say(f"Combination {place} failed: {error.message}")
        return failures

    def measured(self, words: Sequence[str]) -> list[Entry] | None:
        """The lines that a command line of the closing table made; None where it failed."""
        try:
            plan = self.ask(words).plan(self.whole.store)
            surveyed = self._surveyed(plan)
        except AdpaError as error:
            self.unmeasured.append(error)
            return None
        if surveyed.building:
            self.desk.screen.say(command_line(words))
        failed = self._carried_out(words, surveyed, lambda manifest: None)
        if failed is not None:
            self.unmeasured.append(failed)
        return None if failed else entries(self.whole.store, (*plan.targets, *plan.evals))

    def _followed(self, step: Step) -> Step | None:
        """A step with what was chosen by now in the rows that it follows."""
        if not step.cell.follows:
            return step
        return following(step, list(self.steps.values()), self.recipe, self.ask, self.whole.store)

    def _surveyed(self, plan: Plan) -> Survey:
        """A plan that could not be made with the others."""
        return survey(plan, self.whole.store, self.whole.runtime, self.whole.machine)

    def _error(self, step: Step, surveyed: Survey) -> AdpaError | None:
        """Make one cell; the error that it failed with, if it did. Raises Stopped."""

        def committed(manifest: Manifest) -> None:
            settings = {"settings": {**step.cell.settings, **({ROW: step.cell.row.name} if step.cell.row.name else {})}}
            hand_over(manifest, surveyed.store, step.request.options.tag, self.desk.output, settings)

        return self._carried_out(step.cell.words, surveyed, committed)

    def _carried_out(
        self, words: Sequence[str], surveyed: Survey, committed: Callable[[Manifest], None]
    ) -> AdpaError | None:
        """Carry out a command line; the error that it failed with, if it did. Raises Stopped."""
        try:
            with _typed(words):
                carry_out(surveyed, self.desk, committed)
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
        (str(step.number), _state(step, target, store), target.label, step.shown, target.recipe.id)
        for step in steps
        for target in step.plan.targets
    ]
    if GLOBALS.json:
        keys = ("cell", "state", "ref", "settings", "id")
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


def _state(step: Step, target: Node, store: Store) -> str:
    """Whether a cell is found or to be built, or follows a choice that is not made: its id may then be another one."""
    return "follows" if step.cell.follows else "found" if store.get(target.label) else "build"


def _lines(steps: Sequence[Step], store: Store, failures: Sequence[Failure]) -> list[report.Line]:
    """The rows of the closing table: every cell, then the other models that were measured with them."""
    failed, tags = {failure.step.number for failure in failures}, _tags(store)
    lines: list[report.Line] = []
    others: dict[str, report.Line] = {}
    for step in steps:
        note = "failed" if step.number in failed else ""
        settings = {key: value for key, value in step.settings.items() if key != "tag"}
        for target in step.plan.targets:
            evals = [node for node in step.plan.evals if node.inputs["model"] == target]
            numbers = (*_scores(target, store), *(score for node in evals for score in _at_end(node, store)))
            lines.append(report.Line(settings, target.label, numbers, tuple(tags.get(target.recipe.id, ())), note=note))
        for node in step.plan.evals:
            model = node.inputs["model"]
            if model not in step.plan.targets and not isinstance(model, tuple) and (numbers := _at_end(node, store)):
                line = others.setdefault(model.content, report.Line({}, model.label, (), name=node.about))
                others[model.content] = replace(line, scores=tuple(dict.fromkeys((*line.scores, *numbers))))
    cells = {line.ref for line in lines}
    return [*lines, *(line for line in others.values() if line.ref not in cells)]


def _track(lines: Sequence[report.Line], recipe: Recipe, whole: Survey, desk: Console) -> None:
    """Send each line of the closing table to the trackers, as a run of its own with the settings of the line."""
    names, logs = tracker_names(whole.runtime.trackers), whole.store.root / TRACKERS_FOLDER
    if not names:
        return
    from adpa_cli.engine.trackers import numbers, tracking

    for line in lines:
        run, settings = f"sweep/{Path(recipe.source).stem}/{line.ref}", {**line.settings, "model": line.ref}
        with tracking(names, run, logs, settings, desk.screen.say) as track:
            track(0, numbers({score.metric: score.record() for score in reversed(line.scores)}))


def _tags(store: Store) -> dict[str, list[str]]:
    """The tags of artifacts by their full ids."""
    tags: dict[str, list[str]] = {}
    for tag, artifact in store.tags().items():
        tags.setdefault(artifact, []).append(tag)
    return tags


def _at_end(node: Node, store: Store) -> tuple[Any, ...]:
    """The scores of an evaluation that closes a training, whose opponent is the start of that, whichever it is."""
    return tuple(score.beside() for score in _scores(node, store))


def _scores(node: Node, store: Store) -> tuple[Any, ...]:
    manifest = store.get(node.label)
    return tuple(scores(manifest)) if manifest else ()


def _summary(failures: Sequence[Failure], steps: Sequence[Step], unmeasured: Sequence[AdpaError]) -> AdpaError:
    """The error of a sweep, which names each cell that failed by its settings, and what could not be measured."""
    varying = [key for key in report.differing([step.settings for step in steps]) if key != "tag"]
    said = []
    for failure in failures:
        settings = failure.step.settings
        cell = " ".join([str(failure.step.number), *(f"{key}={settings[key]}" for key in varying if key in settings)])
        said.append(f"\n  combination {cell}: {failure.error.message}")
    said += [f"\n  not measured: {error.message}" for error in unmeasured]
    errors = [*(failure.error for failure in failures), *unmeasured]
    hints = dict.fromkeys(error.hint for error in errors if error.hint)
    again = f"{GLOBALS.command}   (what is finished is not built again)"
    count = f"{len(failures)} of {len(steps)} combinations failed" if failures else "the closing table is not complete"
    return AdpaError(f"{count}{''.join(said)}", "\n or: ".join([*hints, again]))
