"""The content of a frame to rows, and the sums to 1: docs/format.md, "The content of a frame"."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adpa_cli.errors import Corrupt
from adpa_cli.signal.frame import Ranking, expected_in_reference, key_tag, lowest
from adpa_cli.signal.numbers import ESCAPE, INFINITE, Cursor, unzigzag
from adpa_cli.signal.rows import (
    AnswerKey,
    Bools,
    Floats,
    Ints,
    SignalRows,
    SignalSpec,
    finite_or_zero,
    pair_of,
    reference_logps,
)


def decode_frame(
    key: AnswerKey, tokens: int, content: bytes, spec: SignalSpec, ranking: Ranking, raw: bool
) -> SignalRows:
    """The rows of one frame: the stored values when `raw`, else with each teacher's classes summing to 1.

    Raises Corrupt when the content does not fit the key, the number of tokens or the spec.
    """
    data = Cursor(content)
    tag, count, missing = data.head(3)
    if (tag, count) != (key_tag(key), tokens):
        raise Corrupt("a frame belongs to another answer")
    ids = _decode_ids(data, tokens, spec, ranking)
    labels, logps, beside = _decode_aligned(data, tokens, missing, spec)
    place = labels[:tokens]
    outside = place == 0
    flat = np.arange(-1, tokens * spec.k - 1, spec.k) + place
    label_ids, label_logps = ids.reshape(-1)[flat], logps.reshape(-1)[flat]
    label_ids[outside] = _to_ids(labels[tokens:], ranking)
    label_logps[outside] = beside[tokens:]
    rows = SignalRows(ids, logps, label_ids, label_logps, beside[:tokens])
    if spec.has_reference:
        rows = _decode_reference(data, rows, outside, flat, spec.difference_step)
    data.finish()
    return rows if raw else _renormalised(rows, outside)


def _decode_ids(data: Cursor, tokens: int, spec: SignalSpec, ranking: Ranking) -> Ints:
    deltas = data.ints(tokens * spec.k, limit=max(spec.vocab_size, ESCAPE)).reshape(tokens, spec.k)
    deltas += 1
    wide = spec.k * (spec.vocab_size + ESCAPE) > INFINITE
    ranks = np.cumsum(deltas, axis=1, dtype=np.int64 if wide else np.int32)
    return _to_ids(np.subtract(ranks, 1, out=ranks), ranking)


def _to_ids(ranks: NDArray[Any], ranking: Ranking) -> Ints:
    try:
        return ranking.ids.take(ranks)
    except IndexError:
        raise Corrupt("a frame has an id outside the vocabulary") from None


def _decode_aligned(data: Cursor, tokens: int, missing: int, spec: SignalSpec) -> tuple[Ints, Floats, Floats]:
    """([T + missing] places and ranks of the labels, [T, K] log-probs, [T + missing] of the rest and the label)."""
    size = tokens * spec.k
    if spec.step == 0:
        labels, floats = data.ints(tokens + missing), data.floats(size + tokens + missing)
        _check_places(labels[:tokens], missing, spec.k)
        return labels, floats[:size].reshape(tokens, spec.k), floats[size:]
    above = data.ints(size).reshape(tokens, spec.k)
    columns = data.ints(3 * tokens + 2 * missing)
    labels, stored = columns[: tokens + missing], columns[tokens + missing :]
    _check_places(labels[:tokens], missing, spec.k)
    codes = unzigzag(stored)
    base = np.cumsum(codes[:tokens], dtype=np.int32)
    codes = codes[tokens:] + np.concatenate([base, base[labels[:tokens] == 0]])
    step = np.float32(spec.step)
    logps, beside = above.astype(np.float32), codes.astype(np.float32) * -step
    logps -= base[:, None].astype(np.float32)
    logps *= step
    for values, absent in ((logps, above), (beside, stored[tokens:])):
        if absent.size and absent.max() == INFINITE:
            values[absent == INFINITE] = -np.inf
    return labels, logps, beside


def _check_places(place: Ints, missing: int, k: int) -> None:
    if place.size and (place.max() > k or np.count_nonzero(place) != place.size - missing):
        raise Corrupt("a frame places a label beyond its ids")


def _decode_reference(
    data: Cursor, rows: SignalRows, outside: Bools, flat: NDArray[np.intp], step: float
) -> SignalRows:
    tokens = len(rows)
    difference = data.signed(rows.ids.size, step)
    beside = data.signed(2 * tokens + int(np.count_nonzero(outside)), step)
    kth = lowest(rows.logps) - beside[:tokens]
    below = difference[flat]
    below[outside] = beside[2 * tokens :]
    label = finite_or_zero(rows.label_logps) - below
    rest = finite_or_zero(rows.rest_logps) - beside[tokens : 2 * tokens]
    difference = difference.reshape(rows.ids.shape)
    in_reference = expected_in_reference(rows.logps, difference, kth)
    flips = np.cumsum(data.ints(int(data.ints(1)[0])).astype(np.int64) + 1) - 1
    if flips.size and flips[-1] >= in_reference.size:
        raise Corrupt("a frame marks an id that it does not have")
    in_reference.reshape(-1)[flips] ^= True
    return replace(
        rows,
        difference=difference,
        in_reference=in_reference,
        reference_kth=kth,
        reference_label_logps=label,
        reference_rest_logps=rest,
    )


def _renormalised(rows: SignalRows, outside: Bools) -> SignalRows:
    """Each teacher's log-probs less the log of what its classes {ids, label if outside, rest} sum to; in place."""
    excess = log_total(rows.logps, rows.label_logps, rows.rest_logps, outside)
    if rows.difference is not None:
        difference, _, kth, label, rest = pair_of(rows)
        other = log_total(reference_logps(rows), label, rest, outside)
        difference += (other - excess)[:, None]
        lost = np.isneginf(rows.logps)
        if lost.any():
            difference += np.where(lost, excess[:, None], np.float32(0))
        for values in (kth, label, rest):
            values -= other
    for values in (rows.logps.T, rows.label_logps, rows.rest_logps):
        values -= excess
    return rows


def log_total(logps: Floats, label: Floats, rest: Floats, outside: Bools) -> Floats:
    """[T] log of the mass of the classes; 0 where nothing has mass, so that subtracting it is always defined."""
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        total = np.einsum("tk->t", np.exp(logps))
        total += np.exp(rest)
        total += np.exp(label) * outside
        result: Floats = np.log(total)
    for t in (~np.isfinite(result)).nonzero()[0]:
        classes = np.concatenate([logps[t], rest[t : t + 1], label[t : t + 1][outside[t : t + 1]]])
        top = classes.max()
        result[t] = top + np.log(np.exp(classes - top).sum()) if np.isfinite(top) else 0
    return result
