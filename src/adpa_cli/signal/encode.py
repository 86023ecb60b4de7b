"""Rows to the content of a frame: docs/format.md, "The content of a frame"."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adpa_cli.errors import DataError
from adpa_cli.signal.frame import Ranking, expected_in_reference, key_tag, lowest
from adpa_cli.signal.numbers import INFINITE, Streams, dequantise, quantise, rounded, zigzag
from adpa_cli.signal.rows import (
    AnswerKey,
    Bools,
    Floats,
    Ints,
    SignalRows,
    SignalSpec,
    finite_or_zero,
    label_positions,
    pair_of,
)


def encode_frame(key: AnswerKey, rows: SignalRows, spec: SignalSpec, ranking: Ranking) -> list[bytes]:
    """The content of a frame in pieces. `rows` must be `checked`.

    Raises DataError when a token names an id twice or the label's log-prob is not the entry at its id.
    """
    where = f"answer {key.example_id!r} ({key.part})"
    order, ranks = _by_rank(rows.ids, ranking)
    deltas = ranks.copy()
    deltas[:, 1:] -= ranks[:, :-1] + 1
    if deltas.size and deltas.min() < 0:
        raise DataError(f"{where}: field ids names an id twice in one token")
    rows = _in_order(rows, order)
    column, inside = label_positions(rows)
    entry = finite_or_zero(rows.logps[np.arange(len(rows)), column])
    if (np.abs(entry - finite_or_zero(rows.label_logps)) > 1e-3 - 1e-4 * entry)[inside].any():
        raise DataError(f"{where}: field label_logps differs from the log-prob at the label's id")
    outside = ~inside
    place = np.where(inside, column + 1, 0).astype(np.int32)
    labels = np.concatenate([place, ranking.ranks[rows.label_ids[outside]]])
    out = Streams()
    out.pieces.append(np.array([key_tag(key), len(rows), np.count_nonzero(outside)], dtype="<u4").tobytes())
    out.ints(deltas)
    if rows.weights is not None:
        out.ints(np.rint(rows.weights * spec.draws).astype(np.int32))
    codes = _encode_aligned(out, rows, labels, outside, spec.step)
    if spec.has_reference:
        seen = [dequantise(c, spec.step) for c in codes] or [rows.logps, rows.label_logps, rows.rest_logps]
        _encode_reference(out, rows, seen, outside, spec.difference_step)
    return out.pieces


def _by_rank(ids: Ints, ranking: Ranking) -> tuple[NDArray[Any], Ints]:
    """([T, K] flat positions by rank, [T, K] the ranks): one sort of rank and column packed into one integer."""
    tokens, k = ids.shape
    bits = (k - 1).bit_length()
    wide = (ranking.vocab_size - 1).bit_length() + bits > 31
    packed: NDArray[Any] = ranking.ranks.take(ids).astype(np.int64 if wide else np.int32) << bits
    packed += np.arange(k, dtype=packed.dtype)
    packed.sort(axis=1)
    order = (packed & ((1 << bits) - 1)) + np.arange(0, tokens * k, k)[:, None]
    return order, (packed >> bits).astype(np.int32)


def _in_order(rows: SignalRows, order: NDArray[Any]) -> SignalRows:
    moved = replace(rows, ids=rows.ids.take(order), logps=rows.logps.take(order))
    if rows.weights is not None:
        moved = replace(moved, weights=rows.weights.take(order))
    if rows.difference is None:
        return moved
    difference, in_reference, *_ = pair_of(rows)
    return replace(moved, difference=difference.take(order), in_reference=in_reference.take(order))


def _encode_aligned(out: Streams, rows: SignalRows, labels: Ints, outside: Bools, step: float) -> tuple[Ints, ...]:
    """Writes labels and the aligned teacher's values; returns the codes of (ids, label, rest), none when exact."""
    if step == 0:
        out.ints(labels)
        out.floats(np.concatenate([rows.logps.reshape(-1), rows.rest_logps, rows.label_logps[outside]]))
        return ()
    codes, label, rest = (quantise(v, step) for v in (rows.logps, rows.label_logps, rows.rest_logps))
    absent = codes == INFINITE if codes.max(initial=0) == INFINITE else None
    base = (codes if absent is None else np.where(absent, 0, codes)).max(axis=1)
    beside = np.concatenate([rest, label[outside]])
    relative = zigzag(beside - np.concatenate([base, base[outside]]))
    relative[beside == INFINITE] = INFINITE
    above = base[:, None] - codes
    if absent is not None:
        above[absent] = INFINITE
    out.ints(above)
    out.ints(np.concatenate([labels, zigzag(np.diff(base, prepend=np.int32(0))), relative]))
    return codes, label, rest


def _encode_reference(out: Streams, rows: SignalRows, seen: list[Floats], outside: Bools, step: float) -> None:
    """Writes the reference as differences, and the ids at which `reference >= k-th` does not tell membership."""
    difference, in_reference, kth, label, rest = pair_of(rows)
    logps, seen_label, seen_rest = seen
    difference = _shift(logps, rows.logps) + difference
    below = lowest(logps) - kth
    out.signed(difference, step)
    out.signed(
        np.concatenate(
            [
                below,
                _shift(seen_rest, rows.rest_logps) + finite_or_zero(rows.rest_logps) - rest,
                (_shift(seen_label, rows.label_logps) + finite_or_zero(rows.label_logps) - label)[outside],
            ]
        ),
        step,
    )
    expected = expected_in_reference(logps, rounded(difference, step), lowest(logps) - rounded(below, step))
    flips = np.flatnonzero(expected != in_reference)
    out.ints(np.array([flips.size], dtype=np.int32))
    out.ints((np.diff(flips, prepend=-1) - 1).astype(np.int32))


def _shift(seen: Floats, own: Floats) -> Floats:
    """What a difference needs where a finite log-prob is stored as -inf: the reader will put 0 in its place."""
    return np.where(np.isneginf(seen), -finite_or_zero(own), np.float32(0))
