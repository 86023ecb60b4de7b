"""Load preference pairs and dialogues of any source: checked whole, split by prompt, with what was left out counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic

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
    hold_out,
    make_dialogue,
    make_pair,
    prompt_key,
    trimmed,
)
from adpa_cli.data.shapes import DIALOGUES, PAIRS, Join, Sides, detect
from adpa_cli.data.sources import Source, has_test, is_test, parts, read_rows
from adpa_cli.errors import DataError

__all__ = ["Dialogue", "Loaded", "Message", "Pair", "Prompt", "hold_out", "load_dialogues", "load_pairs"]

SHOWN_PROBLEMS = 5


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
    reader = _Reader("pairs", skip_bad_rows)
    pairs = [item for item in _side(sources, split, reader) if isinstance(item, Pair)]
    return reader.loaded(pairs, limit)


def load_dialogues(
    sources: Sequence[Source], split: str = "train", limit: int | None = None, skip_bad_rows: bool = False
) -> Loaded[Dialogue]:
    """The dialogues of one side of some sources; preference data serve with their prompts and chosen answers.

    Preference data are split as pairs, so that both loaders hold out the same prompts. Raises as `load_pairs` does.
    """
    reader = _Reader("dialogues", skip_bad_rows)
    return reader.loaded([as_dialogue(item) for item in _side(sources, split, reader)], limit)


def _side(sources: Sequence[Source], side: str, reader: _Reader) -> list[Pair | Dialogue]:
    """What one side of all sources holds.

    A source named with a test split serves the test side only, and then nothing is held out of the others; a folder
    with a test split keeps its own; the remaining sources are split together, so that no prompt is on both sides.
    """
    if side not in ("train", "test"):
        raise DataError(f"data have no side {side!r}", "it is train or test")
    named = any(is_test(source.split or "") for source in sources)
    found: list[tuple[bool, list[Pair | Dialogue]]] = []
    for source in sources:
        if named and is_test(source.split or "") != (side == "test"):
            continue
        whole = named or has_test(source)
        files = parts(source, side if whole else "train", reader.purpose)
        found.append((whole, [item for part in files for item in reader.read(part)]))
    if not found:
        names = ", ".join(source.text for source in sources) or "no source"
        raise DataError(f"{names}: only test splits, nothing to train on", "add --data with a training split")
    reader.check()
    pool = [item for whole, items in found if not whole for item in items]
    held = held_out_keys(pool)
    if pool:
        reader.notes.append(f"no test split: {len(held)} prompts held out by hash")
    return [item for whole, items in found for item in items if whole or (prompt_key(item) in held) == (side == "test")]


class _Reader:
    """Turns rows into items and keeps count of the rest."""

    def __init__(self, purpose: str, skip_bad_rows: bool) -> None:
        self.purpose = purpose
        self.skip_bad_rows = skip_bad_rows
        self.rows = 0
        self.shapes: dict[str, None] = {}
        self.notes: list[str] = []
        self.problems: list[str] = []
        self.bad: Counter[str] = Counter()
        self.passed: Counter[str] = Counter()
        self.trims = 0

    def read(self, part: Source) -> list[Pair | Dialogue]:
        """All sound items of one file; problems are kept for `check`."""
        rows = list(read_rows(part))
        self.rows += len(rows)
        sample: dict[str, Any] = {}
        for _, row in rows:
            sample.update((name, value) for name, value in row.items() if value is not None and name not in sample)
        make, join = self._maker(part, sample)
        items: list[Pair | Dialogue] = []
        for number, joined in join(rows):
            try:
                items.append(make(joined, number))
            except Passed as passed:
                self.passed[passed.kind] += 1
            except Problem as problem:
                self.bad[problem.kind] += 1
                where = f"{part.text} row {number}, {problem.field}"
                self.problems.append(f"{where}: {problem.found} ({problem.fix})")
        return items

    def _maker(self, part: Source, sample: Row) -> tuple[Callable[[Row, int], Pair | Dialogue], Join]:
        """What makes an item of a row with these columns; preference data make pairs for either purpose."""
        if self.purpose == "dialogues" and (turns := detect(DIALOGUES, sample)):
            self.shapes[turns.name] = None
            return partial(self._dialogue, turns.read), turns.join
        if sides := detect(PAIRS, sample):
            self.shapes[sides.name] = None
            return partial(_pair, sides.read), sides.join
        raise unknown_shape(part, sample, self.purpose)

    def _dialogue(self, read: Callable[[Row], Prompt], row: Row, number: int) -> Dialogue:
        messages = read(row)
        kept = trimmed(messages)
        self.trims += kept != messages
        return make_dialogue(kept, number)

    def check(self) -> None:
        """Raise the problems found, unless they are to be skipped."""
        if not self.bad or self.skip_bad_rows:
            return
        kinds = ", ".join(f"{kind} {count}" for kind, count in self.bad.most_common())
        total = self.bad.total()
        shown = "".join(f"\n  {problem}" for problem in self.problems[:SHOWN_PROBLEMS])
        more = f"\n  … {total - SHOWN_PROBLEMS} more" if total > SHOWN_PROBLEMS else ""
        message = f"{total} of {self.rows} rows cannot be used{shown}{more}\n  by kind: {kinds}"
        other = " (a family's own dialogues: --set sft.skip_bad_rows=true)" if self.purpose == "dialogues" else ""
        raise DataError(message, f"mend these rows, or leave them out: --skip-bad-rows{other}")

    def loaded(self, items: Iterable[Item], limit: int | None) -> Loaded[Item]:
        """The items without repetitions, so that an id is a key; DataError when none are left."""
        found = list(items)
        unique = {item.id: item for item in reversed(found)}
        kept = [item for item in found if unique[item.id] is item]
        if not kept:
            raise DataError(
                f"no {self.purpose} left of {self.rows} rows" + _counts({**self.bad, **self.passed}),
                "look at them with: adpa data SOURCE",
            )
        dropped = {**self.bad, **self.passed}
        if len(found) > len(kept):
            dropped["repeated"] = len(found) - len(kept)
        if self.trims:
            self.notes.append(f"{self.trims} dialogues lost turns before the first question or after the last answer")
        if dropped:
            self.notes.append("left out" + _counts(dropped))
        return Loaded(tuple(kept[:limit]), " + ".join(self.shapes), tuple(self.notes), dropped)


def _pair(read: Callable[[Row], Sides], row: Row, number: int) -> Pair:
    return make_pair(*read(row), number)


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
