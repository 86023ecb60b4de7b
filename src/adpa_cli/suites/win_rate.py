"""`win-rate`: how often a judge prefers a model's answers to those of an opponent, asked in both orders.

A prompt's score is the mean over the orders of P(win): from the log-probs of the verdict where the judge's server gives
them, else 1, ½ or 0. Two answers that are one text score ½ unasked. Beside the rate stand what it would be at equal
length, how much the judge favours what is shown first, and how often both orders agree.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from adpa_cli.errors import DataError
from adpa_cli.judges.calls import judge_record, read_rows
from adpa_cli.judges.win_rates import LEAST_SIDE, Judged, judged_prompts, lc_win_rate, standard_error
from adpa_cli.suites import (
    AGAINST,
    JUDGEMENTS,
    ROLLOUTS,
    EvalSpec,
    Figures,
    Inputs,
    Suite,
    answer_figures,
    author_of,
    interval,
    of_half,
)

METRIC = "win_rate"


def figures(inputs: Inputs, spec: EvalSpec, folder: Path) -> Figures:
    """The win rate with its error, length control and the judge's biases, and `answer_figures` of the answers.

    Without judgements, as of the opponent itself, the last alone. DataError where no prompt has a verdict.
    """
    answers = answer_figures(inputs[ROLLOUTS], spec) if ROLLOUTS in inputs else Figures({})
    if JUDGEMENTS not in inputs:
        return answers
    given = inputs[JUDGEMENTS]
    rows = read_rows(given.path)
    judged = {one.id: one for one in judged_prompts(rows)}
    if not judged:
        raise DataError(f"{given.label} contains no verdict", f"adpa show {given.label}")
    measured = [judged[name] for name in of_half(list(judged), spec, given.label)]
    kept = _rows(measured)
    scores: dict[str, dict[str, Any]] = {metric: interval(numbers, spec) for metric, numbers in kept.items()}
    scores[METRIC]["standard_error"] = standard_error(list(kept[METRIC].values()))
    opponent = author_of(inputs[AGAINST]) if AGAINST in inputs else given.values.get("opponent")
    scores[METRIC] |= {"against": opponent} if opponent else {}
    scores["lc_win_rate"] = lc_win_rate(measured, spec.bootstrap, spec.seed)
    judge = judge_record(given.values, rows)
    watch = _watch(judge, scores["lc_win_rate"])
    return Figures({**scores, **answers.scores}, {**kept, **answers.rows}, more={"judge": judge}, watch=watch)


def _rows(measured: list[Judged]) -> dict[str, dict[str, float]]:
    """By metric what each prompt adds; the biases are over the prompts that were judged in both orders."""
    rows = {
        METRIC: {one.id: one.win for one in measured},
        "position_bias": {one.id: one.bias for one in measured if one.bias is not None},
        "consistency": {one.id: float(one.is_consistent) for one in measured if one.is_consistent is not None},
    }
    return {metric: numbers for metric, numbers in rows.items() if numbers}


def _watch(facts: dict[str, Any], controlled: dict[str, Any]) -> tuple[str, ...]:
    said = []
    if facts["unparsable"]:
        lost = facts["unparsable"]
        said.append(
            "1 call has no verdict and is left out" if lost == 1 else f"{lost:,} calls have no verdict and are left out"
        )
    if not controlled["supported"]:
        longer, shorter = (round(100 * controlled["sides"][side]) for side in ("longer", "shorter"))
        said.append(
            f"no length-controlled win rate: the model's answer is longer on {longer} % of the prompts and shorter on "
            f"{shorter} %, and below {LEAST_SIDE:.0%} on one side it would extrapolate"
        )
    return tuple(said)


SUITE = Suite("win-rate", 6, figures, (ROLLOUTS, JUDGEMENTS), judged="answers")
