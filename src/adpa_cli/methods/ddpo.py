"""Distilled DPO: fit the student's implicit reward margin to that of the two teachers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from adpa_cli.methods import Need, Part, Tensor, Term, Unit, View, param, required, scaled_beta, unit_param

VERSION = 1
SOURCE = "Fisch et al. 2024, distilled DPO; the reward is the teachers' implicit one, or that of a reward model"
SUMMARY = "regress the student's reward margin of each pair on the teachers', or a reward model's"
FORMULA = (
    "(Δr - β h)², h as in dpo; implicit: Δr = β_T [Σ_t A(y_w) - Σ_t A(y_l)], A = log π_aligned - log π_reference; "
    "explicit: Δr = r(y_w) - r(y_l) of a reward model (Eq. 2)"
)
NEEDS = (
    Need("chosen", signal=("aligned", "reference"), start=True),
    Need("rejected", signal=("aligned", "reference"), start=True),
)
TEACHERS_BETA = "beta_teacher"
READINGS = {
    "beta": (
        "Neither the paper nor the released code gives the β of this baseline. Here it is that of the teacher's DPO."
    ),
    "reward": (
        "The paper does not say which reward is distilled. `implicit` needs no model besides the teachers. "
        "`explicit` is closer to Fisch et al., who train a reward model."
    ),
}
NOTES = (
    (
        "It does not matter which answer of a pair is the chosen one. The teachers' margin says which answer is "
        "better, and by how much."
    ),
    (
        "The error is a squared difference of sums over whole answers, so gradients are large. Do not switch off "
        "the clipping of gradients."
    ),
)


@dataclass(frozen=True)
class Params:
    """Scales of the two implicit rewards."""

    beta: float = param(0.05, "scale of the student's implicit reward", low=0.0, high=100.0)
    beta_teacher: float = param(
        0.05, "scale of the teachers' implicit reward: the β that aligned the teacher", low=0.0, high=100.0,
        origin="paper",
    )  # fmt: skip
    reward: str = param(
        "implicit", (
            "whose margin the student learns: the teachers' log-ratio, or that of a reward model (adpa reward-model)"
        ),
        choices=("implicit", "explicit"), later=True,
    )  # fmt: skip
    unit: Unit = unit_param()

    def without_effect(self) -> set[str]:
        """A reward model has a scale of its own."""
        return {"beta_teacher", "unit"} if self.reward == "explicit" else set()


def needs(p: Params) -> tuple[Need, ...]:
    """The teachers' signal on both answers, or their rewards."""
    if p.reward == "implicit":
        return NEEDS
    return (Need("chosen", start=True, reward=True), Need("rejected", start=True, reward=True))


in_nats = scaled_beta


def terms(views: Mapping[Part, View], p: Params) -> tuple[Term, ...]:
    """Squared distance between the two margins for every pair."""
    margins = [_reward_gap(view, p) for view in (views["chosen"], views["rejected"])]
    return (Term("ddpo", (margins[0] - margins[1]).square(), "chosen"),)


def _reward_gap(view: View, p: Params) -> Tensor:
    """The reward of the answer minus the student's implicit one, a sum with the end token, [B]."""
    student = p.beta * (view.logps - required(view.start_logps))
    if p.reward == "explicit":
        return required(view.reward) - view.total(student)
    signal = required(view.signal)
    teachers = signal.label_logps - required(signal.reference_label_logps)
    return view.total(p.beta_teacher * teachers - student)
