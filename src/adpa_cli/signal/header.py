"""The front of a shard: prelude, header, ranking. docs/format.md, "The file"."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adpa_cli.errors import Corrupt, DataError
from adpa_cli.signal.codec import Compressor, Decompressor, Ranking
from adpa_cli.signal.numbers import Cursor, Streams
from adpa_cli.signal.rows import MAX_TOKENS, AnswerKey, Ints, SignalSpec

MAGIC = b"adpa-sig"
VERSION = 1
PRELUDE = 20
"""Bytes before the header: magic, version u32, bytes of the header u32, crc32 of both and of the header u32."""


@dataclass(frozen=True)
class Index:
    """Everything a shard says before its first frame."""

    spec: SignalSpec
    keys: tuple[AnswerKey, ...]
    tokens: tuple[int, ...]
    """Tokens of each answer."""
    sizes: tuple[int, ...]
    """Bytes of each answer's frame, in file order."""
    ranking_size: int
    """Bytes of the ranking's frame, which comes first."""
    classes: tuple[int, ...]
    """Ids in each frequency class of the ranking."""


def write_index(index: Index) -> bytes:
    """Prelude and header."""
    spec = asdict(index.spec) | {"teachers": dict(sorted(index.spec.teachers.items()))}
    if not index.spec.draws:
        del spec["draws"]
    answers = {
        "example_id": [key.example_id for key in index.keys],
        "part": [key.part for key in index.keys],
        "hash": [key.tokens for key in index.keys],
        "tokens": index.tokens,
        "bytes": index.sizes,
    }
    header = {**spec, "ranking": {"bytes": index.ranking_size, "classes": index.classes}, "answers": answers}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    frame = Compressor().frame([text.encode()])
    front = MAGIC + np.array([VERSION, len(frame)], dtype="<u4").tobytes()
    return front + np.array([zlib.crc32(frame, zlib.crc32(front))], dtype="<u4").tobytes() + frame


def header_size(prelude: bytes, available: int) -> int:
    """Bytes of the header that follows the prelude. Raises Corrupt for another kind of file or an unknown version."""
    if len(prelude) < PRELUDE or prelude[:8] != MAGIC:
        raise Corrupt("not a teacher signal (the file does not start with `adpa-sig`)")
    version, size = (int(x) for x in np.frombuffer(prelude, "<u4", 2, 8))
    if version != VERSION:
        raise Corrupt(f"codec version {version}; this adpa reads version {VERSION}", "upgrade adpa")
    if size > available - PRELUDE:
        raise Corrupt("the header reaches beyond the end of the file")
    return size


def read_index(prelude: bytes, frame: bytes) -> Index:
    """The inverse of `write_index`. Raises Corrupt for whatever `write_index` would not write."""
    if zlib.crc32(frame, zlib.crc32(prelude[:16])) != int.from_bytes(prelude[16:PRELUDE], "little"):
        raise Corrupt("the header's checksum does not match")
    try:
        header = json.loads(Decompressor().content(frame))
        answers, ranking = header["answers"], header["ranking"]
        columns = (answers["example_id"], answers["part"], answers["hash"], answers["tokens"], answers["bytes"])
        keys = tuple(AnswerKey(*row[:3]) for row in zip(*columns, strict=True))
        if not all(type(text) is str for column in columns[:3] for text in column):
            raise TypeError("a key is not text")
        spec = SignalSpec(
            k=_count(header["k"]),
            vocab_size=_count(header["vocab_size"]),
            step=float(header["step"]),
            difference_step=float(header["difference_step"]),
            teachers={str(role): str(name) for role, name in header["teachers"].items()},
            dtype=str(header["dtype"]),
            draws=_count(header.get("draws", 0)),
        )
        tokens, sizes = (tuple(map(_count, column)) for column in columns[3:])
        if max(tokens, default=0) > MAX_TOKENS:
            raise ValueError("too many tokens in an answer")
        return Index(spec, keys, tokens, sizes, _count(ranking["bytes"]), tuple(map(_count, ranking["classes"])))
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError, OverflowError, DataError) as error:
        raise Corrupt(f"the header does not describe a signal ({error})") from None


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is not a count")
    return value


def rank(counts: NDArray[np.int64]) -> tuple[Ints, tuple[int, ...]]:
    """Ids that occur at least twice, in classes of like frequency (halving), each by number: (ids, class sizes).

    Classes instead of exact counts, because a class in order of its numbers costs the header half the bytes.
    """
    classes = np.frexp(counts.astype(np.float64))[1]
    members = [np.flatnonzero(classes == c) for c in range(int(classes.max(initial=0)), 1, -1)]
    members = [ids for ids in members if ids.size]
    ids = np.concatenate([np.zeros(0, dtype=np.intp), *members]).astype(np.int32)
    return ids, tuple(len(m) for m in members)


def write_ranking(ids: Ints, classes: Sequence[int]) -> bytes:
    """The ids as one frame of gaps; each class starts again at 0."""
    out = Streams()
    bounds = np.cumsum([0, *classes])
    gaps = [np.diff(ids[a:b], prepend=np.int32(-1)) - 1 for a, b in pairwise(bounds)]
    out.ints(np.concatenate([np.zeros(0, dtype=np.int32), *gaps]).astype(np.int32))
    return Compressor().frame(out.pieces)


def read_ranking(frame: bytes, index: Index) -> Ranking:
    """The inverse of `write_ranking`. Raises Corrupt."""
    data = Cursor([Decompressor().content(frame)])
    total, vocabulary = sum(index.classes), index.spec.vocab_size
    if total > vocabulary:
        raise Corrupt("the ranking has more ids than the vocabulary")
    gaps = data.ints([total]).astype(np.int64) + 1
    data.finish()
    bounds = np.cumsum([0, *index.classes])
    ids = np.concatenate([np.zeros(0, dtype=np.int64), *(np.cumsum(gaps[a:b]) - 1 for a, b in pairwise(bounds))])
    if (ids.size and ids.max() >= vocabulary) or np.unique(ids).size != ids.size:
        raise Corrupt("the ranking names an id twice, or one outside the vocabulary")
    return Ranking(ids.astype(np.int32), vocabulary)
