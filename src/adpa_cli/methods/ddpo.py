"""Distilled DPO: fit the student's implicit reward margin to that of the two teachers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adpa_cli.methods import Need, Part, Term, View, given, param

if TYPE_CHECKING:
    from torch import Tensor

VERSION = 1
SOURCE = "Fisch et al. 2024, distilled DPO; the reward is the aligned teacher's implicit one"
SUMMARY = "regress the student's reward margin of each pair on the teachers'"
FORMULA = "(Δr - β h)², Δr = β_T [Σ_t A(y_w) - Σ_t A(y_l)], A = log π_aligned - log π_reference, h as in dpo"
NEEDS = (
    Need("chosen", signal=("aligned", "reference"), start=True),
    Need("rejected", signal=("aligned", "reference"), start=True),
)
READINGS = {"beta": "Neither paper nor released code gives the β of this baseline; that of the teacher's DPO is taken."}
NOTES = (
    "Which answer of a pair is the chosen one does not matter: the teachers' margin says how much better it is.",
    "The error is squared over sums of whole answers, so gradients are large: keep the clipping of gradients.",
)


@dataclass(frozen=True)
class Params:
    """Scales of the two implicit rewards."""

    beta: float = param(0.05, "scale of the student's implicit reward", low=0.0, high=100.0)
    beta_teacher: float = param(
        0.05, "scale of the teachers' implicit reward: the β that aligned the teacher", low=0.0, high=100.0,
        origin="paper",
    )  # fmt: skip


def terms(views: Mapping[Part, View], p: Params) -> tuple[Term, ...]:
    """Squared distance between the two margins for every pair."""
    margins = [_reward_gap(view, p) for view in (views["chosen"], views["rejected"])]
    return (Term("ddpo", (margins[0] - margins[1]).square(), "chosen"),)


def _reward_gap(view: View, p: Params) -> Tensor:
    """The teachers' implicit reward of the answer minus the student's, sums with the end token, [B]."""
    signal = given(view.signal)
    teachers = signal.label_logps - given(signal.reference_label_logps)
    student = view.logps - given(view.start_logps)
    return ((p.beta_teacher * teachers - p.beta * student) * view.mask).sum(1)
