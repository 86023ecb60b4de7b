"""Preference pairs and dialogues of any source: checked whole, split by prompt, with what was left out counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Generic

from adpa_cli.data.columns import Unread, nearest, shown_names, unused_words
from adpa_cli.data.examples import Dialogue, Item, Message, Pair, Prompt, dialogue_of, held_out_keys
from adpa_cli.data.files import KNOWN
from adpa_cli.data.items import SHOWN_PROBLEMS, TEXT, FileItems, Items, Purpose, item_of, read_items
from adpa_cli.data.layouts import holds_data
from adpa_cli.data.rendering import refusal
from adpa_cli.data.shapes import PROMPTS
from adpa_cli.data.sources import Source, has_test, left_out, not_chosen, parts
from adpa_cli.data.tables import Table, record_batch, table, watched
from adpa_cli.data.unknown import UnknownShape, meant
from adpa_cli.errors import AdpaError, DataError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "DataSet", "Dialogue", "Loaded", "Message", "Pair", "Prompt", "Purpose", "check_unused", "load_dialogues",
    "load_pairs",
]  # fmt: skip


SIDES = ("train", "test")


@dataclass(frozen=True)
class Loaded(Generic[Item]):
    """The items of one side, the shapes they came in, remarks to say aloud, and how much of each kind was left out.

    `columns` tells of each column of the files whether it is read, `unread` are those that hold something and are not,
    `left_out` the files of a folder or hub data set that no split names or that are of no kind that is read.
    """

    items: Items[Item]
    shape: str
    notes: tuple[str, ...] = ()
    dropped: Mapping[str, int] = field(default_factory=dict)
    unread: tuple[Unread, ...] = ()
    left_out: tuple[str, ...] = ()
    columns: Mapping[str, bool] = field(default_factory=dict)

    @property
    def unused(self) -> tuple[str, ...]:
        """The names of the columns that nothing read."""
        return tuple(dict.fromkeys(each.column for each in self.unread))


def check_unused(loaded: Loaded[Any], ignored: Collection[str]) -> None:
    """Raise DataError where columns that belong to an example by their name were not read, unless they are ignored."""
    lost = [each for each in loaded.unread if each.is_content and each.column not in ignored]
    if not lost:
        return
    names = ",".join(dict.fromkeys([*ignored, *(each.column for each in lost)]))
    lines = [f"{e.file} row {e.row}: the column {e.column} holds {e.value}, and it would not be used" for e in lost]
    more = [f"… {len(lines) - SHOWN_PROBLEMS} more"] if len(lines) > SHOWN_PROBLEMS else []
    near = {e.column: role for e in lost if (role := nearest(e.column, PROMPTS)) and role != e.column}
    first = f"{meant(near)}; " if near else "rename the column to one that is read (docs/data.md lists them); "
    hint = f"{first}or leave it out: --ignore-columns {names}"
    raise DataError("\n  ".join([*lines[:SHOWN_PROBLEMS], *more]), hint)


def ignored_words(data: Sequence[Loaded[Any]], ignored: Collection[str], label: str) -> list[str]:
    """What is said of the columns that were to be ignored, where some data hold none of that name that can be."""
    columns = {name: any(loaded.columns.get(name) for loaded in data) for each in data for name in each.columns}
    said = {True: "it is read all the same", False: "it is empty", None: f"it is no column of {label}"}
    unused = {name for loaded in data for name in loaded.unused}
    return [f"--ignore-columns {name}: {said[columns.get(name)]}" for name in sorted(set(ignored) - unused)]


def load_pairs(
    sources: Sequence[Source], split: str = "train", limit: int | None = None, skip_bad_rows: bool = False,
    template: str = "",
) -> Loaded[Pair]:  # fmt: skip
    """The preference pairs of one side ("train" or "test") of some sources, in their order, without repetitions.

    Raises DataError that names the first unusable rows (unless they are skipped), or says that nothing is left.
    """
    return DataSet(sources, "pairs", skip_bad_rows, template).pairs(split, limit)


def load_dialogues(
    sources: Sequence[Source], split: str = "train", limit: int | None = None, skip_bad_rows: bool = False,
    template: str = "",
) -> Loaded[Dialogue]:  # fmt: skip
    """The dialogues of one side of some sources; preference data serve with their prompts and chosen answers.

    Preference data are split as pairs, so that both loaders hold out the same prompts. Raises as `load_pairs` does.
    """
    return DataSet(sources, "dialogues", skip_bad_rows, template).dialogues(split, limit)


class DataSet:
    """Some sources, read for one purpose: each file once, for both sides and every limit.

    Rows that the chat template refuses cannot be used; without one nobody asks it.
    """

    def __init__(self, sources: Sequence[Source], purpose: Purpose, skip_bad_rows: bool, template: str = "") -> None:
        self.template = template
        self.sources = sources
        self.purpose = purpose
        self.skip_bad_rows = skip_bad_rows
        self._files: dict[tuple[int, str], FileItems] = {}
        self._sides: dict[tuple[str, bool], Loaded[Any]] = {}
        self._refusals: dict[int, Table] = {}

    def pairs(self, split: str, limit: int | None = None) -> Loaded[Pair]:
        """The pairs of one side; see `load_pairs`."""
        return self._limited(split, limit)

    def prompts(self, split: str, limit: int | None = None, with_ties: bool = False) -> Loaded[Pair]:
        """The pairs of one side, and prompts as pairs of empty answers: those that stand alone, and if asked for those
        whose answers tie."""
        return self._limited(split, limit, with_ties)

    def has_pairs(self) -> bool:
        """Whether some file holds pairs, or cannot be read."""
        try:
            return any(
                not self._file(number, part).is_prompts
                for number, source in enumerate(self.sources)
                for part in parts(source, "test" if has_test(source) else "train", self._chosen_for)
            )
        except AdpaError:
            return True

    def dialogues(self, split: str, limit: int | None = None) -> Loaded[Dialogue]:
        """The dialogues of one side; see `load_dialogues`."""
        return self._limited(split, limit)

    def _limited(self, split: str, limit: int | None, with_ties: bool = False) -> Loaded[Any]:
        if (split, with_ties) not in self._sides:
            self._sides[split, with_ties] = self._side(split, with_ties)
        side = self._sides[split, with_ties]
        return replace(side, items=side.items[:limit])

    def _ties(self, file: FileItems) -> NDArray[np.bool_]:
        """[n] which items of a file are prompts whose answers tie."""
        import numpy as np

        are_pairs = self.purpose != "dialogues" and not file.is_prompts
        return file.items.values("said") == 0 if are_pairs else np.zeros(len(file.items), bool)

    def _side(self, side: str, with_ties: bool = False) -> Loaded[Any]:
        """What one side of all sources holds.

        A source named with a test split serves the test side only, and then nothing is held out of the others; a folder
        with a test split keeps its own; the remaining sources are split together, so that no prompt is on both sides.
        """
        import numpy as np

        if side not in (*SIDES, "all"):
            raise DataError(f"data have no split {side!r}", "use train, test or all")
        read, unnamed, others = self._opened(side)
        files = [self._checked(file) for _, file in read]
        if not self.skip_bad_rows:
            _check(files, self.purpose)
        pool = [file.items.values("key")[~self._ties(file)] for whole, file in read if not whole]
        held = held_out_keys(np.concatenate(pool)) if pool else np.zeros(0, np.uint64)
        notes = (
            [f"there is no test split: {len(held)} prompt{'s' * (len(held) != 1)} held out, chosen by hash"]
            if pool
            else []
        )
        chosen: list[NDArray[np.bool_]] = []
        for whole, file in read:
            of_side = np.ones(len(file.items), bool)
            if not whole:
                last = held.max(initial=np.uint64(0))  # those held out are the first of all
                of_side = (file.items.values("key") <= last) == (side == "test")
            if not with_ties:
                of_side &= ~self._ties(file)
            if refused := self._refused(file):
                of_side[refused.values("place")] = False
            chosen.append(of_side)
        items: Items[Any] = Items([file.items for file in files], np.flatnonzero(np.concatenate(chosen)))
        loaded = _without_repetitions(items, files, notes, self.purpose)
        unread = tuple(each for file in files for each in file.unread)
        said = [*loaded.notes, *unused_words(unread), *left_out_words(unnamed)]
        said += [f"not chosen: {shown_names(others)} (name one to use it)"] if others else []
        columns = {name: any(file.columns.get(name) for file in files) for each in files for name in each.columns}
        return replace(loaded, notes=tuple(said), unread=unread, left_out=tuple(unnamed), columns=columns)

    def _opened(self, side: str) -> tuple[list[tuple[bool, FileItems]], list[str], list[str]]:
        """The files of a side, each with whether all of it is of that side; files that no split names, and those that
        were not chosen."""
        named = side != "all" and any(source.names_test for source in self.sources)
        read: list[tuple[bool, FileItems]] = []
        unnamed: list[str] = []
        others: list[str] = []
        for number, source in enumerate(self.sources):
            if named and source.names_test != (side == "test"):
                continue
            whole = named or has_test(source)
            unnamed += left_out(source)
            others += not_chosen(source, self._chosen_for)
            sides = ("train",) if not whole else SIDES if side == "all" else (side,)
            own = {part.text: part for name in sides for part in parts(source, name, self._chosen_for)}
            for part in own.values():
                file = self._file(number, part)
                read.append((whole or side == "all" or file.is_prompts, file))
        if not read:
            names = ", ".join(source.text for source in self.sources) or "no source"
            raise DataError(
                f"{names} holds test splits only, so there is nothing to train on", "add --data with a training split"
            )
        return read, unnamed, others

    def _file(self, number: int, part: Source) -> FileItems:
        key = (number, part.text)
        if key not in self._files:
            self._files[key] = self._read(part)
        return self._files[key]

    @property
    def _chosen_for(self) -> str:
        """The purpose for which a split is chosen where there are several."""
        return "pairs" if self.purpose == "prompts" else self.purpose

    def _read(self, part: Source) -> FileItems:
        """The items of a file; where prompts will do, those of a file that holds no pairs."""
        if self.purpose != "prompts":
            return read_items(part, self.purpose)
        try:
            return read_items(part, "pairs")
        except UnknownShape:
            return read_items(part, self.purpose)

    def _refused(self, file: FileItems) -> Table | None:
        """The items of a file whose turns the chat template refuses; None without one, and where it takes all.

        The items stay where they are, for they are split with the others.
        """
        if self.template and id(file) not in self._refusals:
            self._refusals[id(file)] = refused_items(file, self.template)
        refused = self._refusals.get(id(file))
        return refused if refused is not None and len(refused) else None

    def _checked(self, file: FileItems) -> FileItems:
        """A file with what the chat template refuses of it among its problems."""
        if (refused := self._refused(file)) is None:
            return file
        bad = file.bad + Counter({"refused by the chat template": len(refused)})
        return replace(file, problems=(*file.problems, *map(tuple, refused.about["problems"])), bad=bad)


def refused_items(file: FileItems, template: str) -> Table:
    """The places of the items of a file whose turns a chat template refuses, and the first problems in words."""
    import pyarrow as pa

    schema = pa.schema([("place", pa.int64())])

    def fill(add: Any) -> dict[str, Any]:
        places: list[int] = []
        problems: list[tuple[int, str]] = []
        every = (values for batch in file.items.batches() for values in batch.records(None, TEXT))
        for place, values in enumerate(watched(every, f"checking the turns of {file.name}", len(file.items))):
            item = item_of(*values)
            if isinstance(item, Pair) and not item.chosen:
                continue  # two answers that tie are not read
            if why := refusal(template, dialogue_of(item)):
                places.append(place)
                problems += [(item.row, f"{file.name} row {item.row}: {why}")] * (len(problems) < SHOWN_PROBLEMS)
        add(record_batch([places], schema))
        return {"problems": problems}

    made_from = file.made_from and ["refused", file.made_from, template]
    return table("refused", made_from, schema, fill)


def left_out_words(files: Sequence[str]) -> list[str]:
    """What is said of the files that no split names, and of those of a kind that is not read."""
    unnamed = [name for name in files if holds_data(PurePosixPath(name))]
    unknown = [name for name in files if name not in unnamed]
    said = [f"left out: files {shown_names(unnamed)} (no split is named after them)"] if unnamed else []
    return said + ([f"left out: files {shown_names(unknown)} (of no kind that is read: {KNOWN})"] if unknown else [])


def _check(files: Sequence[FileItems], purpose: Purpose) -> None:
    """Raise the problems of the files of one side."""
    bad = _total(file.bad for file in files)
    if not bad:
        return
    kinds = ", ".join(f"{kind} ({count})" for kind, count in bad.most_common())
    shown = "".join(f"\n  {problem}" for _, problem in [p for file in files for p in file.problems][:SHOWN_PROBLEMS])
    more = f"\n  … {bad.total() - SHOWN_PROBLEMS} more" if bad.total() > SHOWN_PROBLEMS else ""
    rows = sum(file.rows for file in files)
    message = f"{bad.total()} of {rows} rows cannot be used{shown}{more}\n  by kind: {kinds}"
    other = " (for the fine-tuning data of a family: --set sft.skip_bad_rows=true)" if purpose == "dialogues" else ""
    hint = f"fix these rows, or skip them: --skip-bad-rows{other}"
    raise DataError(message, "no row can be used: do what the brackets say" if bad.total() == rows else hint)


def _without_repetitions(
    given: Items[Item], files: Sequence[FileItems], notes: list[str], purpose: Purpose
) -> Loaded[Item]:
    """The items of one side, each id once, so that an id is a key; DataError when none are left."""
    kept = given.at(given.firsts("id"))
    dropped = {**_total(file.bad for file in files), **_total(file.passed for file in files)}
    if not len(kept):
        rows = sum(file.rows for file in files)
        raise DataError(
            f"none of the {rows} rows can be used as {purpose}{_counts(dropped)}",
            "see what is wrong with them: adpa data SOURCE",
        )
    if len(given) > len(kept):
        dropped["repeated"] = len(given) - len(kept)
    notes += [_counted(count, words) for words, count in _total(file.remarks for file in files).items() if count]
    if dropped:
        notes.append("left out" + _counts(dropped))
    notes += [f"rows that cannot be used: {_places(file)}" for file in files if file.problems]
    return Loaded(kept, " + ".join(dict.fromkeys(file.shape for file in files if file.shape)), tuple(notes), dropped)


def _places(file: FileItems) -> str:
    """The first rows of a file that cannot be used."""
    numbers = sorted({number for number, _ in file.problems})
    more = ", …" if file.bad.total() > len(numbers) else ""
    return f"{PurePosixPath(file.name).name} row{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers))}{more}"


def _total(counts: Iterable[Counter[str]]) -> Counter[str]:
    return sum(counts, start=Counter())


def _counted(count: int, words: str) -> str:
    """A number before what it counts, whose first word is a plural."""
    first, _, rest = words.partition(" ")
    return f"{count} {first.removesuffix('s') if count == 1 else first} {rest}"


def _counts(counts: Mapping[str, int]) -> str:
    return ": " + ", ".join(f"{kind} ({count})" for kind, count in counts.items()) if counts else ""
