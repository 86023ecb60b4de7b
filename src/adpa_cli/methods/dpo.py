"""DPO: raise the chosen answer over the rejected one, relative to the model that training starts from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from adpa_cli.methods import Need, Part, Tensor, Term, View, param, required

VERSION = 1
SOURCE = "Rafailov et al. 2023, Eq. 7; Gao et al. 2025, Eq. 4"
SUMMARY = "direct preference optimisation; also trains the aligned teacher"
FORMULA = "-log σ(β h), h = Σ_t log π(y_w)/π_start(y_w) - Σ_t log π(y_l)/π_start(y_l)"
NEEDS = (Need("chosen", start=True), Need("rejected", start=True))
READINGS = {"beta": "The paper uses 0.05 for the teacher. The released recipes, and SimPO's tuning of DPO, use 0.01."}
NOTES = (
    (
        "The loss uses sums, so longer answers count more. The log-probs of chosen answers usually fall; `adpa show` "
        "prints by how much."
    ),
)


@dataclass(frozen=True)
class Params:
    """The strength of the pull towards the start model."""

    beta: float = param(0.05, "scale of the implicit reward", low=0.0, high=100.0, origin="paper")


def terms(views: Mapping[Part, View], p: Params) -> tuple[Term, ...]:
    """-log σ(β h) for every pair."""
    from torch.nn.functional import logsigmoid

    h = log_ratio(views["chosen"]) - log_ratio(views["rejected"])
    return (Term("dpo", -logsigmoid(p.beta * h), "chosen"),)


def log_ratio(view: View) -> Tensor:
    """Sum over the answer, end token included, of log π - log π_start, [B]."""
    return view.total(view.logps - required(view.start_logps))
