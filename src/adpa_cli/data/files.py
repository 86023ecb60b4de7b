"""The rows of one data file, whatever its kind, each with the number that finds it again.

JSON Lines, JSON and CSV are read here: every value as it stands, rows that differ in their columns, and the number of a
row as an editor or a sheet counts it. Parquet, and Arrow as `save_to_disk` writes it, are read by the datasets library.
"""

from __future__ import annotations

import glob
import gzip
import json
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from adpa_cli.errors import DataError, NotFound

EXTENSIONS = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".json", ".parquet", ".csv")
BATCH = 1024  # rows in memory at a time


def read_file(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(row number, row) of a file, whose extension says what it is.

    Raises NotFound when the file is missing, DataError (file and row named) when it is broken, empty or unknown.
    """
    if not path.is_file():
        raise NotFound(f"{path}: no such file", "check the path; relative ones start at the working directory")
    name = path.name.lower()
    reader = next((reader for endings, reader in READERS.items() if name.endswith(endings)), None)
    if reader is None:
        raise DataError(f"{path}: unknown kind of file", "known: " + " ".join(EXTENSIONS))
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
        raise DataError(f"{path} row {number + 1}: {error}", "damaged or cut short; fetch it again") from error


def open_lines(path: Path) -> Iterator[bytes]:
    """Lines as bytes, split at newlines only."""
    with path.open("rb") as file:
        if path.name.lower().endswith(".gz"):
            with gzip.open(file) as unpacked:
                yield from unpacked
        elif path.name.lower().endswith(".zst"):
            yield from _lines(_unzstd(file))
        else:
            yield from file


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


def _lines(pieces: Iterable[bytes]) -> Iterator[bytes]:
    rest = b""
    for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        yield from lines
    if rest:
        yield rest


def read_json(path: Path) -> Iterator[tuple[int, Any]]:
    """One JSON list of objects; a file that is really JSON Lines is read as such."""
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":
            yield from read_jsonl(path)
            return
        raise DataError(f"{path} row {error.lineno}: broken JSON: {error}", f"look at line {error.lineno}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8: {error.reason}", "convert the file to UTF-8") from error
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
        with path.open(encoding="utf-8-sig", newline="") as file:
            for number, row in enumerate(csv.DictReader(file), 2):
                if None in row or None in row.values():
                    raise DataError(f"{path} row {number}: more or fewer cells than the header", "check its quotes")
                yield number, row
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path} row {number + 1}: {error}", "save it as UTF-8 CSV") from error


def read_columns(path: Path) -> Iterator[tuple[int, Any]]:
    """Rows of a Parquet file, or of an Arrow file as `save_to_disk` writes it, a batch in memory at a time."""
    import pyarrow

    datasets = quiet_datasets()
    kind, again = ("Arrow", "save it again") if path.name.lower().endswith(".arrow") else ("Parquet", "fetch it again")
    try:
        with tempfile.TemporaryDirectory() as cache:  # for its lock: of the rows nothing is kept
            if kind == "Arrow":
                rows = datasets.Dataset.from_file(str(path))
            else:
                rows = datasets.load_dataset(
                    "parquet", data_files=glob.escape(str(path)), split="train", streaming=True, batch_size=BATCH,
                    cache_dir=cache,
                )  # fmt: skip
            # As Arrow, so that lists of objects stay lists, and nothing is decoded.
            tables = rows.with_format("arrow").iter(BATCH)
            yield from enumerate((row for table in tables for row in table.to_pylist()), 1)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{path}: not readable as {kind}: {error}", f"the file is damaged; {again}") from error


def quiet_datasets() -> Any:
    """The datasets library without bars and logs: what it logs it also raises."""
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    return datasets


READERS = {
    (".jsonl", ".jsonl.gz", ".jsonl.zst"): read_jsonl,
    (".json",): read_json,
    (".csv",): read_csv,
    (".parquet", ".arrow"): read_columns,
}
