"""A plan looked at before it is carried out: what it takes, what stands against it, and how that is shown."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from adpa_cli.cli.plan_screen import plan_json, plan_text, plan_tsv
from adpa_cli.errors import AdpaError
from adpa_cli.spec import Runtime
from adpa_cli.stages.plan import Plan
from adpa_cli.store.store import Store

if TYPE_CHECKING:
    from adpa_cli.stages.estimate import Estimate


@dataclass(frozen=True)
class Look:
    """A plan with what it takes, and what is known to stand against it."""

    plan: Plan
    store: Store
    estimate: Estimate
    problems: tuple[AdpaError, ...]

    def text(self, width: int) -> str:
        """For a terminal."""
        return plan_text(self.plan, self.estimate, self.store, width)

    def tsv(self) -> str:
        """For a pipe."""
        return plan_tsv(self.estimate).rstrip("\n")

    def json(self) -> str:
        """For a program: one object."""
        record = plan_json(self.plan, self.estimate, self.store)
        return json.dumps(record, ensure_ascii=False, indent=1)

    @property
    def seconds(self) -> dict[str, float]:
        """How long each stage that is to be made may take, by label; those that nobody can tell are left out."""
        return {c.node.label: c.seconds for c in self.estimate.building if c.seconds is not None}


def look(plan: Plan, store: Store, runtime: Runtime) -> Look:
    """Estimate a plan, and see what cannot fit here."""
    # A command that finds all it makes needs none of this, nor the time to import it.
    from adpa_cli.stages.estimate import estimate
    from adpa_cli.stages.fits import problems

    found = estimate(plan, store, runtime)
    return Look(plan, store, found, tuple(problems(found, store, runtime)))


def look_closely(plan: Plan, store: Store, runtime: Runtime) -> Look:
    """The same with every problem that can be told without loading a library of models."""
    from adpa_cli.stages.preflight import problems_without_torch

    seen = look(plan, store, runtime)
    more = problems_without_torch([cost.node for cost in seen.estimate.building], store)
    return replace(seen, problems=(*seen.problems, *more))
