"""The survey of a plan: for each of its stages whether it exists, what it takes, and what stands against it.

It is made once for a command. The screen, the question, the checks before the work and the execution read it.
"""

from __future__ import annotations

import contextlib
import functools
import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from adpa_cli import stages
from adpa_cli.errors import AdpaError, UsageError
from adpa_cli.estimate.advice import advise
from adpa_cli.estimate.cost import CANNOT_TELL, Clock, Cost, check_card, cost_of, fullest, shared_words, waiting_words
from adpa_cli.estimate.preflight import (
    check_torch,
    disk_problems,
    is_here,
    plain_checks,
    refuse,
    run_checks,
    saved_checks,
)
from adpa_cli.hub import External
from adpa_cli.hub import repository as hub
from adpa_cli.machine import Machine
from adpa_cli.planning.adapters import check_adapters
from adpa_cli.planning.frozen_models import check_offload
from adpa_cli.planning.lineage import hub_files
from adpa_cli.planning.planner import Plan
from adpa_cli.spec import Runtime
from adpa_cli.stages import Artifact, Node, in_order
from adpa_cli.store.manifest import Manifest
from adpa_cli.store.store import Store

LARGE_BYTES, LARGE_SECONDS, LARGE_TRAINING = 10e9, 1800.0, 1e9


@dataclass(frozen=True)
class Survey:
    """A plan in a store, with the cost of each stage. `basis` says where its seconds come from.

    `problems` are known already, `remarks` what the checks said; `is_checked` when nothing is left to be checked.
    """

    plan: Plan
    store: Store
    runtime: Runtime
    machine: Machine
    costs: tuple[Cost, ...]
    basis: str = ""
    problems: tuple[AdpaError, ...] = ()
    remarks: tuple[str, ...] = ()
    command: str = ""
    """One that makes the same with none of its problems, where these are of memory."""
    is_checked: bool = False

    @property
    def nodes(self) -> list[Node]:
        """Every stage, inputs before what uses them."""
        return [cost.node for cost in self.costs]

    @property
    def building(self) -> tuple[Cost, ...]:
        """The stages that the store lacks."""
        return tuple(cost for cost in self.costs if cost.artifact is None)

    @property
    def externals(self) -> tuple[External, ...]:
        """What comes from outside into the stages to be built, each once."""
        inputs = (item for cost in self.building for _, item in cost.node.flat_inputs())
        return tuple({item.content: item for item in inputs if isinstance(item, External)}.values())

    @property
    def download(self) -> int:
        """Bytes to fetch."""
        return sum(external.download for external in self.externals)

    @property
    def keeps(self) -> int | None:
        """Bytes that stay in the store; None when a stage cannot tell."""
        sizes = [cost.disk.keeps for cost in self.building if cost.disk is not None]
        return sum(sizes) if len(sizes) == len(self.building) else None

    @property
    def peak(self) -> int | None:
        """Bytes at the fullest moment, what is kept by then included; downloads come on top."""
        return fullest(self.building)[0] if self.keeps is not None else None

    @property
    def memory(self) -> int | None:
        """Bytes that the device must hold at most; None when a stage cannot tell."""
        sizes = [cost.memory.device for cost in self.building if cost.memory is not None]
        return max(sizes, default=0) if len(sizes) == len(self.building) else None

    @property
    def seconds(self) -> float | None:
        """Of all stages together; None when one cannot tell."""
        seconds = [cost.seconds for cost in self.building if cost.seconds is not None]
        return sum(seconds) if len(seconds) == len(self.building) else None

    @property
    def is_large(self) -> bool:
        """Whether a person at a terminal is asked before it begins."""
        trained = max((cost.trained for cost in self.building), default=0)
        space = self.download + (self.keeps or 0)
        return space > LARGE_BYTES or (self.seconds or 0) > LARGE_SECONDS or trained > LARGE_TRAINING

    def of(self, plan: Plan) -> Survey:
        """The same for a plan that is a part of this one, as it is by now; its problems were raised with the whole."""
        costs = {cost.node.recipe.id: cost for cost in self.costs}
        nodes = ((node, costs.get(node.recipe.id) or Cost(node)) for node in plan.nodes(self.store))
        own = tuple(replace(cost, artifact=cost.artifact or self.store.get(node.label)) for node, cost in nodes)
        return replace(self, plan=plan, costs=own, problems=(), remarks=(), is_checked=True)


def survey(
    plan: Plan,
    store: Store,
    runtime: Runtime,
    machine: Machine | None = None,
    command: str = "",
    in_recipe: bool = False,
) -> Survey:
    """Look a plan over, that of a `command` line where one is given, whose settings may stand in a recipe.

    Only stages that are to be built are looked into; a plan that exists costs nothing.

    Problems are those that can be named without loading a model's libraries: of what cannot fit, of data that are
    here, and of lengths. Raises AdpaError where torch cannot compute on the card, and UsageError for an adapter that no
    model can have: for neither there is anything to plan.
    """
    existing: dict[str, Manifest | None] = {}

    def exists(node: Node) -> bool:
        existing[node.recipe.id] = store.get(node.label)
        return existing[node.recipe.id] is not None

    nodes = in_order((*plan.targets, *plan.evals), exists)
    missing = [node for node in nodes if existing[node.recipe.id] is None]
    machine = machine or Machine.here(store.root)
    if not missing:
        costs = tuple(Cost(node, existing[node.recipe.id]) for node in nodes)
        return Survey(plan, store, runtime, machine, costs, is_checked=True)
    check_torch(machine)
    refuse(_impossible_adapters(missing, store))
    clock = Clock(store, machine)
    with _no_search_for_cycles():
        costs = tuple(
            cost_of(node, store, runtime, machine, clock)
            if existing[node.recipe.id] is None
            else Cost(node, existing[node.recipe.id])
            for node in nodes
        )
        checks = plain_checks([node for node in missing if is_here(node)], store, plan.ignored)
        problems, remarks = run_checks([*checks, functools.partial(check_offload, nodes, runtime)])
    shared = dict.fromkeys(text for cost in costs for text in shared_words(cost, runtime, machine))
    slow = dict.fromkeys(text for cost in costs for text in waiting_words(cost))
    remarks = [*resumed_words(missing, store, runtime), *older_words(nodes, existing), *remarks, *shared, *slow]
    surveyed = Survey(plan, store, runtime, machine, costs, clock.basis)
    full = list(disk_problems(surveyed.building, machine, surveyed.download, store))
    too_large, change = advise(surveyed.building, machine, store, runtime, surveyed.download)
    fitting = change.command(command, runtime, in_recipe) if command and change and not (full or problems) else ""
    problems = [*full, *too_large, *problems]
    return replace(surveyed, problems=tuple(problems), remarks=tuple(remarks), command=fitting)


def _impossible_adapters(nodes: Sequence[Node], store: Store) -> list[AdpaError]:
    """What is asked of adapters that cannot be made, as far as the models that they are of are here."""
    with contextlib.suppress(*CANNOT_TELL):
        problems, _ = run_checks(functools.partial(check_adapters, node, store) for node in nodes)
        return [problem for problem in problems if isinstance(problem, UsageError)]
    return []


def resumed_words(nodes: Sequence[Node], store: Store, runtime: Runtime) -> list[str]:
    """What is said of stages that an earlier command began: they continue where it saved last.

    How far other jobs are that make parts of one says little of what is left to a part.
    """
    begun = {work.recipe.id: work.progress for work in store.unfinished()}
    found = [(node, begun.get(node.recipe.id, {})) for node in nodes]
    is_part = runtime.part[1] > 1
    return [
        f"{node.role} ({node.label}) "
        + (
            "uses the finished blocks that are in the store"
            if is_part
            else f"continues at step {progress['step']:,} of {progress['of']:,}"
        )
        for node, progress in found
        if progress.get("step") and progress.get("of")
    ]


def older_words(nodes: Sequence[Node], existing: Mapping[str, Manifest | None]) -> list[str]:
    """What is said of artifacts in a plan that a stage of an older version made: they are used as they are."""
    inputs = [item.manifest for node in nodes for _, item in node.flat_inputs() if isinstance(item, Artifact)]
    used = [*inputs, *(manifest for manifest in existing.values() if manifest is not None)]
    old = [manifest.ref for manifest in used if manifest.version < stages.every()[manifest.stage].version]
    return (
        [f"These were made by an older version and are used as they are: {', '.join(dict.fromkeys(old))}"]
        if old
        else []
    )


@contextlib.contextmanager
def _no_search_for_cycles() -> Iterator[None]:
    """Without the collector: rows are many and refer to nothing, and looking through them takes a tenth of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _check_ready(node: Node, runtime: Runtime) -> Sequence[str]:
    """Whether a stage lacks nothing of how it runs."""
    node.declared.check(node.spec, runtime)
    return ()


def check(survey: Survey, note: Callable[[str], None]) -> None:
    """Fetch the data of the stages to be built, and check the rest of what can be known before any work.

    `note` hears remarks. Raises one error with all problems.
    """
    if survey.is_checked:
        return
    missing = [cost.node for cost in survey.building]
    hub.fetch(hub_files(missing, "dataset"), survey.store.hash_cache, note)  # the checks read every row
    late = [node for node in missing if not is_here(node)]
    reported = {error.message for error in survey.problems}
    plain = plain_checks(late, survey.store, survey.plan.ignored)
    ready = (functools.partial(_check_ready, node, survey.runtime) for node in missing)
    problems, remarks = run_checks((*ready, *plain, *saved_checks(missing, survey.store)))
    for text in remarks:
        if text not in survey.remarks:  # which the plan has shown
            note(text)
    more = [error for error in problems if error.message not in reported]
    refuse([*survey.problems, *more], "" if more else survey.command)
    check_card(survey.machine)
