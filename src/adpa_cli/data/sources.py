"""Read the rows of one file, whatever its kind, with the number that finds a row again."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path, PurePath
from typing import Any, BinaryIO

from adpa_cli.errors import AdpaError, DataError, NotFound, UsageError

Row = dict[str, Any]

EXTENSIONS = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".json", ".parquet", ".csv")


def read_file(path: Path) -> Iterator[tuple[int, Row]]:
    """(row number, row) of a file, told by its extension.

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


def read_parquet(path: Path) -> Iterator[tuple[int, Any]]:
    """Rows of a Parquet file, read batch by batch."""
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            batches = (batch.to_pylist() for batch in file.iter_batches(1024))
            yield from enumerate((row for batch in batches for row in batch), 1)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: not readable as Parquet: {error}", "the file is damaged; fetch it again") from error


def read_arrow(path: Path) -> Iterator[tuple[int, Any]]:
    """Rows of an Arrow file as `save_to_disk` of the datasets library writes it (a stream)."""
    import pyarrow

    try:
        with pyarrow.memory_map(str(path)) as file, pyarrow.ipc.open_stream(file) as stream:
            yield from enumerate((row for batch in stream for row in batch.to_pylist()), 1)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: not readable as Arrow: {error}", "the file is damaged; save it again") from error


READERS = {
    (".jsonl", ".jsonl.gz", ".jsonl.zst"): read_jsonl,
    (".json",): read_json,
    (".csv",): read_csv,
    (".parquet",): read_parquet,
    (".arrow",): read_arrow,
}


HUB_ID = re.compile(r"(?P<name>[\w.\-]+/[\w.\-]+)(@(?P<revision>[\w./\-]+))?")
SPLIT_NAME = re.compile(r"(?:^|[_.\-])(train|test|validation|valid|val|eval|dev)(_[a-z]+)?(?=$|[_.\-])", re.IGNORECASE)
METADATA = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}
PATTERNS = [f"*{extension}" for extension in (*EXTENSIONS, ".arrow")]
PURPOSES = {"pairs": "_prefs", "dialogues": "_sft"}


@dataclass(frozen=True)
class Source:
    """One place that rows come from; `text` is what the user typed, `rows` serves the kind "rows" only."""

    text: str
    kind: str  # "file" | "folder" | "hub" | "rows"
    path: Path | None = None
    split: str | None = None
    revision: str | None = None
    rows: tuple[Mapping[str, Any], ...] = ()


def parse_source(text: str) -> Source:
    """Read `SOURCE[@REVISION][#SPLIT]`.

    Raises UsageError on an empty text, NotFound on a bare word, DataError on a file of an unknown kind.
    """
    if not text.strip():
        raise UsageError("a data source is empty", "name a file, a folder (./NAME) or a hub data set (org/name)")
    literal = Path(text).expanduser()
    base, _, split = (text, "", "") if "#" in text and literal.exists() else text.partition("#")
    path = Path(base).expanduser()
    if base.lower().endswith(EXTENSIONS) and not path.is_dir():
        if split:
            raise UsageError(f"{text}: a file has no splits", f"leave out #{split}, or name a folder or a hub data set")
        return Source(text, "file", path)
    if base.startswith((".", "/", "~")) or path.is_absolute():
        if path.is_file():
            raise DataError(f"{base}: unknown kind of file", "known: " + " ".join(EXTENSIONS))
        return Source(text, "folder", path, split or None)
    found = HUB_ID.fullmatch(base)
    if found is None:
        hint = f"a folder is written ./{base}, a hub data set org/name, a file with one of {' '.join(EXTENSIONS)}"
        raise NotFound(f"no data source is called {base!r}", hint)
    return Source(found["name"] + (f"#{split}" if split else ""), "hub", None, split or None, found["revision"])


def read_rows(source: Source) -> Iterator[tuple[int, Row]]:
    """All rows of a source as (row number, row); of a folder with splits, its named or its training split.

    Raises NotFound when nothing is there, DataError (file and row named) when it cannot be read or is empty.
    """
    side = "test" if is_test(source.split or "") else "train"
    yield from chain.from_iterable(_read_part(part) for part in parts(source, side))


def _read_part(part: Source) -> Iterator[tuple[int, Row]]:
    if part.kind == "rows":
        if not part.rows:
            raise DataError(f"{part.text}: no rows", "name a source that has rows")
        yield from ((number, dict(row)) for number, row in enumerate(part.rows, 1))
    elif part.path is not None:
        yield from read_file(part.path)


def parts(source: Source, side: str = "train", purpose: str = "pairs") -> list[Source]:
    """The one-file sources that make up one side ("train" or "test") of a source.

    `purpose` ("pairs" or "dialogues") chooses between splits such as `train_prefs` and `train_sft`.
    """
    source = located(source)
    if source.path is None or source.kind == "file":
        return [source]
    splits = find_splits(source.path)
    files = splits.get("") or splits[choose_split(source, list(splits), side, purpose)]
    return [replace(source, text=str(file.relative_to(source.path)), kind="file", path=file) for file in files]


def source_files(source: Source) -> list[Path]:
    """The files that determine a source, sorted; of a folder with splits all that carry a split's name."""
    source = located(source)
    if source.path is None:
        return []
    if source.kind == "file":
        return [source.path]
    return sorted(chain.from_iterable(find_splits(source.path).values()))


def located(source: Source) -> Source:
    """The source with its path: a hub data set is downloaded when it has none, a missing path is NotFound."""
    if source.kind == "hub" and source.path is None:
        source = replace(source, path=download(source, source.revision))
    if source.path is not None and not source.path.exists():
        raise NotFound(f"{source.text}: no such {source.kind}", "check the path")
    return source


def find_splits(folder: Path) -> dict[str, list[Path]]:
    """Split name -> data files, told from file and folder names; {"": files} when no name tells a split.

    Where some files are named after splits, files that are not are left out.
    """
    splits = by_split(path.relative_to(folder) for path in sorted(folder.rglob("*")))
    if not splits:
        raise DataError(f"{folder}: no data files in this folder", "known: " + " ".join(EXTENSIONS) + " .arrow")
    return {split: [folder / path for path in paths] for split, paths in splits.items()}


def by_split(paths: Iterable[PurePath]) -> dict[str, list[PurePath]]:
    """The data files among some paths inside a folder, by split as in `find_splits`; empty when there are none."""
    splits: dict[str, list[PurePath]] = {}
    for path in paths:
        known = path.name.lower().endswith((*EXTENSIONS, ".arrow")) and path.name not in METADATA
        if known and not any(part.startswith(".") for part in path.parts):
            splits.setdefault(split_name(path), []).append(path)
    if len(splits) > 1:
        splits.pop("", None)
    return splits


def split_name(path: PurePath) -> str:
    """`data/train_prefs-00000-of-00001.parquet` and `train_prefs/0.parquet` -> "train_prefs"; "" when none."""
    for part in reversed(path.parts):
        if found := SPLIT_NAME.search(part.split(".")[0]):
            return found[0].lstrip("_.-").lower()
    return ""


def choose_split(source: Source, names: list[str], side: str, purpose: str) -> str:
    """The split of a folder that serves one side: the named one, its sibling, or the plain one."""
    if source.split and source.split not in names:
        raise NotFound(f"{source.text}: no split {source.split!r}", "it has " + ", ".join(f"#{name}" for name in names))
    if source.split and is_test(source.split) == (side == "test"):
        return source.split
    fitting = [name for name in names if is_test(name) == (side == "test")]
    suffix = "_" + source.split.partition("_")[2] if source.split and "_" in source.split else ""
    for ending in (suffix, PURPOSES[purpose]) if suffix else ("", PURPOSES[purpose]):
        for stem in ("train", "test", "validation", "valid", "val", "eval", "dev"):
            if stem + ending in fitting:
                return stem + ending
    if len(fitting) == 1:
        return fitting[0]
    listed = ", ".join(f"#{name}" for name in names)
    base = source.text.partition("#")[0]
    hint = f"name one: {base}#{fitting[0]}" if fitting else f"name a source that has rows to {side} on"
    raise DataError(f"{base}: no one split for {side} {purpose}; it has {listed}", hint)


def is_test(split: str) -> bool:
    """Whether a split's name says that nothing is trained on it."""
    return not split.startswith("train") and SPLIT_NAME.match(split) is not None


def has_test(source: Source) -> bool:
    """Whether a folder or hub data set brings a test split of its own beside what it trains on."""
    source = located(source)
    if source.kind not in ("folder", "hub") or source.path is None:
        return False
    return any(is_test(name) for name in find_splits(source.path))


def download(source: Source, revision: str | None) -> Path:
    """Fetch the data files of a hub data set into the Hugging Face cache; the folder they are in.

    Raises NotFound for an unknown name or revision, AdpaError when it is gated or the hub cannot be reached.
    """
    from huggingface_hub import errors, snapshot_download

    name = source.text.partition("#")[0]
    asked = f"{name}@{revision}" if revision else name
    try:
        return Path(snapshot_download(name, repo_type="dataset", revision=revision, allow_patterns=PATTERNS))
    except errors.GatedRepoError as error:
        hint = f"hf auth login, then accept the terms on https://huggingface.co/datasets/{name}"
        raise AdpaError(f"{asked}: gated, not open to you", hint) from error
    except errors.RevisionNotFoundError as error:
        raise NotFound(f"{name}: no revision {revision!r}", f"leave it out: {name}") from error
    except errors.RepositoryNotFoundError as error:
        hint = f"check the spelling; a folder is written ./{name}; a private one needs: hf auth login"
        raise NotFound(f"{asked}: no such data set on the hub", hint) from error
    except errors.LocalEntryNotFoundError as error:
        hint = "connect once, or name a local file or folder; the built-in `tiny` needs no network"
        raise AdpaError(f"{asked}: not on this machine, and the hub cannot be reached", hint) from error
    except (errors.HfHubHTTPError, OSError) as error:
        raise AdpaError(f"{asked}: the download failed: {error}", "repeat the command; it goes on") from error
