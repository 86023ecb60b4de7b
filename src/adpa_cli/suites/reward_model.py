"""`reward-model`: answers judged by a reward model, made here or elsewhere."""

from __future__ import annotations

from typing import Any

from adpa_cli.data.answers import answers_of
from adpa_cli.suites import REWARDS, ROLLOUTS, Inputs, Suite, reward_figures


def rewards(inputs: Inputs, spec: Any) -> dict[str, float]:
    """The number that the reward model gives to every answer, by the hash of its prompt."""
    from adpa_cli.engine.rewards.reward_model import reward_scores

    answers = answers_of(inputs[ROLLOUTS].path)
    dialogues = [(answer.prompt, answer.text) for answer in answers]
    values = reward_scores(inputs["reward_model"], dialogues, spec, spec.block_tokens, "STAGE", quantise=spec.quantise)
    return {answer.id: value for answer, value in zip(answers, values, strict=True)}


SUITE = Suite("reward-model", 3, reward_figures, (ROLLOUTS, REWARDS), ("reward_model",), rewards)
