"""The rows of one data file, whatever its kind, each with the number that finds it again.

JSON Lines, JSON and CSV, compressed or not, are read here: every value as it stands, rows that differ in their columns,
and the number of a row as an editor or a sheet counts it. Parquet, and Arrow as `save_to_disk` writes it, are read by
the datasets library.
"""

from __future__ import annotations

import contextlib
import glob
import gzip
import io
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from adpa_cli.disk import unreadable
from adpa_cli.errors import DataError, NotFound

TEXTS = (".jsonl", ".ndjson", ".json", ".csv")
PACKED = (".gz", ".zst")
EXTENSIONS = (*TEXTS, *(text + packed for text in TEXTS for packed in PACKED), ".parquet")
KNOWN = f"{' '.join(TEXTS)} (also {', '.join(PACKED)}) .parquet"
"""The kinds of files that are read, to say aloud."""
OTHER_DATA = (
    ".tsv", ".txt", ".text", ".jsonlines", ".jl", ".json5", ".xml", ".xls", ".xlsx", ".ods", ".feather", ".orc",
    ".avro", ".pkl", ".pickle", ".npy", ".npz", ".h5", ".hdf5", ".db", ".sqlite", ".sqlite3", ".duckdb", ".msgpack",
    ".tfrecord", ".zip", ".tar", ".tgz", ".7z", ".rar", *PACKED, ".xz", ".bz2", ".lz4",
)  # fmt: skip
"""Endings of files that may well hold rows and are not read."""
DAMAGED = "damaged or cut short; fetch it again"
BATCH = 1024  # rows in memory at a time
CALLS = ("tools", "functions", "tool_calls", "function_call")
"""Columns, and keys of turns, of objects whose keys differ from row to row."""


def read_file(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(row number, row) of a file, whose extension says what it is.

    Raises NotFound when the file is missing, DataError (file and row named) when it is broken, empty or unknown.
    """
    if not path.is_file():
        raise NotFound(f"{path}: no such file", "check the path; relative ones start at the working directory")
    name = path.name.lower()
    reader = next((reader for endings, reader in READERS.items() if name.endswith(endings)), None)
    if reader is None:
        raise DataError(f"{path}: unknown kind of file", "known: " + KNOWN)
    if os.path.exists(path) and not os.access(path, os.R_OK):
        raise unreadable(path)
    count = 0
    for number, row in reader(path):
        if not isinstance(row, dict):
            raise DataError(f"{path} row {number}: {type(row).__name__} instead of an object", "write one object a row")
        count += 1
        yield number, row
    if count == 0:
        raise DataError(f"{path}: no rows in this file", "name a file that has rows")


def read_jsonl(path: Path) -> Iterator[tuple[int, Any]]:
    """One JSON value a line, plain or compressed; blank lines are passed over but counted."""
    number = 0
    try:
        for number, line in enumerate(open_lines(path), 1):
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            if text.strip():
                yield number, json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{path} row {number}: broken JSON: {error}", f"look at line {number}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} row {number}: not UTF-8: {error.reason}", "convert the file to UTF-8") from error
    except (EOFError, OSError) as error:
        raise DataError(f"{path} row {number + 1}: {error}", DAMAGED) from error


def open_lines(path: Path) -> Iterator[bytes]:
    """Lines as bytes, split at newlines only."""
    with opened(path) as file:
        yield from file


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Any]:
    """The bytes of a file, unpacked where its name says that it is compressed."""
    with path.open("rb") as file:
        if path.name.lower().endswith(".gz"):
            with gzip.open(file) as unpacked:
                yield unpacked
        elif path.name.lower().endswith(".zst"):
            yield io.BufferedReader(_Pieces(_unzstd(file)), 1 << 20)
        else:
            yield file


class _Pieces(io.RawIOBase):
    """Bytes that come in pieces, as a file."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._rest = memoryview(piece)
        count = min(len(buffer), len(self._rest))
        buffer[:count], self._rest = self._rest[:count], self._rest[count:]
        return count


def _unzstd(file: BinaryIO) -> Iterator[bytes]:
    """Decompressed pieces. A frame that does not end is an error; the library's own reader stops there silently."""
    import zstandard

    unpacker = None
    while piece := file.read(1 << 20):
        while piece:
            unpacker = unpacker or zstandard.ZstdDecompressor().decompressobj()
            try:
                yield unpacker.decompress(piece)
            except zstandard.ZstdError as error:
                raise OSError(str(error)) from error
            piece = unpacker.unused_data if unpacker.eof else b""
            unpacker = None if unpacker.eof else unpacker
    if unpacker is not None:
        raise EOFError("compressed file ended before its end-of-frame mark")


def read_json(path: Path) -> Iterator[tuple[int, Any]]:
    """One JSON list of objects; a file that is really JSON Lines is read as such."""
    try:
        with opened(path) as file:
            value = json.loads(file.read().decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":
            yield from read_jsonl(path)
            return
        raise DataError(f"{path} row {error.lineno}: broken JSON: {error}", f"look at line {error.lineno}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8: {error.reason}", "convert the file to UTF-8") from error
    except (EOFError, OSError) as error:
        raise DataError(f"{path}: {error}", DAMAGED) from error
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        raise DataError(f"{path}: {type(value).__name__} instead of a list of objects", "write [{…}, {…}]")
    yield from enumerate(value, 1)


def read_csv(path: Path) -> Iterator[tuple[int, Any]]:
    """Comma-separated values under a header; the first row after the header is row 2, as a sheet counts."""
    import csv

    csv.field_size_limit(2**31 - 1)
    number = 1
    try:
        with opened(path) as file:
            reader = csv.DictReader(io.TextIOWrapper(file, encoding="utf-8-sig", newline=""))
            names = reader.fieldnames or ()
            if len(names) == 1 and (mark := re.search(r"[;\t|]", names[0] or "")):
                said = f"{path}: one column, which is called {names[0]!r}"
                raise DataError(said, f"its cells are separated by {mark[0]!r}: save it with commas")
            if twice := [name for name in dict.fromkeys(names) if name and list(names).count(name) > 1]:
                raise DataError(f"{path}: two columns are called {', '.join(twice)}", "rename or remove one")
            for number, row in enumerate(reader, 2):
                if None in row or None in row.values():
                    raise DataError(f"{path} row {number}: more or fewer cells than the header", "check its quotes")
                yield number, row
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path} row {number + 1}: {error}", "save it as UTF-8 CSV") from error
    except (EOFError, OSError) as error:
        raise DataError(f"{path} row {number + 1}: {error}", DAMAGED) from error


def read_columns(path: Path) -> Iterator[tuple[int, Any]]:
    """Rows of a Parquet file, or of an Arrow file as `save_to_disk` writes it, a batch in memory at a time."""
    import pyarrow

    kind, again = ("Arrow", "save it again") if path.name.lower().endswith(".arrow") else ("Parquet", "fetch it again")
    try:
        with tempfile.TemporaryDirectory() as cache:  # for its lock: of the rows nothing is kept
            yield from enumerate((row for table in _tables(path, kind, cache) for row in _rows(table)), 1)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{path}: not readable as {kind}: {error}", f"the file is damaged; {again}") from error


def _tables(path: Path, kind: str, cache: str) -> Iterator[Any]:
    """The batches of a file, as Arrow, so that lists of objects stay lists, and no image is decoded.

    The datasets library knows no maps: a Parquet file that has some is read as it is.
    """
    datasets = quiet_datasets()
    if kind == "Arrow":
        yield from datasets.Dataset.from_file(str(path)).with_format("arrow").iter(BATCH)
        return
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        if any("map<" in str(field.type) for field in file.schema_arrow):
            yield from file.iter_batches(BATCH)
            return
    rows = datasets.load_dataset(
        "parquet", data_files=glob.escape(str(path)), split="train", streaming=True, batch_size=BATCH, cache_dir=cache
    )
    yield from rows.with_format("arrow").iter(BATCH)


def _rows(table: Any) -> Iterator[dict[str, Any]]:
    """The rows of an Arrow table, JSON as its values. Calls of tools lose the nulls that other rows' keys fill in."""
    readers = {f.name: read for f in table.schema if (read := _reader(f.type, f.name in CALLS)) is not None}
    for row in table.to_pylist():
        yield row | {name: read(row[name]) for name, read in readers.items()}


def _reader(kind: Any, is_call: bool) -> Callable[[Any], Any] | None:
    """What makes a value of some Arrow type, where it is not the value itself; `is_call` inside of a call of a tool."""
    import pyarrow as pa

    if isinstance(kind, pa.BaseExtensionType):
        if kind.extension_name == "arrow.json":
            return lambda text: None if text is None else json.loads(text)
        kind = kind.storage_type
    if pa.types.is_map(kind):
        item = _reader(kind.item_type, is_call) or _itself
        return lambda pairs: None if pairs is None else {key: item(value) for key, value in pairs}
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        each = _reader(kind.value_type, is_call)
        return each and (lambda values: None if values is None else [each(value) for value in values])
    if not pa.types.is_struct(kind):
        return None
    inside = {f.name: read for f in kind if (read := _reader(f.type, is_call or f.name in CALLS)) is not None}
    if not inside and not is_call:
        return None

    def read_struct(value: Any) -> Any:
        if value is None:
            return None
        return {name: inside.get(name, _itself)(item) for name, item in value.items() if not (is_call and item is None)}

    return read_struct


def _itself(value: Any) -> Any:
    return value


def quiet_datasets() -> Any:
    """The datasets library without bars and logs: what it logs it also raises."""
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    return datasets


def _packed_too(*endings: str) -> tuple[str, ...]:
    return (*endings, *(ending + packed for ending in endings for packed in PACKED))


READERS = {
    _packed_too(".jsonl", ".ndjson"): read_jsonl,
    _packed_too(".json"): read_json,
    _packed_too(".csv"): read_csv,
    (".parquet", ".arrow"): read_columns,
}
