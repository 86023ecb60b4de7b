"""Shard files: prelude, header, ranking, a zstandard frame per answer; and all shards of an artifact as one lookup.

The bytes are specified in docs/format.md.
"""

from __future__ import annotations

import bisect
import functools
import json
import os
import shutil
import tempfile
import weakref
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adpa_cli.disk import atomic, numbered
from adpa_cli.errors import Corrupt, DataError, NotFound, fault_in
from adpa_cli.signal.answer_index import AnswerIndex, AnswerKeys
from adpa_cli.signal.codec import Compressor, Decompressor, Ranking, decode_frames, encode_frame, most_content
from adpa_cli.signal.numbers import Cursor, Streams
from adpa_cli.signal.rows import MAX_TOKENS, AnswerKey, Ints, SignalRows, SignalSpec, checked, checked_ids

Answers = Iterable[tuple[AnswerKey, SignalRows]]
BATCH = 1 << 18
"""Ids that iteration decodes at a time: enough to outweigh numpy's calls, few enough to stay in the cache."""
MAGIC = b"adpa-sig"
VERSION = 1
MAX_BYTES = 1 << 56
"""More than any file has: a bound on the sizes that a damaged header can name."""
OPEN = 64
"""Shards that a reader of many keeps open: each holds its ranking, 4 bytes for each id of the vocabulary and more."""
PRELUDE = 20
"""Bytes before the header: magic, version u32, bytes of the header u32, crc32 of both and of the header u32."""


@dataclass(frozen=True)
class Index:
    """Everything a shard says before its first frame."""

    spec: SignalSpec
    keys: Sequence[AnswerKey]
    tokens: NDArray[np.int64]
    """Tokens of each answer."""
    sizes: NDArray[np.int64]
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
        "tokens": index.tokens.tolist(),
        "bytes": index.sizes.tolist(),
    }
    header = {**spec, "ranking": {"bytes": index.ranking_size, "classes": index.classes}, "answers": answers}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    frame = Compressor().frame([text.encode()])
    front = MAGIC + np.array([VERSION, len(frame)], dtype="<u4").tobytes()
    return front + np.array([zlib.crc32(frame, zlib.crc32(front))], dtype="<u4").tobytes() + frame


def header_size(prelude: bytes, available: int) -> int:
    """Bytes of the header that follows the prelude. Raises Corrupt for another kind of file or an unknown version."""
    if len(prelude) < PRELUDE or prelude[:8] != MAGIC:
        raise Corrupt("this is not a teacher signal: the file does not start with `adpa-sig`")
    version, size = (int(x) for x in np.frombuffer(prelude, "<u4", 2, 8))
    if version != VERSION:
        raise Corrupt(
            f"the file is in version {version} of the format, and this adpa reads version {VERSION} only",
            "upgrade adpa, in the folder of its source: git pull && pip install ."
            if version > VERSION
            else "make the signal again with adpa cache-teacher",
        )
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
        if not all(set(map(type, column)) <= {str} for column in columns[:3]):
            raise ValueError("a key is not text")
        if len(set(map(len, columns))) > 1:
            raise ValueError("the columns of the answers are not equally long")
        spec = SignalSpec(
            k=_count(header["k"]),
            vocab_size=_count(header["vocab_size"]),
            step=float(header["step"]),
            difference_step=float(header["difference_step"]),
            teachers={str(role): str(name) for role, name in header["teachers"].items()},
            dtype=str(header["dtype"]),
            draws=_count(header.get("draws", 0)),
        )
        if max(map(_count, columns[3]), default=0) > MAX_TOKENS:
            raise ValueError("too many tokens in an answer")
        if sum(map(_count, [*columns[4], ranking["bytes"]])) > MAX_BYTES:
            raise ValueError("too many bytes")
        tokens, sizes = (np.array(column, dtype=np.int64) for column in columns[3:])
        keys, classes = AnswerKeys(*columns[:3]), tuple(map(_count, ranking["classes"]))
        return Index(spec, keys, tokens, sizes, ranking["bytes"], classes)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError, OverflowError, DataError) as error:
        raise Corrupt(f"the header does not describe a signal: {fault_in(error)}") from None


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
        raise Corrupt("its ranking of frequent ids has more ids than the vocabulary")
    gaps = data.ints([total]).astype(np.int64) + 1
    data.finish()
    bounds = np.cumsum([0, *index.classes])
    ids = np.concatenate([np.zeros(0, dtype=np.int64), *(np.cumsum(gaps[a:b]) - 1 for a, b in pairwise(bounds))])
    if ids.max(initial=0) >= vocabulary or np.bincount(ids, minlength=1).max() > 1:
        raise Corrupt("its ranking of frequent ids names an id twice, or one outside the vocabulary")
    return Ranking(ids.astype(np.int32), vocabulary)


def write_shard(path: Path, spec: SignalSpec, answers: Answers) -> None:
    """Writes the answers, in their order, as one shard; the same answers give the same bytes.

    The answers are walked twice (to count ids, to encode), so a large source should be re-iterable: a plain iterator is
    held in memory. The file appears whole or not at all. Raises DataError when a row cannot be stored or a key repeats.
    """
    if iter(answers) is answers:
        answers = list(answers)
    frequent, classes = rank(_count_ids(answers, spec))
    ranking, ranking_frame = Ranking(frequent, spec.vocab_size), write_ranking(frequent, classes)
    compressor = Compressor()
    keys, tokens, sizes = [], [], []
    with tempfile.TemporaryFile(dir=path.parent) as frames:
        for key, rows in answers:
            frame = compressor.frame(encode_frame(key, checked(rows, spec, key.label), spec, ranking))
            frames.write(frame)
            keys.append(key)
            tokens.append(len(rows))
            sizes.append(len(frame))
        if len({(key.example_id, key.part) for key in keys}) < len(keys):
            raise DataError(f"{path.name}: an example and part occur twice", "give every answer its own example id")
        index = Index(spec, keys, np.array(tokens, np.int64), np.array(sizes, np.int64), len(ranking_frame), classes)
        with atomic(path) as out:
            out.write(write_index(index) + ranking_frame)
            frames.seek(0)
            shutil.copyfileobj(frames, out)


def _count_ids(answers: Answers, spec: SignalSpec) -> NDArray[np.int64]:
    """[V] how often each id occurs."""
    counts = np.zeros(spec.vocab_size, dtype=np.int64)
    for key, rows in answers:
        np.add.at(counts, checked_ids(rows, spec, key.label), 1)
    return counts


class Shard:
    """A shard file, open for reading. Forked processes may share one; of threads one at a time may use it.

    `spec` is what the header says about every row; `keys`, `tokens` and `sizes` are the key, the number of answer
    tokens and the stored bytes of each row, in file order. `close` may be called twice.
    Raises NotFound, and Corrupt when the header is damaged or the file's length is not what the header says;
    `partial=True` lets the length pass, so that `verify` can name the rows that are gone.
    """

    def __init__(self, path: Path, *, partial: bool = False) -> None:
        self.path = Path(path)
        try:
            self._file = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise NotFound(f"no teacher signal at {self.path}", "adpa show lists the artifacts") from None
        self.close = weakref.finalize(self, os.close, self._file)
        try:
            length = os.fstat(self._file).st_size
            prelude = os.pread(self._file, PRELUDE, 0)
            size = header_size(prelude, length)
            self.index = index = read_index(prelude, os.pread(self._file, size, PRELUDE))
            self.spec, self.keys, self.tokens, self.sizes = index.spec, index.keys, index.tokens, index.sizes
            self.ranking_frame = os.pread(self._file, min(index.ranking_size, length), PRELUDE + size)
            self.ranking = read_ranking(self.ranking_frame, index)
            self._offsets = np.cumsum(np.r_[PRELUDE + size + index.ranking_size, index.sizes])
            if not partial and self._offsets[-1] != length:
                raise Corrupt(f"the file has {length} bytes, and its header says {self._offsets[-1]} bytes")
        except Corrupt as problem:
            self.close()
            hint = problem.hint or "adpa verify names what is damaged"
            raise Corrupt(f"{self.path}: {problem.message}", hint) from None
        self._decompressor = Decompressor()

    def __len__(self) -> int:
        return len(self.keys)

    def read(self, i: int, *, raw: bool = False) -> SignalRows:
        """Row i, each teacher's classes summing to 1; `raw` gives the stored values. Raises Corrupt."""
        try:
            return self._read(i, i + 1, raw)[0]
        except Corrupt as problem:
            raise Corrupt(
                f"{self.path}: row {i}, {self.keys[i].label}, is damaged: {problem.message}",
                "adpa verify names every damaged row; adpa verify REF --repair computes them again",
            ) from None

    def frame(self, i: int) -> bytes:
        """The stored bytes of row i; of a truncated file what there is of them."""
        return os.pread(self._file, int(self.sizes[i]), int(self._offsets[i]))

    def _read(self, start: int, end: int, raw: bool) -> list[SignalRows]:
        """The rows from `start` on, up to but not `end`."""
        first, *ends = self._offsets[start : end + 1].tolist()
        last = ends[-1]
        data = memoryview(os.pread(self._file, last - first, first))
        if len(data) < last - first:
            raise Corrupt("the file ends too early")
        frames, tokens = [], self.tokens[start:end].tolist()
        for key, count, (a, b) in zip(self.keys[start:end], tokens, pairwise([first, *ends]), strict=True):
            content = self._decompressor.content(data[a - first : b - first], most_content(count, self.spec))
            frames.append((key, count, content))
        return decode_frames(frames, self.spec, self.ranking, raw)

    def __iter__(self) -> Iterator[tuple[AnswerKey, SignalRows]]:
        for start, end in self._batches():
            try:
                rows = self._read(start, end, raw=False)
            except Corrupt:
                for i in range(start, end):
                    yield self.keys[i], self.read(i)
            else:
                yield from zip(self.keys[start:end], rows, strict=True)

    def _batches(self) -> Iterator[tuple[int, int]]:
        """Runs of answers that are decoded together: of about `BATCH` ids, or one answer that is longer."""
        start, waiting = 0, 0
        for i, tokens in enumerate(self.tokens.tolist()):
            size = (tokens + 1) * self.spec.k
            if i > start and waiting + size > BATCH:
                yield start, i
                start, waiting = i, 0
            waiting += size
        if start < len(self):
            yield start, len(self)

    def verify(self) -> list[tuple[int, AnswerKey, str]]:
        """Reads every row: (row, key, problem) of those that are damaged."""
        problems = []
        for i, key in enumerate(self.keys):
            try:
                self._read(i, i + 1, raw=True)
            except Corrupt as problem:
                problems.append((i, key, problem.message))
        return problems


class Shards(Sequence[Shard]):
    """The shards in some files, opened when they are asked for; the last OPEN of them stay open."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths
        self._opened = functools.lru_cache(OPEN)(lambda n: Shard(paths[n]))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, n: Any) -> Any:
        return self._opened(n)


class SignalReader:
    """The teacher signal of an artifact folder: every `signal-*.adpa` in it.

    It holds 16 bytes an answer, and what OPEN shards hold. Raises NotFound without a shard, Corrupt when a header is
    damaged or the shards do not belong together.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.shards = Shards(numbered(self.folder, "signal-*.adpa"))
        if not self.shards:
            raise NotFound(f"no teacher signal in {self.folder}", "make one with `adpa cache-teacher`")
        self.spec: SignalSpec = self.shards[0].spec
        self._index, self._starts = AnswerIndex(), [0]
        self.tokens = 0
        for shard in self.shards:
            if shard.spec != self.spec:
                raise Corrupt(
                    f"{shard.path} does not belong to {self.shards.paths[0].name} beside it: their headers differ",
                    "copy the folder again, or make the signal again with adpa cache-teacher",
                )
            self._index.add(shard.keys)
            self._starts.append(self._starts[-1] + len(shard))
            self.tokens += int(shard.tokens.sum())
        self._index.sort()
        self.parts: tuple[str, ...] = tuple(sorted(self._index.parts))
        self._check_names()

    def _check_names(self) -> None:
        """Raise Corrupt where two answers have one name."""
        for places in self._index.namesakes():
            names = set[tuple[str, str]]()
            for shard, i in map(self.at, places):
                name = (shard.keys[i].example_id, shard.keys[i].part)
                if name in names:
                    raise Corrupt(
                        f"{shard.path}: example {name[0]!r} ({name[1]}) is in two shards",
                        "copy the folder again, or make the signal again with adpa cache-teacher",
                    )
                names.add(name)

    def __len__(self) -> int:
        return self._starts[-1]

    def at(self, place: int) -> tuple[Shard, int]:
        """The shard and the row in it of an answer, counted over all shards. Raises IndexError."""
        if not 0 <= place < len(self):
            raise IndexError(place)
        number = bisect.bisect_right(self._starts, place) - 1
        return self.shards[number], place - self._starts[number]

    def read(self, key: AnswerKey, *, raw: bool = False) -> SignalRows:
        """The rows of one answer. Raises DataError naming what differs: the example, its part or its tokens."""
        stored, shard, i = self._find(key.example_id, key.part)
        if stored.tokens != key.tokens:
            raise DataError(
                f"the signal in {self.folder} was made for other tokens of the example {key.example_id!r} "
                f"({key.part}) than the data give now: the hashes are {stored.tokens} and {key.tokens}",
                "the data, the chat template or the tokenizer changed: run `adpa cache-teacher` again",
            )
        return shard.read(i, raw=raw)

    def named(self, example_id: str, part: str) -> SignalRows:
        """The rows of an answer of whatever tokens. Raises DataError as `read` does."""
        _, shard, i = self._find(example_id, part)
        return shard.read(i)

    def check(self, keys: Iterable[AnswerKey]) -> None:
        """Raise what `read` raises for the first key that it refuses."""
        for key in self._index.missing(keys):
            self.read(key)

    def _place(self, example_id: str, part: str) -> tuple[AnswerKey, Shard, int] | None:
        for shard, i in map(self.at, self._index.places(example_id, part)):
            key = shard.keys[i]
            if (key.example_id, key.part) == (example_id, part):
                return key, shard, i
        return None

    def _find(self, example_id: str, part: str) -> tuple[AnswerKey, Shard, int]:
        found = self._place(example_id, part)
        if found is not None:
            return found
        parts = [other for other in self.parts if self._place(example_id, other)]
        if not parts:
            examples = np.unique(np.array([hash(key.example_id) for shard in self.shards for key in shard.keys]))
            raise DataError(
                f"the signal in {self.folder} has no example {example_id!r}; it was made for {len(examples)} others",
                "run `adpa cache-teacher` on these data",
            )
        raise DataError(
            f"the signal in {self.folder} has no {part} answer of the example {example_id!r}, only "
            f"{' and '.join(parts)}",
            "run `adpa cache-teacher` on these answers",
        )
