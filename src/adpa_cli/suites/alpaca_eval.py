"""`alpaca-eval`: the win rate by a judge on AlpacaEval's 805 instructions, or on a file of them.

Dubois et al. 2024. The official judges are retired, so its figures stand beside others by the same judge, not beside
those of the leaderboard; docs/evaluation.md says what differs from the official tool.
"""

from __future__ import annotations

from adpa_cli.suites import JUDGEMENTS, ROLLOUTS, Suite
from adpa_cli.suites.win_rate import figures

SUITE = Suite(
    "alpaca-eval", 7, figures, (ROLLOUTS, JUDGEMENTS), judged="answers", prompts="alpaca-eval",
    decoding={"max_new_tokens": 2048},
)  # fmt: skip
