"""The pairs or dialogues of a data file as one mapped table, and sequences that make them when they are asked for.

A file is read in passes, a row at a time: one sees which columns hold something, the next makes the items, checks them
and writes them down. Nothing keeps the rows but the table.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, Literal, overload

from adpa_cli.data.columns import Unread, UnreadColumns
from adpa_cli.data.examples import (
    Dialogue,
    Item,
    Message,
    Pair,
    Passed,
    Problem,
    Prompt,
    Row,
    Tie,
    as_dialogue,
    in_half,
    make_dialogue,
    make_pair,
    make_prompt,
    plain,
    prompt_key,
    trimmed,
)
from adpa_cli.data.repeated import Numbered
from adpa_cli.data.shapes import DIALOGUES, PAIRS, PROMPT, Prepare, Recorded, Sides, detect
from adpa_cli.data.sources import Source, read_part
from adpa_cli.data.tables import BATCH, Table, code_digest, file_facts, record_batch, runs, table, watched
from adpa_cli.data.unknown import check_columns, unknown_shape
from adpa_cli.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SHOWN_PROBLEMS = 5
Purpose = Literal["pairs", "dialogues", "prompts"]
"""What rows are read for; of prompts the answers are passed over."""
TRIMMED = "dialogues lost turns before the first question or after the last answer"
TICK, COARSE_TICK = 0.02, 2.0
"""Seconds in which the clock of a file system moves on, and of one that counts whole seconds."""
TEXT = ("id", "row", "turns", "chosen", "rejected")


def schema() -> Any:
    """The columns of a table of items.

    `id` and `key` are the first 64 bits of the hashes of an item and of its prompt; `turns` is JSON; `chosen` and
    `rejected` are null in a dialogue. The rest are sizes: `asked` bytes in `asking` turns that ask, `said` bytes in
    `saying` answers; of a pair these are its prompt and its chosen answer, beside `refused` bytes of the other. Of a
    prompt whose answers tie both are empty: nothing is `said`.
    """
    import pyarrow as pa

    numbers = [(name, pa.uint64()) for name in ("id", "key")]
    sizes = [(name, pa.int64()) for name in ("row", "asked", "asking", "said", "saying", "refused")]
    return pa.schema([*numbers, *sizes, *((name, pa.large_string()) for name in ("turns", "chosen", "rejected"))])


def record(item: Pair | Dialogue, key: str) -> tuple[Any, ...]:
    """An item as a row of a table, its values in the order of the columns."""
    turns = item.prompt if isinstance(item, Pair) else item.messages
    text = json.dumps(plain(turns), ensure_ascii=False, separators=(",", ":"))
    head = (int(item.id, 16), int(key[:16], 16), item.row)
    if isinstance(item, Pair):
        sizes = (_bytes(turns), len(turns), len(item.chosen.encode()), 1, len(item.rejected.encode()))
        return (*head, *sizes, text, item.chosen, item.rejected)
    said = [turn for turn in turns if turn.role == "assistant"]
    asked = _bytes(turns) - _bytes(said)
    return (*head, asked, len(turns) - len(said), _bytes(said), len(said), 0, text, None, None)


def _bytes(turns: Sequence[Message]) -> int:
    return sum(len(turn.content.encode()) for turn in turns)


def item_of(id_: int, row: int, turns: str, chosen: str | None, rejected: str | None) -> Any:
    """An item from the columns TEXT of its row."""
    messages = tuple(Message(*turn) for turn in json.loads(turns))
    if chosen is None or rejected is None:
        return Dialogue(f"{id_:016x}", messages, row)
    return Pair(f"{id_:016x}", messages, chosen, rejected, row)


class Items(Sequence[Item], Generic[Item]):
    """Some items of some tables, each made when it is asked for; `places` numbers the rows of all tables in turn."""

    def __init__(self, tables: Sequence[Table], places: NDArray[np.int64]) -> None:
        self.tables, self.places = tuple(tables), places

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, number: int) -> Item: ...
    @overload
    def __getitem__(self, number: slice) -> Items[Item]: ...
    def __getitem__(self, number: int | slice) -> Item | Items[Item]:
        if isinstance(number, slice):
            return Items(self.tables, self.places[number])
        one: Items[Item] = Items(self.tables, self.places[[number]])
        return next(iter(one))

    def at(self, numbers: NDArray[np.int64]) -> Items[Item]:
        """Those of some numbers."""
        return Items(self.tables, self.places[numbers])

    def firsts(self, column: str) -> NDArray[np.int64]:
        """The numbers of the first ones with each value of a column, ascending."""
        import numpy as np

        return np.sort(np.unique(self.values(column), return_index=True)[1])

    def __iter__(self) -> Iterator[Item]:
        return (item_of(*values) for values in self.records(TEXT))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or len(other) != len(self):
            return False
        return all(one == two for one, two in zip(self, other, strict=True))

    def records(self, columns: Sequence[str]) -> Iterator[tuple[Any, ...]]:
        """The values of some columns of each."""
        import numpy as np

        starts = np.cumsum([0, *map(len, self.tables)])
        for start in range(0, len(self), BATCH):
            places = self.places[start : start + BATCH]
            owners = np.searchsorted(starts, places, "right") - 1
            for low, high in runs(owners):
                owner = int(owners[low])
                yield from self.tables[owner].records(places[low:high] - starts[owner], columns)

    @property
    def digest(self) -> str:
        """sha256 of their ids, and so of what they say."""
        return hashlib.sha256(self.values("id").tobytes()).hexdigest()

    def values(self, column: str) -> NDArray[Any]:
        """[n] of a column of numbers."""
        import numpy as np

        return np.concatenate([held.values(column) for held in self.tables])[self.places]

    def of_half(self, half: str, name: str, setting: str = "") -> Items[Item]:
        """Those of some held-out items of the data `name` whose prompts are of a half. DataError where none are, with
        the `setting` that takes all of them."""
        import numpy as np

        if half == "all":
            return self
        kept = np.flatnonzero(in_half(self.values("key"), half))
        if not len(kept):
            hint = f", or use all of them: --set {setting}=all" if setting else ""
            raise DataError(
                f"none of the held-out prompts of {name} falls into the half used for {half}",
                f"use data with more held-out prompts{hint}",
            )
        return self.at(kept)


@dataclass(frozen=True)
class FileItems:
    """The sound items of one file and the name of its shape ("" without any row); how many rows it has, the first
    problems, each after the number of its row, how many rows were unusable or hold no example, by kind; remarks with
    the number of rows that each is about; what nothing read; all columns, and whether they are read. `made_from` names
    the table of the items; None for rows that have no file.
    """

    name: str
    items: Table
    made_from: Any
    shape: str
    rows: int
    problems: tuple[tuple[int, str], ...]
    bad: Counter[str]
    passed: Counter[str]
    remarks: Counter[str]
    unread: tuple[Unread, ...]
    columns: Mapping[str, bool]

    @property
    def is_prompts(self) -> bool:
        """Whether its items are prompts alone."""
        return self.shape == PROMPT.name


def read_items(part: Source, purpose: Purpose) -> FileItems:
    """All sound items of one file, as it was read first; its problems are for whoever uses them.

    Raises DataError for an unknown shape, and for a file that changes meanwhile.
    """
    facts = facts_of(part)
    made_from = facts and ["items", purpose, part.text, part.columns, facts, code_digest()]
    made = table("items", made_from, schema(), lambda add: _fill(part, purpose, add))
    if facts != facts_of(part):
        raise DataError(
            f"{part.text} changed while it was being read",
            "wait until nothing writes to it, then run the command again",
        )
    about = made.about
    bad, passed, remarks = (Counter(about[name]) for name in ("bad", "passed", "remarks"))
    unread = tuple(Unread(**each) for each in about["unread"])
    problems = tuple((row, words) for row, words in about["problems"])
    return FileItems(
        part.text, made, made_from, about["shape"], about["rows"], problems, bad, passed, remarks, unread,
        about["columns"],
    )  # fmt: skip


def facts_of(part: Source) -> list[Any] | None:
    """What tells the content of a file from any other. None for rows that are in no file, and of which nothing tells.

    Waits until the clock has moved on since a file was written, which may else change again without another time.
    """
    if part.content:
        return [part.content]
    if part.path is None or not part.path.is_file():
        return None
    written = os.stat(part.path).st_ctime_ns
    tick = COARSE_TICK if written % 10**9 == 0 else TICK
    time.sleep(min(tick, max(0.0, tick - (time.time() - written / 1e9))))
    return file_facts(part.path)


class Rows:
    """The rows of one file, read again each time that they are walked through."""

    def __init__(self, part: Source) -> None:
        self.part = replace(part, rows=part.rows()) if callable(part.rows) else part
        self.count = 0

    def all(self, what: str) -> Iterator[tuple[int, Row | Problem]]:
        """All of them; `what` is done with them meanwhile."""
        return watched(read_part(self.part), f"{what} {self.part.text}", self.count)

    def sound(self, what: str) -> Iterator[Numbered]:
        """Those that can be read."""
        return ((number, row) for number, row in self.all(what) if not isinstance(row, Problem))


class Problems:
    """What is wrong with rows of one file: how many there are of each kind, and the first ones in words."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.kinds: Counter[str] = Counter()
        self.first: list[tuple[int, str]] = []
        """Each after the number of its row, by these."""

    def add(self, number: int, problem: Problem) -> None:
        """What is wrong with a row."""
        self.kinds[problem.kind] += 1
        where = f"{self.file} row {number}" + (f", {problem.field}" if problem.field else "")
        self.first = sorted([*self.first, (number, f"{where}: {problem.content} ({problem.fix})")])[:SHOWN_PROBLEMS]


def _fill(part: Source, purpose: Purpose, add: Callable[..., None]) -> Mapping[str, Any]:
    """Write the items of a file down; what else is to be known of it."""
    rows, sample, names = Rows(part), dict[str, Any](), dict[str, None]()
    problems, remarks, passed, unread = Problems(part.text), Counter[str](), Counter[str](), UnreadColumns(part.text)
    for number, row in rows.all("reading"):
        rows.count += 1
        if isinstance(row, Problem):
            problems.add(number, row)
        elif row.keys() - sample.keys():
            names.update(dict.fromkeys(row))
            sample.update((name, value) for name, value in row.items() if value is not None and name not in sample)

    def records(prepared: Iterable[Numbered]) -> Iterator[tuple[Any, ...]]:
        for number, row in prepared:
            recorded = Recorded(row)
            try:
                item = make(recorded, number)
                made = record(as_dialogue(item) if purpose == "dialogues" else item, prompt_key(item))
                unread.add(recorded, item)
            except Passed as reason:
                passed[reason.kind] += 1
                if isinstance(reason, Tie) and purpose == "pairs":
                    with contextlib.suppress(Problem):
                        tie = make_prompt(reason.prompt, number)
                        yield record(tie, prompt_key(tie))
            except Problem as problem:
                problems.add(number, problem)
            else:
                yield made

    shape, columns = "", schema()
    if rows.count > problems.kinds.total():
        shape, make, prepare = _maker(part, sample, names, purpose, remarks)
        every = records(prepare(rows.sound, remarks))
        for batch in iter(lambda: list(itertools.islice(every, BATCH)), []):
            add(record_batch(list(zip(*batch, strict=True)), columns), rows.count)
    return {
        "shape": shape, "rows": rows.count, "problems": problems.first, "bad": problems.kinds, "passed": passed,
        "remarks": remarks, "unread": [asdict(each) for each in unread.all()],
        "columns": {name: name in unread.read for name in names},
    }  # fmt: skip


def _maker(
    part: Source, sample: Row, names: Iterable[str], purpose: Purpose, remarks: Counter[str]
) -> tuple[str, Callable[[Row, int], Pair | Dialogue], Prepare]:
    """The shape of rows with these columns, what makes an item of one, and what is done to them before.

    Preference data make pairs for either purpose. Dialogues that are trimmed are counted in `remarks`.
    """
    check_columns(part, names)
    if purpose == "dialogues" and (turns := detect(DIALOGUES, sample)):
        return turns.name, partial(_dialogue, turns.read, remarks), turns.prepare
    if purpose == "prompts" and PROMPT.fits(sample):
        return PROMPT.name, lambda row, number: make_prompt(PROMPT.read(row), number), PROMPT.prepare
    if sides := detect(PAIRS, sample):
        return sides.name, partial(_pair, sides.read), sides.prepare
    raise unknown_shape(part, sample, names, "pairs" if purpose == "prompts" else purpose)


def _dialogue(read: Callable[[Row], Prompt], remarks: Counter[str], row: Row, number: int) -> Dialogue:
    messages = read(row)
    kept = trimmed(messages)
    dialogue = make_dialogue(kept, number)
    remarks[TRIMMED] += kept != messages
    return dialogue


def _pair(read: Callable[[Row], Sides], row: Row, number: int) -> Pair:
    return make_pair(*read(row), number)
