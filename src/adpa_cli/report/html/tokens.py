"""The page of one answer of a signal: every token coloured by a number, and what both teachers say in its place.

Numbers are in nats. The signal holds the aligned teacher's K most probable ids and one sum for all others, so entropy
and KL count what is outside as one class: both are at least that much.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adpa_cli.report.html import render
from adpa_cli.report.signal_rows import Signals, Tokens
from adpa_cli.signal.rows import SignalRows, advantage, label_positions, reference_logps

LEVELS = 10
"""Steps of colour on either side of 0."""
SATURATED = 0.98
"""The share of tokens whose values lie within the range of colours."""
MOST = 10
"""Ids that a token lists besides those of the greatest and least advantage."""
DIGITS = 3
Column = NDArray[np.float64]


@dataclass(frozen=True)
class Metric:
    """What tokens may be coloured by: one value [T] for each, not a number where there is none.

    `short` is the letter of its CSS classes. Colours go from `low` to `high`; a signed metric has one colour on each
    side of 0, and of another one the tokens with a large value stand out.
    """

    short: str
    name: str
    meaning: str
    values: Column
    is_signed: bool = False

    @property
    def scale(self) -> float:
        """The value that has the full colour."""
        sizes = np.abs(self.values[np.isfinite(self.values)])
        return max(float(np.quantile(sizes, SATURATED)) if sizes.size else 0.0, 1e-3)

    @property
    def levels(self) -> list[int | None]:
        """[T] from -LEVELS to LEVELS; None where there is no value."""
        parts = np.clip(self.values / self.scale, -1, 1) * LEVELS
        return [round(float(part)) if math.isfinite(part) else None for part in parts]


def metrics(rows: SignalRows, student: Sequence[float] | None = None) -> list[Metric]:
    """What the tokens of an answer can be coloured by, the most telling first."""
    logps = rows.label_logps.astype(np.float64)
    found: list[Metric] = []
    if rows.difference is not None:
        found.append(Metric("a", "advantage", "aligned − reference log-prob of the taken token, as the method uses it "
                            "(0 outside the top k)", _advantage(rows), True))  # fmt: skip
    found.append(Metric("l", "log-prob", "log-prob of the taken token under the aligned teacher", logps))
    if rows.difference is not None:
        found.append(Metric("k", "KL", "KL(aligned ‖ reference) of the token that comes here, at least", _kl(rows)))
    found.append(Metric("e", "entropy", "entropy of the aligned teacher here, at least", _entropy(rows)))
    if student is not None:
        own = np.asarray(student, np.float64)
        found.append(Metric("s", "student", "log-prob of the taken token under the student", own))
        meaning = "student − aligned teacher, log-prob of the taken token"
        found.append(Metric("d", "student − teacher", meaning, own - logps, True))
    return found


def _advantage(rows: SignalRows) -> Column:
    column, inside = label_positions(rows)
    taken = np.take_along_axis(advantage(rows), column[:, None], 1)[:, 0].astype(np.float64)
    return np.where(inside, taken, 0.0)


def _classes(rows: SignalRows) -> tuple[Column, Column | None]:
    """[T, K + 2] log-probs of the ids, of a taken token that is none of them, and of all others together: the aligned
    teacher's and the reference's."""
    outside = ~label_positions(rows)[1][:, None]

    def joined(logps: Any, label: Any, rest: Any) -> Column:
        label = np.where(outside, label[:, None], -np.inf)
        return np.concatenate([logps, label, rest[:, None]], 1).astype(np.float64)

    aligned = joined(rows.logps, rows.label_logps, rows.rest_logps)
    if rows.difference is None:
        return aligned, None
    return aligned, joined(reference_logps(rows), rows.reference_label_logps, rows.reference_rest_logps)


def _kl(rows: SignalRows) -> Column:
    aligned, reference = _classes(rows)
    assert reference is not None
    with np.errstate(invalid="ignore"):
        terms = np.where(np.isneginf(aligned), 0.0, np.exp(aligned) * (aligned - reference))
    kl: Column = terms.sum(1)
    return np.where(np.isfinite(kl), np.maximum(kl, 0.0), np.nan)


def _entropy(rows: SignalRows) -> Column:
    aligned, _ = _classes(rows)
    with np.errstate(invalid="ignore"):
        terms = np.where(np.isneginf(aligned), 0.0, -np.exp(aligned) * aligned)
    entropy: Column = np.maximum(terms.sum(1), 0.0)
    return entropy


@dataclass(frozen=True)
class TokenBlock:
    """An answer for a page: `tokens` are (text, CSS classes) in order, `data` what the script shows of each."""

    title: str
    facts: Sequence[tuple[str, str]]
    prompt: Sequence[Mapping[str, str]] | None
    metrics: Sequence[Metric]
    tokens: Sequence[tuple[str, str]]
    data: Mapping[str, Any]
    table: Sequence[Sequence[str]]

    @property
    def head(self) -> list[str]:
        """The columns of the table."""
        return ["#", "token", *(metric.name for metric in self.metrics), "outside", "most probable here"]


def block(
    signals: Signals, place: int, prompt: Sequence[Mapping[str, str]] | None, facts: Sequence[tuple[str, str]] = (),
    student: Sequence[float] | None = None,
) -> TokenBlock:  # fmt: skip
    """Answer `place` (from 0) of a signal, with the turns before it and the `student`'s log-probs [T] where known."""
    key, rows = signals.answer(place)
    found = metrics(rows, student)
    ids = rows.label_ids.tolist()
    levels = [[f"{m.short}{_word(level)}" for level in m.levels] for m in found]
    classes = [" ".join(each) for each in zip(*levels, strict=True)]
    pieces = [_visible(piece) for piece in signals.names.pieces(ids)]
    data = _data(rows, found, signals.names)
    own = [("answer", f"{len(rows):,} tokens, the {key.part} one of {key.example_id}"), *facts]
    tokens = list(zip(pieces, classes, strict=True))
    return TokenBlock(f"row {place + 1:,}", own, prompt, found, tokens, data, _table(data))


def page(title: str, shown: TokenBlock) -> str:
    """The page of one answer."""
    return render("tokens_page.html.j2", title=title, block=shown, levels=LEVELS)


def _word(level: int | None) -> str:
    """A level as CSS names it: n3 for -3, x for none."""
    return "x" if level is None else f"n{-level}" if level < 0 else str(level)


def _visible(piece: str) -> str:
    """The text of a token with marks for what would not be seen; line breaks stay, for they lay out the answer."""
    if not piece:
        return "·"
    shown = piece.replace("\r", "␍").replace("\t", "⇥\t").replace("\n", "↵\n")
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in shown)


def _data(rows: SignalRows, found: Sequence[Metric], names: Tokens) -> dict[str, Any]:
    """By token its values and rows [name, log-prob, reference's log-prob, advantage]; names are said once."""
    words: dict[int, int] = {}
    reference = None if rows.difference is None else reference_logps(rows)
    scores = None if rows.difference is None else advantage(rows)
    tokens = []
    for t, taken in enumerate(rows.label_ids.tolist()):
        listed = []
        for place in _listed(rows, scores, t):
            word = words.setdefault(int(rows.ids[t, place]), len(words))
            pair = [] if reference is None or scores is None else [reference[t, place], scores[t, place]]
            listed.append([word, *map(_number, [rows.logps[t, place], *pair])])
        tokens.append({
            "i": words.setdefault(taken, len(words)), "v": [_number(metric.values[t]) for metric in found],
            "r": [_number(np.exp(rows.rest_logps[t])), *_rest(rows, t)], "k": listed,
        })  # fmt: skip
    return {"words": [names.one(token_id) for token_id in words], "top": rows.ids.shape[1],
            "metrics": [[metric.name, metric.is_signed] for metric in found], "tokens": tokens}  # fmt: skip


def _rest(rows: SignalRows, t: int) -> list[float | None]:
    return [] if rows.reference_rest_logps is None else [_number(np.exp(rows.reference_rest_logps[t]))]


def _listed(rows: SignalRows, scores: Any, t: int) -> list[int]:
    """Columns of the most probable ids, of the taken one, and of the greatest and least advantage, by probability."""
    logps = rows.logps[t]
    order = [int(place) for place in np.argsort(-logps, kind="stable") if np.isfinite(logps[place])]
    kept = set(order[:MOST]) | set(np.flatnonzero(rows.ids[t] == rows.label_ids[t]).tolist())
    if scores is not None and order:
        by_score = sorted((place for place in order if np.isfinite(scores[t, place])), key=lambda p: scores[t, p])
        kept |= {*by_score[:1], *by_score[-1:]}
    return [place for place in order if place in kept]


def _number(value: Any) -> float | None:
    return round(float(value), DIGITS) if math.isfinite(value) else None


def _table(data: Mapping[str, Any]) -> list[list[str]]:
    """A line for each token, for readers without scripts."""
    words = data["words"]
    lines = []
    for t, token in enumerate(data["tokens"], 1):
        numbers = ["–" if value is None else f"{value:.2f}" for value in token["v"]]
        likely = "  ".join(f"{words[entry[0]]} {entry[1]:.2f}" for entry in token["k"][:3])
        lines.append([str(t), words[token["i"]], *numbers, f"{token['r'][0]:.3f}", likely])
    return lines
