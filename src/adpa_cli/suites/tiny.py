"""`tiny`: answers judged by the rules of the built-in miniature world."""

from __future__ import annotations

from typing import Any

from adpa_cli.data.answers import answers_of
from adpa_cli.suites import REWARDS, ROLLOUTS, Inputs, Suite, reward_figures


def rewards(inputs: Inputs, spec: Any) -> dict[str, float]:
    """The reward, 0 to 1, of every answer by the hash of its prompt."""
    from adpa_cli.lab import world

    return {
        answer.id: world.reward(answer.prompt[-1].content, answer.text) for answer in answers_of(inputs[ROLLOUTS].path)
    }


SUITE = Suite("tiny", 2, reward_figures, (ROLLOUTS, REWARDS), rewards=rewards, with_teachers=True)
