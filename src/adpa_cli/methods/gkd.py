"""GKD: on the student's own answers, copy the aligned teacher under a Jensen-Shannon divergence."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from adpa_cli.methods import Need, Part, Reduction, Tensor, Term, View, averaging, param, required

VERSION = 1
SOURCE = "Agarwal et al. 2024, generalised knowledge distillation: the divergence of section 2"
SUMMARY = "generalised Jensen-Shannon distillation on the student's own answers, without a reference teacher"
FORMULA = "σ L_SFT(y_w) + mean_t [β KL(π_aligned‖M) + (1-β) KL(π‖M)] on ŷ, M = β π_aligned + (1-β) π"
NEEDS = (Need("chosen"), Need("rollout", signal=("aligned",)))


@dataclass(frozen=True)
class Params:
    """The divergence, and how much supervised training goes with it."""

    beta: float = param(
        0.5, "weight of the teacher in the mixture; 0 is the forward divergence, 1 the reverse one", low=0.0, high=1.0
    )
    sft_weight: float = param(1.0, "σ: weight of -log π(y_t) on chosen answers", low=0.0, high=1000.0)
    reduction: Reduction = averaging()


def terms(views: Mapping[Part, View], p: Params) -> tuple[Term, ...]:
    """-log π(y_t) at chosen tokens, and the divergence at each position of the student's own answer."""
    return (
        Term("sft", -views["chosen"].logps, "chosen", p.sft_weight, p.reduction),
        Term("jsd", _divergence(views["rollout"], p.beta), "rollout", reduction=p.reduction),
    )


def _divergence(view: View, beta: float) -> Tensor:
    """The divergence over the teacher's ids and one class for all else, [B,T]; its limits at β = 0 and 1."""
    import torch

    from adpa_cli.tensors.divergence import LOWEST, bucket_kl

    signal = required(view.signal)
    student_ids = required(view.topk_logps).masked_fill(signal.logps == -math.inf, LOWEST)
    teacher_rest = view.outside(signal.label_logps, signal.rest_logps)
    student_rest = view.outside(view.logps, view.rest_logps)
    teacher, student = (
        torch.cat([ids, rest[..., None]], -1).clamp_min(LOWEST)
        for ids, rest in ((signal.logps, teacher_rest), (student_ids, student_rest))
    )

    def kl(one: Tensor, other: Tensor) -> Tensor:
        return bucket_kl(one[..., :-1], one[..., -1], other[..., :-1], other[..., -1])

    if beta in (0.0, 1.0):
        return kl(teacher, student) if beta == 0 else kl(student, teacher)
    mixture = torch.logaddexp(teacher + math.log(beta), student + math.log1p(-beta))
    return beta * kl(teacher, mixture) + (1 - beta) * kl(student, mixture)
