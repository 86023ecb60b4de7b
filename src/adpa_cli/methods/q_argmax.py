"""Q-argmax: on the student's own answers, learn the one token that alignment favoured most."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from adpa_cli.methods import Need, Part, Reduction, Signal, Tensor, Term, View, averaging, param, required

VERSION = 1
SOURCE = "Gao et al. 2025, Eq. 30"
SUMMARY = "fine-tune on the token of the largest advantage, on the student's own answers"
FORMULA = "L_SFT(y_w) - γ mean_t log π(a*_t|s_t), a*_t = argmax over the aligned top k of A(s_t,a), on ŷ"
NEEDS = (Need("chosen"), Need("rollout", signal=("aligned", "reference"), exact=True))
TEACHERS_WEIGHT = "gamma"
READINGS = {
    "plausibility": (
        "The paper takes the argmax over the whole vocabulary, but a signal contains only the top k. The released "
        "code has an unused function that first requires a probability of 0.1."
    ),
    "gamma": "The paper gives no value for this ablation.",
}
NOTES = (
    "If both teachers agree, every advantage is 0, and the aligned teacher's most probable token is taken.",
    (
        "The method learns one token at each position. Rounding can change which one: with the usual storage steps, "
        "1/32 and 1/128 nat, at 2 to 16 % of the positions. If only the differences are exact, it is 0.5 to 0.9 %, "
        "because of the floor rule. The method therefore reads only signals with exact numbers, and plans such a "
        "signal by itself."
    ),
)


@dataclass(frozen=True)
class Params:
    """Weight of the favoured token, and which tokens may be it."""

    gamma: float = param(1.5, "weight of the favoured token", low=0.0, high=1000.0)
    plausibility: float = param(
        0.0,
        "smallest aligned probability of the favoured token; if no token has it, the most probable one is taken",
        low=0.0,
        high=1.0,
    )
    kd_on_eos: bool = param(True, "learn the favoured token at the end token too")
    reduction: Reduction = averaging()


def terms(views: Mapping[Part, View], p: Params) -> tuple[Term, ...]:
    """-log π(y_t) at chosen tokens, and -log π(a*_t) at each position of the student's own answer."""
    view = views["rollout"]
    favoured = favourite(required(view.signal), p.plausibility)
    values = -required(view.topk_logps).gather(-1, favoured[..., None])[..., 0]
    return (
        Term("sft", -views["chosen"].logps, "chosen", reduction=p.reduction),
        Term("favoured", view.teach_end(values, p.kd_on_eos), "rollout", p.gamma, p.reduction),
    )


def favourite(signal: Signal, plausibility: float) -> Tensor:
    """Place among the ids of the largest advantage (the paper's floor rule), [B,T]; ties go to the likeliest of them.

    Only ids of at least that aligned probability take part; where there is none, only the likeliest.
    """
    logps = signal.logps
    scores = signal.advantage()
    least = math.log(plausibility) if plausibility > 0 else -math.inf
    may = (logps > -math.inf) & (logps >= logps.amax(-1, keepdim=True).clamp_max(least))
    scores = scores.masked_fill(~may, -math.inf)
    best = scores == scores.amax(-1, keepdim=True)
    return logps.masked_fill(~best, -math.inf).argmax(-1)
