"""Examples, answers and prompts out of tables of token ids, each made when a step or a block asks for it.

A row of such a table (`layout/tokenised.py` makes it) is an example: its `prompt` and the answer of each part.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from adpa_cli.data.tables import BATCH, Batch, Table, runs
from adpa_cli.engine.layout.sequences import Answer, Example, TokenSequence
from adpa_cli.signal.rows import AnswerKey

PAIR = ("chosen", "rejected")
DIALOGUE = ("chosen",)
ROLLOUT = ("rollout",)
OTHER_PROMPT, MASK = "rejected_prompt", "chosen_mask"


class Answers(Sequence[Answer]):
    """Some answers of a table, each made when it is asked for.

    `places` [n] numbers them among the rows of the first of `parts`, then of the next.
    """

    def __init__(self, held: Table, parts: Sequence[str], places: NDArray[np.int64] | None = None) -> None:
        self.table, self.parts = held, tuple(parts)
        self.places = np.arange(len(held) * len(self.parts)) if places is None else places

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, number: int) -> Answer: ...
    @overload
    def __getitem__(self, number: slice) -> Answers: ...
    def __getitem__(self, number: int | slice) -> Answer | Answers:
        if isinstance(number, slice):
            return Answers(self.table, self.parts, self.places[number])
        part, batch, at = self._place(number)
        prompt, answer, _ = _ids(batch, part, at)
        key = AnswerKey(_hex(batch.values("id")[at]), part, batch.values(f"{part}_hash")[at].tobytes().hex())
        return Answer(key, tuple(prompt.tolist()), tuple(answer.tolist()), bool(batch.values(f"{part}_cut")[at]))

    def at(self, numbers: NDArray[np.int64]) -> Answers:
        """Those of some numbers."""
        return Answers(self.table, self.parts, self.places[numbers])

    def _place(self, number: int) -> tuple[str, Batch, int]:
        """The part of one, and the rows among which its own is at a place."""
        part, row = divmod(int(self.places[number]), len(self.table))
        return self.parts[part], *self.table.place(row)

    def name(self, number: int) -> tuple[str, str]:
        """The example id and the part in the key of one."""
        part, batch, at = self._place(number)
        return _hex(batch.values("id")[at]), part

    def sequence(self, number: int) -> TokenSequence:
        """The token ids of one, with a mask on what is trained."""
        part, batch, at = self._place(number)
        return sequence_of(batch, part, at)

    def answer_keys(self) -> Iterator[AnswerKey]:
        """What names them in a signal."""
        for start in range(0, len(self), BATCH):
            numbers, rows = np.divmod(self.places[start : start + BATCH], max(1, len(self.table)))
            for low, high in runs(numbers):
                part = self.parts[numbers[low]]
                for id_, tokens in self.table.records(rows[low:high], ("id", f"{part}_hash")):
                    yield AnswerKey(_hex(id_), part, tokens.hex())

    @property
    def ids(self) -> NDArray[np.uint64]:
        """[n] the ids of their examples, as numbers."""
        return self.table.values("id")[self.places % max(1, len(self.table))]

    @property
    def prompts(self) -> NDArray[np.int32]:
        """[n] tokens of the prompt of each."""
        return self._of_parts([_prompt_lengths(self.table, part) for part in self.parts])

    @property
    def tokens(self) -> NDArray[np.int32]:
        """[n] tokens of each, without the prompt."""
        return self._of_parts([self.table.lengths(part) for part in self.parts])

    @property
    def trained(self) -> int:
        """How many tokens of all of them are trained."""
        every = int(self.tokens.sum(dtype=np.int64))
        if MASK not in self.table.columns:
            return every
        masks, rows = self.table.lengths(MASK), self.places % len(self.table)
        return every - sum(int((self._mask(row) == 0).sum()) for row in rows[masks[rows] > 0].tolist())

    def _mask(self, row: int) -> NDArray[np.uint8]:
        batch, at = self.table.place(row)
        return batch.list(MASK, at)

    def _of_parts(self, columns: Sequence[NDArray[Any]]) -> NDArray[Any]:
        return np.concatenate(columns)[self.places]


class PromptGroups:
    """Answers in groups: those of an example that follow one prompt, which may have been cut in different ways.

    Of group n `lengths` [n] are the tokens of the prompt and of all answers to it, `tokens` [n] those of the answers
    alone; `ids` are the columns that name its first answer.
    """

    def __init__(self, answers: Answers, shared: bool) -> None:
        """With `shared` False each answer is a group by itself."""
        self.answers, rows = answers, len(answers.table)
        self.firsts = np.arange(len(answers))
        self.has_partner = np.zeros(len(answers), bool)
        self.lengths, self.tokens = answers.prompts + answers.tokens, answers.tokens
        if shared and answers.parts == PAIR:
            alike = answers.table.lengths(OTHER_PROMPT) == 0
            self.has_partner = np.r_[alike, np.zeros(rows, bool)]
            self.firsts = np.flatnonzero(np.r_[np.ones(rows, bool), ~alike])
            for column in (self.lengths, self.tokens):
                column[:rows] += np.where(alike, answers.tokens[rows:], 0)
        parts = self.firsts // max(1, rows)
        self.lengths, self.tokens = self.lengths[self.firsts], self.tokens[self.firsts]
        self.ids = (answers.ids[self.firsts], parts.astype(np.int8))

    def at(self, numbers: NDArray[np.int64]) -> Answers:
        """The answers of some groups, those of a group after one another."""
        firsts = self.firsts[numbers]
        both = np.stack([firsts, firsts + len(self.answers.table)], 1)
        return self.answers.at(both[np.stack([np.ones(len(firsts), bool), self.has_partner[firsts]], 1)])


class Examples(Sequence[Example]):
    """Some examples, made when they are asked for; answer n of each part is of example n."""

    def __init__(self, parts: dict[str, Answers], ids: NDArray[np.uint64]) -> None:
        self.parts, self.ids = parts, ids

    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, number: int) -> Example: ...
    @overload
    def __getitem__(self, number: slice) -> Examples: ...
    def __getitem__(self, number: int | slice) -> Example | Examples:
        if isinstance(number, slice):
            return Examples({part: answers[number] for part, answers in self.parts.items()}, self.ids[number])
        id_, sequences = _hex(self.ids[number]), {part: own.sequence(number) for part, own in self.parts.items()}
        names = {part: own.name(number) for part, own in self.parts.items()}
        return Example(id_, sequences, {part: name for part, name in names.items() if name != (id_, part)})

    def at(self, numbers: NDArray[np.int64]) -> Examples:
        """Those of some numbers."""
        return Examples({part: answers.at(numbers) for part, answers in self.parts.items()}, self.ids[numbers])

    @property
    def lengths(self) -> NDArray[np.int32]:
        """[parts, n] tokens of every sequence."""
        every = [answers.prompts + answers.tokens for answers in self.parts.values()]
        return np.array(every, dtype=np.int32).reshape(len(every), len(self))

    @property
    def tokens(self) -> int:
        """Tokens of all answers that are trained."""
        return sum(answers.trained for answers in self.parts.values())


class Prompts(Mapping[str, tuple[int, ...]]):
    """The token ids of prompts by their names, which are `names` [n] as 16 hex digits: row n of a table has name n."""

    def __init__(self, held: Table, names: NDArray[np.uint64]) -> None:
        self.table, self.names = held, names
        self._order = names.argsort(kind="stable")

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[str]:
        return map(_hex, self.names)

    def __getitem__(self, name: str) -> tuple[int, ...]:
        number = np.uint64(int(name, 16))
        place = int(np.searchsorted(self.names, number, sorter=self._order))
        if place == len(self) or self.names[self._order[place]] != number:
            raise KeyError(name)
        return self._ids(int(self._order[place]))

    def _ids(self, row: int) -> tuple[int, ...]:
        batch, at = self.table.place(row)
        return tuple(batch.list("prompt", at).tolist())

    @property
    def lengths(self) -> NDArray[np.int32]:
        """[n] tokens of each."""
        return self.table.lengths("prompt")

    def at(self, numbers: NDArray[np.int64]) -> list[tuple[str, tuple[int, ...]]]:
        """(name, token ids) of those of some numbers."""
        return [(_hex(self.names[number]), self._ids(int(number))) for number in numbers]


def _hex(id_: Any) -> str:
    return f"{int(id_):016x}"


def _prompt_lengths(held: Table, part: str) -> NDArray[np.int32]:
    lengths = held.lengths("prompt")
    if part != "rejected":
        return lengths
    own = held.lengths(OTHER_PROMPT)
    return np.where(own > 0, own, lengths)


def _ids(batch: Batch, part: str, row: int) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.uint8]]:
    """The prompt of one part of an example, its answer, and what of that is trained, empty for all."""
    prompt, mask = batch.list("prompt", row), np.zeros(0, np.uint8)
    if part == "rejected" and len(own := batch.list(OTHER_PROMPT, row)):
        prompt = own
    if MASK in batch:
        mask = batch.list(MASK, row)
    return prompt, batch.list(part, row), mask


def sequence_of(batch: Batch, part: str, row: int) -> TokenSequence:
    """The token ids of one part of an example, with a mask on what is trained."""
    prompt, answer, mask = _ids(batch, part, row)
    ids = np.concatenate([prompt, answer])
    trained = np.arange(len(ids)) >= len(prompt)
    if len(mask):
        trained[len(prompt) :] = mask
    return TokenSequence(ids, trained)


def rows_of(wanted: NDArray[np.uint64], there: NDArray[np.uint64]) -> NDArray[np.int64]:
    """[n] where each of the `wanted` ids stands among those that are there; -1 for those that are not."""
    order = there.argsort(kind="stable")
    at = order[np.searchsorted(there, wanted, sorter=order).clip(max=max(0, len(there) - 1))] if len(there) else None
    return np.full(len(wanted), -1) if at is None else np.where(there[at] == wanted, at, -1)
