"""Numbers as bytes: quantised log-probs, small integers with escapes, and the cursor that reads them back."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from adpa_cli.errors import Corrupt
from adpa_cli.signal.rows import Floats, Ints

Bytes = NDArray[np.uint8]
T = TypeVar("T", bound=np.generic)

MAX_CODE = 1 << 24
"""Largest magnitude of a code: every integer up to here is exact in float32."""
INFINITE = (1 << 31) - 1
"""Stands for -inf in log-probs and for +inf in differences."""
ESCAPE = 255


def quantise(logps: Floats, step: float) -> Ints:
    """Codes round(-logp / step), at least 0; -inf and anything below -MAX_CODE steps becomes INFINITE."""
    return _rounded_codes(logps, -step, 0)


def quantise_signed(values: Floats, step: float) -> Ints:
    """Zigzag codes of round(value / step): 0, -1, 1, -2 … -> 0, 1, 2, 3 …; +inf and what is too great: INFINITE.

    Too small a value is held at -MAX_CODE steps.
    """
    codes = _rounded_codes(values, step, -MAX_CODE)
    return np.where(codes == INFINITE, INFINITE, zigzag(codes))


def _rounded_codes(values: Floats, step: float, least: int) -> Ints:
    scaled: Floats = np.divide(values, np.float32(step), dtype=np.float32)
    np.rint(scaled, out=scaled)
    far = scaled > MAX_CODE if scaled.max(initial=0) > MAX_CODE else None
    np.clip(scaled, least, MAX_CODE, out=scaled)
    codes: Ints = scaled.astype(np.int32)
    if far is not None:
        codes[far] = INFINITE
    return codes


def zigzag(values: Ints) -> Ints:
    """Signed to unsigned: 0, -1, 1, -2 … -> 0, 1, 2, 3 …"""
    return (values << 1) ^ (values >> 31)


def unzigzag(codes: Ints) -> Ints:
    """The inverse of `zigzag`."""
    return (codes >> 1) ^ -(codes & 1)


def dequantise(codes: Ints, step: float) -> Floats:
    """-codes * step in float32, -inf for INFINITE."""
    return _values(codes, codes, -step)


def dequantise_signed(codes: Ints, step: float) -> Floats:
    """The inverse of `quantise_signed`, to half a step."""
    return _values(codes, unzigzag(codes), step)


def _values(codes: Ints, numbers: Ints, step: float) -> Floats:
    values: Floats = numbers.astype(np.float32)
    values *= np.float32(step)
    if codes.size and codes.max() == INFINITE:
        values[codes == INFINITE] = np.copysign(np.inf, step)
    return values


def rounded(values: Floats, step: float) -> Floats:
    """The values as a reader of `Streams.signed` sees them."""
    return dequantise_signed(quantise_signed(values, step), step) if step else values


class Streams:
    """Collects the streams of one frame as pieces of bytes; each piece is compressed with its own statistics."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []

    def ints(self, values: Ints) -> None:
        """Non-negative int32 as a byte each; 255 and more are escapes, whose value - 255 follows in byte planes."""
        flat = values.reshape(-1)
        escaped = flat.take((flat >= ESCAPE).nonzero()[0]) - ESCAPE
        width = max(1, (int(escaped.max()).bit_length() + 7) // 8) if escaped.size else 0
        planes = escaped.astype("<i4").view(np.uint8).reshape(-1, 4).T
        self.pieces.append(np.array([escaped.size, width], dtype="<u4").tobytes())
        self.pieces.append(np.minimum(flat, ESCAPE).astype(np.uint8).tobytes())
        self.pieces += [planes[i].tobytes() for i in range(width)]

    def floats(self, values: Floats) -> None:
        """float32 as four byte planes, lowest byte first."""
        self.pieces += [plane.tobytes() for plane in values.reshape(-1).astype("<f4").view(np.uint8).reshape(-1, 4).T]

    def signed(self, values: Floats, step: float) -> None:
        """Values of either sign, quantised; float32 when the step is 0."""
        if step:
            self.ints(quantise_signed(values, step))
        else:
            self.floats(values)


class Cursor:
    """Reads the streams of several decompressed frames side by side: each call takes the next stream of every frame.

    `at` is how far it is in each of them.
    `counts` has one entry per frame; what is returned is one frame's after the other's. Frames are read together since
    numpy's calls, not its work, are most of what a short answer costs. Raises Corrupt when a frame does not fit.
    """

    def __init__(self, buffers: Sequence[bytes]) -> None:
        self._buffers = [memoryview(buffer) for buffer in buffers]
        self.at = [0] * len(buffers)

    def head(self, count: int) -> list[tuple[int, ...]]:
        """The next `count` u32 of each frame."""
        numbers = struct.Struct(f"<{count}I")
        try:
            heads = [numbers.unpack_from(buffer, at) for buffer, at in zip(self._buffers, self.at, strict=True)]
        except struct.error:
            raise Corrupt("its bytes end too early") from None
        self.at = [at + numbers.size for at in self.at]
        return heads

    def ints(self, counts: Sequence[int], limit: int = INFINITE) -> Ints:
        """The next integers written by `Streams.ints`, at most `limit` (255 or more) each."""
        return self._ints(counts, limit, np.int32)

    def ints_as_floats(self, counts: Sequence[int]) -> Floats:
        """The same as float32, exact up to 2**24 and for INFINITE, which becomes 2**31."""
        return self._ints(counts, INFINITE, np.float32)

    def _ints(self, counts: Sequence[int], limit: int, dtype: type[T]) -> NDArray[T]:
        heads = self.head(2)
        plane = _joined(self._pieces(counts))
        values = plane.astype(dtype)
        (at,) = (plane == ESCAPE).nonzero()
        counted = among(at, counts)
        if any(n != m or width > 4 or (width == 0) != (n == 0) for (n, width), m in zip(heads, counted, strict=True)):
            raise Corrupt("it has another count of large integers than it says")
        if at.size:
            values[at] = self._escaped(heads, limit)
        return values

    def _escaped(self, heads: Sequence[tuple[int, ...]], limit: int) -> Ints:
        """The integers behind the escapes: (escapes, width) of each frame, whose higher planes are 0."""
        width = max(own for _, own in heads)
        pieces = list(zip(self._pieces([n * own for n, own in heads]), heads, strict=True))
        more = np.zeros(sum(n for n, _ in heads), dtype=np.int32)
        for i in range(width):
            plane = _joined([piece[i * n : i * n + n] if i < own else bytes(n) for piece, (n, own) in pieces])
            more |= plane.astype(np.int32) << 8 * i
        if more.max() > limit - ESCAPE or (width == 4 and more.min() < 0):
            raise Corrupt("it has an integer out of range")
        more += ESCAPE
        return more

    def floats(self, counts: Sequence[int]) -> Floats:
        """The next float32 written by `Streams.floats`."""
        pieces = self._pieces([4 * count for count in counts])
        values = [_joined([piece]).reshape(4, -1).T.copy().view("<f4").reshape(-1) for piece in pieces]
        return (values[0] if len(values) == 1 else np.concatenate(values)).astype(np.float32, copy=False)

    def signed(self, counts: Sequence[int], step: float) -> Floats:
        """The next values written by `Streams.signed`."""
        return dequantise_signed(self.ints(counts), step) if step else self.floats(counts)

    def finish(self) -> None:
        """Raises Corrupt when bytes are left over."""
        if self.at != [len(buffer) for buffer in self._buffers]:
            raise Corrupt("its bytes are more than its rows need")

    def _pieces(self, counts: Sequence[int]) -> list[memoryview]:
        pieces = []
        for i, (buffer, count) in enumerate(zip(self._buffers, counts, strict=True)):
            at = self.at[i]
            self.at[i] = end = at + count
            if end > len(buffer):
                raise Corrupt("its bytes end too early")
            pieces.append(buffer[at:end])
        return pieces


def _joined(pieces: Sequence[bytes | memoryview]) -> Bytes:
    return np.frombuffer(pieces[0] if len(pieces) == 1 else b"".join(pieces), np.uint8)


def among(rising: NDArray[np.intp], counts: Sequence[int]) -> list[int]:
    """How many of the rising positions fall into each of the consecutive runs of `counts` elements."""
    if len(counts) == 1:
        return [rising.size]
    each: list[int] = np.diff(rising.searchsorted(list(accumulate(counts, initial=0)))).tolist()
    return each


def sums(values: Ints, counts: Sequence[int]) -> Ints:
    """Cumulative sums that start again at each of the consecutive runs of `counts` elements; int32, modulo 2**32."""
    total: Ints = values.cumsum(dtype=np.int32)
    if len(counts) > 1:
        before = np.concatenate([np.zeros(1, dtype=np.int32), total])[list(accumulate(counts[:-1], initial=0))]
        total -= before.repeat(counts)
    return total


def columns(values: NDArray[T], lengths: Sequence[Sequence[int]]) -> list[NDArray[T]]:
    """Column j of every frame, one frame's after the other's; lengths[j][i] is its length in frame i."""
    bounds = pairwise(accumulate((n for frame in zip(*lengths, strict=True) for n in frame), initial=0))
    parts = [values[a:b] for a, b in bounds]
    if len(parts) == len(lengths):
        return parts
    return [np.concatenate(parts[j :: len(lengths)]) for j in range(len(lengths))]
