"""ADPA without the reference teacher: on the student's own answers, its reverse cross-entropy under the aligned one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from adpa_cli.methods import Need, Part, Reduction, Tensor, Term, View, averaging, param, required

VERSION = 1
SOURCE = "Gao et al. 2025, Table 2, 'w/o reference teacher'"
SUMMARY = "ADPA without its reference teacher: reverse cross-entropy on the student's own answers"
FORMULA = "L_SFT(y_w) - γ mean_t Σ_a π(a|s_t) log π_aligned(a|s_t), outside the top k its least log-prob, on ŷ"
NEEDS = (Need("chosen"), Need("rollout", signal=("aligned",)))
TEACHERS_WEIGHT = "gamma"
READINGS = {
    "gamma": (
        "The paper gives no value for this ablation. The term is a cross-entropy, whose values are larger than "
        "those of A."
    )
}
NOTES = (
    (
        "The objective is smallest if all probability is on the aligned teacher's most probable token. Only L_SFT "
        "prevents this."
    ),
)


@dataclass(frozen=True)
class Params:
    """Weight of the reverse cross-entropy."""

    gamma: float = param(1.5, "weight of the reverse cross-entropy", low=0.0, high=1000.0)
    kd_on_eos: bool = param(True, "use the teacher at the end token too")
    reduction: Reduction = averaging()


def terms(views: Mapping[Part, View], p: Params) -> tuple[Term, ...]:
    """-log π(y_t) at chosen tokens, and the reverse cross-entropy at each token of the student's own answer."""
    return (
        Term("sft", -views["chosen"].logps, "chosen", reduction=p.reduction),
        Term("reverse_ce", _cross_entropy(views["rollout"], p), "rollout", p.gamma, p.reduction),
    )


def _cross_entropy(view: View, p: Params) -> Tensor:
    """-Σ_a π(a) log π_aligned(a) at each position, [B,T].

    Outside the top k every token scores the least log-prob inside. A score of 0 there would be the best of all, and
    draw the student away from everything that the teacher finds likely.
    """
    from adpa_cli.tensors.divergence import expected_advantage

    signal = required(view.signal)
    absent = signal.logps == -math.inf
    values = -expected_advantage(
        required(view.topk_logps), signal.logps.masked_fill(absent, 0.0), student_tail="bucket",
        student_rest=view.outside(view.logps, view.rest_logps),
        rest_values=signal.logps.masked_fill(absent, math.inf).amin(-1),
    )  # fmt: skip
    return view.teach_end(values, p.kd_on_eos)
