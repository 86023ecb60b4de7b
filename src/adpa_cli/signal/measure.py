"""Where the stored bytes of a shard go: each block of its zstandard frames, shared out over what it holds."""

from __future__ import annotations

from itertools import accumulate
from pathlib import Path

import zstandard

from adpa_cli.errors import Corrupt
from adpa_cli.signal.numbers import Cursor
from adpa_cli.signal.patch import stored_frames
from adpa_cli.signal.rows import SignalSpec

COLUMNS = ("ids", "aligned", "reference", "rest", "label", "framing")
_Run = tuple[str, int]
"""A column and how many bytes of a frame's content belong to it; runs follow one another."""


class _Reader(Cursor):
    """A cursor in one frame that tells how far it is."""

    def place(self) -> int:
        return self._at[0]


def column_bytes(path: Path) -> dict[str, float]:
    """Stored bytes by column; they sum to the size of the file. `framing` is everything that is no value.

    A block of zstandard that holds several columns counts for each by its share of the content. Raises Corrupt.
    """
    found, stored = dict.fromkeys(COLUMNS, 0.0), stored_frames(path)
    for frame, tokens in zip(stored.frames, stored.index.tokens, strict=True):
        blocks, content = _blocks(frame)
        runs = _runs(content, tokens, stored.index.spec)
        for name, size in _shared_out(blocks, runs).items():
            found[name] += size
    found["framing"] += path.stat().st_size - sum(found.values())
    return found


def _blocks(frame: bytes) -> tuple[list[tuple[int, int]], bytes]:
    """((stored bytes without their header, bytes of content) of each block of a frame, its whole content)."""
    start = zstandard.frame_header_size(frame)
    stream = zstandard.ZstdDecompressor().decompressobj()
    blocks, content, last = [], stream.decompress(frame[:start]), 0
    while not last:
        head = int.from_bytes(frame[start : start + 3], "little")
        last, kind, size = head & 1, head >> 1 & 3, head >> 3
        end = start + 3 + (1 if kind == 1 else size)
        if end > len(frame):
            raise Corrupt("a frame ends too early")
        piece = stream.decompress(frame[start:end])
        blocks.append((end - start - 3, len(piece)))
        content += piece
        start = end
    return blocks, content + stream.decompress(frame[start:])


def _runs(content: bytes, tokens: int, spec: SignalSpec) -> list[_Run]:
    """What each stretch of a frame's content holds, in the order of docs/format.md."""
    data = _Reader([content])
    ((_, _, missing),) = data.head(3)
    runs = [("framing", data.place())]

    def took(columns: list[_Run]) -> None:
        """The bytes just read, among `columns` by their number of values."""
        size, values = data.place() - sum(size for _, size in runs), max(1, sum(n for _, n in columns))
        bounds = [size * n // values for n in accumulate(count for _, count in columns)]
        runs.extend((name, b - a) for (name, _), a, b in zip(columns, [0, *bounds], bounds, strict=False))
        runs.append(("framing", data.place() - sum(size for _, size in runs)))

    each = tokens * spec.k
    data.ints([each])
    took([("ids", each)])
    if spec.draws:
        data.ints([each])
        took([("aligned", each)])
    if spec.step == 0:
        data.ints([tokens + missing])
        took([("label", tokens + missing)])
        data.floats([each + tokens + missing])
        took([("aligned", each), ("rest", tokens), ("label", missing)])
    else:
        data.ints([each])
        took([("aligned", each)])
        data.ints([3 * tokens + 2 * missing])
        took([("label", tokens + missing), ("aligned", tokens), ("rest", tokens), ("label", missing)])
    if spec.has_reference:
        for count in (each, 2 * tokens + missing):
            data.signed([count], spec.difference_step)
            took([("reference", count)])
        flips = int(data.ints([1])[0])
        data.ints([flips])
        took([("reference", 1)])
    return runs


def _shared_out(blocks: list[tuple[int, int]], runs: list[_Run]) -> dict[str, float]:
    """Stored bytes by column: a block's, in proportion to what it holds of each."""
    found: dict[str, float] = {}
    waiting = [run for run in runs if run[1]][::-1]
    for stored, size in blocks:
        left = size
        while left and waiting:
            name, have = waiting.pop()
            taken = min(left, have)
            found[name] = found.get(name, 0.0) + stored * taken / size
            left -= taken
            if taken < have:
                waiting.append((name, have - taken))
    return found
