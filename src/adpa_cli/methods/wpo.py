"""WPO: DPO in which a pair counts for less the less likely the student itself is to write it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from adpa_cli.methods import Need, Part, Tensor, Term, View, param, required
from adpa_cli.methods.dpo import log_ratio

VERSION = 1
SOURCE = "Zhou et al. 2024, with sampled alignment of the weights and the clamp of the released code"
SUMMARY = "weighted preference optimisation: DPO on pairs weighted by how on-policy they are"
FORMULA = "-w log σ(β h), h as in dpo, w = min(1, exp(ω_w + ω_l)), ω = mean_t (log π(y_t) - log Σ_v π(v|s_t)²)"
NEEDS = (Need("chosen", start=True, stats=True), Need("rejected", start=True, stats=True))
NOTES = (
    "The weight is computed from the student at every step, and has no gradient.",
    "The released code limits the weights to 1. TRL multiplies the two weights without a limit.",
)


@dataclass(frozen=True)
class Params:
    """The strength of the pull towards the start model."""

    beta: float = param(0.01, "scale of the implicit reward", low=0.0, high=100.0, origin="release")


def terms(views: Mapping[Part, View], p: Params) -> tuple[Term, ...]:
    """-w log σ(β h) for every pair; w is a constant."""
    from torch.nn.functional import logsigmoid

    chosen, rejected = views["chosen"], views["rejected"]
    h = log_ratio(chosen) - log_ratio(rejected)
    weight = (_likeness(chosen) + _likeness(rejected)).clamp_max(0.0).exp()
    return (Term("wpo", -weight * logsigmoid(p.beta * h), "chosen"),)


def _likeness(view: View) -> Tensor:
    """ω: mean over the answer of log π minus its expectation's proxy log Σ π², [B], without gradient."""
    return view.total(view.logps.detach() - required(view.log_sum_squares), mean=True)
