"""Rows as memory-mapped Arrow tables in a disposable cache: each table is made once, and no process holds its rows.

A table is a folder in the cache, with `rows.arrow` and `about.json`, whose name is the hash of all that it was made
from: it is never stale, and may be deleted at any time, for a reader keeps what it has mapped. It appears by a rename,
so that nobody sees half of one. Where the cache may not be written, which is said, and for rows that nothing names, a
table is made in a temporary folder that is gone as soon as it is mapped. A full disk is an error in either place.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import itertools
import json
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from adpa_cli.disk import is_disk_full, sync_file
from adpa_cli.errors import AdpaError, Stopped
from adpa_cli.sizes import size_words

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

T = TypeVar("T")
ROWS, ABOUT = "rows.arrow", "about.json"
TEMPORARY = "adpa-rows-"
"""What temporary folders of tables are called."""
JUST_MADE = 10.0
"""Seconds in which the process that makes a folder has certainly locked it."""
BATCH = 1024
"""Rows that are written, and read, at a time."""
OPEN_BATCHES = 64
"""Batches of a table whose addresses are remembered; their rows are in the file."""
UNUSED_DAYS = 30
"""Tables that nobody opened for so long go when another one is made."""
Watch = Callable[[str, int, int], None]
"""Told what is being done, how many rows are, and of how many (0 where nobody knows). It may raise Stopped."""
WATCH: ContextVar[Watch] = ContextVar("watch", default=lambda what, done, of: None)
Note = Callable[[str], None]
NOTE: ContextVar[Note] = ContextVar("note", default=lambda line: None)
"""Told in words what a user should know."""
Fill = Callable[[Callable[..., None]], Mapping[str, Any]]
"""Given what adds a record batch to a table, with the number of rows that will be added in all where it is known;
returns what else is to be known of it, as JSON."""


class CacheFull(AdpaError):
    """The disk that tables are kept on is full, which is no fault of the data."""


def watched(items: Iterable[T], what: str, of: int = 0) -> Iterator[T]:
    """The items, with a word to whoever watches after every BATCH of them."""
    tell, last = WATCH.get(), 0
    for last, item in enumerate(items, 1):
        yield item
        if last % BATCH == 0:
            tell(what, last, of)
    tell(what, last, last)


def heeding(stop: Callable[[], str | None], tell: Watch) -> Watch:
    """One who tells what is done, and raises Stopped between two batches when `stop` names a signal."""

    def watch(what: str, done: int, of: int) -> None:
        tell(what, done, of)
        if name := stop():
            raise Stopped(name, f"{Stopped.opening(name)} while {what}; finished stages are saved")

    return watch


@contextlib.contextmanager
def watching(watch: Watch, note: Note = lambda line: None) -> Iterator[None]:
    """Let `watch` hear of the rows that are read and tokenised meanwhile, and `note` once what a user should know."""
    tokens = WATCH.set(watch), NOTE.set(functools.cache(note))
    try:
        yield
    finally:
        WATCH.reset(tokens[0])
        NOTE.reset(tokens[1])


def cache_folder() -> Path:
    """Where tables are kept: $ADPA_CACHE, else a folder of ours in the user's caches."""
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.path.expanduser(os.environ.get("ADPA_CACHE") or f"{caches}/adpa"))


@functools.cache
def code_digest(*modules: str) -> str:
    """sha256 of what decides what is in a table: the source of this folder, of some other files, and two libraries."""
    digest = hashlib.sha256(" ".join(map(metadata.version, ("jinja2", "tokenizers"))).encode())
    for path in (*sorted(Path(__file__).parent.glob("*.py")), *map(Path, modules)):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def file_facts(path: Path) -> list[Any]:
    """What tells the content of a file from any other, short of reading it: its place, size, times and inode."""
    stat = path.stat()
    return [str(path.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]


class Table:
    """The rows of one table, mapped. Numbers and lists of numbers are views of the file. Safe in several threads."""

    def __init__(self, folder: Path) -> None:
        import numpy as np
        import pyarrow as pa

        self.about: dict[str, Any] = json.loads((folder / ABOUT).read_bytes())
        self.starts: NDArray[np.int64] = np.array(self.about.pop("starts"), dtype=np.int64)
        self._reader = pa.ipc.open_file(pa.memory_map(str(folder / ROWS)))
        if self._reader.num_record_batches != len(self.starts) - 1:
            raise ValueError(f"{folder}: batches are missing")
        self._lock = threading.Lock()
        self._batch = functools.lru_cache(OPEN_BATCHES)(self._open)

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def columns(self) -> list[str]:
        """Their names."""
        return list(self._reader.schema.names)

    def _open(self, number: int) -> Batch:
        with self._lock:
            return Batch(self._reader.get_batch(number))

    def place(self, row: int) -> tuple[Batch, int]:
        """The batch that a row is in, and its number there."""
        if not 0 <= row < len(self):
            raise IndexError(row)
        number = int(self.starts.searchsorted(row, "right")) - 1
        return self._batch(number), row - int(self.starts[number])

    def batches(self) -> Iterator[Batch]:
        """All of them, in their order."""
        return map(self._batch, range(len(self.starts) - 1))

    def values(self, column: str) -> NDArray[Any]:
        """[rows] of a column of numbers, or of bytes of one size."""
        return _joined([batch.values(column) for batch in self.batches()])

    def lengths(self, column: str) -> NDArray[np.int32]:
        """[rows] int32 of the lists in a column."""
        import numpy as np

        return _joined([np.diff(batch.offsets(column)).astype(np.int32) for batch in self.batches()])

    def records(self, rows: NDArray[np.int64], columns: Sequence[str]) -> Iterator[tuple[Any, ...]]:
        """The values of some columns in some rows, which are quickest where they ascend."""
        numbers = self.starts.searchsorted(rows, "right") - 1
        for start, stop in runs(numbers):
            number = int(numbers[start])
            yield from self._batch(number).records(rows[start:stop] - self.starts[number], columns)


def runs(numbers: NDArray[Any]) -> Iterator[tuple[int, int]]:
    """Where each run of equal numbers begins and ends."""
    import numpy as np

    edges = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(numbers)]
    yield from itertools.pairwise(edges if len(numbers) else ())


def _joined(parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
    import numpy as np

    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)


class Batch:
    """Some consecutive rows of a table: columns by name, as views of the file."""

    def __init__(self, batch: Any) -> None:
        self._columns = dict(zip(batch.schema.names, batch.columns, strict=True))
        self._views: dict[str, NDArray[Any]] = {}

    def __contains__(self, column: str) -> bool:
        return column in self._columns

    def values(self, column: str) -> NDArray[Any]:
        """[rows] of a column of numbers, or of bytes of one size."""
        return self._view(column, lambda: self._columns[column])

    def offsets(self, column: str) -> NDArray[Any]:
        """[rows + 1] where the lists of a column begin and end."""
        return self._view(f"{column} offsets", lambda: self._columns[column].offsets)

    def items(self, column: str) -> NDArray[Any]:
        """The lists of a column, one after the other."""
        return self._view(f"{column} items", lambda: self._columns[column].values)

    def _view(self, name: str, array_of: Callable[[], Any]) -> NDArray[Any]:
        if name not in self._views:
            self._views[name] = view(array_of())
        return self._views[name]

    def list(self, column: str, row: int) -> NDArray[Any]:
        """The list in one row, as a view."""
        offsets = self.offsets(column)
        return self.items(column)[offsets[row] : offsets[row + 1]]

    def cell(self, column: str, row: int) -> Any:
        """The value in one row."""
        return self._columns[column][row].as_py()

    def records(self, rows: NDArray[np.int64] | None, columns: Sequence[str]) -> Iterator[tuple[Any, ...]]:
        """The values of some columns in some rows, or in all."""
        import pyarrow as pa

        held = [self._columns[column] for column in columns]
        if rows is not None and len(rows) < 4:
            yield from (tuple(column[row].as_py() for column in held) for row in rows.tolist())
            return
        if rows is not None:
            places = numbers(rows, pa.int64())
            held = [column.take(places) for column in held]
        yield from zip(*(column.to_pylist() for column in held), strict=True)


def dtype_of(kind: Any) -> Any:
    """The numpy dtype of an Arrow type of numbers, or of bytes of one size."""
    import numpy as np

    text = str(kind)
    width = text.removeprefix("fixed_size_binary[").rstrip("]")
    return np.dtype({"float": "f4", "double": "f8"}.get(text, text) if width == text else f"V{width}")


def view(array: Any) -> NDArray[Any]:
    """The numbers of an Arrow array where they are; Arrow's own way imports pandas. A copy of truth values."""
    import numpy as np

    data, start, end = array.buffers()[-1], array.offset, array.offset + len(array)
    if data is None:
        return np.zeros(0, np.int64)
    if str(array.type) == "bool":
        return np.unpackbits(np.frombuffer(data, np.uint8), count=end, bitorder="little")[start:].astype(bool)
    return np.frombuffer(data, dtype_of(array.type), end)[start:]


def numbers(values: Any, kind: Any) -> Any:
    """An Arrow array of numbers."""
    import numpy as np
    import pyarrow as pa

    own = np.ascontiguousarray(values, dtype_of(kind))
    return pa.Array.from_buffers(kind, len(own), [None, pa.py_buffer(own)])


def column(values: Sequence[Any], kind: Any) -> Any:
    """An Arrow array of numbers, truth values, bytes of one size, texts of which some may be None, or lists of numbers.

    Arrow's own way imports pandas, and takes longer.
    """
    import numpy as np
    import pyarrow as pa

    if str(kind) == "bool":
        bits = np.packbits(np.array(values, dtype=bool), bitorder="little")
        return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(bits)])
    if str(kind).startswith("fixed_size_binary"):
        return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(b"".join(values))])
    if pa.types.is_list(kind):
        inside = dtype_of(kind.value_type)
        flat = np.concatenate([np.asarray(each, inside) for each in values]) if values else np.zeros(0, inside)
        ends = np.cumsum([0, *map(len, values)])
        return pa.ListArray.from_arrays(numbers(ends, pa.int32()), numbers(flat, kind.value_type))
    if "string" in str(kind):
        texts = [b"" if each is None else each.encode() for each in values]
        ends = np.cumsum([0, *map(len, texts)]).astype(np.int64 if str(kind) == "large_string" else np.int32)
        there = np.packbits(np.array([each is not None for each in values], dtype=bool), bitorder="little")
        buffers = [pa.py_buffer(each) for each in (there, ends, b"".join(texts))]
        return pa.Array.from_buffers(kind, len(values), buffers)
    return numbers(values, kind)


def record_batch(columns: Sequence[Sequence[Any]], schema: Any) -> Any:
    """Columns of values as Arrow."""
    import pyarrow as pa

    made = [column(values, field.type) for values, field in zip(columns, schema, strict=True)]
    return pa.RecordBatch.from_arrays(made, schema=schema)


def table(kind: str, made_from: Any, schema: Any, fill: Fill) -> Table:
    """The table that was made from so and so (JSON; None where nothing names it): it is made where there is none.

    Another process that makes it already is waited for. Raises CacheFull.
    """
    if made_from is None:
        return _unnamed(schema, fill)
    text = json.dumps(made_from, sort_keys=True)
    place = cache_folder() / kind / hashlib.sha256(text.encode()).hexdigest()[:32]
    if found := _found(place):
        return found
    if why := _unwritable(place.parent):
        kept = f"prepared data are kept in {tempfile.gettempdir()} for this command only"
        NOTE.get()(
            f"{cache_folder()} is not writable ({why}), so {kept}; to choose another folder: export ADPA_CACHE=DIR"
        )
        return _unnamed(schema, fill)
    with _alone(place), _room(place.parent, f".{place.name}-") as private:
        return _found(place) or _made(private, schema, fill, place)


def _unwritable(folder: Path) -> str:
    """Why no tables can be kept in a folder, which is made where it can be; "" where they can, or its disk is full."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()  # rights alone do not tell, as where root is nobody on a network
    except OSError as error:
        if is_disk_full(error):
            raise _full(0) from error
        return error.strerror or str(error)
    return ""


def _full(needed: int, is_cache: bool = True) -> CacheFull:
    """The error for a full disk of the cache, or of temporary folders, where a table needs so many bytes."""
    where, name = (cache_folder(), "ADPA_CACHE") if is_cache else (tempfile.gettempdir(), "TMPDIR")
    size = f"; these data take about {size_words(needed)}" if needed else ""
    hint = f"free some space{' (adpa gc)' * is_cache}, or keep them on another disk: export {name}=DIR"
    return CacheFull(f"the disk of {where}, where prepared data are kept, is full{size}", hint)


def _unnamed(schema: Any, fill: Fill) -> Table:
    _remove_left(Path(tempfile.gettempdir()).glob(f"{TEMPORARY}*"))
    with _room(None, TEMPORARY) as private:
        return _made(private, schema, fill)


@contextlib.contextmanager
def _room(folder: Path | None, name: str) -> Iterator[Path]:
    """A private folder, which is held, and gone afterwards. Raises AdpaError where somebody removed the folder that it
    is in."""
    try:
        with contextlib.ExitStack() as stack, tempfile.TemporaryDirectory(prefix=name, dir=folder) as private:
            with contextlib.suppress(OSError):  # no locks here
                stack.enter_context(_held(Path(private)))  # until it is gone
            yield Path(private)
    except FileNotFoundError as error:
        if folder is None or folder.exists():
            raise
        raise AdpaError(f"{folder} was deleted while data were being written to it", "run the command again") from error


@contextlib.contextmanager
def _held(private: Path, otherwise: int = 0) -> Iterator[None]:
    """Hold a private folder, as its maker does until it is gone; `otherwise` is `fcntl.LOCK_NB` to raise OSError where
    another process holds it, which is else waited for."""
    handle = os.open(private, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | otherwise)
        yield
    finally:
        os.close(handle)


def _remove_left(folders: Iterable[Path], age: float = JUST_MADE) -> int:
    """Remove private folders of processes that were killed so many seconds ago; returns their bytes."""
    freed = 0
    for path in folders:
        with contextlib.suppress(OSError), _held(path, fcntl.LOCK_NB):
            if time.time() - path.stat().st_mtime >= age:
                size = _size(path)
                shutil.rmtree(path)
                freed += size
    return freed


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*"))


def _found(place: Path) -> Table | None:
    """A finished table; None where there is none, and where it is damaged, as after a crash of the machine."""
    import pyarrow as pa

    try:
        found = Table(place)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, pa.ArrowException):
        shutil.rmtree(place, ignore_errors=True)
        return None
    with contextlib.suppress(OSError):
        os.utime(place)
    return found


def _made(private: Path, schema: Any, fill: Fill, place: Path | None = None) -> Table:
    """A new table, written to a private folder, which then becomes `place`. Raises CacheFull."""
    import pyarrow as pa

    folder, starts, needed = private / "table", [0], 0
    try:
        folder.mkdir()
        with (folder / ROWS).open("wb") as file, pa.ipc.new_file(file, schema) as out:

            def add(batch: Any, of: int = 0) -> None:
                nonlocal needed
                if len(batch):
                    needed = batch.nbytes * max(of, starts[-1] + len(batch)) // len(batch)
                    out.write_batch(batch)
                    starts.append(starts[-1] + len(batch))

            about = fill(add)
        (folder / ABOUT).write_text(json.dumps({**about, "starts": starts}), encoding="utf-8")
        for name in (ROWS, ABOUT) if place else ():
            sync_file(folder / name)
    except OSError as error:
        if not is_disk_full(error):
            raise
        raise _full(needed, place is not None) from error
    made = Table(folder)
    if place is not None:
        with contextlib.suppress(OSError):  # where it is by now, without locks
            os.rename(folder, place)
            remove_unused()
    return made


@contextlib.contextmanager
def _alone(place: Path) -> Iterator[None]:
    """Alone among the processes that make one table, where the file system has locks; else each makes its own."""
    path = place.with_suffix(".lock")
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # no locks here, or another user's
            handle = stack.enter_context(path.open("w"))
            stack.callback(path.unlink, missing_ok=True)
            fcntl.flock(handle, fcntl.LOCK_EX)
            _remove_left(place.parent.glob(f".{place.name}-*"), 0)
        yield


def remove_unused(days: float = UNUSED_DAYS) -> int:
    """Remove the tables that nobody opened in so many days, and what killed processes left; returns their bytes."""
    oldest, freed = time.time() - days * 86400, _remove_left(cache_folder().glob("*/.*"))
    for path in cache_folder().glob("*/[!.]*"):
        with contextlib.suppress(OSError):
            if path.stat().st_mtime < oldest:
                freed += _size(path)
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    return freed
