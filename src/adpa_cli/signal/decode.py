"""The content of frames to rows, and the sums to 1: docs/format.md, "The content of a frame"."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adpa_cli.errors import Corrupt
from adpa_cli.signal.frame import Ranking, expected_in_reference, key_tag, lowest
from adpa_cli.signal.numbers import ESCAPE, INFINITE, Cursor, among, columns, sums, unzigzag
from adpa_cli.signal.rows import (
    AnswerKey,
    Floats,
    Ints,
    SignalRows,
    SignalSpec,
    finite_or_zero,
    pair_of,
    reference_logps,
)

Positions = NDArray[np.intp]
_NONE = -(1 << 30)
"""What INFINITE, the code of no mass, becomes when it is read as a signed number."""
Framed = tuple[AnswerKey, int, bytes]
"""The key of an answer, its number of tokens, the content of its frame."""


def decode_frames(frames: Sequence[Framed], spec: SignalSpec, ranking: Ranking, raw: bool) -> list[SignalRows]:
    """The rows of each frame: the stored values when `raw`, else with each teacher's classes summing to 1.

    They are slices of arrays that all frames share. Raises Corrupt when a content does not fit its key, its number of
    tokens or the spec; which one it was is told by decoding them one by one.
    """
    data = Cursor([content for _, _, content in frames])
    heads, tokens = data.head(3), [count for _, count, _ in frames]
    if [head[:2] for head in heads] != [(key_tag(key), count) for key, count, _ in frames]:
        raise Corrupt("a frame belongs to another answer")
    missing = [head[2] for head in heads]
    ids = _decode_ids(data, tokens, spec, ranking)
    weights = _decode_weights(data, tokens, spec) if spec.draws else None
    place, outside, ranks, logps, rest, label = _decode_aligned(data, tokens, missing, spec)
    flat = np.arange(-1, ids.size - 1, spec.k) + place
    label_ids, label_logps = ids.take(flat), logps.take(flat)
    label_ids[outside] = _to_ids(ranks, ranking)
    label_logps[outside] = label
    rows = SignalRows(ids, logps, label_ids, label_logps, rest, weights=weights)
    if spec.has_reference:
        rows = _decode_reference(data, rows, tokens, missing, outside, flat, spec.difference_step)
    data.finish()
    return _apart(rows if raw else _renormalised(rows, outside), tokens)


def _apart(rows: SignalRows, tokens: Sequence[int]) -> list[SignalRows]:
    """The rows of each answer, of rows that hold all of them."""
    if len(tokens) == 1:
        return [rows]
    bounds = list(pairwise(accumulate(tokens, initial=0)))
    arrays: dict[str, Any] = {field.name: getattr(rows, field.name) for field in fields(SignalRows)}
    stored = {name: array for name, array in arrays.items() if array is not None}
    return [SignalRows(**{name: array[a:b] for name, array in stored.items()}) for a, b in bounds]


def _decode_ids(data: Cursor, tokens: Sequence[int], spec: SignalSpec, ranking: Ranking) -> Ints:
    k = spec.k
    deltas = data.ints([n * k for n in tokens], limit=max(spec.vocab_size, ESCAPE)).reshape(-1, k)
    deltas += 1
    wide = k * (spec.vocab_size + ESCAPE) > INFINITE
    ranks = deltas.cumsum(axis=1, dtype=np.int64 if wide else np.int32)
    ranks -= 1
    return _to_ids(ranks, ranking)


def _decode_weights(data: Cursor, tokens: Sequence[int], spec: SignalSpec) -> Floats:
    counts = data.ints([n * spec.k for n in tokens], limit=max(spec.draws, ESCAPE)).reshape(-1, spec.k)
    if counts.size and counts.sum(axis=1, dtype=np.int64).max() > spec.draws:
        raise Corrupt("a frame counts more draws than there were")
    weights: Floats = counts.astype(np.float32)
    weights /= np.float32(spec.draws)
    return weights


def _to_ids(ranks: NDArray[Any], ranking: Ranking) -> Ints:
    try:
        return ranking.ids.take(ranks)
    except IndexError:
        raise Corrupt("a frame has an id outside the vocabulary") from None


def _decode_aligned(
    data: Cursor, tokens: Sequence[int], missing: Sequence[int], spec: SignalSpec
) -> tuple[Ints, Positions, Ints, Floats, Floats, Floats]:
    """[T] places of the labels, [M] tokens of those outside the ids, [M] their ranks; log-probs [T, K], rest, [M]."""
    each = [n * spec.k for n in tokens]
    if spec.step == 0:
        place, ranks = columns(data.ints(_total(tokens, missing)), (tokens, missing))
        outside = _outside(place, tokens, missing, spec.k)
        lengths = (each, tokens, missing)
        flat, rest, label = columns(data.floats(_total(*lengths)), lengths)
        return place, outside, ranks, flat.reshape(-1, spec.k), rest, label
    logps = data.ints_as_floats(each).reshape(-1, spec.k)
    several = (tokens, missing, tokens, tokens, missing)
    stored = data.ints(_total(*several))
    place, ranks, *_ = columns(stored, several)
    outside = _outside(place, tokens, missing, spec.k)
    _, _, moves, rests, labels = columns(unzigzag(stored), several)
    base = sums(moves, tokens)
    absent = logps == INFINITE if logps.max(initial=0) == INFINITE else None
    logps -= base[:, None].astype(np.float32)
    logps *= np.float32(spec.step)
    if absent is not None:
        logps[absent] = -np.inf
    return place, outside, ranks, logps, _beside(rests, base, spec.step), _beside(labels, base[outside], spec.step)


def _beside(moves: Ints, base: Ints, step: float) -> Floats:
    """Log-probs that are stored against the base of their token."""
    values: Floats = (moves + base).astype(np.float32)
    values *= np.float32(-step)
    values[moves == _NONE] = -np.inf
    return values


def _total(*lengths: Sequence[int]) -> list[int]:
    return list(map(sum, zip(*lengths, strict=True)))


def _outside(place: Ints, tokens: Sequence[int], missing: Sequence[int], k: int) -> Positions:
    """[M] the tokens whose label is not among their ids."""
    outside: Positions = (place == 0).nonzero()[0]
    if place.max(initial=0) > k or among(outside, tokens) != missing:
        raise Corrupt("a frame places a label beyond its ids")
    return outside


def _decode_reference(
    data: Cursor,
    rows: SignalRows,
    tokens: Sequence[int],
    missing: Sequence[int],
    outside: Positions,
    flat: Positions,
    step: float,
) -> SignalRows:
    each = [n * rows.ids.shape[1] for n in tokens]
    difference = data.signed(each, step)
    lengths = (tokens, tokens, missing)
    depth, rest, label = columns(data.signed(_total(*lengths), step), lengths)
    kth = lowest(rows.logps) - depth
    below = difference.take(flat)
    below[outside] = label
    difference = difference.reshape(rows.ids.shape)
    in_reference = expected_in_reference(rows.logps, difference, kth)
    in_reference.reshape(-1)[_decode_flips(data, each)] ^= True
    return replace(
        rows,
        difference=difference,
        in_reference=in_reference,
        reference_kth=kth,
        reference_label_logps=finite_or_zero(rows.label_logps) - below,
        reference_rest_logps=finite_or_zero(rows.rest_logps) - rest,
    )


def _decode_flips(data: Cursor, each: Sequence[int]) -> Positions:
    """The positions of the flipped bits among all frames' ids, of which each frame has `each`."""
    counts = data.ints([1] * len(each)).tolist()
    gaps = data.ints(counts).astype(np.int64) + 1
    starts = list(accumulate(each, initial=0))
    found = [gaps[a:b].cumsum() - 1 for a, b in pairwise(accumulate(counts, initial=0))]
    if any(run.size and run[-1] >= size for run, size in zip(found, each, strict=True)):
        raise Corrupt("a frame marks an id that it does not have")
    return np.concatenate([run + start for run, start in zip(found, starts, strict=False)])


def _renormalised(rows: SignalRows, outside: Positions) -> SignalRows:
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


def log_total(logps: Floats, label: Floats, rest: Floats, outside: Positions) -> Floats:
    """[T] log of the mass of the classes; 0 where nothing has mass, so that subtracting it is always defined."""
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        total = np.einsum("tk->t", np.exp(logps))
        total += np.exp(rest)
        total[outside] += np.exp(label[outside])
        result: Floats = np.log(total)
    for t in (~(np.abs(result) < 60)).nonzero()[0]:  # a sum near what float32 ends at has lost its digits
        classes = np.concatenate([logps[t], rest[t : t + 1], label[t : t + 1] if t in outside else rest[:0]])
        top = classes.max()
        result[t] = top + np.log(np.exp(classes - top).sum()) if np.isfinite(top) else 0
    return result
