"""`reward-model`: answers judged by a reward model, made here or elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from adpa_cli.hub import Located
from adpa_cli.suites import EvalSpec, Suite

if TYPE_CHECKING:
    from adpa_cli.engine.layout.examples import Rollouts


def rewards(scorers: Mapping[str, Located], spec: EvalSpec, rollouts: Rollouts) -> dict[str, float]:
    """The number that the reward model gives to every answer, by the hash of its prompt."""
    from adpa_cli.engine.rewards.reward_model import reward_scores

    dialogues = [(row.prompt, row.text) for row in rollouts]
    model, tokens = scorers["reward_model"], spec.block_tokens
    values = reward_scores(model, dialogues, spec, tokens, "eval", quantise=spec.quantise)
    return {row.id: value for row, value in zip(rollouts, values, strict=True)}


SUITE = Suite("reward-model", 3, rewards, ("reward_model",))
