"""Where rows come from: a file, a folder, a data set of the hub, or rows in memory.

`SOURCE[@REVISION][#SPLIT]`: a name with a known extension is a file; `./`, `/` and `~` begin a path; `org/name` is a
data set of the hub. Row numbers start at 1: the line in JSON Lines, the row of the sheet in CSV (its header is row 1),
the position in JSON, Parquet and Arrow.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path, PurePath
from typing import Any

from adpa_cli.data.readers import EXTENSIONS, read_file
from adpa_cli.errors import AdpaError, DataError, NotFound, UsageError

Row = dict[str, Any]

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
