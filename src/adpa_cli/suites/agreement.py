"""`agreement`: how often the implicit reward of a model ranks held-out pairs right, the key figure of a DPO teacher.

The reward of an answer is the sum over its tokens of log π_model - log π_reference; the β of DPO moves no sign.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from adpa_cli.hub import Located
from adpa_cli.suites import Logps, Suite, implicit_rewards

if TYPE_CHECKING:
    from adpa_cli.engine.layout.examples import Example


def margins(inputs: Mapping[str, Located], examples: Sequence[Example], logps: Logps) -> dict[str, float]:
    """The reward of the chosen answer less that of the rejected one, in nats, by the id of the pair."""
    model, reference = inputs["model"].path, inputs["reference"].path
    rewards = implicit_rewards(model, reference, examples, ("chosen", "rejected"), logps)
    return {e.id: rewards[e.id, "chosen"] - rewards[e.id, "rejected"] for e in examples}


SUITE = Suite("agreement", 5, scorers=("reference",), margins=margins, score="agreement")
