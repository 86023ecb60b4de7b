"""What the name of a data source means, which split of it serves which side, and its rows."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from glob import has_magic
from pathlib import Path, PurePosixPath

from adpa_cli.data.examples import Problem, Row
from adpa_cli.data.files import EXTENSIONS, KNOWN, read_file, whole_row
from adpa_cli.data.layouts import README, Layout, is_test, layout_of
from adpa_cli.errors import AdpaError, DataError, NotFound, UsageError
from adpa_cli.machine import expanded

HUB_ID = re.compile(r"(?P<name>[\w.\-]+/[\w.\-]+)(@(?P<revision>[\w./\-]+))?")
COLUMNS_AFTER = re.compile(r"(?P<base>.+)\?(?P<columns>[^?=,]+=[^?]*)")
"""A source with the columns that are read under other names: `SOURCE?ROLE=NAME,…`."""
CONFIG_AFTER = re.compile(r"(?P<base>.*[^:]):(?P<config>[^:/\\]+)")
PATTERNS = [f"*{extension}" for extension in (*EXTENSIONS, ".arrow")]
PURPOSES = {"pairs": "_prefs", "dialogues": "_sft"}


@dataclass(frozen=True)
class Source:
    """One place that rows come from; `text` is what the user typed, `rows` serves the kind "rows" only.

    `content` tells such rows from all others, where anything does.
    `split` is what stands after #: SPLIT, CONFIG or CONFIG/SPLIT. `NAME:CONFIG` is another way to write `NAME#CONFIG`.
    `columns` are pairs of a name that is read here and the name of the column in the files.
    """

    text: str
    kind: str  # "file" | "folder" | "hub" | "rows"
    path: Path | None = None
    split: str | None = None
    revision: str | None = None
    rows: Sequence[Row] | Callable[[], Sequence[Row]] = ()
    content: str = ""
    columns: tuple[tuple[str, str], ...] = ()

    @property
    def base(self) -> str:
        """What was typed, without the split."""
        return self.text.removesuffix(f"#{self.split}") if self.split else self.text

    @property
    def names_test(self) -> bool:
        """Whether it is named with a split that nothing is trained on."""
        return is_test((self.split or "").rpartition("/")[2])


def columns_off(text: str) -> tuple[str, str]:
    """(a source without its columns, `ROLE=NAME,…` or ""), as `with_columns` writes them."""
    named = None if _is_here(text) else COLUMNS_AFTER.fullmatch(text)
    return (named["base"], named["columns"]) if named else (text, "")


def with_columns(text: str, columns: str) -> str:
    """A source whose columns are read under other names; one that says so itself, and one without any, stay."""
    return f"{text}?{columns}" if columns and text and not columns_off(text)[1] else text


def columns_in(text: str) -> tuple[tuple[str, str], ...]:
    """The pairs of `ROLE=NAME,…`, by roles. UsageError for a part that is no pair, and for a name that comes twice."""
    pairs = [tuple(word.strip() for word in part.partition("=")[::2]) for part in text.split(",")]
    example = "write the name that is read, then the column in your data: --columns prompt=question,chosen=good"
    if not all(role and name for role, name in pairs):
        raise UsageError(f"--columns {text} does not name a column for each role", example)
    for side in zip(*pairs, strict=True):
        if twice := [name for name in dict.fromkeys(side) if side.count(name) > 1]:
            raise UsageError(f"--columns {text} names {twice[0]} twice", example)
    return tuple(sorted((role, name) for role, name in pairs))


def split_off(text: str) -> tuple[str, str]:
    """(a source without its split, the split or ""): folders and files may have a # in their names too.

    `NAME:CONFIG` is split as `NAME#CONFIG` is, where nothing lies here under that whole name.
    """
    base, split = text, ""
    if "#" in text and not text.lower().endswith(EXTENSIONS) and not _is_here(text):
        base, _, split = text.rpartition("#")
    named = CONFIG_AFTER.fullmatch(base)
    if named is None or _is_here(base):
        return base, split
    return named["base"], f"{named['config']}/{split}" if split else named["config"]


def _is_here(path: str) -> bool:
    return os.path.exists(os.path.expanduser(path))


def parse_source(text: str) -> Source:
    """Read `SOURCE[@REVISION][:CONFIG][#SPLIT][?ROLE=NAME,…]`.

    Raises UsageError on an empty text, NotFound on a bare word, DataError on a file of an unknown kind.
    """
    if not text.strip():
        raise UsageError("a data source is empty", "name a file, a folder (./NAME) or a hub data set (org/name)")
    text, columns = columns_off(text)
    if columns:
        return replace(parse_source(text), columns=columns_in(columns))
    base, split = split_off(text)
    path = expanded(base)
    text = f"{base}#{split}" if split else base
    if base.lower().endswith(EXTENSIONS) and not path.is_dir():
        if split:
            raise UsageError(
                f"{text} names a split, and a single file has none",
                f"remove #{split}, or name a folder or a hub data set",
            )
        return Source(text, "file", path)
    hub_id, is_path = HUB_ID.fullmatch(base), base.startswith((".", "/", "~")) or path.is_absolute()
    if (is_path or hub_id is None) and path.exists() and not path.is_dir():
        raise DataError(f"{base} is not a kind of file that can be read", f"use one of: {KNOWN}")
    if is_path:
        return Source(text, "folder", path, split or None)
    if hub_id is None:
        hint = "a data set of the hub is written org/name; fetch what is elsewhere, and name the file"
        if "://" not in base:
            hint = f"a folder is written ./{base}, a hub data set org/name, a file with one of {KNOWN}"
        raise NotFound(f"no data source is called {base!r}", hint)
    return Source(hub_id["name"] + (f"#{split}" if split else ""), "hub", None, split or None, hub_id["revision"])


def read_rows(source: Source) -> Iterator[tuple[int, Row]]:
    """All rows of a source as (row number, row); of a folder with splits, its named or its training split.

    Raises NotFound when nothing is there, DataError (file and row named) when it cannot be read or is empty.
    """
    for part in parts(source, "test" if source.names_test else "train"):
        for number, row in read_part(part):
            yield number, whole_row(f"{part.text} row {number}", row)


def read_part(part: Source) -> Iterator[tuple[int, Row | Problem]]:
    """All rows of one of the `parts` of a source, with a Problem in the place of one that cannot be read.

    Its `columns` have the names that are read. A column that has such a name already is never read, so that a column
    which a file does not have is noticed.
    """
    if not part.columns:
        yield from _recorded_rows(part)
        return
    roles = {name: role for role, name in part.columns}
    taken = {*roles, *roles.values()}
    for number, row in _recorded_rows(part):
        if not isinstance(row, Problem):
            named = {roles[name]: value for name, value in row.items() if name in roles}
            row = {**{name: value for name, value in row.items() if name not in taken}, **named}
        yield number, row


def _recorded_rows(part: Source) -> Iterator[tuple[int, Row | Problem]]:
    """The rows as they are recorded."""
    if part.kind == "rows":
        rows = part.rows() if callable(part.rows) else part.rows
        if not rows:
            raise DataError(f"{part.text} has no rows", "name a source that has rows")
        yield from ((number, dict(row)) for number, row in enumerate(rows, 1))
    elif part.path is not None:
        yield from read_file(part.path)


def parts(source: Source, side: str = "train", purpose: str = "pairs") -> list[Source]:
    """The one-file sources that make up one side ("train" or "test") of a source.

    `purpose` ("pairs" or "dialogues") chooses between splits such as `train_prefs` and `train_sft`.
    """
    source = located(source)
    if source.path is None or source.kind == "file":
        return [source]
    mark, splits, named = configuration(source, layout_of(source.path))
    names = splits.get("") or splits[_choose_split(source.base, mark, splits, named, side, purpose)]
    return [replace(source, text=name, kind="file", path=source.path / name) for name in names]


def has_test(source: Source) -> bool:
    """Whether a folder or hub data set brings a test split of its own beside what it trains on."""
    source = located(source)
    if source.kind not in ("folder", "hub") or source.path is None:
        return False
    return any(is_test(name) for name in configuration(source, layout_of(source.path))[1])


def source_files(source: Source, layout: Layout | None = None) -> list[tuple[str, str]]:
    """(name inside the folder, split) of the files that determine a folder or a hub data set, in order of their paths.

    Of a folder with splits they are all that are in one; of one with configurations those of the chosen one.
    """
    if layout is None:
        layout = layout_of(located(source).path or Path())
    files = [(name, split) for split, names in configuration(source, layout)[1].items() for name in names]
    return sorted(files, key=lambda file: PurePosixPath(file[0]))


def located(source: Source) -> Source:
    """The source with its path: a hub data set is downloaded when it has none, a missing path is NotFound."""
    if source.kind == "hub" and source.path is None:
        source = replace(source, path=download(source, source.revision))
    if source.path is not None and not source.path.exists():
        hint = "patterns are not expanded: name the folder, or give each file" if has_magic(source.text) else ""
        raise NotFound(f"{source.text} does not exist", hint or "check the path")
    return source


def left_out(source: Source) -> list[str]:
    """The data files of a folder or a hub data set that no split names, and those of a kind that is not read."""
    source = located(source)
    if source.kind not in ("folder", "hub") or source.path is None:
        return []
    return list(layout_of(source.path)["left_out"])


def not_chosen(source: Source, purpose: str) -> list[str]:
    """What to write for the splits, and the configurations, that serve neither side of a source that names none."""
    source = located(source)
    if source.kind not in ("folder", "hub") or source.path is None:
        return []
    layout = layout_of(source.path)
    mark, splits, named = configuration(source, layout)
    if named:
        return []
    chosen = {""}
    for side in ("train", "test"):
        with contextlib.suppress(DataError):  # a side that the other source has
            chosen.add(_choose_split(source.base, mark, splits, "", side, purpose))
    return [
        *(f"#{mark}{name}" for name in splits if name not in chosen),
        *(f"#{name}" for name in layout["configs"] if name != layout["default"] and not source.split),
    ]


def configuration(source: Source, layout: Layout) -> tuple[str, dict[str, list[str]], str]:
    """(what comes before a split's name after #, files by split, the split that is named or "") of a source.

    Raises DataError where several configurations leave a choice, NotFound for one that there is not.
    """
    configs, default, named = layout["configs"], layout["default"], source.split or ""
    config, slash, split = named.rpartition("/")
    if not slash:
        is_config = named in configs and named not in configs.get(default, ())
        config, split = (named, "") if named and is_config else (default, named)
    listed = ", ".join(f"#{name}" for name in configs if name) or "none"
    if config is None:
        hint = f"name one: {source.base}#{next(iter(configs))}"
        raise DataError(f"{source.base} has several configurations and no default: {listed}", hint)
    if config not in configs:
        raise NotFound(f"{source.base} has no configuration called {config!r}", f"its configurations are: {listed}")
    splits = configs[config]
    if not splits:
        raise DataError(
            f"the configuration {config} of {source.base} has no data files", f"its configurations are: {listed}"
        )
    return (f"{config}/" if config != default else ""), splits, split


def download(source: Source, revision: str | None) -> Path:
    """Fetch the data files of a hub data set into the Hugging Face cache; the folder they are in.

    Raises NotFound for an unknown name or revision, AdpaError when it is gated or the hub cannot be reached.
    """
    from huggingface_hub import errors, snapshot_download

    name = source.base
    asked = f"{name}@{revision}" if revision else name
    wanted = [*PATTERNS, README]
    try:
        return Path(snapshot_download(name, repo_type="dataset", revision=revision, allow_patterns=wanted))
    except errors.GatedRepoError as error:
        hint = f"hf auth login, then accept the terms on https://huggingface.co/datasets/{name}"
        raise AdpaError(f"{asked} is gated, and your account has no access to it", hint) from error
    except errors.RevisionNotFoundError as error:
        raise NotFound(f"{name} has no revision {revision!r}", f"use the latest one: {name}") from error
    except errors.RepositoryNotFoundError as error:
        hint = f"{_folder_here(name)}check the spelling; a folder is written ./NAME; a private one needs: hf auth login"
        raise NotFound(f"the hub has no data set called {asked}", hint) from error
    except errors.LocalEntryNotFoundError as error:
        hint = f"{_folder_here(name)}connect once, or name a local file or folder; the built-in `tiny` needs no network"
        raise AdpaError(f"{asked} is not on this machine, and the hub cannot be reached", hint) from error
    except (errors.HfHubHTTPError, OSError) as error:
        raise AdpaError(
            f"the download of {asked} failed: {error}", "run the same command again; the download resumes"
        ) from error


def _folder_here(name: str) -> str:
    """What to write where a folder is called as a data set of the hub may be."""
    return f"write ./{name} for the folder of that name; " if os.path.isdir(name) else ""


def _choose_split(base: str, mark: str, names: Iterable[str], named: str, side: str, purpose: str) -> str:
    """The split of a folder that serves one side: the named one, its sibling, or the plain one."""
    names = list(names)
    listed = ", ".join(f"#{mark}{name}" for name in names)
    if named and named not in names:
        raise NotFound(f"{base} has no split called {named!r}", f"its splits are: {listed}")
    if named and is_test(named) == (side == "test"):
        return named
    fitting = [name for name in names if is_test(name) == (side == "test")]
    suffix = "_" + named.partition("_")[2] if "_" in named else ""
    for ending in (suffix, PURPOSES[purpose]) if suffix else ("", PURPOSES[purpose]):
        for stem in ("train", "test", "validation", "valid", "val", "eval", "dev"):
            if stem + ending in fitting:
                return stem + ending
    if len(fitting) == 1:
        return fitting[0]
    hint = (
        f"name one of them, for example {base}#{mark}{fitting[0]}" if fitting else f"name a source with a {side} split"
    )
    raise DataError(f"it is not clear which split of {base} to use as {side} {purpose}; its splits are: {listed}", hint)
