"""`implicit`: answers judged by the implicit reward of the teachers: the one that DPO fits, without its β.

It is the sum of the advantage that ADPA is trained on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from adpa_cli.hub import Located
from adpa_cli.suites import EvalSpec, Suite, implicit_rewards, logps_under

if TYPE_CHECKING:
    from adpa_cli.engine.layout.examples import Rollouts


def rewards(scorers: Mapping[str, Located], spec: EvalSpec, rollouts: Rollouts) -> dict[str, float]:
    """Sum over the tokens of every answer of log π_aligned - log π_reference, by the hash of its prompt."""
    from adpa_cli.engine.layout.examples import Examples, rollout_answers

    answers = rollout_answers(rollouts)
    examples = Examples({"rollout": answers}, answers.ids)
    aligned, reference = (scorers[who].path for who in SUITE.scorers)
    sums = implicit_rewards(aligned, reference, examples, ("rollout",), logps_under(spec))
    return {row.id: sums.get((row.id, "rollout"), 0.0) for row in rollouts}  # the sum over an empty answer is 0


SUITE = Suite(
    "implicit", 4, rewards, ("aligned", "reference"),
    remark="the implicit reward of the teachers is the signal that ADPA is trained on: of a student of theirs it says "
    "how well that was learned, not how good its answers are; a reward model judges these: --reward-model MODEL",
)  # fmt: skip
