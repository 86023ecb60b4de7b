"""The table of start log-probs: written in groups of rows, and mapped to be looked up by answer.

One Parquet file holds a row for every answer: the `example_id`, the `part` and the hash of the `tokens` by which a
signal names it too, and the `logps` of its tokens, the end token included: float32, in nats, under the full softmax.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from adpa_cli.data.tables import BATCH, Batch, Table, file_facts, table
from adpa_cli.disk import atomic
from adpa_cli.errors import Corrupt, DataError
from adpa_cli.hub import Located
from adpa_cli.signal.answer_index import AnswerIndex
from adpa_cli.signal.rows import AnswerKey

Logps = NDArray[np.float32]
KeyedLogps = tuple[AnswerKey, Logps]
TABLE = "logps.parquet"
NAMES = ("example_id", "part", "tokens")
GROUP_TOKENS, GROUP_ROWS = 1 << 21, 1 << 13
"""Of a group of rows of the table, which ends with the first of the two: it is written and read a group at a time."""
MEANING = "nats, under the full softmax, of every token of the answer, its end token included"


def write(path: Path, rows: Iterable[KeyedLogps]) -> None:
    """Rows as one Parquet file with checksums, whole or not at all; equal rows give equal bytes."""
    groups = _groups(rows)
    first = next(groups)
    options: dict[str, Any] = {"compression": "zstd", "use_dictionary": ["part"], "write_page_checksum": True}
    with atomic(path) as out, pq.ParquetWriter(out, first.schema, **options) as table:
        for group in itertools.chain([first], groups):
            table.write_table(group)


def _groups(rows: Iterable[KeyedLogps]) -> Iterator[Any]:
    """The rows as tables, each of GROUP_ROWS rows, or of GROUP_TOKENS tokens or little more."""
    waiting: list[KeyedLogps] = []
    tokens = 0

    def group() -> Any:
        flat = np.concatenate([logps for _, logps in waiting])
        ends = np.cumsum([0, *(len(logps) for _, logps in waiting)], dtype=np.int64)
        text = {name: pa.array([getattr(key, name) for key, _ in waiting]) for name in NAMES}
        logps = pa.LargeListArray.from_arrays(pa.array(ends), pa.array(flat))
        return pa.table({**text, "logps": logps}, metadata={"logps": MEANING})

    for row in rows:
        waiting.append(row)
        tokens += len(row[1])
        if tokens >= GROUP_TOKENS or len(waiting) == GROUP_ROWS:
            yield group()
            waiting, tokens = [], 0
    if waiting:
        yield group()


def read(path: Path) -> list[KeyedLogps]:
    """All rows of `write`. Raises what pyarrow raises for a damaged file."""
    table = pq.read_table(path, page_checksum_verification=True).combine_chunks()
    logps = table.column("logps").combine_chunks()
    flat, ends = logps.values.to_numpy(), logps.offsets.to_numpy()
    keys = zip(*(table.column(name).to_pylist() for name in NAMES), strict=True)
    return [(AnswerKey(*key), flat[a:b]) for key, a, b in zip(keys, ends, ends[1:], strict=False)]


def _mapped(path: Path) -> Table:
    """The rows of a Parquet file as a table that is mapped: its pages are checked when that is made."""
    schema = pa.schema([*((name, pa.string()) for name in NAMES), ("logps", pa.large_list(pa.float32()))])

    def fill(add: Callable[[Any], None]) -> dict[str, Any]:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            for batch in file.iter_batches(BATCH, columns=schema.names):
                add(batch.cast(schema))
        return {}

    return table("start-logps", file_facts(path), schema, fill)


class StartLogps(Mapping[tuple[str, str], Logps]):
    """The log-probs [T] of a finished artifact by (example id, part); in memory are 16 bytes an answer.

    Raises Corrupt when its table cannot be read.
    """

    def __init__(self, source: Located) -> None:
        self._label = source.label
        self._again = f"move the folder {source.path} away and repeat the command: it is made again"
        try:
            self._table = _mapped(source.path / TABLE)
        except (OSError, ValueError, KeyError, pa.ArrowException) as error:
            problem = str(error).partition("\n")[0]
            raise Corrupt(f"{source.label}: {TABLE} cannot be read: {problem}", self._again) from error
        self._index = AnswerIndex()
        self._index.add(AnswerKey(*names) for names in self._names())
        self._index.sort()

    def _names(self) -> Iterator[tuple[str, str, str]]:
        for batch in self._table.batches():
            yield from batch.records(None, NAMES)

    def __len__(self) -> int:
        return len(self._index)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return ((example_id, part) for example_id, part, _ in self._names())

    def __getitem__(self, name: tuple[str, str]) -> Logps:
        found = self._place(*name)
        if found is None:
            raise KeyError(name)
        return _logps(*found)

    def check(self, keys: Iterable[AnswerKey]) -> None:
        """Raise what `of` raises for the first key that it refuses."""
        for key in self._index.missing(keys):
            self.of(key)

    def of(self, key: AnswerKey) -> Logps:
        """[T] of one answer. Raises DataError naming what differs: the example, its part or its tokens."""
        found = self._place(key.example_id, key.part)
        if found is None:
            raise self._unknown(key)
        batch, i = found
        tokens = batch.cell("tokens", i)
        if tokens != key.tokens:
            raise DataError(
                f"{self._label} was made for other tokens of the example {key.example_id!r} ({key.part}) than the data "
                f"give now: the hashes are {tokens} and {key.tokens}",
                self._again,
            )
        return _logps(batch, i)

    def _place(self, example_id: str, part: str) -> tuple[Batch, int] | None:
        for batch, i in map(self._table.place, self._index.places(example_id, part)):
            if (batch.cell("example_id", i), batch.cell("part", i)) == (example_id, part):
                return batch, i
        return None

    def _unknown(self, key: AnswerKey) -> DataError:
        """The error for an answer whose name nothing has."""
        parts = sorted(part for part in self._index.parts if self._place(key.example_id, part))
        if parts:
            return DataError(
                f"{self._label} has no {key.part} answer of the example {key.example_id!r}, only {' and '.join(parts)}",
                self._again,
            )
        examples = np.unique(np.array([hash(example_id) for example_id, _ in self]))
        return DataError(
            f"{self._label} has no example {key.example_id!r}; it was made for {len(examples)} others",
            self._again,
        )


def _logps(batch: Batch, i: int) -> Logps:
    found: Logps = batch.list("logps", i)
    return found
