"""Q-softmax: on the student's own answers, copy the distribution that the advantages make."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from adpa_cli.methods import (
    Need,
    Part,
    Reduction,
    Tensor,
    Term,
    Unit,
    View,
    averaging,
    param,
    required,
    scaled_beta,
    unit_param,
)

VERSION = 1
SOURCE = "Gao et al. 2025, Eq. 31"
SUMMARY = "distil the softmax of the advantages, on the student's own answers"
FORMULA = "L_SFT(y_w) + γ mean_t KL(softmax over the aligned top k of β A(s_t,·) ‖ π), on ŷ"
NEEDS = (Need("chosen"), Need("rollout", signal=("aligned", "reference")))
TEACHERS_WEIGHT, TEACHERS_BETA = "gamma", "beta"
READINGS = {
    "beta": (
        "Eq. 31 uses the advantage of Eq. 8, which contains the teacher's β. The target is then almost uniform over "
        "the stored tokens. The function in the released code leaves β out (1)."
    ),
    "gamma": "The paper gives no value for this ablation.",
}


@dataclass(frozen=True)
class Params:
    """Weight of the divergence and sharpness of its target."""

    gamma: float = param(1.5, "weight of the divergence", low=0.0, high=1000.0)
    beta: float = param(
        0.05, (
            "scale of the advantage in the softmax: the β of the teacher's DPO (Eq. 8), or 1 for the plain log-ratio"
        ),
        low=0.0, high=1e6, origin="paper",
    )  # fmt: skip
    unit: Unit = unit_param()
    kd_on_eos: bool = param(True, "distil at the end token too")
    reduction: Reduction = averaging()


in_nats = scaled_beta


def terms(views: Mapping[Part, View], p: Params) -> tuple[Term, ...]:
    """-log π(y_t) at chosen tokens, and KL(target || π) at each position of the student's own answer."""
    return (
        Term("sft", -views["chosen"].logps, "chosen", reduction=p.reduction),
        Term("kl_advantage", _divergence(views["rollout"], p), "rollout", p.gamma, p.reduction),
    )


def _divergence(view: View, p: Params) -> Tensor:
    """KL(softmax of β A over the aligned ids || student's full softmax) at each position, [B,T]; paper's floor rule."""
    from adpa_cli.tensors.divergence import renormalised_kl

    signal = required(view.signal)
    scores = p.beta * signal.advantage()
    values = renormalised_kl(scores.masked_fill(signal.logps == -math.inf, -math.inf), required(view.topk_logps))
    return view.teach_end(values, p.kd_on_eos)
