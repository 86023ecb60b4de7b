"""Where teachers and the answers that they were shown differ, by token and by place, from the signal of a student."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from adpa_cli.report.html.figures import Figure, Series, lines
from adpa_cli.report.html.tokens import Metric, TokenBlock, block, metrics
from adpa_cli.report.rows import with_rows
from adpa_cli.report.signal_prompts import prompt_of
from adpa_cli.report.signal_rows import Signals
from adpa_cli.signal.rows import SignalRows
from adpa_cli.sizes import spread
from adpa_cli.stages import product_of
from adpa_cli.store.manifest import Manifest
from adpa_cli.store.store import Store

ANSWERS = 200
"""Answers that are looked at, evenly spread."""
MOST_TOKENS = 600
"""Tokens of the answer that is shown whole."""
SHOWN = 10
PARTS = 20


@dataclass(frozen=True)
class Token:
    """A token that answers have: how often, its mean log-prob under the aligned teacher, the sum of its advantage (of
    its log-prob with one teacher), and what the teacher found most probable there most often."""

    text: str
    count: int
    logp: float
    total: float
    instead: str


@dataclass(frozen=True)
class Disagreement:
    """What the signal of a training says of the answers that it learned from."""

    signal: Manifest
    answers: int
    tokens: int
    unlike: Sequence[Token]
    liked: Sequence[Token]
    figures: Sequence[Figure]
    shown: TokenBlock

    @property
    def numbers(self) -> list[list[Any]]:
        """Both lists as one table."""
        head = ["token", "count", "mean log-prob", "sum", "instead"]
        return [head, *([t.text, t.count, t.logp, t.total, t.instead] for t in (*self.unlike, *self.liked))]


def disagreement(store: Store, model: Manifest) -> Disagreement | None:
    """Of the signal that a model learned from last; None where the store has none."""
    signal = with_rows(store, model)
    if product_of(signal.stage) != "signal":
        return None
    signals = Signals(store, signal)
    places = spread(len(signals), ANSWERS)
    read = {place: signals.answer(place)[1] for place in places}
    read = {place: rows for place, rows in read.items() if len(rows)}
    if not read:
        return None
    coloured = {place: metrics(rows) for place, rows in read.items()}
    unlike, liked = _extremes(list(read.values()), [found[0] for found in coloured.values()], signals)
    short = [place for place, rows in read.items() if len(rows) <= MOST_TOKENS] or list(read)
    chosen = max(short, key=lambda place: float(np.nansum(np.abs(coloured[place][0].values))))
    key, _ = signals.answer(chosen)
    shown = block(signals, chosen, prompt_of(store, signal, key), signals.facts(chosen))
    total = sum(len(rows) for rows in read.values())
    return Disagreement(signal, len(read), total, unlike, liked, _by_place(list(coloured.values())), shown)


def _extremes(
    answers: Sequence[SignalRows], found: Sequence[Metric], signals: Signals
) -> tuple[list[Token], list[Token]]:
    """The tokens with the least and with the greatest sum of the first metric."""
    labels = np.concatenate([rows.label_ids for rows in answers])
    values = np.nan_to_num(np.concatenate([metric.values for metric in found]))
    logps = np.concatenate([rows.label_logps for rows in answers]).astype(np.float64)
    best = np.concatenate([rows.ids[np.arange(len(rows)), rows.logps.argmax(1)] for rows in answers])
    ids, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    sums, means = np.bincount(inverse, values), np.bincount(inverse, logps) / counts
    order = np.argsort(sums, kind="stable")

    def token(at: int) -> Token:
        others = best[(inverse == at) & (best != ids[at])]
        likely = np.unique(others, return_counts=True) if others.size else None
        instead = "" if likely is None else signals.names.one(int(likely[0][likely[1].argmax()]))
        return Token(signals.names.one(int(ids[at])), int(counts[at]), float(means[at]), float(sums[at]), instead)

    least = [token(int(at)) for at in order[:SHOWN] if sums[at] < 0]
    return least, [token(int(at)) for at in order[::-1][:SHOWN] if sums[at] > 0]


def _by_place(coloured: Sequence[Sequence[Metric]]) -> list[Figure]:
    """The mean of each metric by the part of the answer."""
    drawn = []
    for n, first in enumerate(coloured[0]):
        sums, counts = np.zeros(PARTS), np.zeros(PARTS)
        for found in coloured:
            values = found[n].values
            parts = np.arange(len(values)) * PARTS // len(values)
            known = np.isfinite(values)
            sums += np.bincount(parts[known], values[known], PARTS)
            counts += np.bincount(parts[known], minlength=PARTS)
        kept = np.flatnonzero(counts)
        xs = [float(100 * (part + 0.5) / PARTS) for part in kept]
        series = Series(first.name, xs, [float(y) for y in sums[kept] / counts[kept]])
        stem, title = first.name.lower().replace(" ", "-"), f"{first.name} from the beginning of an answer to its end"
        drawn.append(lines(f"place-{stem}", title, [series], "part of the answer [%]", "mean per token [nats]"))
    return drawn
