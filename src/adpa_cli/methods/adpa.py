"""ADPA: on the student's own answers, move its probability towards the tokens that alignment favoured."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, get_args

from adpa_cli.errors import UsageError
from adpa_cli.methods import (
    Need,
    Part,
    Probe,
    Reduction,
    Tensor,
    Term,
    Unit,
    View,
    averaging,
    param,
    required,
    unit_param,
)

VERSION = 1
SOURCE = "Gao et al. 2025, Eqs. 8-10 and Algorithm 1"
SUMMARY = "advantage-guided distillation on the student's own answers"
FORMULA = "L_SFT(y_w) - γ mean_t Σ_a π(a|s_t) A(s_t,a), A = log π_aligned - log π_reference, on ŷ"
NEEDS = (Need("chosen"), Need("rollout", signal=("aligned", "reference")))
ADVANTAGE_WEIGHT = TEACHERS_WEIGHT = "gamma"
WITHOUT_REFERENCE = "adpa-noref"
PROBE = Probe("advantage", "rollout", pair=True)
PRESETS = {
    "release": {
        "gamma": 1.6, "clamp": "release", "missing_reference": "aligned", "kd_on_eos": False, "reduction": "seqmean",
        "lr": 5e-7, "epochs": 3.0, "max_length": 1024, "select": "best", "keep": "all",
    }
}  # fmt: skip
READINGS = {
    "clamp": (
        "The paper has no clamp. The released code limits A to [1e-8, 1-1e-8] (`release`). A token that alignment "
        "made less likely then counts as unchanged, and no token counts for more than 1."
    ),
    "missing_reference": (
        "If an aligned token is missing from the reference's top k, the paper uses the smallest log-prob of the "
        "reference's list. The released code uses the smallest of the aligned list (`aligned`)."
    ),
    "kd_on_eos": (
        "The released cache does not contain the end token (`false`). A is 0 there, and the position still counts "
        "in the mean."
    ),
    "reduction": (
        "The paper sums over tokens (`seqsum`). The released code averages over the tokens of a micro-batch, which "
        "has one answer (`seqmean`)."
    ),
    "lr": "The paper uses 1e-5, and the released recipe 5e-7.",
    "gamma": (
        "The paper tries 0.5 to 5 and reports 3 as the best value for one pair of models. The released recipe uses "
        "1.6. Try several values. Each training prints γ × RMS of the advantage: where it is above about 1, answers "
        "become worse in the miniature (docs/results.md)."
    ),
    "unit": (
        "Eq. 10 has A in nats (`nat`). `rms` is not in the paper: A is divided by its RMS over the signal, so that γ "
        "is γ × RMS of `nat`, and one γ suits teachers whose advantages have different sizes."
    ),
    "student_tail": (
        "Eq. 10 sums over the whole vocabulary. The paper does not say what counts for a token outside the "
        "teacher's top k."
    ),
}
NOTES = (
    (
        "The objective is linear in π. Without L_SFT, or after many steps, π puts all its probability on one token. "
        "Watch the entropy and the length of answers."
    ),
    (
        "A does not contain β, so a γ for one pair of teachers does not suit another. Compare γ times the RMS of A, "
        "which plans print, or set `unit=rms`, which divides A by its RMS."
    ),
    (
        "Without a clamp, a token outside the top k (A = 0) is better than every token inside with A < 0. With a "
        "large γ, probability moves to the tokens outside, unless you set `student_tail=floor`."
    ),
)

MissingReference = Literal["kth", "aligned", "exact"]
StudentTail = Literal["zero", "bucket", "floor"]


@dataclass(frozen=True)
class Params:
    """Weight and reading of the advantage."""

    gamma: float = param(1.5, "weight of the expected advantage", low=0.0, high=1000.0)
    missing_reference: MissingReference = param(
        "kth",
        (
            "log-prob of a token outside the reference's top k: that of its k-th token, of the aligned list's last, "
            "or the true one"
        ),
        choices=get_args(MissingReference),
        origin="paper",
    )
    student_tail: StudentTail = param(
        "zero",
        (
            "advantage of tokens outside the aligned top k: 0, the log-ratio of their total probabilities, or the "
            "position's smallest"
        ),
        choices=get_args(StudentTail),
    )
    clamp: str = param("none", "limits of the advantage: none, release (1e-8 to 1-1e-8), or low,high", origin="paper")
    unit: Unit = unit_param("γ and the limits of clamp keep their meaning when the teachers change")
    kd_on_eos: bool = param(True, "use the advantage at the end token too", origin="paper")
    reduction: Reduction = averaging()

    def __post_init__(self) -> None:
        bounds(self.clamp)


def bounds(clamp: str) -> tuple[float, float] | None:
    """The two numbers that `clamp` names, None for "none"; UsageError when it names no interval."""
    if clamp in ("none", "release"):
        return None if clamp == "none" else (1e-8, 1 - 1e-8)
    try:
        low, high = (float(part) for part in clamp.split(","))
    except ValueError:
        low, high = 1.0, 0.0
    if not low <= high:
        raise UsageError(
            f"clamp must be none, release or two numbers; got clamp={clamp}", "for example: --set clamp=-2,2"
        )
    return low, high


def in_nats(p: Params, rms: float) -> Params:
    """The same parameters where A is counted in nats, for a signal whose advantage has this RMS, `rms` > 0.

    γ Σ π clamp(A / rms, low, high) is (γ / rms) Σ π clamp(A, low rms, high rms).
    """
    limits = bounds(p.clamp)
    clamp = p.clamp if limits is None else ",".join(repr(limit * rms) for limit in limits)
    return replace(p, gamma=p.gamma / rms, clamp=clamp, unit="nat")


def terms(views: Mapping[Part, View], p: Params) -> tuple[Term, ...]:
    """-log π(y_t) at chosen tokens, and minus the expected advantage at each token of the student's own answer."""
    return (
        Term("sft", -views["chosen"].logps, "chosen", reduction=p.reduction),
        Term("advantage", -_expected(views["rollout"], p), "rollout", p.gamma, p.reduction),
    )


def _expected(view: View, p: Params) -> Tensor:
    """Σ_a π(a) A(a) at each position, [B,T]."""
    from adpa_cli.tensors.divergence import expected_advantage, rest_advantage

    signal, clamp = required(view.signal), bounds(p.clamp)
    scores = signal.advantage(missing_reference=p.missing_reference, clamp=clamp)
    rest_scores = rest_advantage(
        view.outside(signal.label_logps, signal.rest_logps),
        view.outside(signal.reference_label_logps, signal.reference_rest_logps), clamp,
    )  # fmt: skip
    values = expected_advantage(
        required(view.topk_logps), scores, student_tail=p.student_tail,
        student_rest=view.outside(view.logps, view.rest_logps), rest_values=rest_scores,
        present=signal.logps > -math.inf,
    )  # fmt: skip
    return view.teach_end(values, p.kd_on_eos)
