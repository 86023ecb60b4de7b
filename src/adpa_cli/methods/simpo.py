"""SimPO: raise the chosen answer's average log-prob over the rejected one's by a margin, without a reference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from adpa_cli.methods import Need, Part, Term, View, param

VERSION = 1
SOURCE = "Meng et al. 2024, the SimPO objective"
SUMMARY = "simple preference optimisation: length-normalised, with a target margin"
FORMULA = "-log σ(β [mean_t log π(y_w) - mean_t log π(y_l) - ρ]), ρ = γ/β of the source"
NEEDS = (Need("chosen"), Need("rejected"))
READINGS = {
    "beta": (
        "The source uses 2 in its code and in its recipe for the Llama-3-8B base model, and up to 10 in other runs."
    ),
    "gamma_beta_ratio": "The source uses 0.25 in its code, and 0.5 in its recipe for the Llama-3-8B base model.",
    "lr": "The source warns that large rates make answers incoherent or repetitive.",
}
NOTES = ("The γ of the source is β ρ here.",)


@dataclass(frozen=True)
class Params:
    """Scale of the reward and the margin asked of it."""

    beta: float = param(2.0, "scale of the average log-prob", low=0.0, high=1000.0, origin="release")
    gamma_beta_ratio: float = param(
        0.5, "margin between the two averages, in nats per token", low=0.0, high=100.0, origin="release"
    )


def terms(views: Mapping[Part, View], p: Params) -> tuple[Term, ...]:
    """-log σ(β (difference of the averages - margin)) for every pair."""
    from torch.nn.functional import logsigmoid

    averages = [view.total(view.logps, mean=True) for view in (views["chosen"], views["rejected"])]
    gap = averages[0] - averages[1]
    return (Term("simpo", -logsigmoid(p.beta * (gap - p.gamma_beta_ratio)), "chosen"),)
