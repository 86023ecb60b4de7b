"""Vanilla KD: copy the aligned teacher's distribution on the chosen answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from adpa_cli.methods import Need, Part, Reduction, Term, View, averaging, param
from adpa_cli.methods.dckd import Tail, divergence, support_of, tail_param

VERSION = 1
SOURCE = "Hinton et al. 2015; Gao et al. 2025, Eq. 1 with the sign that minimises the divergence"
SUMMARY = "token-level distillation from an aligned teacher's top k on chosen answers"
FORMULA = "L_SFT(y_w) + α KL(π_aligned‖π) on y_w"
NEEDS = (Need("chosen", signal=("aligned",), labels=False),)
TEACHERS_WEIGHT = "alpha"
SAMPLED = {"tail": "sampled"}
READINGS = {
    "tail": (
        "The paper stores the teacher's top 50 and does not say what becomes of the other tokens. The released code "
        "treats them as one class (`bucket`). Other projects scale the list so that it sums to 1."
    ),
    "alpha": "The paper gives no value for this baseline. Here it is that of dckd.",
    "kd_teacher": (
        "The paper does not say which teacher this baseline uses. Here it is the teacher of the paper's own methods."
    ),
}
NOTES = ("Eq. 1 is printed with a minus before the bracket that contains the divergence, and would maximise it.",)


@dataclass(frozen=True)
class Params:
    """Weight and reading of the divergence."""

    alpha: float = param(0.2, "weight of the divergence", low=0.0, high=1000.0)
    tail: Tail = tail_param()
    kd_on_eos: bool = param(True, "distil at the end token too")
    reduction: Reduction = averaging()


def needs(p: Params) -> tuple[Need, ...]:
    """Drawn ids where the tail says so."""
    return tuple(replace(need, support=support_of(p.tail)) for need in NEEDS)


def terms(views: Mapping[Part, View], p: Params) -> tuple[Term, ...]:
    """-log π(y_t) and the teacher's divergence at chosen tokens."""
    chosen = views["chosen"]
    return (
        Term("sft", -chosen.logps, "chosen", reduction=p.reduction),
        Term("kl_chosen", divergence(chosen, p.tail, p.kd_on_eos), "chosen", p.alpha, p.reduction),
    )
