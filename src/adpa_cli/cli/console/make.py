"""What every making command does with its plan: show it, carry it out, print the ids."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import typer

from adpa_cli.cli.console.options import Request
from adpa_cli.cli.console.plan_screen import judge_words, plan_json, plan_text, plan_tsv
from adpa_cli.cli.console.progress import Screen
from adpa_cli.cli.console.stopping import Stopping, stoppable
from adpa_cli.cli.console.streams import (
    GLOBALS,
    Output,
    confirm,
    fail,
    ids_only,
    is_coloured,
    no_stdin,
    quiet_libraries,
    say,
    terminal_width,
)
from adpa_cli.cli.recipes.recorded import recorded_request
from adpa_cli.data.tables import watching
from adpa_cli.errors import AdpaError, Stopped, UsageError
from adpa_cli.estimate.cost import Cost
from adpa_cli.estimate.preflight import is_ordinary, refuse
from adpa_cli.estimate.survey import Survey, survey
from adpa_cli.families import reserved_words
from adpa_cli.planning.planner import Plan
from adpa_cli.report.evaluation import UNCUT, entries, write
from adpa_cli.report.evaluation import screen as table
from adpa_cli.report.text import for_encoding, human_age
from adpa_cli.running import launchers, processes
from adpa_cli.running.execute import Show, execute, threads_per_process
from adpa_cli.spec import Runtime
from adpa_cli.stages import Monitor, Node
from adpa_cli.store.manifest import Manifest
from adpa_cli.store.store import Store


@dataclass(frozen=True)
class Console:
    """Where a maker speaks, where it prints ids, and what tells it to stop."""

    screen: Screen
    output: Output
    stopping: Stopping


@contextlib.contextmanager
def console(store: Store, stop_after: float | None) -> Iterator[Console]:
    """The streams and signals of a maker that works in a store, or in the one that will be created there."""
    quiet_libraries()
    again = functools.partial(GLOBALS.again, store.root)
    with ids_only() as output, stoppable(again, stop_after, processes.failed) as stopping:
        # A program that reads errors as JSON is told nothing else.
        screen = Screen(GLOBALS.quiet or (GLOBALS.json and not sys.stderr.isatty()), output.is_pipe)
        with watching(screen.reading, screen.say):
            yield Console(screen, output, stopping)


@contextlib.contextmanager
def computing(store: Store, threads: int = 0) -> Iterator[Monitor]:
    """For a reader that runs a model: a bar, signals and `threads` (0: as many as a stage takes) as a maker has."""
    from adpa_cli.engine.device import prepare

    with console(store, None) as desk:
        prepare(threads or threads_per_process(Runtime()))
        try:
            yield Monitor(desk.screen.progress, desk.screen.say, lambda: desk.stopping.asked)
        finally:
            desk.screen.close()


def make(request: Request) -> None:
    """Plan, show, build, print one id per target: one command's whole work."""
    options, runtime = request.options, request.options.runtime()
    store = Store.find_or_empty(GLOBALS.store)
    with console(store, runtime.stop_after) as desk:
        plan = request.plan(store)
        check_tag_fits(plan, options.tag)
        if options.dry_run:
            show_only(survey(plan, store, runtime, command=GLOBALS.command), desk)
            return
        store = created(store, desk.screen)
        surveyed = survey(plan, store, runtime, command=GLOBALS.command)
        so_far: dict[str, Manifest] = {}
        is_evaluation = all(target.declared.makes == "scores" for target in plan.targets)

        def made(manifest: Manifest) -> None:
            if not (is_evaluation and GLOBALS.json):  # whose numbers stand in one line with what they are compared with
                hand_over(manifest, store, options.tag, desk.output)

        if surveyed.building:
            show_and_ask(surveyed, desk, options.yes)
        try:
            if surveyed.building:
                carry_out(surveyed, desk, made, so_far)
            else:
                _say_exists(surveyed, desk.screen, made)
        finally:
            if is_evaluation or plan.evals:
                show_measured(request, plan, store, desk, is_evaluation, so_far)


def show_measured(
    request: Request, plan: Plan, store: Store, desk: Console, is_evaluation: bool, so_far: Mapping[str, Manifest]
) -> None:
    """Close with the numbers that are there, also where a later one failed: on the screen, in the file that was asked
    for, and, of a command that evaluates, as JSON."""
    lines = entries(store, (*plan.targets, *plan.evals) if is_evaluation else plan.evals, so_far)
    made = {target.recipe.id for target in plan.targets}
    if not lines or (is_evaluation and not any(manifest.id in made for line in lines for manifest in line.evals)):
        return
    width = terminal_width() if sys.stderr.isatty() else UNCUT
    desk.screen.say(table(lines, is_evaluation, width, is_coloured(sys.stderr)))
    if request.to is not None:
        write(request.to, lines)
        desk.screen.say(f"written: {request.to}")
    if is_evaluation and GLOBALS.json:
        for line in lines:
            manifest = next((manifest for manifest in line.evals if manifest.id in made), None)
            if manifest is not None and manifest.id in so_far:
                desk.output.line(
                    json.dumps({"id": None, "ref": None, "path": None, **line.record()}, ensure_ascii=False)
                )
            elif manifest is not None:
                hand_over(manifest, store, request.options.tag, desk.output, line.record())


def created(planned_in: Store, screen: Screen) -> Store:
    """The store to work in, created and announced if there was none; what planning learnt before is kept in it."""
    store = replace(Store.find(GLOBALS.store, create=True), pinned=planned_in.pinned)
    if store.created:
        screen.say(f"Created the store {store.root}.")
        planned_in.hash_cache.save()
        planned_in.keep_pins(store)
    return store


def check_tag_fits(plan: Plan, tag: str | None) -> None:
    """Raise UsageError for one tag on several artifacts: the last one would win."""
    if tag and len({target.recipe.id for target in plan.targets}) > 1:
        names = ", ".join(target.label for target in plan.targets)
        raise UsageError(
            f"--tag {tag} can name one artifact, but this command makes {len(plan.targets)}: {names}",
            f"leave --tag out and name them afterwards: adpa tag {tag}-1 {plan.targets[0].label}",
        )


def show_only(surveyed: Survey, desk: Console) -> None:
    """What --dry-run prints. A plan that cannot be carried out is shown on stderr and refused, as a build would."""
    if surveyed.problems:
        desk.screen.say(plan_text(surveyed, terminal_width()))
        refuse(surveyed.problems, surveyed.command)
    if GLOBALS.json:
        shown = json.dumps(plan_json(surveyed), ensure_ascii=False, indent=1)
    elif os.isatty(desk.output.descriptor):
        shown = plan_text(surveyed, terminal_width())
    else:
        shown = plan_tsv(surveyed).rstrip("\n")
        remarks = (text for text in surveyed.remarks if not is_ordinary(text))
        for note in (*surveyed.plan.notes, *remarks, *judge_words(surveyed)):
            desk.screen.say(note)
    desk.output.line(for_encoding(shown, sys.stdout.encoding))


def show_and_ask(surveyed: Survey, desk: Console, yes: bool, remark: str = "") -> None:
    """Show a plan, with a remark, and ask before a large one begins. Raises Several where other processes carry it
    out, of which the first does neither again."""
    if launchers.is_launched():
        return
    desk.screen.say(plan_text(surveyed, terminal_width()))
    if remark:
        desk.screen.say(remark)
    ask_if_large(surveyed, yes)
    runtime = surveyed.runtime
    is_shared = any(_processes(cost, surveyed) > 1 for cost in surveyed.building)
    if runtime.processes > 1 and is_shared and not surveyed.problems and launchers.place() == (0, 1):
        threads = threads_per_process(runtime)
        desk.screen.say(f"Starting {runtime.processes} processes of {threads} thread{'s' * (threads > 1)} each.")
        raise launchers.Several(runtime.processes, threads)


def _processes(cost: Cost, surveyed: Survey) -> int:
    """How many processes compute a stage."""
    runtime = cost.load.runtime if cost.load else surveyed.runtime
    return cost.node.declared.processes(cost.node.spec, runtime)


def ask_if_large(surveyed: Survey, yes: bool) -> None:
    """Ask a person at a terminal before a large plan begins; one that cannot begin is not asked about."""
    if yes or surveyed.problems or not surveyed.is_large:
        return
    if not confirm("Continue?", True):
        say("Nothing was started.\n")
        raise typer.Exit


def carry_out(
    surveyed: Survey, desk: Console, made: Callable[[Manifest], None], so_far: dict[str, Manifest] | None = None
) -> None:
    """Build what is missing; `made` hears of each target as soon as it is committed, or if it exists. Figures whose
    inputs are not whole yet are put into `so_far`, by their ids."""
    store, plan = surveyed.store, surveyed.plan
    targets = {target.recipe.id for target in plan.targets}

    def done(node: Node, manifest: Manifest, fresh: bool) -> None:
        desk.screen.done(node, manifest, fresh)
        if node.recipe.id in targets:
            made(manifest)

    def begun(node: Node, manifest: Manifest) -> None:
        if so_far is not None:
            so_far[node.recipe.id] = manifest

    processes.lead(_leave)
    stopping = desk.stopping
    desk.screen.expect({c.node.label: c.seconds for c in surveyed.building if c.seconds is not None})
    show = Show(
        desk.screen.start, done, desk.screen.progress, desk.screen.say, lambda: stopping.asked, begun,
        stopping.is_working, GLOBALS.again(),
    )  # fmt: skip
    try:
        with no_stdin():
            execute(surveyed, GLOBALS.command, recorded_request(GLOBALS.words, plan, store), show)
    except Stopped as stopped:
        stopped.hint = GLOBALS.again(store.root)
        raise
    finally:
        desk.screen.close()


def _leave(error: AdpaError) -> int:
    """Say why this process ends with others that have failed; its exit code."""
    code = fail(error)
    say(launchers.leave_code(code))
    return code


def _say_exists(surveyed: Survey, screen: Screen, made: Callable[[Manifest], None]) -> None:
    """Say of each target that it was made before, and hand it over."""
    plan = surveyed.plan
    artifacts = {cost.node.recipe.id: cost.artifact for cost in surveyed.costs}
    for target in plan.targets:
        if manifest := artifacts[target.recipe.id]:
            age = human_age(time.time() - manifest.at)
            measured = f"; {len(plan.evals)} evaluations reused" if plan.evals else ""
            screen.say(f"Nothing to do: {manifest.ref} was made {age} ago with the same settings{measured}.")
            made(manifest)


def hand_over(
    manifest: Manifest, store: Store, tag: str | None, output: Output, also: Mapping[str, Any] | None = None
) -> None:
    """Tag a finished target and print its id; `also` is said about it in JSON."""
    if tag:
        before = store.tags().get(tag)
        store.tag(tag, manifest.id, reserved_words())
        if before not in (None, manifest.id) and not GLOBALS.quiet:
            earlier = store.get(str(before))
            say(f"The tag {tag} moved here from {earlier.ref if earlier else str(before)[:12]}.\n")
    record = {"id": manifest.id, "ref": manifest.ref, "path": str(store.root / manifest.ref), **(also or {})}
    output.line(json.dumps(record, ensure_ascii=False) if GLOBALS.json else manifest.ref)
