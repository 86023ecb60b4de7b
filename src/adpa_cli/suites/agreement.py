"""`agreement`: how often a reward ranks the answers of pairs as people, or whoever made the pairs, did.

It is the key figure of a reward model and of a DPO teacher. The reward of an answer is what a reward model gives, or
the implicit reward of a model: the sum over the answer's tokens of log π_model - log π_reference; the β of DPO moves no
sign. A judge prefers an answer where its mean P(win) over both orders is above one half. Beside it stands how often the
longer answer is the chosen one, which is what a judge of length alone would reach.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adpa_cli.data.examples import win
from adpa_cli.judges.calls import judge_record, read_rows
from adpa_cli.judges.win_rates import judged_prompts
from adpa_cli.suites import (
    JUDGEMENTS,
    MARGINS,
    REWARDS,
    EvalSpec,
    Figures,
    Inputs,
    Logps,
    Suite,
    implicit_rewards,
    interval,
    pair_figures,
    read_rewards,
)

if TYPE_CHECKING:
    from adpa_cli.engine.layout.examples import Example

METRIC = "agreement"


def margins(inputs: Inputs, examples: Sequence[Example], logps: Logps) -> dict[str, float]:
    """The reward of the chosen answer less that of the rejected one, in nats, by the id of the pair."""
    model, reference = inputs["model"].path, inputs["reference"].path
    rewards = implicit_rewards(model, reference, examples, ("chosen", "rejected"), logps)
    return {e.id: rewards[e.id, "chosen"] - rewards[e.id, "rejected"] for e in examples}


def figures(inputs: Inputs, spec: EvalSpec, folder: Path) -> Figures:
    """The agreement on all pairs, on those whose chosen answer is the longer and on those where it is the shorter."""
    more: dict[str, Any] = {}
    if JUDGEMENTS in inputs:
        rows = read_rows(inputs[JUDGEMENTS].path)
        found = {one.id: one.win - 0.5 for one in judged_prompts(rows)}
        more = {"judge": judge_record(inputs[JUDGEMENTS].values, rows)}
    elif REWARDS in inputs:
        given = read_rewards(inputs[REWARDS].path)
        found = {pair: value - given["rejected"][pair] for pair, value in given["chosen"].items()}
    else:
        found = json.loads((folder / MARGINS).read_text(encoding="utf-8"))
    figures = with_lengths(pair_figures(METRIC, found, inputs, spec), inputs, spec)
    return replace(figures, more={**figures.more, **more})


def with_lengths(found: Figures, inputs: Inputs, spec: EvalSpec) -> Figures:
    """The same with `longer_baseline`, how often the longer answer is the chosen one, and apart by which is longer.

    Length is in characters; a tie counts half in the baseline, and stands on neither side.
    """
    from adpa_cli.hub.externals import pairs_of

    wins, data = found.rows[METRIC], inputs["data"]
    items = pairs_of(data.where, spec.split, spec.limit, spec.skip_bad_rows, spec.template).items
    more = {pair.id: len(pair.chosen) - len(pair.rejected) for pair in items if pair.id in wins}
    rows = {
        "longer_baseline": {pair: win(length) for pair, length in more.items()},
        f"longer_{METRIC}": {pair: wins[pair] for pair, length in more.items() if length > 0},
        f"shorter_{METRIC}": {pair: wins[pair] for pair, length in more.items() if length < 0},
    }
    kept = {metric: numbers for metric, numbers in rows.items() if numbers}
    scores: dict[str, Any] = {metric: interval(numbers, spec, found.prompts) for metric, numbers in kept.items()}
    scores["longer_baseline"]["of"] = "data"
    size = [margin**2 for margin in found.rows["margin"].values()]
    rms = {"margin_rms": (sum(size) / len(size)) ** 0.5} if size else {}
    return Figures({**found.scores, **scores}, {**found.rows, **kept}, found.prompts, rms, found.watch)


SUITE = Suite(METRIC, 5, figures, (REWARDS,), ("reference",), margins=margins, judge_margins=True)
