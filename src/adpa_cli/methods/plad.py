"""PLaD: a hinge that ranks the chosen answer over the rejected one, beside SFT."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from adpa_cli.methods import Need, Part, Reduction, Term, View, averaging, param

VERSION = 1
SOURCE = "Zhang et al. 2024, re-implemented as the rank hinge of Zhao et al. 2023 (SLiC) on true preference pairs"
SUMMARY = "preference-based distillation as a ranking hinge (re-implementation)"
FORMULA = "max(0, δ - s_w + s_l) + λ L_SFT(y_w), s = Σ_t log π(y_t)"
NEEDS = (Need("chosen"), Need("rejected"))
READINGS = {
    "length_norm": "The source compares log P(y|x), which is a sum. `true` uses the mean per token instead.",
    "delta": "No code was published, and the paper does not print its constants. Try 0.5, 1 and 5.",
    "sft_weight": "The source does not say whether it adds SFT. Try 0, 0.1 and 1.",
}
NOTES = (
    (
        "This is a re-implementation. The source compares the teacher's answers with the student's; here the pairs are "
        "those of the data."
    ),
)


@dataclass(frozen=True)
class Params:
    """Margin of the hinge and weight of SFT beside it."""

    delta: float = param(1.0, "margin by which the chosen answer must win, in nats", low=0.0, high=1000.0)
    sft_weight: float = param(1.0, "weight of SFT on the chosen answers", low=0.0, high=1000.0)
    length_norm: bool = param(False, "score an answer by its mean log-prob per token, not by the sum")
    reduction: Reduction = averaging("of SFT: ")


def terms(views: Mapping[Part, View], p: Params) -> tuple[Term, ...]:
    """The hinge of every pair, and -log π(y_t) at chosen tokens."""
    chosen = views["chosen"]
    scores = [view.total(view.logps, mean=p.length_norm) for view in (chosen, views["rejected"])]
    gap = scores[0] - scores[1]
    return (
        Term("rank", (p.delta - gap).relu(), "chosen"),
        Term("sft", -chosen.logps, "chosen", p.sft_weight, p.reduction),
    )
