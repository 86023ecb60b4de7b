"""Twenty thousand mutated shards: each gives the very same values, or is refused, in the memory its header allows.

Half are mutated as they lie on disk, where checksums protect them. The other half have their checksums made right
again, so that what a hostile writer may say of lengths, counts and values reaches the code behind the checksums; there
the values may differ, since it is another shard, but must be a signal's.
"""

from __future__ import annotations

import json
import random
import resource
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard

from adpa_cli.errors import Corrupt
from adpa_cli.signal.rows import SignalRows
from adpa_cli.signal.shard import Shard, write_shard
from support.signal_samples import sample_answers, spec_of

ROUNDS = 5000
"""Shards that each of the four cases mutates."""
HUGE = (
    -1,
    0,
    1,
    255,
    256,
    65_536,
    1 << 24,
    1 << 31,
    1 << 32,
    (1 << 63) - 1,
    1 << 64,
    1e308,
    float("nan"),
    None,
    "7",
    [],
    {},
    True,
)
_ZSTD, _UNZSTD = zstandard.ZstdCompressor(write_checksum=True, level=1), zstandard.ZstdDecompressor()


@contextmanager
def within(megabytes: int) -> Iterator[None]:
    """Whatever asks for this much more memory than the process has gets a MemoryError."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (megabytes << 20), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def contents(path: Path) -> list[Any]:
    shard = Shard(path)
    try:
        one_by_one = [shard.read(i, raw=True) for i in range(len(shard))]
        together = [rows for _, rows in shard]
        return [shard.spec, shard.keys[:], *one_by_one, *together]
    finally:
        shard.close()


def as_bytes(found: list[Any]) -> list[Any]:
    def plain(rows: SignalRows) -> list[bytes | None]:
        arrays = (getattr(rows, field.name) for field in fields(SignalRows))
        return [None if array is None else array.tobytes() for array in arrays]

    return [plain(item) if isinstance(item, SignalRows) else item for item in found]


class Parts:
    """A shard taken apart: header, ranking and frames; `bytes` puts them together with checksums that are right."""

    def __init__(self, data: bytes) -> None:
        size = int.from_bytes(data[12:16], "little")
        self.version = 1
        self.header = json.loads(_UNZSTD.decompress(data[20 : 20 + size]))
        sizes = [self.header["ranking"]["bytes"], *self.header["answers"]["bytes"]]
        self.frames = [data[a:b] for a, b in pairwise(accumulate(sizes, initial=20 + size))]

    def measured(self) -> None:
        self.header["ranking"]["bytes"], *self.header["answers"]["bytes"] = map(len, self.frames)

    def bytes(self) -> bytes:
        frame = _ZSTD.compress(json.dumps(self.header).encode())
        front = b"adpa-sig" + self.version.to_bytes(4, "little") + len(frame).to_bytes(4, "little")
        return front + zlib.crc32(front + frame).to_bytes(4, "little") + frame + b"".join(self.frames)


def on_disk(data: bytes, rng: random.Random) -> bytes:
    """Bits flipped, bytes overwritten, cut out, doubled, swapped; truncated; two stretches exchanged."""
    bad, at, length = bytearray(data), rng.randrange(len(data)), rng.randrange(1, 40)
    match rng.randrange(7):
        case 0:
            bad[at] ^= 1 << rng.randrange(8)
        case 1:
            bad[at : at + length] = rng.randbytes(len(bad[at : at + length]))
        case 2:
            del bad[at : at + length]
        case 3:
            bad[at:at] = bad[at : at + length]
        case 4:
            other = rng.randrange(len(data))
            bad[at], bad[other] = bad[other], bad[at]
        case 5:
            del bad[at:]
        case 6:
            other = rng.randrange(len(data))
            bad[at : at + length] = data[other : other + length]
    return bytes(bad)


def header_lies(data: bytes, rng: random.Random) -> bytes:
    """Lengths, counts, steps, keys and the version replaced; frames swapped, doubled, overlapping, or left out."""
    parts = Parts(data)
    match rng.randrange(4):
        case 0:
            place = rng.choice([parts.header, parts.header["ranking"], parts.header["answers"]])
            place[rng.choice(list(place))] = rng.choice(HUGE)
        case 1:
            column = rng.choice([*parts.header["answers"].values(), parts.header["ranking"]["classes"]])
            column[rng.randrange(len(column))] = rng.choice(HUGE)
        case 2:
            i, j = (rng.randrange(len(parts.frames)) for _ in range(2))
            parts.frames[i], parts.frames[j] = parts.frames[j], parts.frames[i]
            if rng.randrange(2):
                parts.measured()
        case 3:
            sizes = parts.header["answers"]["bytes"]
            moved = rng.randrange(1, 30)
            sizes[0] += moved
            sizes[rng.randrange(len(sizes))] -= moved
            parts.version = rng.choice((1, 1, 1, 0, 2, 255))
    return parts.bytes()


def contents_lie(data: bytes, rng: random.Random) -> bytes:
    """What a frame or the ranking holds, changed before it is compressed again; now and then it is a bomb."""
    parts = Parts(data)
    i = rng.randrange(len(parts.frames))
    content = bytearray(_UNZSTD.decompress(parts.frames[i]))
    for _ in range(rng.randrange(1, 4)):
        content[rng.randrange(len(content))] = rng.choice((0, 1, 4, 127, 254, 255))
    if rng.randrange(8) == 0:
        del content[rng.randrange(len(content)) :]
    if rng.randrange(200) == 0:
        content += bytes(1 << rng.randrange(8, 26))
    parts.frames[i] = _ZSTD.compress(bytes(content))
    parts.measured()
    return parts.bytes()


def sound(found: list[Any]) -> None:
    """These are a signal's: ids are sets within the vocabulary, and nothing is not a number."""
    spec, _, *answers = found
    for rows in answers:
        assert rows.ids.shape == rows.logps.shape == (len(rows), spec.k)
        assert rows.ids.size == 0 or (rows.ids.min() >= 0 and rows.ids.max() < spec.vocab_size)
        assert (np.diff(np.sort(rows.ids, axis=1), axis=1) > 0).all()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")  # values that no writer makes may overflow
@pytest.mark.parametrize(
    ("mutated", "exact", "harmless"),
    [(on_disk, False, True), (on_disk, True, True), (header_lies, False, False), (contents_lie, False, False)],
    ids=["on disk, pair", "on disk, one teacher, exact", "headers that lie", "contents that lie"],
)
def test_every_mutated_shard_is_refused_or_gives_the_same_values(
    tmp_path: Path, mutated: Callable[[bytes, random.Random], bytes], exact: bool, harmless: bool
) -> None:
    path = tmp_path / "signal-00000.adpa"
    write_shard(
        path,
        spec_of(5, 400, pair=not exact, step=0 if exact else 1 / 32),
        sample_answers((3, 0, 6), 5, 400, pair=not exact),
    )
    data, expected = path.read_bytes(), as_bytes(contents(path))
    rng, refused, unlike = random.Random(0), [], 0
    for _ in range(ROUNDS):
        path.write_bytes(mutated(data, rng))
        try:
            with within(64):
                found = contents(path)
        except Corrupt as problem:
            refused.append((problem.exit_code, problem.message))  # the error itself would keep the file open
            continue
        sound(found)
        unlike += as_bytes(found) != expected
    assert all(code == 5 and str(path) in message for code, message in refused)
    assert len(refused) > ROUNDS / 5
    assert unlike == 0 or not harmless
