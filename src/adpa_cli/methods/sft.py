"""SFT: the student learns to write the chosen answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from adpa_cli.methods import Need, Part, Reduction, Term, View, averaging

VERSION = 1
SOURCE = "Gao et al. 2025, L_SFT in Eq. 1"
SUMMARY = "fine-tune on the chosen answers"
FORMULA = "mean over answers of -1/|y| Σ_t log π(y_t)"
NEEDS = (Need("chosen"),)
PRESETS = {
    "release": {
        "packed": True, "train_on": "all", "reduction": "tokmean", "lr": 2e-5, "epochs": 3.0, "max_length": 2048,
    }
}  # fmt: skip
NOTES = (
    (
        "The preset belongs to the stage `sft`: `--set sft.preset=release`. The released code joins dialogues end "
        "to end, divides them into rows of 2,048 tokens and trains every token. Its templates are `--template "
        "llama-3-release` and `zephyr-release`."
    ),
)


@dataclass(frozen=True)
class Params:
    """How token losses are averaged."""

    reduction: Reduction = averaging()


def terms(views: Mapping[Part, View], p: Params) -> tuple[Term, ...]:
    """-log π(y_t) at every chosen token."""
    return (Term("sft", -views["chosen"].logps, "chosen", reduction=p.reduction),)
