"""`tiny`: answers judged by the rules of the built-in miniature world."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from adpa_cli.hub import Located
from adpa_cli.suites import EvalSpec, Suite

if TYPE_CHECKING:
    from adpa_cli.engine.layout.examples import Rollouts


def rewards(scorers: Mapping[str, Located], spec: EvalSpec, rollouts: Rollouts) -> dict[str, float]:
    """The reward, 0 to 1, of every answer by the hash of its prompt."""
    from adpa_cli.lab import world

    return {row.id: world.reward(row.prompt[-1].content, row.text) for row in rollouts}


SUITE = Suite("tiny", 2, rewards, with_teachers=True)
