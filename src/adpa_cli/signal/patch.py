"""A shard's frames as stored bytes: to measure them, and to put new ones in the place of damaged ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from pathlib import Path

from adpa_cli.errors import Corrupt
from adpa_cli.signal.compress import Compressor
from adpa_cli.signal.encode import encode_frame
from adpa_cli.signal.files import atomic
from adpa_cli.signal.frame import Ranking
from adpa_cli.signal.header import PRELUDE, Index, header_size, read_index, read_ranking, write_index, write_ranking
from adpa_cli.signal.rows import SignalRows, checked
from adpa_cli.signal.shard import Shard


@dataclass(frozen=True)
class StoredFrames:
    """The bytes of a shard as they lie in the file; what a truncated file lacks is missing from the last frames."""

    index: Index
    ranking: bytes
    frames: tuple[bytes, ...]
    order: Ranking


def stored_frames(path: Path) -> StoredFrames:
    """The frames of a shard, none of them decompressed. Raises Corrupt when the header or the ranking is damaged."""
    data = path.read_bytes()
    prelude = data[:PRELUDE]
    start = PRELUDE + header_size(prelude, len(data))
    index = read_index(prelude, data[PRELUDE:start])
    bounds = accumulate(index.sizes, initial=start + index.ranking_size)
    ranking = data[start : start + index.ranking_size]
    order = read_ranking(ranking, index)
    return StoredFrames(index, ranking, tuple(data[a:b] for a, b in pairwise(bounds)), order)


def patch_shard(path: Path, stored: StoredFrames, new: Mapping[int, SignalRows]) -> None:
    """Write `stored` as a shard whose rows numbered in `new` are those; the other frames are copied byte by byte."""
    frames, index = list(stored.frames), stored.index
    for i, rows in new.items():
        frames[i] = frame_of(stored, i, rows)
    with atomic(path) as out:
        out.write(write_index(replace(index, sizes=tuple(map(len, frames)))) + stored.ranking)
        out.writelines(frames)


def damage(path: Path) -> list[int]:
    """Rows whose stored bytes are not what they were; those that still read, but were written otherwise, included.

    A changed byte can lie where zstandard ignores it; such a frame is found by encoding its values again. Raises
    Corrupt when the header or the ranking is damaged: then no row can be told from another.
    """
    shard = Shard(path, partial=True)
    found = {row for row, _, _ in shard.verify()}
    stored = stored_frames(path)
    if write_ranking(stored.order.frequent, stored.index.classes) != stored.ranking:
        raise Corrupt(f"{path}: the ranking has changed")
    whole = [i for i in range(len(shard)) if i not in found]
    unlike = [i for i in whole if frame_of(stored, i, shard.read(i, raw=True)) != stored.frames[i]]
    # Another version of zstandard writes every frame in its own way: then nothing follows from that.
    return sorted(found.union(unlike if len(unlike) < len(whole) else ()))


def frame_of(stored: StoredFrames, i: int, rows: SignalRows) -> bytes:
    """The frame of row i with these values. Raises DataError when they cannot be stored."""
    key, spec = stored.index.keys[i], stored.index.spec
    where = f"answer {key.example_id!r} ({key.part})"
    kept = checked(rows, spec, where, slack=0.01 + spec.step + spec.difference_step)
    return Compressor().frame(encode_frame(key, kept, spec, stored.order))
