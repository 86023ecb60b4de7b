"""One frame of a shard: the rows of an answer as bytes, and back.

docs/format.md, "The content of a frame", gives the layout. The ids of a token are sorted by their place in the shard's
`Ranking` and stored as gaps; values are stored as quantised codes; each stream of numbers is compressed with its own
statistics. The decoder takes several frames at a time and lets each teacher's classes sum to 1 again.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray

from adpa_cli.errors import Corrupt, DataError
from adpa_cli.signal.numbers import (
    ESCAPE,
    INFINITE,
    Cursor,
    Streams,
    among,
    columns,
    dequantise,
    quantise,
    rounded,
    sums,
    unzigzag,
    zigzag,
)
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
    per_id,
    reference_logps,
)

LEVEL = 9
MAX_RATIO = 4096
"""No frame may decompress to more than this times its size, plus `FREE`: what refuses a zip bomb."""
FREE = 1 << 20
_LEAST = 256
"""Pieces shorter than this share the block of the next: a block of its own would cost them more than it saves."""
_SLICE = 8192
"""A block costs at least 4 bytes, so blocks of this size keep any content within MAX_RATIO."""
Positions = NDArray[np.intp]
_NONE = -(1 << 30)
"""What INFINITE, the code of no mass, becomes when it is read as a signed number."""
Framed = tuple[AnswerKey, int, bytes]
"""The key of an answer, its number of tokens, the content of its frame."""


@dataclass(frozen=True)
class Ranking:
    """The shard's order of its vocabulary: the `frequent` ids first, then all others by number."""

    frequent: Ints
    """[N] distinct ids, most frequent first."""
    vocab_size: int

    @cached_property
    def ids(self) -> Ints:
        """[V] rank -> id."""
        others = np.ones(self.vocab_size, dtype=np.bool_)
        others[self.frequent] = False
        return np.concatenate([self.frequent, np.flatnonzero(others).astype(np.int32)])

    @cached_property
    def ranks(self) -> Ints:
        """[V] id -> rank."""
        ranks = np.empty(self.vocab_size, dtype=np.int32)
        ranks[self.ids] = np.arange(self.vocab_size, dtype=np.int32)
        return ranks


def key_tag(key: AnswerKey) -> int:
    """What ties a frame to its row of the index: a crc32 of the three parts of the key, joined by zero bytes."""
    return zlib.crc32("\0".join((key.example_id, key.part, key.tokens)).encode())


def most_content(tokens: int, spec: SignalSpec) -> int:
    """The most bytes that the content of a frame can have: every integer an escape of four bytes more."""
    per_id, per_token = 5, 8
    return 128 + 5 * tokens * (per_id * spec.k + per_token)


def lowest(logps: Floats) -> Floats:
    """[T] the least finite log-prob of each token; 0 when there is none."""
    least: Floats = finite_or_zero(logps).min(axis=1)
    return least


def expected_in_reference(logps: Floats, difference: Floats, kth: Floats) -> Bools:
    """[T, K] whether the reference's stored log-prob reaches its stored k-th, in float32 arithmetic."""
    return (finite_or_zero(logps) - difference) >= kth[:, None]


class Compressor:
    """Compresses many frames, reusing one context."""

    def __init__(self) -> None:
        parameters = zstandard.ZstdCompressionParameters.from_level(
            LEVEL, write_checksum=True, write_content_size=True, threads=0
        )
        self._zstd = zstandard.ZstdCompressor(compression_params=parameters)

    def frame(self, pieces: list[bytes]) -> bytes:
        """One frame with content size and checksum, a new block after each piece that is not short."""
        size = sum(map(len, pieces))
        frame = self._blocks(pieces, size)
        if size > FREE + MAX_RATIO * len(frame):
            content = b"".join(pieces)
            frame = self._blocks([content[i : i + _SLICE] for i in range(0, size, _SLICE)], size)
        return frame

    def _blocks(self, pieces: list[bytes], size: int) -> bytes:
        stream = self._zstd.compressobj(size=size)
        parts, waiting = [], 0
        for piece in pieces:
            parts.append(stream.compress(piece))
            waiting += len(piece)
            if waiting >= _LEAST:
                parts.append(stream.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK))
                waiting = 0
        return b"".join([*parts, stream.flush()])


class Decompressor:
    """Decompresses many frames, reusing one context."""

    def __init__(self) -> None:
        self._zstd = zstandard.ZstdDecompressor()

    def content(self, frame: bytes | memoryview, most: int | None = None) -> bytes:
        """The content of exactly one frame, at most `most` bytes.

        Raises Corrupt on damage, a missing size or checksum, or a zip bomb; before anything is allocated for it.
        """
        bound = FREE + MAX_RATIO * len(frame)
        bound = bound if most is None else min(bound, most)
        try:
            facts = zstandard.get_frame_parameters(frame)
            if not facts.has_checksum or facts.dict_id or facts.content_size > bound:
                raise Corrupt("its compressed bytes have no checksum, or an impossible size")
            return self._zstd.decompress(frame, read_across_frames=False, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise Corrupt(f"its bytes cannot be decompressed ({error})") from None


def encode_frame(key: AnswerKey, rows: SignalRows, spec: SignalSpec, ranking: Ranking) -> list[bytes]:
    """The content of a frame in pieces. `rows` must be `checked`.

    Raises DataError when a token names an id twice or the label's log-prob is not the entry at its id.
    """
    order, ranks = _by_rank(rows.ids, ranking)
    deltas = ranks.copy()
    deltas[:, 1:] -= ranks[:, :-1] + 1
    if deltas.size and deltas.min() < 0:
        raise DataError(f"{key.label}: `ids` has one id twice at a token")
    rows = per_id(rows, lambda values: values.take(order))
    column, inside = label_positions(rows)
    entry = finite_or_zero(rows.logps[np.arange(len(rows)), column])
    if (np.abs(entry - finite_or_zero(rows.label_logps)) > 1e-3 - 1e-4 * entry)[inside].any():
        raise DataError(f"{key.label}: `label_logps` differs from the log-prob at the label's id")
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


def decode_frames(frames: Sequence[Framed], spec: SignalSpec, ranking: Ranking, raw: bool) -> list[SignalRows]:
    """The rows of each frame: the stored values when `raw`, else with each teacher's classes summing to 1.

    They are slices of arrays that all frames share. Raises Corrupt when a content does not fit its key, its number of
    tokens or the spec; decoding them one by one shows which one it was.
    """
    data = Cursor([content for _, _, content in frames])
    heads, tokens = data.head(3), [count for _, count, _ in frames]
    if [head[:2] for head in heads] != [(key_tag(key), count) for key, count, _ in frames]:
        raise Corrupt("its bytes belong to another answer")
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
    return by_answer(rows if raw else _renormalised(rows, outside), tokens)


def by_answer(rows: SignalRows, tokens: Sequence[int]) -> list[SignalRows]:
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
        raise Corrupt("it counts more draws than there were")
    weights: Floats = counts.astype(np.float32)
    weights /= np.float32(spec.draws)
    return weights


def _to_ids(ranks: NDArray[Any], ranking: Ranking) -> Ints:
    try:
        return ranking.ids.take(ranks)
    except IndexError:
        raise Corrupt("it has an id outside the vocabulary") from None


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
        raise Corrupt("it places a label beyond its ids")
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
    flips = [gaps[a:b].cumsum() - 1 for a, b in pairwise(accumulate(counts, initial=0))]
    if any(run.size and run[-1] >= size for run, size in zip(flips, each, strict=True)):
        raise Corrupt("it marks an id that it does not have")
    return np.concatenate([run + start for run, start in zip(flips, starts, strict=False)])


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
