"""SeqKD: fine-tune on the teacher's answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from adpa_cli.methods import Need, Part, Reduction, Term, View, averaging

VERSION = 1
SOURCE = "Kim & Rush 2016, sequence-level knowledge distillation"
SUMMARY = "fine-tune on the aligned teacher's own answers to the prompts"
FORMULA = "mean over answers of -1/|y| Σ_t log π(y_t), y the teacher's answer"
NEEDS = (Need("rollout"),)
STATES = "teacher"
READINGS = {
    "kd_teacher": (
        "The paper does not say which teacher this baseline uses. Here it is the teacher of the paper's own methods."
    ),
}
NOTES = (
    (
        "The source generates answers with beam search, and the paper does not say how. Here the settings of `rollout` "
        "are used."
    ),
)


@dataclass(frozen=True)
class Params:
    """How token losses are averaged."""

    reduction: Reduction = averaging()


def terms(views: Mapping[Part, View], p: Params) -> tuple[Term, ...]:
    """-log π(y_t) at every token of the answer."""
    return (Term("sft", -views["rollout"].logps, "rollout", reduction=p.reduction),)
