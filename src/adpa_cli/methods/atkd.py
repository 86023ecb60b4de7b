"""ATKD: on chosen answers, teach diversity everywhere and the label's own probability where the teacher doubts it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from adpa_cli.methods import Need, Part, Tensor, Term, View, param, required

VERSION = 1
SOURCE = "Zhong et al. 2024, 'Revisiting Knowledge Distillation for Autoregressive Language Models'"
SUMMARY = "token-adaptive distillation: easy and hard tokens are taught differently"
FORMULA = (
    "λ mean_easy DKD + (1-λ) mean_hard (TKD + DKD), TKD = KL over {y_t, others}, DKD = KL over the others, "
    "easy = 1-π_aligned(y_t) below the answer's median"
)
NEEDS = (Need("chosen", signal=("aligned",)),)
READINGS = {
    "sft_weight": "The released ATKD trains without SFT. The paper does not say whether its comparison added SFT.",
    "kd_teacher": (
        "The paper does not say which teacher this baseline uses. Here it is the teacher of the paper's own methods."
    ),
}
NOTES = (
    "The median is that of each answer, as in the released code with a micro-batch of one answer.",
    (
        "A token is easy if the teacher's doubt about it is strictly below the median. An answer of two tokens or "
        "fewer therefore has no easy token, and its mean over easy tokens is 0."
    ),
    (
        "All tokens outside the stored top k are one class, and DKD does not distinguish between them. On random "
        "logits, the gradient was compared with that of the whole vocabulary. Its cosine is 0.93 to 1.00 if the top "
        "k has half of the teacher's probability, and at least 0.99 from three quarters on. `cache-teacher` prints "
        "that share."
    ),
    "DKD is not multiplied by 1-π_aligned(y_t), although KL = TKD + (1-π_aligned(y_t)) DKD.",
)


@dataclass(frozen=True)
class Params:
    """Balance of the two sets of tokens."""

    easy_weight: float = param(0.2, "λ: weight of the easy tokens; that of the hard ones is 1-λ", low=0.0, high=1.0,
                               origin="release")  # fmt: skip
    sft_weight: float = param(0.0, "weight of -log π(y_t), mean per answer", low=0.0, high=1000.0, origin="release")


def terms(views: Mapping[Part, View], p: Params) -> tuple[Term, ...]:
    """Per answer, the mean of DKD over its easy tokens and that of TKD + DKD over its hard ones."""
    from adpa_cli.tensors.divergence import bucket_kl, over_answer

    view = views["chosen"]
    signal = required(view.signal)
    teacher, student = others(view)
    doubt, distrust = teacher.logsumexp(-1), student.logsumexp(-1)
    target = bucket_kl(signal.label_logps[..., None], doubt, view.logps[..., None], distrust)
    teacher, student = teacher - doubt[..., None], student - distrust[..., None]
    diverse = bucket_kl(teacher[..., :-1], teacher[..., -1], student[..., :-1], student[..., -1])
    easy = view.mask & (doubt < _median(doubt, view.mask))
    hard = view.mask & ~easy
    out = (
        Term("easy", over_answer(diverse, easy, mean=True), "chosen", p.easy_weight),
        Term("hard", over_answer(target + diverse, hard, mean=True), "chosen", 1 - p.easy_weight),
    )
    return (*out, Term("sft", -view.logps, "chosen", p.sft_weight)) if p.sft_weight else out


def others(view: View) -> tuple[Tensor, Tensor]:
    """Teacher's and student's log-probs of all but the label, [B,T,K+1]: the ids, -inf at the label, and the rest.

    The label's place is where both agree with its own log-probs; two ids that tie in both are interchangeable here.
    """
    import torch

    signal, topk = required(view.signal), required(view.topk_logps)
    distance = (signal.logps - signal.label_logps[..., None]).abs() + (topk - view.logps[..., None]).detach().abs()
    label = torch.zeros_like(signal.logps, dtype=torch.bool).scatter(-1, distance.argmin(-1, keepdim=True), True)
    gone = (label & required(view.label_in_topk)[..., None]) | (signal.logps == -math.inf)
    pairs = ((signal.logps, signal.rest_logps), (topk, required(view.rest_logps)))
    teacher, student = (torch.cat([x.masked_fill(gone, -math.inf), rest[..., None]], -1) for x, rest in pairs)
    return teacher, student


def _median(values: Tensor, mask: Tensor) -> Tensor:
    """The lower median of each row's unmasked values, [B,1]."""
    middle = (mask.sum(1, keepdim=True) - 1).clamp_min(0) // 2
    return values.masked_fill(~mask, math.inf).sort(1).values.gather(1, middle)
