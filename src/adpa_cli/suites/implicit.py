"""`implicit`: answers judged by the implicit reward of the teachers: the one that DPO fits, without its β.

It is the sum of the advantage that ADPA is trained on.
"""

from __future__ import annotations

from typing import Any

from adpa_cli.suites import REWARDS, ROLLOUTS, Inputs, Suite, implicit_rewards, logps_under, reward_figures

SCORERS = ("aligned", "reference")


def rewards(inputs: Inputs, spec: Any) -> dict[str, float]:
    """Sum over the tokens of every answer of log π_aligned - log π_reference, by the hash of its prompt."""
    from adpa_cli.engine.layout.examples import Examples, scored_answers

    aligned, reference = (inputs[who].path for who in SCORERS)
    ids, answers = scored_answers(inputs[ROLLOUTS], spec, aligned)
    examples = Examples({"rollout": answers}, answers.ids)
    sums = implicit_rewards(aligned, reference, examples, ("rollout",), logps_under(spec))
    return {id_: sums.get((id_, "rollout"), 0.0) for id_ in ids}  # the sum over an empty answer is 0


SUITE = Suite(
    "implicit", 4, reward_figures, (ROLLOUTS, REWARDS), SCORERS, rewards,
    remark="the implicit reward of the teachers is the signal that ADPA is trained on: of a student of theirs it says "
    "how well that was learned, not how good its answers are; a reward model judges these: --reward-model MODEL",
)  # fmt: skip
