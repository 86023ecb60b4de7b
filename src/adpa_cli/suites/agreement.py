"""`agreement`: how often the implicit reward of a model ranks held-out pairs right, the key figure of a DPO teacher.

The reward of an answer is the sum over its tokens of log π_model - log π_reference; the β of DPO moves no sign.
"""

from __future__ import annotations

from collections.abc import Mapping

from adpa_cli.hub import Located
from adpa_cli.suites import EvalSpec, Suite, implicit_rewards


def margins(inputs: Mapping[str, Located], spec: EvalSpec) -> dict[str, float]:
    """The reward of the chosen answer less that of the rejected one, in nats, by the id of the pair."""
    from adpa_cli.engine.layout.examples import pair_examples

    model, reference = inputs["model"].path, inputs["reference"].path
    examples = pair_examples(spec, inputs["data"], "test", model)
    rewards = implicit_rewards(model, reference, spec, examples, ("chosen", "rejected"))
    return {e.id: rewards[e.id, "chosen"] - rewards[e.id, "rejected"] for e in examples}


SUITE = Suite("agreement", 5, scorers=("reference",), margins=margins, score="agreement")
