"""Load preference pairs and dialogues of any source: checked whole, split by prompt, with what was left out counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Generic, Literal

from adpa_cli.data.examples import (
    Dialogue,
    Item,
    Message,
    Pair,
    Passed,
    Problem,
    Prompt,
    Row,
    as_dialogue,
    held_out_keys,
    make_dialogue,
    make_pair,
    prompt_key,
    trimmed,
)
from adpa_cli.data.shapes import DIALOGUES, PAIRS, Join, Sides, detect
from adpa_cli.data.sources import Source, has_test, parts, read_part
from adpa_cli.errors import DataError

__all__ = ["DataSet", "Dialogue", "Loaded", "Message", "Pair", "Prompt", "load_dialogues", "load_pairs"]

SHOWN_PROBLEMS = 5
Purpose = Literal["pairs", "dialogues"]


@dataclass(frozen=True)
class Loaded(Generic[Item]):
    """The items of one side, the shapes they came in, remarks to say aloud, and how much of each kind was left out."""

    items: tuple[Item, ...]
    shape: str
    notes: tuple[str, ...] = ()
    dropped: Mapping[str, int] = field(default_factory=dict)


def load_pairs(
    sources: Sequence[Source], split: str = "train", limit: int | None = None, skip_bad_rows: bool = False
) -> Loaded[Pair]:
    """The preference pairs of one side ("train" or "test") of some sources, in their order, without repetitions.

    Raises DataError that names the first unusable rows (unless they are skipped), or says that nothing is left.
    """
    return DataSet(sources, "pairs", skip_bad_rows).pairs(split, limit)


def load_dialogues(
    sources: Sequence[Source], split: str = "train", limit: int | None = None, skip_bad_rows: bool = False
) -> Loaded[Dialogue]:
    """The dialogues of one side of some sources; preference data serve with their prompts and chosen answers.

    Preference data are split as pairs, so that both loaders hold out the same prompts. Raises as `load_pairs` does.
    """
    return DataSet(sources, "dialogues", skip_bad_rows).dialogues(split, limit)


@dataclass(frozen=True)
class FileItems:
    """The sound items of one file and the name of its shape; how many rows it has, the first problems, how many rows
    were unusable or hold no example, by kind, and how many dialogues were trimmed."""

    items: tuple[Pair | Dialogue, ...]
    shape: str
    rows: int
    problems: tuple[str, ...]
    bad: Counter[str]
    passed: Counter[str]
    trims: int


class DataSet:
    """Some sources, read for one purpose: each file once, for both sides and every limit."""

    def __init__(self, sources: Sequence[Source], purpose: Purpose, skip_bad_rows: bool) -> None:
        self.sources = sources
        self.purpose = purpose
        self.skip_bad_rows = skip_bad_rows
        self._files: dict[tuple[int, str], FileItems] = {}
        self._sides: dict[str, Loaded[Any]] = {}
        self._keys: dict[int, str] = {}

    def pairs(self, split: str, limit: int | None = None) -> Loaded[Pair]:
        """The pairs of one side; see `load_pairs`."""
        return self._limited(split, limit, lambda item: item)

    def dialogues(self, split: str, limit: int | None = None) -> Loaded[Dialogue]:
        """The dialogues of one side; see `load_dialogues`."""
        return self._limited(split, limit, as_dialogue)

    def _limited(self, split: str, limit: int | None, form: Callable[[Any], Item]) -> Loaded[Item]:
        if split not in self._sides:
            self._sides[split] = self._side(split, form)
        side = self._sides[split]
        return replace(side, items=side.items[:limit])

    def _side(self, side: str, form: Callable[[Any], Item]) -> Loaded[Item]:
        """What one side of all sources holds.

        A source named with a test split serves the test side only, and then nothing is held out of the others; a folder
        with a test split keeps its own; the remaining sources are split together, so that no prompt is on both sides.
        """
        if side not in ("train", "test"):
            raise DataError(f"data have no side {side!r}", "it is train or test")
        named = any(source.names_test for source in self.sources)
        read: list[tuple[bool, FileItems]] = []
        for number, source in enumerate(self.sources):
            if named and source.names_test != (side == "test"):
                continue
            whole = named or has_test(source)
            for part in parts(source, side if whole else "train", self.purpose):
                read.append((whole, self._file(number, part)))
        if not read:
            names = ", ".join(source.text for source in self.sources) or "no source"
            raise DataError(f"{names}: only test splits, nothing to train on", "add --data with a training split")
        files = [file for _, file in read]
        if not self.skip_bad_rows:
            _check(files, self.purpose)
        pool = [self._key(item) for whole, file in read if not whole for item in file.items]
        held = held_out_keys(pool)
        notes = [f"no test split: {len(held)} prompts held out by hash"] if pool else []
        chosen = (
            form(item)
            for whole, file in read
            for item in file.items
            if whole or (self._key(item) in held) == (side == "test")
        )
        return _without_repetitions(chosen, files, notes, self.purpose)

    def _file(self, number: int, part: Source) -> FileItems:
        key = (number, part.text)
        if key not in self._files:
            self._files[key] = read_items(part, self.purpose)
        return self._files[key]

    def _key(self, item: Pair | Dialogue) -> str:
        """The key of an item's prompt, hashed once."""
        key = self._keys.get(id(item))
        if key is None:
            key = self._keys[id(item)] = prompt_key(item)
        return key


def read_items(part: Source, purpose: Purpose) -> FileItems:
    """All sound items of one file; its problems are for whoever uses them. Raises DataError for an unknown shape."""
    rows = list(read_part(part))
    sample: dict[str, Any] = {}
    for _, row in rows:
        sample.update((name, value) for name, value in row.items() if value is not None and name not in sample)
    trims: list[int] = []
    shape, make, join = _maker(part, sample, purpose, trims)
    items: list[Pair | Dialogue] = []
    problems: list[str] = []
    bad: Counter[str] = Counter()
    passed: Counter[str] = Counter()
    for number, joined in join(rows):
        try:
            items.append(make(joined, number))
        except Passed as reason:
            passed[reason.kind] += 1
        except Problem as problem:
            bad[problem.kind] += 1
            if len(problems) < SHOWN_PROBLEMS:
                problems.append(f"{part.text} row {number}, {problem.field}: {problem.content} ({problem.fix})")
    return FileItems(tuple(items), shape, len(rows), tuple(problems), bad, passed, len(trims))


def _maker(
    part: Source, sample: Row, purpose: Purpose, trims: list[int]
) -> tuple[str, Callable[[Row, int], Pair | Dialogue], Join]:
    """The shape of rows with these columns, what makes an item of one, and what joins them before.

    Preference data make pairs for either purpose. The numbers of rows whose dialogue is trimmed are added to `trims`.
    """
    if purpose == "dialogues" and (turns := detect(DIALOGUES, sample)):
        return turns.name, partial(_dialogue, turns.read, trims), turns.join
    if sides := detect(PAIRS, sample):
        return sides.name, partial(_pair, sides.read), sides.join
    raise unknown_shape(part, sample, purpose)


def _dialogue(read: Callable[[Row], Prompt], trims: list[int], row: Row, number: int) -> Dialogue:
    messages = read(row)
    kept = trimmed(messages)
    if kept != messages:
        trims.append(number)
    return make_dialogue(kept, number)


def _pair(read: Callable[[Row], Sides], row: Row, number: int) -> Pair:
    return make_pair(*read(row), number)


def _check(files: Sequence[FileItems], purpose: Purpose) -> None:
    """Raise the problems of the files of one side."""
    bad = _total(file.bad for file in files)
    if not bad:
        return
    kinds = ", ".join(f"{kind} {count}" for kind, count in bad.most_common())
    shown = "".join(f"\n  {problem}" for problem in [p for file in files for p in file.problems][:SHOWN_PROBLEMS])
    more = f"\n  … {bad.total() - SHOWN_PROBLEMS} more" if bad.total() > SHOWN_PROBLEMS else ""
    rows = sum(file.rows for file in files)
    message = f"{bad.total()} of {rows} rows cannot be used{shown}{more}\n  by kind: {kinds}"
    other = " (a family's own dialogues: --set sft.skip_bad_rows=true)" if purpose == "dialogues" else ""
    raise DataError(message, f"mend these rows, or leave them out: --skip-bad-rows{other}")


def _without_repetitions(
    items: Iterable[Item], files: Sequence[FileItems], notes: list[str], purpose: Purpose
) -> Loaded[Item]:
    """The items of one side, each id once, so that an id is a key; DataError when none are left."""
    given = list(items)
    unique = {item.id: item for item in reversed(given)}
    kept = [item for item in given if unique[item.id] is item]
    dropped = {**_total(file.bad for file in files), **_total(file.passed for file in files)}
    if not kept:
        rows = sum(file.rows for file in files)
        raise DataError(f"no {purpose} left of {rows} rows{_counts(dropped)}", "look at them with: adpa data SOURCE")
    if len(given) > len(kept):
        dropped["repeated"] = len(given) - len(kept)
    if trims := sum(file.trims for file in files):
        notes.append(f"{trims} dialogues lost turns before the first question or after the last answer")
    if dropped:
        notes.append("left out" + _counts(dropped))
    return Loaded(tuple(kept), " + ".join(dict.fromkeys(file.shape for file in files)), tuple(notes), dropped)


def _total(counts: Iterable[Counter[str]]) -> Counter[str]:
    return sum(counts, start=Counter())


def _counts(counts: Mapping[str, int]) -> str:
    return ": " + ", ".join(f"{kind} {count}" for kind, count in counts.items()) if counts else ""


def unknown_shape(part: Source, sample: Mapping[str, Any], purpose: str) -> DataError:
    """The error for columns that no shape of this purpose has."""
    columns = ", ".join(sorted(sample)) or "none"
    other = detect(DIALOGUES, sample)
    if other is not None:
        hint = "preference data have chosen and rejected; train on dialogues with: adpa sft --data"
        return DataError(f"{part.text}: {other.name}, not preference pairs (columns: {columns})", hint)
    if "label" in sample and "completion" in sample:
        return DataError(
            f"{part.text}: answers with a label, not pairs (columns: {columns})", "give chosen and rejected"
        )
    if "text" in sample and purpose == "dialogues":
        hint = "give the turns as messages: [{role, content}, …], or prompt and completion"
        return DataError(f"{part.text}: text without turns, so nothing tells prompt from answer", hint)
    known = "; ".join([shape.name for shape in PAIRS] + [shape.name for shape in DIALOGUES if purpose == "dialogues"])
    return DataError(f"{part.text}: unknown shape (columns: {columns})", f"known: {known}")
