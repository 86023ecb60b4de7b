"""What every making command does with its plan: show it, carry it out, print the ids."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable

from adpa_cli.cli.options import Options
from adpa_cli.cli.results import results
from adpa_cli.cli.screen import Screen, plan_text, plan_tsv
from adpa_cli.cli.stopping import stoppable
from adpa_cli.cli.streams import GLOBALS, Output, ids_only
from adpa_cli.families import reserved_words
from adpa_cli.report.text import human_age
from adpa_cli.spec import Runtime
from adpa_cli.stages.execute import Show, execute
from adpa_cli.stages.graph import Node
from adpa_cli.stages.names import Names
from adpa_cli.stages.plan import Plan
from adpa_cli.stages.settings import Given
from adpa_cli.store.manifest import Manifest
from adpa_cli.store.store import Store

QUIET = {
    "TOKENIZERS_PARALLELISM": "false", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error",
}  # fmt: skip
"""Libraries must not draw bars of their own, or fork after threads have started."""


def make(options: Options, planned: Callable[[Names, Given], Plan]) -> None:
    """Plan, show, build, print one id per target; the only place that does so."""
    given, runtime = options.given(), options.runtime()
    for name, value in QUIET.items():
        if not GLOBALS.verbose or name == "TOKENIZERS_PARALLELISM":
            os.environ.setdefault(name, value)
    with ids_only() as output:
        screen = Screen(GLOBALS.quiet)
        seen = Store.find_or_empty(GLOBALS.store)
        plan = planned(Names(seen, options.refresh), given)
        width = shutil.get_terminal_size((120, 24)).columns
        if options.dry_run:
            terminal = os.isatty(output.descriptor)
            output.line(plan_text(plan, seen, width) if terminal else plan_tsv(plan, seen).rstrip("\n"))
            return
        store = Store.find(GLOBALS.store, create=True)
        if store.created:
            screen.say(f"created the store {store.root}")
            seen.hash_cache.save()
            plan = planned(Names(store, options.refresh), given)  # once more, now that hub names can be pinned
        if all(store.get(node.label) for node in plan.nodes(store)):
            _say_found(plan, store, options.tag, screen, output)
        else:
            screen.say(plan_text(plan, store, width))
            _execute(plan, store, runtime, options.tag, screen, output)
        if plan.evals:
            screen.say(results(store, plan.evals))


def _execute(plan: Plan, store: Store, runtime: Runtime, tag: str | None, screen: Screen, output: Output) -> None:
    targets = {target.recipe.id for target in plan.targets}
    with stoppable() as stopping:

        def done(node: Node, manifest: Manifest, fresh: bool) -> None:
            screen.done(node, manifest, fresh)
            if node.recipe.id in targets:
                _hand_over(manifest, store, tag, output)

        try:
            show = Show(screen.start, done, screen.progress, screen.say, lambda: stopping.asked, stopping.is_working)
            execute(plan, store, runtime, GLOBALS.command, show)
        finally:
            screen.close()


def _say_found(plan: Plan, store: Store, tag: str | None, screen: Screen, output: Output) -> None:
    for target in plan.targets:
        found = store.get(target.label)
        if found is not None:
            age = human_age(time.time() - found.at)
            measured = f", {len(plan.evals)} evaluations reused" if plan.evals else ""
            screen.say(f"found, nothing to do: {found.ref} (made {age} ago by the same spec{measured})")
            _hand_over(found, store, tag, output)


def _hand_over(manifest: Manifest, store: Store, tag: str | None, output: Output) -> None:
    """Tag a finished target and print its id."""
    if tag:
        store.tag(tag, manifest.id, reserved_words())
    record = {"id": manifest.id, "ref": manifest.ref, "path": str(store.root / manifest.ref)}
    output.line(json.dumps(record) if GLOBALS.json else manifest.ref)
