"""docs/format.md is enough: a reader written from it in plain Python, without our package, agrees with ours."""

from __future__ import annotations

import json
import math
import struct
import zlib
from itertools import accumulate

import numpy as np
import pytest
import zstandard

from adpa_cli.signal import Shard, reference_logps, write_shard
from signal_samples import sample_answers, spec_of

INFINITE = 2**31 - 1


class Plain:
    """The streams of one frame, in pure Python."""

    def __init__(self, content: bytes) -> None:
        self.content, self.at = content, 0

    def take(self, count: int) -> bytes:
        self.at += count
        return self.content[self.at - count : self.at]

    def ints(self, count: int) -> list[int]:
        escapes, width = struct.unpack("<2I", self.take(8))
        values = list(self.take(count))
        planes = [self.take(escapes) for _ in range(width)]
        more = iter([sum(plane[i] << 8 * byte for byte, plane in enumerate(planes)) for i in range(escapes)])
        return [v + next(more) if v == 255 else v for v in values]

    def floats(self, count: int) -> list[float]:
        planes = [self.take(count) for _ in range(4)]
        return [struct.unpack("<f", bytes(four))[0] for four in zip(*planes, strict=True)]

    def signed(self, count: int, step: float) -> list[float]:
        if step == 0:
            return self.floats(count)
        return [math.inf if c == INFINITE else unzigzag(c) * step for c in self.ints(count)]


def unzigzag(code: int) -> int:
    return code // 2 if code % 2 == 0 else -(code + 1) // 2


def or_zero(logp: float) -> float:
    return 0.0 if logp == -math.inf else logp


def plain_read(data: bytes) -> list[dict[str, object]]:
    magic, version, size, crc = struct.unpack("<8s3I", data[:20])
    assert (magic, version, crc) == (b"adpa-sig", 1, zlib.crc32(data[:16] + data[20 : 20 + size]))
    unpack = zstandard.ZstdDecompressor().decompress
    header, at = json.loads(unpack(data[20 : 20 + size])), 20 + size
    gaps = iter(Plain(unpack(data[at : at + header["ranking"]["bytes"]])).ints(sum(header["ranking"]["classes"])))
    order = []
    for members in header["ranking"]["classes"]:
        order += [x - 1 for x in accumulate(next(gaps) + 1 for _ in range(members))]
    order += sorted(set(range(header["vocab_size"])) - set(order))
    at += header["ranking"]["bytes"]
    answers, found = header["answers"], []
    for i, length in enumerate(answers["bytes"]):
        key = "\0".join(answers[name][i] for name in ("example_id", "part", "hash"))
        found.append(plain_answer(Plain(unpack(data[at : at + length])), key, answers["tokens"][i], header, order))
        at += length
    assert at == len(data)
    return found


def plain_answer(f: Plain, key: str, n: int, header: dict, order: list[int]) -> dict[str, object]:
    k, step = header["k"], header["step"]
    tag, tokens, missing = struct.unpack("<3I", f.take(12))
    assert (tag, tokens) == (zlib.crc32(key.encode()), n)
    gaps = f.ints(n * k)
    ids = [[order[r - 1] for r in accumulate(g + 1 for g in gaps[t * k : t * k + k])] for t in range(n)]
    if step:
        above, columns = f.ints(n * k), f.ints(3 * n + 2 * missing)
        bases = list(accumulate(unzigzag(c) for c in columns[n + missing : 2 * n + missing]))
        flat = [-math.inf if a == INFINITE else -(bases[j // k] - a) * step for j, a in enumerate(above)]
        where = bases + [b for b, place in zip(bases, columns[:n], strict=True) if place == 0]
        ends = columns[2 * n + missing :]
        beside = [-math.inf if c == INFINITE else -(b + unzigzag(c)) * step for b, c in zip(where, ends, strict=True)]
    else:
        columns = f.ints(n + missing)
        values = f.floats(n * k + n + missing)
        flat, beside = values[: n * k], values[n * k :]
    logps = [flat[t * k : t * k + k] for t in range(n)]
    places, ranks, own = columns[:n], iter(columns[n : n + missing]), iter(beside[n:])
    rows: dict[str, list] = {"ids": ids, "logps": logps, "rest_logps": beside[:n]}
    rows["label_ids"] = [ids[t][p - 1] if p else order[next(ranks)] for t, p in enumerate(places)]
    rows["label_logps"] = [logps[t][p - 1] if p else next(own) for t, p in enumerate(places)]
    if "reference" in header["teachers"]:
        d = header["difference_step"]
        difference, more = f.signed(n * k, d), f.signed(2 * n + missing, d)
        reference = [[or_zero(logps[t][j]) - difference[t * k + j] for j in range(k)] for t in range(n)]
        lowest = [min(map(or_zero, row)) for row in logps]
        rows["reference"] = reference
        rows["reference_kth"] = [low - x for low, x in zip(lowest, more[:n], strict=True)]
        rest = zip(rows["rest_logps"], more[n : 2 * n], strict=True)
        rows["reference_rest_logps"] = [or_zero(x) - y for x, y in rest]
        label, out = zip(places, rows["label_logps"], strict=True), iter(more[2 * n :])
        rows["reference_label_logps"] = [
            reference[t][p - 1] if p else or_zero(x) - next(out) for t, (p, x) in enumerate(label)
        ]
        (count,) = f.ints(1)
        flips = {x - 1 for x in accumulate(g + 1 for g in f.ints(count))}
        kth = rows["reference_kth"]
        rows["in_reference"] = [
            [(reference[t][j] >= kth[t]) != (t * k + j in flips) for j in range(k)] for t in range(n)
        ]
    assert f.at == len(f.content)
    return rows


@pytest.mark.parametrize(("pair", "step", "pair_step"), [(True, 1 / 32, 1 / 128), (False, 1 / 8, 0), (True, 0, 1 / 64)])
def test_a_reader_written_from_the_page_agrees(tmp_path, pair, step, pair_step):
    path = tmp_path / "s.adpa"
    write_shard(
        path, spec_of(6, 700, pair=pair, step=step, pair_step=pair_step), sample_answers((5, 0, 30), 6, 700, pair=pair)
    )
    shard = Shard(path)
    plain = plain_read(path.read_bytes())
    assert [len(rows["ids"]) for rows in plain] == [5, 0, 30]
    for i, rows in enumerate(plain):
        ours = shard.read(i, raw=True)
        for name, values in rows.items():
            if values:
                theirs = reference_logps(ours) if name == "reference" else getattr(ours, name)
                np.testing.assert_allclose(np.array(values), theirs, rtol=1e-6, atol=1e-6, err_msg=name)
