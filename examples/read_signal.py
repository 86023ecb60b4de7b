"""Read a teacher-signal shard without adpa: the standard library, zstandard and numpy, from docs/format.md alone."""

import json
import struct
import sys
import zlib
from itertools import pairwise
from pathlib import Path

import numpy as np
import zstandard

NONE = 2**31 - 1  # an integer that stands for no mass


class Streams:
    def __init__(self, frame):
        self.data, self.at = zstandard.ZstdDecompressor().decompress(frame), 0

    def raw(self, count):
        self.at += count
        return np.frombuffer(self.data, np.uint8, count, self.at - count)

    def ints(self, count):
        escapes, width = self.raw(8).view("<u4").tolist()
        values = self.raw(count).astype(np.int64)
        more = sum((self.raw(escapes).astype(np.int64) << 8 * i for i in range(width)), np.zeros(escapes, np.int64))
        values[values == 255] += more
        return values

    def signed(self, count, step):
        if not step:
            return self.raw(4 * count).reshape(4, count).T.copy().view("<f4").reshape(-1)
        codes = self.ints(count)
        return np.where(codes == NONE, np.inf, unzigzag(codes) * step).astype(np.float32)


def unzigzag(codes):
    return (codes >> 1) ^ -(codes & 1)


def read(path):
    """(header, answers): the stored values of each answer, by name."""
    data = Path(path).read_bytes()
    magic, version, size, crc = struct.unpack("<8s3I", data[:20])
    if (magic, version, crc) != (b"adpa-sig", 1, zlib.crc32(data[:16] + data[20 : 20 + size])):
        raise ValueError(f"{path}: not a shard of version 1, or damaged")
    header = json.loads(zstandard.ZstdDecompressor().decompress(data[20 : 20 + size]))
    answers, classes = header["answers"], header["ranking"]["classes"]
    bounds = np.cumsum([20 + size, header["ranking"]["bytes"], *answers["bytes"]]).tolist()
    frames = [data[a:b] for a, b in pairwise(bounds)]
    gaps = np.split(Streams(frames[0]).ints(sum(classes)) + 1, np.cumsum(classes)[:-1])
    frequent = np.concatenate([gap.cumsum() - 1 for gap in gaps])
    order = np.concatenate([frequent, np.setdiff1d(np.arange(header["vocab_size"]), frequent)])
    keys = map("\0".join, zip(answers["example_id"], answers["part"], answers["hash"], strict=True))
    each = zip(keys, answers["tokens"], frames[1:], strict=True)
    return header, [answer(Streams(frame), key, n, header, order) for key, n, frame in each]


def answer(f, key, n, header, order):
    k, step = header["k"], np.float32(header["step"])
    tag, tokens, m = f.raw(12).view("<u4").tolist()
    if (tag, tokens) != (zlib.crc32(key.encode()), n):
        raise ValueError("a frame belongs to another answer")
    ids = order[(f.ints(n * k).reshape(n, k) + 1).cumsum(axis=1) - 1]
    weights = f.ints(n * k).reshape(n, k) / np.float64(header["draws"]) if "draws" in header else None
    if step:
        above = f.ints(n * k).reshape(n, k)
        place, ranks, moves, *ends = np.split(f.ints(3 * n + 2 * m), [n, n + m, 2 * n + m, 3 * n + m])
        base = unzigzag(moves).cumsum()
        logps = np.where(above == NONE, -np.inf, (above - base[:, None]) * step).astype(np.float32)
        beside = np.concatenate(ends), np.concatenate([base, base[place == 0]])
        values = np.where(beside[0] == NONE, -np.inf, -(unzigzag(beside[0]) + beside[1]) * step)
        rest, label = np.split(values.astype(np.float32), [n])
    else:
        place, ranks = np.split(f.ints(n + m), [n])
        flat, rest, label = np.split(f.signed(n * k + n + m, 0), [n * k, n * k + n])
        logps = flat.reshape(n, k)
    inside, at = place > 0, (np.arange(n), place - 1)
    rows = {"ids": ids, "logps": logps, "rest_logps": rest, "label_ids": ids[at], "label_logps": logps[at]}
    rows["label_ids"][~inside], rows["label_logps"][~inside], rows["weights"] = order[ranks], label, weights
    if "reference" in header["teachers"]:
        d = np.float32(header["difference_step"])
        difference = f.signed(n * k, d).reshape(n, k)
        depth, rest_less, label_less = np.split(f.signed(2 * n + m, d), [n, 2 * n])
        finite, less = np.nan_to_num(logps, neginf=0), difference[at]
        kth = finite.min(axis=1) - depth
        less[~inside] = label_less
        member = finite - difference >= kth[:, None]
        member.reshape(-1)[(f.ints(f.ints(1)[0]) + 1).cumsum() - 1] ^= True
        rows |= {"difference": difference, "in_reference": member, "reference_kth": kth}
        rows["reference_label_logps"] = np.nan_to_num(rows["label_logps"], neginf=0) - less
        rows["reference_rest_logps"] = np.nan_to_num(rest, neginf=0) - rest_less
    return rows


if __name__ == "__main__":
    for rows in read(sys.argv[1])[1]:
        print(f"{len(rows['ids'])} tokens of log-prob {rows['label_logps'].sum():.3f}")
