"""`accuracy`: reward accuracy on held-out pairs.

The reward is the mean log-prob of an answer under the measured model (Gao et al. 2025, section 4.5).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from adpa_cli.suites import MARGINS, EvalSpec, Figures, Inputs, Logps, Suite, pair_figures

if TYPE_CHECKING:
    from adpa_cli.engine.layout.examples import Example


def margins(inputs: Inputs, examples: Sequence[Example], logps: Logps) -> dict[str, float]:
    """The mean log-prob of the chosen answer less that of the rejected one, in nats, by the id of the pair."""
    from adpa_cli.engine.scoring import pair_margins

    return pair_margins(logps(inputs["model"].path, examples, ("chosen", "rejected")), examples)


def figures(inputs: Inputs, spec: EvalSpec, folder: Path) -> Figures:
    """How often the chosen answer is more likely for its length; a tie counts half."""
    return pair_figures("reward_accuracy", json.loads((folder / MARGINS).read_text(encoding="utf-8")), inputs, spec)


SUITE = Suite("accuracy", 1, figures, margins=margins)
