"""DCKD: copy the aligned teacher's distribution on chosen and on rejected answers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from adpa_cli.methods import Need, Part, Probe, Reduction, Support, Tensor, Term, View, averaging, param, required

VERSION = 1
SOURCE = "Gao et al. 2025, Eqs. 5-7"
SUMMARY = "dual-constrained distillation from an aligned teacher's top k"
FORMULA = "L_SFT(y_w) + α [KL(π_aligned‖π) on y_w + KL(π_aligned‖π) on y_l]"
NEEDS = (Need("chosen", signal=("aligned",), labels=False), Need("rejected", signal=("aligned",), labels=False))
SAMPLED = {"tail": "sampled"}
PROBE = Probe("kl_chosen", "chosen", {"dispreferred": False})
TEACHERS_WEIGHT = "alpha"
PRESETS = {
    "release": {
        "alpha": 0.1, "kd_on_eos": False,
        "lr": 5e-7, "epochs": 3.0, "max_length": 1024, "select": "best", "keep": "all",
    }
}  # fmt: skip
READINGS = {
    "tail": (
        "The paper stores the teacher's top 50 and does not say what becomes of the other tokens. The released code "
        "treats them as one class (`bucket`). Other projects scale the list so that it sums to 1."
    ),
    "kd_on_eos": (
        "The released cache does not contain the end token (`false`). The KL is 0 there, and the position still "
        "counts in the mean."
    ),
    "reduction": "Eqs. 5-6 sum over tokens (`seqsum`), while L_SFT is a mean. The released code averages both.",
    "alpha": (
        "The paper tries 0.1 to 5 and reports 0.2 as the best value for one pair of models. The released recipe "
        "uses 0.1."
    ),
    "lr": "The paper uses 1e-5, and the released recipe 5e-7.",
}
NOTES = (
    "`dispreferred=false` is an ablation in the paper's Table 2. Its loss is that of `vanilla-kd`.",
    (
        "`kd_teacher=sft-chosen` is the other ablation: the teacher is fine-tuned on the chosen answers instead of "
        "being aligned with DPO."
    ),
    (
        "The three values of `tail` differ in their gradients. That of `bucket` is exact for the stored tokens, and "
        "keeps the student's own distribution over the others. `renormalised` moves all probability to the stored "
        "tokens. `sampled` is unbiased but noisy, and needs a signal with `--support sampled`."
    ),
)

Tail = Literal["bucket", "renormalised", "sampled"]


def tail_param() -> Any:
    """The parameter `tail`, of `vanilla-kd` too."""
    words = (
        "how tokens outside the teacher's top k count: as one class, not at all, or (sampled) by tokens drawn from "
        "the teacher"
    )
    return param("bucket", words, choices=get_args(Tail), origin="release")


@dataclass(frozen=True)
class Params:
    """Weight and reading of the two divergences."""

    alpha: float = param(0.2, "weight of each divergence", low=0.0, high=1000.0, origin="paper")
    dispreferred: bool = param(True, "also distil on rejected answers", origin="paper")
    tail: Tail = tail_param()
    kd_on_eos: bool = param(True, "distil at the end token too")
    reduction: Reduction = averaging()


def needs(p: Params) -> tuple[Need, ...]:
    """Rejected answers only where they are distilled on; drawn ids where the tail says so."""
    return tuple(replace(need, support=support_of(p.tail)) for need in (NEEDS if p.dispreferred else NEEDS[:1]))


def support_of(tail: Tail) -> Support:
    """Which ids of the teacher a reading of the tail is about."""
    return "sampled" if tail == "sampled" else "topk"


def terms(views: Mapping[Part, View], p: Params) -> tuple[Term, ...]:
    """-log π(y_t) at chosen tokens, and the teacher's divergence at chosen and rejected ones."""
    chosen = views["chosen"]
    divergences = {need.part: divergence(views[need.part], p.tail, p.kd_on_eos) for need in needs(p)}
    return (
        Term("sft", -chosen.logps, "chosen", reduction=p.reduction),
        *(Term(f"kl_{part}", values, part, p.alpha, p.reduction) for part, values in divergences.items()),
    )


def divergence(view: View, tail: Tail, kd_on_eos: bool) -> Tensor:
    """KL(teacher || student) at each position, [B,T], nats; 0 at the end token unless `kd_on_eos`.

    It is 0 too where the signal lists no id with mass: an imported capture need not cover the end token.
    """
    from adpa_cli.tensors.divergence import bucket_kl, renormalised_kl, sampled_kl

    signal, topk = required(view.signal), required(view.topk_logps)
    uncovered = (signal.logps == -math.inf).all(-1)
    if tail == "sampled":
        values = sampled_kl(required(signal.weights), signal.logps, topk)
    elif tail == "renormalised":
        values = renormalised_kl(signal.logps.masked_fill(uncovered[..., None], 0.0), topk)
    else:
        teacher_rest = view.outside(signal.label_logps, signal.rest_logps)
        values = bucket_kl(signal.logps, teacher_rest, topk, view.outside(view.logps, view.rest_logps))
    return view.teach_end(values.masked_fill(uncovered, 0.0), kd_on_eos)
