"""A shard's frames as stored bytes: where the bytes go, which are damaged, and how to replace these.

The bytes of a frame are shared out over its columns by the blocks of zstandard that hold them. Damaged rows are written
anew while all others are copied, and `signal_distance` measures how far stored values are from what a teacher says now.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

import numpy as np
import zstandard

from adpa_cli.disk import atomic
from adpa_cli.errors import Corrupt
from adpa_cli.signal.codec import Compressor, encode_frame
from adpa_cli.signal.numbers import Cursor
from adpa_cli.signal.rows import Floats, SignalRows, SignalSpec, checked, finite_or_zero, pair_of
from adpa_cli.signal.shard import Shard, write_index, write_ranking

COLUMNS = ("ids", "aligned", "reference", "rest", "label", "framing")
_Run = tuple[str, int]
"""A column and how many bytes of a frame's content belong to it; runs follow one another."""
EXACT = 1 / 1024
"""What counts as a step, in nats, where the values are stored exactly: more than the noise of floating point."""


def patch_shard(path: Path, stored: Shard, new: Mapping[int, SignalRows]) -> None:
    """Write `stored` as a shard whose rows numbered in `new` are those; the other frames are copied byte by byte."""
    frames = [frame_of(stored, i, new[i]) if i in new else stored.frame(i) for i in range(len(stored))]
    index = replace(stored.index, sizes=np.array([len(frame) for frame in frames], dtype=np.int64))
    with atomic(path) as out:
        out.write(write_index(index) + stored.ranking_frame)
        out.writelines(frames)


def damage(path: Path) -> list[int]:
    """Rows whose stored bytes are not what they were; those that still read, but were written otherwise, included.

    A changed byte can lie where zstandard ignores it; such a frame is found by encoding its values again. Raises
    Corrupt when the header or the ranking is damaged: then rows cannot be distinguished.
    """
    shard = Shard(path, partial=True)
    damaged = {row for row, _, _ in shard.verify()}
    if write_ranking(shard.ranking.frequent, shard.index.classes) != shard.ranking_frame:
        raise Corrupt(f"{path}: its ranking of frequent ids has changed")
    whole = [i for i in range(len(shard)) if i not in damaged]
    unlike = [i for i in whole if frame_of(shard, i, shard.read(i, raw=True)) != shard.frame(i)]
    # Another version of zstandard writes every frame in its own way: then nothing follows from that.
    return sorted(damaged.union(unlike if len(unlike) < len(whole) else ()))


def frame_of(shard: Shard, i: int, rows: SignalRows) -> bytes:
    """The frame of row i with these values. Raises DataError when they cannot be stored."""
    key, spec = shard.keys[i], shard.spec
    kept = checked(rows, spec, key.label, slack=0.01 + spec.step + spec.difference_step)
    return Compressor().frame(encode_frame(key, kept, spec, shard.ranking))


def column_bytes(path: Path) -> dict[str, float]:
    """Stored bytes by column; they sum to the size of the file. `framing` is everything that is no value.

    A block of zstandard that holds several columns counts for each by its share of the content. Raises Corrupt.
    """
    sizes, shard = dict.fromkeys(COLUMNS, 0.0), Shard(path, partial=True)
    for i, tokens in enumerate(shard.tokens.tolist()):
        blocks, content = _blocks(shard.frame(i))
        runs = _runs(content, tokens, shard.spec)
        for name, size in _shared_out(blocks, runs).items():
            sizes[name] += size
    sizes["framing"] += path.stat().st_size - sum(sizes.values())
    return sizes


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
            raise Corrupt("its bytes end too early")
        piece = stream.decompress(frame[start:end])
        blocks.append((end - start - 3, len(piece)))
        content += piece
        start = end
    return blocks, content + stream.decompress(frame[start:])


def _runs(content: bytes, tokens: int, spec: SignalSpec) -> list[_Run]:
    """What each stretch of a frame's content holds, in the order of docs/format.md."""
    data = Cursor([content])
    ((_, _, missing),) = data.head(3)
    runs = [("framing", data.at[0])]

    def took(columns: list[_Run]) -> None:
        """The bytes just read, among `columns` by their number of values."""
        size, values = data.at[0] - sum(size for _, size in runs), max(1, sum(n for _, n in columns))
        bounds = [size * n // values for n in accumulate(count for _, count in columns)]
        runs.extend((name, b - a) for (name, _), a, b in zip(columns, [0, *bounds], bounds, strict=False))
        runs.append(("framing", data.at[0] - sum(size for _, size in runs)))

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
    shares: dict[str, float] = {}
    waiting = [run for run in runs if run[1]][::-1]
    for stored, size in blocks:
        left = size
        while left and waiting:
            name, have = waiting.pop()
            taken = min(left, have)
            shares[name] = shares.get(name, 0.0) + stored * taken / size
            left -= taken
            if taken < have:
                waiting.append((name, have - taken))
    return shares


def signal_distance(stored: SignalRows, now: SignalRows, spec: SignalSpec) -> float:
    """The greatest distance between stored (`raw`) and newly computed values of an answer, in quantisation steps.

    An id that only one side has counts by how far its log-prob is from the least of the other: near ties may swap.
    Infinite for another answer.
    """
    if stored.label_ids.tolist() != now.label_ids.tolist() or stored.ids.shape != now.ids.shape:
        return np.inf
    step, pair_step = spec.step or EXACT, spec.difference_step or EXACT
    distances = [_far(stored.label_logps, now.label_logps, step), _far(stored.rest_logps, now.rest_logps, step)]
    for t in range(len(now)):
        _, mine, theirs = np.intersect1d(stored.ids[t], now.ids[t], return_indices=True)
        distances.append(_far(stored.logps[t, mine], now.logps[t, theirs], step))
        if len(mine) < stored.ids.shape[1]:
            distances += [_alone(stored, now, t, step), _alone(now, stored, t, step)]
        if spec.has_reference:
            distances.append(_far(pair_of(stored)[0][t, mine], pair_of(now)[0][t, theirs], pair_step))
    if spec.has_reference:
        distances += [_far(a, b, pair_step) for a, b in zip(_beside(stored), _beside(now), strict=True)]
    return max(distances, default=0.0)


def _beside(rows: SignalRows) -> list[Floats]:
    """What is stored of the reference beside the ids: its k-th, and aligned - reference of the label and the rest."""
    _, _, kth, label, rest = pair_of(rows)
    return [kth, finite_or_zero(rows.label_logps) - label, finite_or_zero(rows.rest_logps) - rest]


def _alone(one: SignalRows, other: SignalRows, t: int, step: float) -> float:
    """How far the ids that only `one` has at token t are above the least log-prob of the `other`, in steps."""
    lacking = ~np.isin(one.ids[t], other.ids[t])
    return float(np.max(one.logps[t, lacking] - other.logps[t].min(), initial=0.0)) / step


def _far(stored: Floats, now: Floats, step: float) -> float:
    with np.errstate(invalid="ignore"):
        distance = np.where(stored == now, 0.0, np.abs(stored.astype(np.float64) - now))
    return float(np.max(distance, initial=0.0)) / step
