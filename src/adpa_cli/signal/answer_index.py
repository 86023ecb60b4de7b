"""The keys of many answers in little memory: as compact texts, and as sorted hashes by which an answer is found."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, islice, pairwise
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from adpa_cli.signal.rows import AnswerKey

SIDES: tuple[Literal["left"], Literal["right"]] = ("left", "right")
CHUNK = 1 << 12
"""Keys that are looked for at a time."""


class Texts(Sequence[str]):
    """Texts that are held as one, and where each ends: 4 bytes beside its characters."""

    def __init__(self, texts: Iterable[str]) -> None:
        texts = list(texts)
        self._all = "".join(texts)
        self._ends = array("I" if len(self._all) < 1 << 32 else "Q", accumulate(map(len, texts), initial=0))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, i: Any) -> Any:
        return self._all[self._ends[i] : self._ends[i + 1]]

    def __iter__(self) -> Iterator[str]:
        return (self._all[start:end] for start, end in pairwise(self._ends))


class AnswerKeys(Sequence[AnswerKey]):
    """Keys that are made when they are asked for, from their three columns. Raises ValueError for uneven ones."""

    def __init__(self, *columns: Sequence[str]) -> None:
        if len(set(map(len, columns))) > 1:
            raise ValueError("the columns of the keys are not equally long")
        self._columns = tuple(map(Texts, columns))

    def __len__(self) -> int:
        return len(self._columns[0])

    @overload
    def __getitem__(self, i: int) -> AnswerKey: ...
    @overload
    def __getitem__(self, i: slice) -> tuple[AnswerKey, ...]: ...
    def __getitem__(self, i: int | slice) -> AnswerKey | tuple[AnswerKey, ...]:
        if isinstance(i, slice):
            return tuple(self[n] for n in range(*i.indices(len(self))))
        at = range(len(self))[i]
        return AnswerKey(*[column[at] for column in self._columns])

    def __iter__(self) -> Iterator[AnswerKey]:
        return map(AnswerKey, *self._columns)


def name_hash(example_id: str, part: str) -> int:
    """64 bits of the name of an answer, for this process alone; who asks compares the name too."""
    return hash((example_id, part))


def tokens_hash(tokens: str) -> int:
    """32 bits of the hash of an answer's tokens."""
    return hash(tokens) & 0xFFFFFFFF


class AnswerIndex:
    """Where answers stand among those that were added, counted from 0: 8 to 16 bytes each, sorted by `name_hash`.

    `add` takes all keys in their order, then `sort` is called once, before anything is looked up.
    """

    def __init__(self) -> None:
        self._added = (array("q"), array("I"))
        self.parts = set[str]()
        """Those of all answers."""

    def add(self, keys: Iterable[AnswerKey]) -> None:
        """Number more answers."""
        names, tokens = self._added
        for key in keys:
            names.append(name_hash(key.example_id, key.part))
            tokens.append(tokens_hash(key.tokens))
            self.parts.add(key.part)

    def sort(self) -> None:
        """Make the answers that were added known."""
        names, tokens = map(np.asarray, self._added)
        self._added = (array("q"), array("I"))
        order = names.argsort(kind="stable").astype(np.min_scalar_type(len(names)))
        self._names: NDArray[np.int64] = names[order]
        self._tokens: NDArray[np.uint32] = tokens[order]
        self._places: NDArray[Any] = order

    def __len__(self) -> int:
        return len(self._names)

    def places(self, example_id: str, part: str) -> list[int]:
        """Where answers stand that may have this name; all whose hash is the same, in order."""
        name = name_hash(example_id, part)
        first = end = int(self._names.searchsorted(name))
        while end < len(self._names) and self._names[end] == name:
            end += 1
        return [int(place) for place in self._places[first:end]]

    def namesakes(self) -> Iterator[list[int]]:
        """The places of answers that may have one name, where several do."""
        alike = np.flatnonzero(self._names[1:] == self._names[:-1])
        for first in alike[np.diff(alike, prepend=-2) > 1].tolist():
            yield self._places[first : int(self._names.searchsorted(self._names[first], "right"))].tolist()

    def missing(self, keys: Iterable[AnswerKey]) -> Iterator[AnswerKey]:
        """The keys that no answer has, by name and tokens, as far as their 96 bits of hashes tell."""
        waiting = iter(keys)
        while chunk := list(islice(waiting, CHUNK)):
            names = np.array([name_hash(key.example_id, key.part) for key in chunk])
            tokens = np.array([tokens_hash(key.tokens) for key in chunk], dtype=np.uint32)
            low, high = (self._names.searchsorted(names, side) for side in SIDES)
            there = np.zeros(len(chunk), dtype=np.bool_)
            for step in range(int((high - low).max())):
                at = np.minimum(low + step, len(self) - 1)
                there |= (low + step < high) & (self._tokens[at] == tokens)
            yield from (key for key, is_there in zip(chunk, there.tolist(), strict=True) if not is_there)
