"""The columns of a row that nothing reads: which they are, what is said of them, and which of them are an error.

A column that is lost without a word may be half of what a model should see. Metadata are listed. A column whose name
says that it belongs to the example is an error, unless it repeats what was read.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from adpa_cli.data.examples import Dialogue, Pair, Problem
from adpa_cli.data.shapes import PROMPTS, SYSTEM, Recorded
from adpa_cli.data.turns import turns_of, unread_keys

SHOWN_NAMES = 12
CONTENT = {
    "prompt", "question", "query", "instruction", "input", "inputs", "messages", "conversations",
    *SYSTEM, "history", "context", "contexts", "document", "documents", "passage", "passages",
    "tools", "functions", "image", "images", "video", "videos", "audio", "audios",
    "image_path", "image_paths", "image_url", "image_urls", "reasoning_content", "thinking",
    "problem", "post", "article", "trajectory", "conversation", "dialogue", "dialog", "chat",
}  # fmt: skip
"""Columns whose name says that they belong to an example: one that nothing reads is an error. Capitals, spaces and
hyphens make no difference."""
LABELS = ("label", "kto_tag")
"""Columns that tell good answers from bad ones: dialogues of which some are bad are an error too."""
TURN_CONTENT = {"tools", "functions", "function_calls", "reasoning", "thinking", "parts", "image", "images", "video",
                "videos", "audio", "audios", "file", "files", "documents", "attachments"}  # fmt: skip
"""Likewise the keys of a turn."""
ENOUGH = 1000
"""Rows in which a column merely repeats what is read, after which nobody looks whether it still does."""
LONG_TEXT = 32
"""Characters of a text that stands inside another one by no chance."""


@dataclass(frozen=True)
class Unread:
    """A column of a file (or a key of its turns, as `messages[].images`) that holds something and that nothing read.

    `row` is the first where it does and where it does not merely repeat what was read, with its `value`. `is_content`
    when its name says that it belongs to the example, and it does not repeat it in most rows.
    """

    file: str
    column: str
    row: int
    value: str
    is_content: bool


class UnreadColumns:
    """Collects what nothing reads of the rows of one file."""

    def __init__(self, file: str) -> None:
        self.file = file
        self._first: dict[str, tuple[int, str]] = {}
        self._own: Counter[str] = Counter()
        self._repeated: Counter[str] = Counter()
        self.read: set[str] = set()

    def add(self, row: Recorded, item: Pair | Dialogue) -> None:
        """What was not read of the row that gave an item."""
        said: set[str] | None = None
        is_asked = any(plain_name(name) in PROMPTS for name, _ in row.items_read())
        for name, value in row.items_unread():
            if _is_bad(name, value, item):
                self._lost(name, item.row, value)
                continue
            if plain_name(name) not in CONTENT and (is_asked or not nearest(name, PROMPTS)):
                self._first.setdefault(name, (item.row, ""))
                continue
            if self._repeated[name] >= ENOUGH and not self._own[name]:
                continue
            said = _texts(item) if said is None else said
            if _repeats(name, value, said, item):
                self._repeated[name] += 1
            else:
                self._lost(name, item.row, value)
        for name, value in row.items_read():
            self.read.add(name)
            for key, said_apart, is_untrained in unread_keys(value):
                column = f"{name}[].{key}"
                if key in TURN_CONTENT or is_untrained:
                    self._lost(column, item.row, said_apart)
                else:
                    self._first.setdefault(column, (item.row, ""))

    def _lost(self, name: str, row: int, value: object) -> None:
        """Count a column that belongs to the example in this row."""
        self._own[name] += 1
        if self._own[name] == 1:
            self._first[name] = (row, _shown(value))

    def all(self) -> tuple[Unread, ...]:
        """Each column that nothing read."""
        lost = {name for name, count in self._own.items() if count > self._repeated[name]}
        names = dict.fromkeys([*self._repeated, *self._own, *self._first])
        places = {name: self._first.get(name, (0, "")) for name in names}
        return tuple(Unread(self.file, name, *places[name], name in lost) for name in names)


def plain_name(name: str) -> str:
    """The name of a column as `CONTENT` has it."""
    return re.sub(r"[\W_]+", "_", name.strip().lower())


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name that a column is a misspelling of; "" where there is none."""
    return next(iter(difflib.get_close_matches(plain_name(name), list(known), 1, 0.85)), "")


def _is_bad(name: str, value: object, item: Pair | Dialogue) -> bool:
    """Whether a column says that the answer of a dialogue is not to be imitated."""
    return isinstance(item, Dialogue) and plain_name(name) in LABELS and str(value).lower() == "false"


def _texts(item: Pair | Dialogue) -> set[str]:
    """The texts of all turns of an item."""
    turns, answers = (item.prompt, [item.chosen, item.rejected]) if isinstance(item, Pair) else (item.messages, [])
    return {text.strip() for text in (*(turn.content for turn in turns), *answers)}


def _repeats(name: str, value: object, said: Collection[str], item: Pair | Dialogue) -> bool:
    """Whether a column says nothing that an item does not say too. A system turn stands for a column of it."""
    turns = item.prompt if isinstance(item, Pair) else item.messages
    if plain_name(name) in SYSTEM and any(turn.role == "system" for turn in turns):
        return True
    try:
        own = [turn.content.strip() for turn in turns_of(value, name)]
    except Problem:
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
            return False
        own = [each.strip() for each in value]
    return all(text in said or (len(text) >= LONG_TEXT and any(text in one for one in said)) for text in own)


def _shown(value: object) -> str:
    text = " ".join(str(value).split())
    return repr(text if len(text) <= LONG_TEXT else text[:LONG_TEXT] + "…")


def shown_names(names: Sequence[str]) -> str:
    """The first of some names, and how many more there are."""
    more = f", … {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
    return ", ".join(name or '""' for name in names[:SHOWN_NAMES]) + more


def unused_words(unread: Sequence[Unread]) -> list[str]:
    """What is said of the columns that nothing read: those that belong to examples by name, then the others."""
    names = list(dict.fromkeys(each.column for each in unread))
    content = [name for name in names if plain_name(name) in CONTENT or name.rpartition("[].")[2] in TURN_CONTENT]
    others = [name for name in names if name not in content]
    if not names:
        return []
    if not content:
        return [f"not used: columns {shown_names(others)}"]
    return [f"not used: columns {shown_names(content)}" + (f" (metadata: {shown_names(others)})" if others else "")]
