"""What a plan says in numbers: bytes on disk, memory, time, and whether a person should be asked first.

Everything is read off the plan, the data, the headers of weights and the manifests of the store; no torch.
"""

from __future__ import annotations

from dataclasses import dataclass

from adpa_cli.machine import Machine
from adpa_cli.spec import Runtime
from adpa_cli.stages.graph import External
from adpa_cli.stages.plan import Plan
from adpa_cli.stages.stage_cost import Clock, Cost, cost_of
from adpa_cli.store.store import Store

LARGE_BYTES, LARGE_SECONDS, LARGE_TRAINING = 10e9, 1800.0, 1e9


@dataclass(frozen=True)
class Estimate:
    """A plan in numbers. `basis` says where its seconds come from."""

    costs: tuple[Cost, ...]
    machine: Machine
    externals: tuple[External, ...] = ()
    basis: str = ""

    @property
    def building(self) -> tuple[Cost, ...]:
        return tuple(cost for cost in self.costs if cost.found is None)

    @property
    def download(self) -> int:
        """Bytes to fetch."""
        return sum(external.download for external in self.externals)

    @property
    def keeps(self) -> int | None:
        """Bytes that stay in the store; None when a stage cannot tell."""
        known = [cost.disk.keeps for cost in self.building if cost.disk is not None]
        return sum(known) if len(known) == len(self.building) else None

    @property
    def peak(self) -> int | None:
        """Bytes at the fullest moment, what is kept by then included; downloads come on top."""
        return self.fullest[0] if self.keeps is not None else None

    @property
    def fullest(self) -> tuple[int, Cost | None]:
        """Bytes at the fullest moment, and the stage that is built then."""
        kept, most, at = 0, 0, None
        for cost in self.building:
            if cost.disk is not None:
                kept += cost.disk.keeps
                if kept + cost.disk.extra > most:
                    most, at = kept + cost.disk.extra, cost
        return most, at

    @property
    def memory(self) -> int | None:
        """Bytes that the device must hold at most; None when a stage cannot tell."""
        known = [cost.memory.device for cost in self.building if cost.memory is not None]
        return max(known, default=0) if len(known) == len(self.building) else None

    @property
    def seconds(self) -> float | None:
        """Of all stages together; None when one cannot tell."""
        known = [cost.seconds for cost in self.building if cost.seconds is not None]
        return sum(known) if len(known) == len(self.building) else None

    @property
    def large(self) -> bool:
        """Whether a person at a terminal is asked before it begins."""
        trained = max((cost.trained for cost in self.building), default=0)
        space = self.download + (self.keeps or 0)
        return space > LARGE_BYTES or (self.seconds or 0) > LARGE_SECONDS or trained > LARGE_TRAINING


def estimate(plan: Plan, store: Store, runtime: Runtime, machine: Machine | None = None) -> Estimate:
    """The plan in numbers. Only stages that are to be built are looked into; a plan that is found costs nothing."""
    nodes = plan.nodes(store)
    found = {node.recipe.id: store.get(node.label) for node in nodes}
    machine = machine or Machine.here(store.root)
    build = [node for node in nodes if found[node.recipe.id] is None]
    externals = {item.content: item for node in build for _, item in node.flat_inputs() if isinstance(item, External)}
    clock = Clock(store, machine) if build else None
    costs = tuple(
        cost_of(node, store, runtime, machine, clock)
        if clock and found[node.recipe.id] is None
        else Cost(node, found[node.recipe.id])
        for node in nodes
    )
    return Estimate(costs, machine, tuple(externals.values()), clock.basis if clock else "")
