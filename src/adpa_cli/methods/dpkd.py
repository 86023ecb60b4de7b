"""DPKD: raise the chosen answer over the rejected one, relative to the aligned teacher, beside SFT."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from adpa_cli.methods import Need, Part, Reduction, Tensor, Term, View, averaging, param, required

VERSION = 1
SOURCE = "Li et al. 2024, Eqs. 8-9 and Algorithm 1, on true preference pairs"
SUMMARY = "direct preference knowledge distillation: DPO with the aligned teacher as its reference"
FORMULA = "(1-m) L_SFT(y_w) - m log σ(β [r_w - r_l]), r = mean_t (log π(y_t) - log π_aligned(y_t))"
NEEDS = (Need("chosen", signal=("aligned",)), Need("rejected", signal=("aligned",)))
READINGS = {
    "length_norm": (
        "Eq. 9 divides by the length, and Eq. 8 does not (`false`). The released code instead compares the most "
        "probable tokens of the two models at each position, which uses no pairs. That variant does not exist here."
    ),
    "kd_teacher": (
        "The paper does not say which teacher this baseline uses. Here it is the teacher of the paper's own methods."
    ),
    "mix": "The source multiplies its language modelling loss by λ. The released code uses half of each loss.",
}
NOTES = (
    (
        "The reference is the teacher, not the start model. Means per token make the logits very small, so try "
        "β = 0.1, 1 and 2."
    ),
)


@dataclass(frozen=True)
class Params:
    """Scale of the log-ratios and their share beside SFT."""

    beta: float = param(0.1, "scale of the log-ratio to the teacher", low=0.0, high=1000.0, origin="release")
    length_norm: bool = param(True, "compare the mean log-ratio per token (Eq. 9), not the sum (Eq. 8)", origin="paper")
    mix: float = param(
        0.5, "weight of the preference loss; the weight of SFT is 1 minus this", low=0.0, high=1.0, origin="release"
    )
    reduction: Reduction = averaging("of SFT: ")


def terms(views: Mapping[Part, View], p: Params) -> tuple[Term, ...]:
    """-log π(y_t) at chosen tokens, and -log σ(β (r_w - r_l)) for every pair."""
    from torch.nn.functional import logsigmoid

    chosen = views["chosen"]
    h = _log_ratio(chosen, p) - _log_ratio(views["rejected"], p)
    return (
        Term("sft", -chosen.logps, "chosen", 1 - p.mix, p.reduction),
        Term("dpkd", -logsigmoid(p.beta * h), "chosen", p.mix),
    )


def _log_ratio(view: View, p: Params) -> Tensor:
    """Mean or sum over the answer, end token included, of log π - log π_aligned, [B]."""
    return view.total(view.logps - required(view.signal).label_logps, mean=p.length_norm)
