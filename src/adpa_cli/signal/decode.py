"""The content of a frame to rows, and the sums to 1: docs/format.md, "The content of a frame"."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adpa_cli.errors import Corrupt
from adpa_cli.signal.frame import Ranking, expected_in_reference, key_tag, lowest
from adpa_cli.signal.numbers import INFINITE, Cursor, dequantise, unzigzag
from adpa_cli.signal.rows import AnswerKey, Bools, Floats, Ints, SignalRows, SignalSpec, finite_or_zero, pair_of


def decode_frame(
    key: AnswerKey, tokens: int, content: bytes, spec: SignalSpec, ranking: Ranking, raw: bool
) -> SignalRows:
    """The rows of one frame: the stored values when `raw`, else with each teacher's classes summing to 1.

    Raises Corrupt when the content does not fit the key, the number of tokens or the spec.
    """
    data = Cursor(content)
    if [key_tag(key), tokens] != data.bytes(8).view("<u4").tolist():
        raise Corrupt("a frame belongs to another answer")
    ids = _decode_ids(data, tokens, spec, ranking)
    place = data.ints(tokens)
    if tokens and place.max() > spec.k:
        raise Corrupt("a frame places a label beyond its ids")
    outside = place == 0
    column = (place - 1) % spec.k
    each = np.arange(tokens)
    label_ids = ids[each, column]
    label_ids[outside] = _to_ids(data.ints(int(np.count_nonzero(outside))), ranking)
    logps, outside_label, rest = _decode_aligned(data, tokens, outside, spec)
    label_logps = logps[each, column]
    label_logps[outside] = outside_label
    rows = SignalRows(ids, logps, label_ids, label_logps, rest)
    if spec.has_reference:
        rows = _decode_reference(data, rows, outside, column, spec.difference_step)
    data.finish()
    return rows if raw else _renormalised(rows, outside)


def _decode_ids(data: Cursor, tokens: int, spec: SignalSpec, ranking: Ranking) -> Ints:
    deltas = data.ints(tokens * spec.k).reshape(tokens, spec.k)
    deltas += 1
    if deltas.size and not 0 < deltas.min() <= deltas.max() <= spec.vocab_size:
        raise Corrupt("a frame has an id outside the vocabulary")
    wide = spec.k * spec.vocab_size > INFINITE
    ranks = np.cumsum(deltas, axis=1, dtype=np.int64 if wide else np.int32)
    return _to_ids(np.subtract(ranks, 1, out=ranks), ranking)


def _to_ids(ranks: NDArray[Any], ranking: Ranking) -> Ints:
    if ranks.size and ranks.max() >= ranking.vocab_size:
        raise Corrupt("a frame has an id outside the vocabulary")
    return ranking.ids.take(ranks)


def _decode_aligned(data: Cursor, tokens: int, outside: Bools, spec: SignalSpec) -> tuple[Floats, Floats, Floats]:
    """([T, K] log-probs at the ids, [labels outside] of the label, [T] of the rest), as stored."""
    shape = (tokens, spec.k)
    if spec.step == 0:
        logps = data.floats(tokens * spec.k).reshape(shape)
        return logps, data.floats(int(np.count_nonzero(outside))), data.floats(tokens)
    base = np.cumsum(unzigzag(data.ints(tokens)), dtype=np.int32)
    above = data.ints(tokens * spec.k).reshape(shape)
    logps = above.astype(np.float32)
    logps -= base[:, None].astype(np.float32)
    logps *= np.float32(spec.step)
    if above.size and above.max() == INFINITE:
        logps[above == INFINITE] = -np.inf
    outside_base = base[outside]
    label, rest = data.ints(outside_base.size), data.ints(tokens)
    return logps, _beside(label, outside_base, spec.step), _beside(rest, base, spec.step)


def _beside(codes: Ints, base: Ints, step: float) -> Floats:
    """Log-probs whose codes are stored relative to the row's base."""
    return dequantise(np.where(codes == INFINITE, INFINITE, unzigzag(codes) + base), step)


def _decode_reference(data: Cursor, rows: SignalRows, outside: Bools, column: Ints, step: float) -> SignalRows:
    shape, tokens = rows.ids.shape, len(rows)
    difference = data.signed(rows.ids.size, step).reshape(shape)
    kth = lowest(rows.logps) - data.signed(tokens, step)
    each = np.arange(tokens)
    label = (finite_or_zero(rows.logps[each, column]) - difference[each, column]).astype(np.float32)
    label[outside] = finite_or_zero(rows.label_logps[outside]) - data.signed(int(np.count_nonzero(outside)), step)
    rest = finite_or_zero(rows.rest_logps) - data.signed(tokens, step)
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
    """Each teacher's log-probs less the log of what its classes {ids, label if outside, rest} sum to."""
    excess = log_total(rows.logps, rows.label_logps, rows.rest_logps, outside)
    logps, label, rest = rows.logps - excess[:, None], rows.label_logps - excess, rows.rest_logps - excess
    if rows.difference is None:
        return SignalRows(rows.ids, logps, rows.label_ids, label, rest)
    difference, in_reference, kth, other_label, other_rest = pair_of(rows)
    reference = finite_or_zero(rows.logps) - difference
    other = log_total(reference, other_label, other_rest, outside)
    shift = np.where(np.isneginf(rows.logps), np.float32(0), excess[:, None]) - other[:, None]
    pair = (difference - shift, in_reference, kth - other, other_label - other, other_rest - other)
    return SignalRows(rows.ids, logps, rows.label_ids, label, rest, *pair)


def log_total(logps: Floats, label: Floats, rest: Floats, outside: Bools) -> Floats:
    """[T] log of the mass of the classes; 0 where nothing has mass, so that subtracting it is always defined."""
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        total = np.exp(logps).sum(axis=1) + np.exp(rest) + np.exp(label) * outside
        result: Floats = np.log(total)
    for t in np.flatnonzero(~np.isfinite(result)):
        classes = np.concatenate([logps[t], rest[t : t + 1], label[t : t + 1][outside[t : t + 1]]])
        top = classes.max()
        result[t] = top + np.log(np.exp(classes - top).sum()) if np.isfinite(top) else 0
    return result
