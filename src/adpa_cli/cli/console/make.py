"""What every making command does with its plan: show it, carry it out, print the ids."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adpa_cli.cli.console import options as opt
from adpa_cli.cli.console.options import FETCH, Options
from adpa_cli.cli.console.screens import Look, Screen, look, look_closely
from adpa_cli.cli.console.stdout_guard import Output, ids_only, no_stdin
from adpa_cli.cli.console.stopping import Stopping, stoppable
from adpa_cli.cli.console.streams import GLOBALS, confirm, quiet_libraries
from adpa_cli.errors import AdpaError, Stopped, UsageError
from adpa_cli.families import reserved_words
from adpa_cli.planning.planner import Plan
from adpa_cli.planning.resolve_inputs import Names
from adpa_cli.planning.settings import Given
from adpa_cli.report.score_tables import results
from adpa_cli.report.text import for_encoding, human_age
from adpa_cli.running.execute import Show, execute, threads_per_process
from adpa_cli.spec import Runtime
from adpa_cli.stages import Monitor, Node
from adpa_cli.store.manifest import Manifest
from adpa_cli.store.store import Store

if TYPE_CHECKING:
    from adpa_cli.planning.planner import Plan
    from adpa_cli.planning.resolve_inputs import Names
    from adpa_cli.planning.settings import Given
    from adpa_cli.store.store import Store


@dataclass(frozen=True)
class Console:
    """Where a maker speaks, where it prints ids, and what tells it to stop."""

    screen: Screen
    output: Output
    stopping: Stopping


@contextlib.contextmanager
def console(seen: Store, stop_after: float | None) -> Iterator[Console]:
    """The streams and signals of a maker that works in the store that `seen` is, or will be created from."""
    quiet_libraries()
    with ids_only() as output, stoppable(lambda: GLOBALS.again(seen.root), stop_after) as stopping:
        # A program that reads errors as JSON is told nothing else.
        screen = Screen(GLOBALS.quiet or (GLOBALS.json and not sys.stderr.isatty()), output.is_pipe)
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


def make(options: Options, planned: Callable[[Names, Given], Plan]) -> None:
    """Plan, show, build, print one id per target: one command's whole work."""
    runtime = options.runtime()
    seen = Store.find_or_empty(GLOBALS.store)
    with console(seen, runtime.stop_after) as desk:
        plan = plan_in(seen, options, planned)
        check_tag_fits(plan, options.tag)
        width = shutil.get_terminal_size((120, 24)).columns
        if options.dry_run:
            show_only(look_closely(plan, seen, runtime), desk, width)
            return
        store = created(seen, desk.screen)
        if store.created:
            plan = plan_in(store, options, planned)  # once more, now that hub names can be pinned

        def made(manifest: Manifest) -> None:
            hand_over(manifest, store, options.tag, desk.output)

        if all(store.get(node.label) for node in plan.nodes(store)):
            _say_found(plan, store, desk.screen, made)
        else:
            known = look(plan, store, runtime)
            desk.screen.say(known.text(width))
            ask_if_large(known, options.yes)
            carry_out(plan, store, runtime, desk, made, known)
        if plan.evals:
            desk.screen.say(results(store, plan.evals))


def created(seen: Store, screen: Screen) -> Store:
    """The store to work in, created and announced if there was none; what was hashed while planning is kept."""
    store = Store.find(GLOBALS.store, create=True)
    if store.created:
        screen.say(f"created the store {store.root}")
        seen.hash_cache.save()
    return store


def check_tag_fits(plan: Plan, tag: str | None) -> None:
    """Raise UsageError for one tag on several artifacts: the last one would win."""
    if tag and len({target.recipe.id for target in plan.targets}) > 1:
        names = ", ".join(target.label for target in plan.targets)
        raise UsageError(
            f"--tag {tag} names one artifact, and this makes {len(plan.targets)}: {names}",
            f"leave out --tag, and name them afterwards: adpa tag {tag}-1 {plan.targets[0].label}",
        )


def show_only(known: Look, desk: Console, width: int) -> None:
    """What --dry-run prints. A plan that cannot be carried out is shown on stderr and refused, as a build would."""
    if known.problems:
        from adpa_cli.estimate.preflight import refuse

        desk.screen.say(known.text(width))
        refuse(known.problems)
    terminal = os.isatty(desk.output.descriptor)
    shown = known.json() if GLOBALS.json else known.text(width) if terminal else known.tsv()
    desk.output.line(for_encoding(shown, sys.stdout.encoding))


def ask_if_large(known: Look, yes: bool) -> None:
    """Ask a person at a terminal before a large plan begins; one that cannot begin is not asked about."""
    if yes or known.problems or not known.estimate.large:
        return
    if not confirm("Go on?", True):
        raise AdpaError("nothing was started", "the same command with --yes goes ahead without asking")


def carry_out(
    plan: Plan,
    store: Store,
    runtime: Runtime,
    desk: Console,
    made: Callable[[Manifest], None],
    known: Look | None = None,
    note: Callable[[str], None] | None = None,
) -> None:
    """Build what is missing; `made` hears of each target as soon as it is committed or found, `note` of remarks."""
    targets = {target.recipe.id for target in plan.targets}

    def done(node: Node, manifest: Manifest, fresh: bool) -> None:
        desk.screen.done(node, manifest, fresh)
        if node.recipe.id in targets:
            made(manifest)

    stopping = desk.stopping
    desk.screen.expect(known.seconds if known else {})
    show = Show(
        desk.screen.start, done, desk.screen.progress, note or desk.screen.say, lambda: stopping.asked,
        stopping.is_working, GLOBALS.again(),
    )  # fmt: skip
    try:
        with no_stdin():
            execute(plan, store, runtime, GLOBALS.command, show, known.problems if known else ())
    except Stopped as stopped:
        stopped.hint = GLOBALS.again(store.root)
        raise
    finally:
        desk.screen.close()


def _say_found(plan: Plan, store: Store, screen: Screen, made: Callable[[Manifest], None]) -> None:
    for target in plan.targets:
        found = store.get(target.label)
        if found is not None:
            age = human_age(time.time() - found.at)
            measured = f", {len(plan.evals)} evaluations reused" if plan.evals else ""
            screen.say(f"found, nothing to do: {found.ref} (made {age} ago by the same spec{measured})")
            made(found)


def hand_over(
    manifest: Manifest, store: Store, tag: str | None, output: Output, also: Mapping[str, Any] | None = None
) -> None:
    """Tag a finished target and print its id; `also` is said about it in JSON."""
    if tag:
        store.tag(tag, manifest.id, reserved_words())
    record = {"id": manifest.id, "ref": manifest.ref, "path": str(store.root / manifest.ref), **(also or {})}
    output.line(json.dumps(record, ensure_ascii=False) if GLOBALS.json else manifest.ref)


def plan_in(store: Store, options: opt.Options, planned: Callable[[Names, Given], Plan]) -> Plan:
    """The plan of a command in a store; one error lists everything of the hub that is not open to us."""
    from adpa_cli.cli.console.streams import GLOBALS
    from adpa_cli.hub.repository import Access
    from adpa_cli.planning.resolve_inputs import Names

    argv = [word for word in GLOBALS.argv if word not in (FETCH, "--dry-run", "-n")]
    access = Access(argv[1:] if argv[:1] == ["plan"] else argv)
    with access.checked():
        return planned(Names(store, options.refresh, access), options.given())
