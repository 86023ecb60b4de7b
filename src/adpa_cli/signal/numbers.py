"""Numbers as bytes: quantised log-probs, small integers with escapes, and the cursor that reads them back."""

from __future__ import annotations

import struct

import numpy as np
from numpy.typing import NDArray

from adpa_cli.errors import Corrupt
from adpa_cli.signal.rows import Floats, Ints

Bytes = NDArray[np.uint8]

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
    far = scaled > MAX_CODE
    codes: Ints = np.clip(scaled, least, MAX_CODE).astype(np.int32)
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
    values: Floats = codes.astype(np.float32)
    values *= np.float32(-step)
    if codes.size and codes.max() == INFINITE:
        values[codes == INFINITE] = -np.inf
    return values


def dequantise_signed(codes: Ints, step: float) -> Floats:
    """The inverse of `quantise_signed`, to half a step."""
    values: Floats = unzigzag(codes).astype(np.float32)
    values *= np.float32(step)
    if codes.size and codes.max() == INFINITE:
        values[codes == INFINITE] = np.inf
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
        escaped = flat[flat >= ESCAPE] - ESCAPE
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
    """Reads the streams of one decompressed frame in order; raises Corrupt when they do not fit."""

    def __init__(self, buffer: bytes) -> None:
        self.buffer = buffer
        self.at = 0

    def bytes(self, count: int) -> Bytes:
        """The next `count` bytes, as a view."""
        if count > len(self.buffer) - self.at:
            raise Corrupt("a frame ends too early")
        self.at += count
        return np.frombuffer(self.buffer, np.uint8, count, self.at - count)

    def head(self, count: int) -> tuple[int, ...]:
        """The next `count` u32."""
        return struct.unpack(f"<{count}I", self.bytes(4 * count).tobytes())

    def ints(self, count: int, limit: int = INFINITE) -> Ints:
        """The next `count` integers written by `Streams.ints`, at most `limit` (255 or more) each."""
        escapes, width = self.head(2)
        plane = self.bytes(count)
        values: Ints = plane.astype(np.int32)
        if not escapes:
            return values
        (at,) = (plane == ESCAPE).nonzero()
        if at.size != escapes or not 1 <= width <= 4:
            raise Corrupt("a frame's escapes do not match their count")
        extra = np.zeros((escapes, 4), dtype=np.uint8)
        extra[:, :width] = self.bytes(escapes * width).reshape(width, escapes).T
        more = extra.view("<u4").reshape(-1)
        if more.max() > limit - ESCAPE:
            raise Corrupt("a frame has an integer out of range")
        values[at] = more.astype(np.int32) + ESCAPE
        return values

    def floats(self, count: int) -> Floats:
        """The next `count` float32 written by `Streams.floats`."""
        planes = self.bytes(4 * count).reshape(4, count)
        return planes.T.copy().view("<f4").reshape(-1).astype(np.float32, copy=False)

    def signed(self, count: int, step: float) -> Floats:
        """The next `count` values written by `Streams.signed`."""
        return dequantise_signed(self.ints(count), step) if step else self.floats(count)

    def finish(self) -> None:
        """Raises Corrupt when bytes are left over."""
        if self.at != len(self.buffer):
            raise Corrupt("a frame is longer than its rows")
