"""ADPA: on the student's own answers, move its probability towards the tokens that alignment favoured."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from adpa_cli.errors import UsageError
from adpa_cli.methods import Need, Part, Probe, Reduction, Tensor, Term, View, averaging, param, required

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
    "clamp": "The paper has no clamp. The released code bounds A to [1e-8, 1-1e-8], so that tokens which alignment made"
    " less likely count as unchanged and no token counts for more than 1: `release`.",
    "missing_reference": "By the paper an aligned id that the reference's top k lacks takes the least log-prob of the "
    "reference's list; the released code takes that of the aligned list: `aligned`.",
    "kd_on_eos": "The released cache has no end token: A is 0 there and it still counts in the mean: `false`.",
    "reduction": "The paper sums over tokens (`seqsum`); the released code averages over the tokens of a micro-batch of"
    " one answer (`seqmean`).",
    "lr": "1e-5 in the paper, 5e-7 in the released recipe.",
    "gamma": "The paper sweeps 0.5 to 5 and finds 3 best once; the released recipe has 1.6. Sweep it.",
    "student_tail": "Eq. 10 sums over the vocabulary; what a token counts that the teacher's top k lacks is not said.",
}
NOTES = (
    "The objective is linear in π: only L_SFT and few steps keep π from a point mass. Watch entropy and length.",
    "A has no β, so γ does not carry over between teacher pairs: compare γ times the RMS of A, which plans print.",
    "Without a clamp a token outside the top k (A = 0) beats every token inside with A < 0: at a large γ mass leaks "
    "there, unless `student_tail=floor`.",
)

MissingReference = Literal["kth", "aligned", "exact"]
StudentTail = Literal["zero", "bucket", "floor"]


@dataclass(frozen=True)
class Params:
    """Weight and reading of the advantage."""

    gamma: float = param(1.5, "weight of the expected advantage", low=0.0, high=1000.0)
    missing_reference: MissingReference = param(
        "kth",
        "log-prob of a token outside the reference's top k: its k-th, the last of the aligned list, or the exact one",
        choices=get_args(MissingReference),
        origin="paper",
    )
    student_tail: StudentTail = param(
        "zero",
        "advantage outside the aligned top k: 0, the log-ratio of the remaining masses, or the row's lowest",
        choices=get_args(StudentTail),
    )
    clamp: str = param("none", "bounds of the advantage: none, release (1e-8 to 1-1e-8), or low,high", origin="paper")
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
