"""The rows of one data file, whatever its kind, each with the number that finds it again.

JSON Lines, JSON, CSV and TSV, compressed or not, are read here: every value as it stands, rows that differ in their
columns, and the number of a row as an editor or a sheet counts it. Parquet, and Arrow as `save_to_disk` writes it, are
read by the datasets library. A line or a row that is broken comes as a Problem in its place, and those after it are
read; what breaks a whole file is an error.
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
import zlib
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from adpa_cli.data.examples import Problem, Row
from adpa_cli.disk import unreadable
from adpa_cli.errors import DataError, NotFound

LINES = (".jsonl", ".ndjson")
TEXTS = (*LINES, ".json", ".csv", ".tsv")
PACKED = (".gz", ".zst")
EXTENSIONS = (*TEXTS, *(text + packed for text in TEXTS for packed in PACKED), ".parquet")
KNOWN = f"{' '.join(TEXTS)} (also {', '.join(PACKED)}) .parquet"
"""The kinds of files that are read, to say aloud."""
OTHER_DATA = (
    ".txt", ".text", ".jsonlines", ".jl", ".json5", ".xml", ".xls", ".xlsx", ".ods", ".feather", ".orc",
    ".avro", ".pkl", ".pickle", ".npy", ".npz", ".h5", ".hdf5", ".db", ".sqlite", ".sqlite3", ".duckdb", ".msgpack",
    ".tfrecord", ".zip", ".tar", ".tgz", ".7z", ".rar", *PACKED, ".xz", ".bz2", ".lz4",
)  # fmt: skip
"""Endings of files that may well hold rows and are not read."""
DAMAGED = "the file is damaged or incomplete; download or write it again"
TORN = (EOFError, OSError, zlib.error)
"""What reading a file that is damaged or cut short raises."""
END_OF_FILE = "\U000f0000 the end"
"""A last line for the reader of CSV, which would take the end of the file for the end of an open quote."""
BATCH = 1024  # rows in memory at a time
CALLS = ("tools", "functions", "tool_calls", "function_call")
"""Columns, and keys of turns, of objects whose keys differ from row to row."""


def read_file(path: Path) -> Iterator[tuple[int, dict[str, Any] | Problem]]:
    """(row number, row, or what is wrong with it) of a file, whose extension says what it is.

    Raises NotFound when the file is missing, DataError when it is broken as a whole, empty or unknown.
    """
    if not path.is_file():
        raise NotFound(f"{path} does not exist", "check the path; relative paths start at the current directory")
    name = path.name.lower()
    reader = next((reader for endings, reader in READERS.items() if name.endswith(endings)), None)
    if reader is None:
        raise DataError(f"{path} is not a kind of file that can be read", f"use one of: {KNOWN}")
    if os.path.exists(path) and not os.access(path, os.R_OK):
        raise unreadable(path)
    count = 0
    for number, row in reader(path):
        if not isinstance(row, dict | Problem):
            found = f"the row is not a JSON object but of type {type(row).__name__}"
            row = Problem("not an object", "", found, "write one object per row")
        count += 1
        yield number, row
    if count == 0:
        raise DataError(f"{path} has no rows", "name a file that has rows")


def whole_rows(path: Path) -> Iterator[tuple[int, Row]]:
    """(row number, row) of a file. Raises as `read_file` does, and DataError for a row that cannot be read."""
    for number, row in read_file(path):
        yield number, whole_row(f"{path.name} row {number}", row)


def whole_row(where: str, row: Row | Problem) -> Row:
    """The same row. Raises DataError for one that cannot be read, or has a text that UTF-8 cannot hold: a file of JSON
    may spell half a surrogate pair."""
    if isinstance(row, Problem):
        raise DataError(f"{where}: {row.content}", row.fix)
    try:
        json.dumps(row, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError as error:
        message = f"{where} has half of a surrogate pair, which is not valid Unicode"
        raise DataError(message, "fix or remove that character") from error
    return row


def read_jsonl(path: Path) -> Iterator[tuple[int, Any]]:
    """One JSON value a line, plain or compressed; blank lines are passed over but counted."""
    number = 0
    try:
        for number, line in enumerate(open_lines(path), 1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                if text.strip():
                    yield number, json.loads(text)
            except UnicodeDecodeError as error:
                yield (
                    number,
                    Problem("not UTF-8", "", f"the text is not UTF-8: {error.reason}", "convert the file to UTF-8"),
                )
            except (ValueError, RecursionError) as error:
                yield number, Problem("broken JSON", "", f"the JSON is broken: {error}", f"fix line {number}")
    except TORN as error:
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
        hint = f"fix line {error.lineno}; broken rows can be skipped only in {' and '.join(LINES)} files"
        raise DataError(f"{path} row {error.lineno}: the JSON is broken: {error}", hint) from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8: {error.reason}", "convert the file to UTF-8") from error
    except TORN as error:
        raise DataError(f"{path}: {error}", DAMAGED) from error
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        raise DataError(
            f"{path} holds a value of type {type(value).__name__}, and a list of objects is needed", "write [{…}, {…}]"
        )
    yield from enumerate(value, 1)


def read_csv(path: Path) -> Iterator[tuple[int, Any]]:
    """Values separated by commas, or by tabs in a file called .tsv, under a header; the first row after the header is
    row 2, as a spreadsheet counts."""
    import csv

    csv.field_size_limit(2**31 - 1)
    number, names = 0, list[str]()
    mark = "\t" if ".tsv" in path.name.lower()[-8:] else ","
    try:
        with opened(path) as file:
            text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
            for number, cells in enumerate(csv.reader(chain(text, [END_OF_FILE]), delimiter=mark), 1):
                if END_OF_FILE in cells[:1]:
                    return
                if cells and END_OF_FILE in cells[-1]:
                    said = f"{path} row {number}: a quote is opened and never closed, so all that follows is one cell"
                    raise DataError(said, "close the quote, or write it twice if it belongs to the text")
                if not names:
                    names = _header(path, cells, mark)
                elif cells:
                    yield number, _csv_row(names, cells)
    except csv.Error as error:
        raise DataError(f"{path} row {number + 1}: {error}", "save it as UTF-8 CSV") from error
    except TORN as error:
        raise DataError(f"{path} row {number + 1}: {error}", DAMAGED) from error


def _header(path: Path, names: list[str], mark: str) -> list[str]:
    """The names of the columns of a table. Raises DataError where they are none."""
    if len(names) == 1 and (found := re.search(r"[;\t|,]", names[0])) and found[0] != mark:
        said = f"{path} has a single column, called {names[0]!r}"
        hint = f"the cells are separated by {found[0]!r}; save them with commas as .csv, or with tabs as .tsv"
        raise DataError(said, hint)
    if twice := [name for name in dict.fromkeys(names) if name and names.count(name) > 1]:
        raise DataError(f"{path} has two columns called {', '.join(twice)}", "rename or remove one of them")
    if isinstance(_csv_row(names, names), Problem):
        raise DataError(f"the column names of {path} are not UTF-8", "save the file as UTF-8")
    return names


def _csv_row(names: Sequence[str], cells: Sequence[str]) -> dict[str, str] | Problem:
    if len(cells) != len(names):
        found = f"the number of cells is {len(cells)}, and the header has {len(names)}"
        return Problem("more or fewer cells than the header", "", found, "check the quotes of this row")
    try:
        "".join(cells).encode()
    except UnicodeEncodeError:
        return Problem("not UTF-8", "", "not UTF-8", "save it as UTF-8 CSV")
    return dict(zip(names, cells, strict=True))


def read_columns(path: Path) -> Iterator[tuple[int, Any]]:
    """Rows of a Parquet file, or of an Arrow file as `save_to_disk` writes it, a batch in memory at a time."""
    import pyarrow

    kind, again = (
        ("Arrow", "write it again")
        if path.name.lower().endswith(".arrow")
        else ("Parquet", "download or write it again")
    )
    try:
        with tempfile.TemporaryDirectory() as cache:  # for its lock: of the rows nothing is kept
            yield from enumerate((row for table in _tables(path, kind, cache) for row in _rows(table)), 1)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        hint = f"the file is damaged; {again}"
        raise DataError(f"{path} cannot be read as {kind}: {error}", hint) from error


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
    _packed_too(*LINES): read_jsonl,
    _packed_too(".json"): read_json,
    _packed_too(".csv", ".tsv"): read_csv,
    (".parquet", ".arrow"): read_columns,
}
