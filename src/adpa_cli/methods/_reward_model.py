"""A reward model: one number for each answer, higher for the one that was preferred. No distillation, so not listed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from adpa_cli.methods import Need, Part, Tensor, Term, View, required

VERSION = 1
SOURCE = "Bradley and Terry 1952; Gao et al. 2025, Eq. 2"
SUMMARY = "fit a scalar head so that preferred answers get the higher reward"
FORMULA = "-log σ(r(x,y_w) - r(x,y_l)), r = the head's number at the answer's last token"
NEEDS = (Need("chosen"), Need("rejected"))
SCALAR_HEAD = True


@dataclass(frozen=True)
class Params:
    """None: the scale of the reward is learned."""


def terms(views: Mapping[Part, View], p: Params) -> tuple[Term, ...]:
    """-log σ of the margin of every pair."""
    from torch.nn.functional import logsigmoid

    margin = reward(views["chosen"]) - reward(views["rejected"])
    return (Term("bradley-terry", -logsigmoid(margin), "chosen"),)


def reward(view: View) -> Tensor:
    """The number [B] at the last token of each answer: its end token, unless the answer was cut."""
    places = view.mask.cumsum(1)
    last = (places == places[:, -1:]).int().argmax(1)
    return required(view.values).gather(1, last[:, None])[:, 0]
