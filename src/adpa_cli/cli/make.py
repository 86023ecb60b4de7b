"""What every making command does with its plan: show it, carry it out, print the ids."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from adpa_cli.cli.results import results
from adpa_cli.cli.screen import Screen, plan_text, plan_tsv
from adpa_cli.cli.stopping import stoppable
from adpa_cli.cli.streams import GLOBALS, Output, ids_only
from adpa_cli.errors import UsageError
from adpa_cli.families import aliases, ready_pairs
from adpa_cli.report.text import human_age
from adpa_cli.spec import Runtime
from adpa_cli.stages.execute import Show, execute
from adpa_cli.stages.graph import Node
from adpa_cli.stages.names import Names
from adpa_cli.stages.plan import Plan
from adpa_cli.stages.settings import Given, parse_sets
from adpa_cli.store.manifest import Manifest
from adpa_cli.store.store import Store
from adpa_cli.store.tags import check_tag

QUIET = {
    "TOKENIZERS_PARALLELISM": "false", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error",
}  # fmt: skip
"""Libraries must not draw bars of their own, or fork after threads have started."""


@dataclass(frozen=True)
class Options:
    """What all making commands take besides their inputs."""

    sets: Sequence[str] = ()
    lr: float | None = None
    epochs: float | None = None
    batch_size: int | None = None
    max_steps: int | None = None
    limit: int | None = None
    seed: int | None = None
    seed_all: int | None = None
    gpus: str | None = None
    tokens_per_device: int | None = None
    no_wait: bool = False
    dry_run: bool = False
    tag: str | None = None
    skip_bad_rows: bool = False
    refresh: bool = False

    def checked(self) -> Options:
        """The same, after everything that can be checked without reading stdin or a store."""
        self.given(), self.runtime()
        if self.tag == "":
            raise UsageError("--tag is empty", "give a name: --tag NAME")
        if self.tag:
            check_tag(self.tag, reserved_words())
        return self

    def given(self) -> Given:
        """What the user said about specs."""
        own, by_stage = parse_sets(self.sets)
        for name in ("lr", "epochs", "batch_size", "max_steps"):
            value = getattr(self, name)
            if value is not None:
                own[name] = value
        return Given(own, by_stage, self.seed, self.seed_all, self.limit, self.skip_bad_rows)

    def runtime(self) -> Runtime:
        """How to run."""
        defaults = Runtime()
        if self.tokens_per_device is not None and self.tokens_per_device < 1:
            raise UsageError(f"--tokens-per-device {self.tokens_per_device}", "give 1 or more; a longer row goes alone")
        return Runtime(
            processes=processes(self.gpus), tokens_per_device=self.tokens_per_device or defaults.tokens_per_device,
            wait=not self.no_wait,
        )  # fmt: skip


def processes(gpus: str | None) -> int:
    """How many processes `--gpus N|all` asks for; without a GPU they share the CPU."""
    if gpus is None:
        return 1
    if gpus == "all":
        import torch

        return max(1, torch.cuda.device_count())
    if not gpus.isdigit() or int(gpus) < 1:
        raise UsageError(f"--gpus {gpus}", "give a number of processes, or all")
    import torch

    if torch.cuda.is_available() and int(gpus) > torch.cuda.device_count():
        raise UsageError(f"--gpus {gpus}, and there are {torch.cuda.device_count()}", "--gpus all uses every one")
    return int(gpus)


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


def reserved_words() -> set[str]:
    """Words that cannot be tags because they mean something else."""
    return {*aliases(), *ready_pairs()}
