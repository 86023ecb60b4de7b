"""Damaged and hostile shards and blocks: either the same values or Corrupt, never a crash or a great allocation."""

from __future__ import annotations

import json
import random
import tracemalloc
import zlib
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import zstandard

from adpa_cli.errors import Corrupt, NotFound
from adpa_cli.signal.block_files import load_block, save_block
from adpa_cli.signal.rows import SignalRows
from adpa_cli.signal.shard import Shard, write_shard
from support.signal_samples import sample_answers, spec_of


def values_of(rows: SignalRows) -> list[bytes | None]:
    arrays = (getattr(rows, field.name) for field in fields(SignalRows))
    return [None if array is None else array.tobytes() for array in arrays]


def contents(path: Path) -> list[object]:
    shard = Shard(path)
    try:
        return [shard.spec, shard.keys[:], [values_of(shard.read(i)) for i in range(len(shard))]]
    finally:
        shard.close()


@pytest.fixture(params=["pair", "one teacher, exact"])
def shard_path(request, tmp_path) -> Path:
    path, pair = tmp_path / "signal-00000.adpa", request.param == "pair"
    write_shard(
        path, spec_of(5, 60, pair=pair, step=1 / 32 if pair else 0), sample_answers((4, 0, 9), 5, 60, pair=pair)
    )
    return path


def with_header(data: bytes, **changes: object) -> bytes:
    """The shard with values of its header replaced (`answers__tokens` reaches inside) and the checksum made right."""
    size = int.from_bytes(data[12:16], "little")
    header = json.loads(zstandard.ZstdDecompressor().decompress(data[20 : 20 + size]))
    for name, value in changes.items():
        *outer, last = name.split("__")
        place = header[outer[0]] if outer else header
        if value is None:
            del place[last]
        else:
            place[last] = value
    return packed(json.dumps(header).encode()) + data[20 + size :]


def packed(header: bytes, version: int = 1, **options: bool) -> bytes:
    frame = zstandard.ZstdCompressor(write_checksum=options.get("checksum", True)).compress(header)
    front = b"adpa-sig" + version.to_bytes(4, "little") + len(frame).to_bytes(4, "little")
    return front + zlib.crc32(front + frame).to_bytes(4, "little") + frame


def refused(path: Path, data: bytes, match: str | None = None) -> None:
    """`path` with these bytes is refused while it is opened or read, within 16 MB."""
    path.write_bytes(data)
    tracemalloc.start()
    try:
        with pytest.raises(Corrupt, match=match) as caught:
            contents(path)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()
    assert caught.value.exit_code == 5
    assert str(path) in caught.value.message


def test_every_truncation_is_refused(shard_path):
    data = shard_path.read_bytes()
    for length in range(len(data)):
        refused(shard_path, data[:length])


def test_content_that_passes_its_checksum_is_refused_or_harmless(tmp_path):
    """What a frame contains may be hostile too: its bytes are changed before they are compressed again."""
    path = tmp_path / "s.adpa"
    write_shard(path, spec_of(5, 60), sample_answers((9,), 5, 60))
    data = path.read_bytes()
    size = Shard(path).sizes[0]
    content = zstandard.ZstdDecompressor().decompress(data[-size:])
    compressor, rng = zstandard.ZstdCompressor(write_checksum=True), random.Random(1)
    for i in range(1500):
        bad = bytearray(content)
        for _ in range(rng.randrange(1, 4)):
            bad[rng.randrange(len(bad))] = rng.choice((0, 1, 4, 127, 254, 255))
        if i % 3 == 0:
            del bad[rng.randrange(len(bad)) :]
        frame = compressor.compress(bytes(bad))
        path.write_bytes(with_header(data[:-size] + frame, answers__bytes=[len(frame)]))
        try:
            rows = Shard(path).read(0)
        except Corrupt:
            continue
        assert rows.ids.shape == (9, 5)
        assert rows.ids.min() >= 0
        assert rows.ids.max() < 60
        assert all(len(set(ids)) == 5 for ids in rows.ids.tolist())


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"answers__tokens": [4, 0, 10]}, "row 2"),
        ({"answers__tokens": [1 << 40, 0, 9]}, "tokens"),
        ({"answers__tokens": [1 << 24, 0, 9]}, "row 0"),
        ({"answers__tokens": [4, 0]}, "header"),
        ({"answers__tokens": [4, 0, -9]}, "header"),
        ({"answers__tokens": [4, 0, True]}, "header"),
        ({"answers__bytes": [1 << 60, 0, 9]}, "bytes"),
        ({"answers__bytes": None}, "header"),
        ({"answers__hash": ["0" * 32] * 3}, "row 0"),
        ({"answers__part": [["chosen"]] * 3}, "header"),
        ({"answers": []}, "header"),
        ({"k": 6}, "row 0"),
        ({"k": "5"}, "header"),
        ({"k": 1 << 30, "vocab_size": 1 << 31}, "header"),
        ({"vocab_size": 1 << 22, "k": 1 << 22}, "row"),
        ({"vocab_size": 8}, "ranking"),
        ({"ranking__classes": [1 << 40]}, "ranking"),
        ({"ranking__bytes": 1 << 40}, "bytes"),
        ({"step": None}, "header"),
        ({"step": float("nan")}, "header"),
        ({"step": "fine"}, "header"),
        ({"teachers": "none"}, "header"),
        ({"teachers": {}}, "row 0"),
    ],
)
def test_headers_that_lie(tmp_path, changes, match):
    path = tmp_path / "s.adpa"
    write_shard(path, spec_of(5, 60), sample_answers((4, 0, 9), 5, 60))
    refused(path, with_header(path.read_bytes(), **changes), match)


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"", "this is not a teacher signal"),
        (b"PK\x03\x04" + bytes(100), "this is not a teacher signal"),
        (b"adpa-sig" + b"\xff" * 12, "version"),
        (b"adpa-sig" + (1).to_bytes(4, "little") + b"\xff" * 8, "beyond the end"),
        (packed(b"{}", version=2), "version 2"),
        (packed(b"{}"), "header"),
        (packed(b"{}", checksum=False), "no checksum"),
        (packed(b"[" * 100_000), "header"),
        (packed(b'"' + bytes(1 << 25) + b'"'), "impossible size"),
        (packed(b"\xff\xfe"), "header"),
    ],
)
def test_files_that_are_not_shards(tmp_path, data, match):
    refused(tmp_path / "s.adpa", data, match)


def test_a_frame_that_is_a_bomb_is_refused(tmp_path):
    path = tmp_path / "s.adpa"
    write_shard(path, spec_of(5, 60), sample_answers((4,), 5, 60))
    data, size = path.read_bytes(), Shard(path).sizes[0]
    bomb = zstandard.ZstdCompressor(write_checksum=True).compress(bytes(1 << 28))
    refused(path, with_header(data[:-size] + bomb, answers__bytes=[len(bomb)]), "impossible size")


def test_swapped_frames_are_refused(tmp_path):
    path = tmp_path / "s.adpa"
    answers = sample_answers((4,), 5, 60)
    answers.append((type(answers[0][0])("example-1", "rollout", answers[0][0].tokens), answers[0][1]))
    write_shard(path, spec_of(5, 60), answers)
    data, (a, b) = path.read_bytes(), Shard(path).sizes.tolist()
    assert Shard(path).verify() == []
    swapped = with_header(data[: -a - b] + data[-b:] + data[-a - b : -b], answers__bytes=[b, a])
    refused(path, swapped, "row 0.*another answer")


def test_a_constant_signal_is_not_taken_for_a_bomb(tmp_path):
    """The writer keeps within the ratio that the reader allows."""
    n, k = 60_000, 50
    zeros = np.zeros(n, np.float32)
    rows = SignalRows(np.tile(np.arange(k), (n, 1)), np.zeros((n, k)), np.zeros(n), zeros, zeros)
    answers = [(sample_answers((1,), 5, 60)[0][0], rows)]
    write_shard(tmp_path / "s.adpa", spec_of(k, 60, pair=False), answers)
    shard = Shard(tmp_path / "s.adpa")
    assert shard.verify() == []
    assert shard.sizes[0] * 4096 + (1 << 20) > n * k


def test_verify_names_every_damaged_row(tmp_path):
    path = tmp_path / "s.adpa"
    write_shard(path, spec_of(5, 60), sample_answers((4, 6, 0, 9, 5), 5, 60))
    whole = Shard(path)
    data = bytearray(path.read_bytes())
    start = len(data) - sum(whole.sizes)
    for row in (1, 3):
        data[start + sum(whole.sizes[:row]) + whole.sizes[row] // 2] ^= 4
    path.write_bytes(data)
    found = Shard(path).verify()
    assert [(row, key) for row, key, _ in found] == [(1, whole.keys[1]), (3, whole.keys[3])]
    path.write_bytes(data[: -whole.sizes[4] - 3])
    assert [row for row, _, _ in Shard(path, partial=True).verify()] == [1, 3, 4]


def test_a_missing_shard_is_not_found(tmp_path):
    with pytest.raises(NotFound, match=r"none\.adpa"):
        Shard(tmp_path / "none.adpa")


def test_a_damaged_block_is_refused(tmp_path):
    path = tmp_path / "block"
    answers = sample_answers((3, 0, 5), 4, 40)
    save_block(path, answers)
    data, expected = path.read_bytes(), [(key, values_of(rows)) for key, rows in answers]
    rng = random.Random(2)
    for i in range(1500):
        bad = bytearray(data)
        if i % 5:
            bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
        else:
            del bad[rng.randrange(len(bad)) :]
        path.write_bytes(bad)
        try:
            found = load_block(path)
        except Corrupt:
            continue
        assert [(key, values_of(rows)) for key, rows in found] == expected
