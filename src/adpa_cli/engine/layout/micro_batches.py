"""Rows cut into batches by a token budget: blocks of an inference stage, and micro-batches of a training step.

A block's shape decides its rounding, so that cut depends on the rows alone: never on processes, resume or device. How a
step is cut into micro-batches is a matter of the machine, and never changes more than rounding.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from adpa_cli.engine.device import ROOM
from adpa_cli.engine.layout.examples import Example
from adpa_cli.errors import AdpaError

Item = TypeVar("Item")
Of = TypeVar("Of", covariant=True)


class Load(NamedTuple):
    """How many rows a batch has, their tokens, and the tokens of the longest."""

    rows: int = 0
    tokens: int = 0
    longest: int = 0

    @property
    def padded(self) -> int:
        """Tokens where every row is as long as the longest."""
        return self.rows * self.longest


def consecutive_batches(
    items: Iterable[Item], length_of: Callable[[Item], int], fits: Callable[[Load], bool], least: float = 0
) -> list[list[Item]]:
    """`items`, in their order, in batches that are as long as their load `fits`.

    A batch of one may exceed that, and one of fewer than `least` tokens takes the next item anyway.
    """
    batches: list[list[Item]] = []
    load = Load()
    for item in items:
        length = length_of(item)
        more = Load(load.rows + 1, load.tokens + length, max(load.longest, length))
        if batches and (load.tokens < least or fits(more)):
            batches[-1].append(item)
            load = more
        else:
            batches.append([item])
            load = Load(1, length, length)
    return batches


def padded(rows: Sequence[Sequence[int]], filler: int = 0, side: str = "right") -> Tensor:
    """[B,T] int64 of rows that are as long as the longest with `filler` on one side."""
    tensors = [torch.tensor(row, dtype=torch.int64) for row in rows]
    return pad_sequence(tensors, batch_first=True, padding_value=filler, padding_side=side)


@dataclass(frozen=True)
class Block(Generic[Item]):
    """Rows that are computed together; `index` numbers the blocks of a stage from 0, shortest rows first."""

    index: int
    items: Sequence[Item]


class Many(Protocol[Of]):
    """Rows that are made when they are asked for."""

    def at(self, numbers: NDArray[np.int64]) -> Sequence[Of]:
        """Those of some numbers."""


def cut_blocks(
    items: Iterable[Item], length_of: Callable[[Item], int], id_of: Callable[[Item], str], tokens: int
) -> list[Block[Item]]:
    """`items` sorted by length then id, cut so that longest × count, the padded size, is at most `tokens`.

    A row longer than `tokens` has a block of its own. Raises AdpaError where two rows share an id (the order, and so
    the cut, would depend on the order given) or where `tokens` is below 1.
    """
    ordered = sorted(items, key=lambda item: (length_of(item), id_of(item)))
    _check_ids([id_of(item) for item in ordered])
    edges = _edges(np.array([length_of(item) for item in ordered]), tokens)
    return [Block(index, tuple(ordered[low:high])) for index, (low, high) in enumerate(pairwise(edges))]


def mapped_blocks(
    items: Many[Item], lengths: NDArray[Any], ids: Sequence[NDArray[Any]], tokens: int
) -> tuple[list[Block[Item]], list[NDArray[np.int64]]]:
    """The blocks of `cut_blocks` for rows that are not in memory, and the numbers of the rows in each.

    `lengths` [n] are those of the rows; by the columns `ids` [n] rows of one length are sorted, and no two are alike.
    """
    order = np.lexsort((*reversed(ids), lengths))
    by_id = np.lexsort(tuple(reversed(ids)))
    alike = np.all([column[by_id[1:]] == column[by_id[:-1]] for column in ids], axis=0)
    if alike.any():
        raise _two_of(" ".join(str(column[by_id[alike.argmax()]]) for column in ids))
    numbers = [order[low:high] for low, high in pairwise(_edges(lengths[order], tokens))]
    return [Block(index, items.at(own)) for index, own in enumerate(numbers)], numbers


def _check_ids(ids: Iterable[str]) -> None:
    seen: set[str] = set()
    for id_ in ids:
        if id_ in seen:
            raise _two_of(id_)
        seen.add(id_)


def _two_of(id_: str) -> AdpaError:
    return AdpaError(f"two rows have the same id {id_!r}", "give every row its own id")


def _edges(lengths: NDArray[Any], tokens: int) -> list[int]:
    """Where blocks begin, and the end: of rows by ascending `lengths`, as many as longest × count ≤ `tokens` allows."""
    if tokens < 1:
        raise AdpaError(f"the number of tokens per block must be 1 or more; got {tokens}", "use 1 or more")
    edges = [0]
    while edges[-1] < len(lengths):
        start = edges[-1]
        longest = lengths[start : start + max(1, tokens // max(1, int(lengths[start])))]
        fitting = np.count_nonzero(longest.astype(np.int64) * np.arange(1, len(longest) + 1) <= tokens)
        edges.append(start + max(1, int(fitting)))
    return edges


def longest_first(batches: Sequence[Item]) -> list[Item]:
    """Batches that are sorted by length, with the last one first: what does not fit or overflows shows at once."""
    return [*batches[-1:], *batches[:-1]]


def by_length(lengths: Sequence[int]) -> list[int]:
    """Positions of `lengths`, shortest first; of equal ones the first comes first."""
    return sorted(range(len(lengths)), key=lambda i: (lengths[i], i))


def step_batches(
    examples: Sequence[Example], parts: int, tokens: int, processes: int, packed: bool
) -> list[list[list[int]]]:
    """The micro-batches of each process as positions into `examples`, which have `parts` sequences each."""
    if packed:
        return packed_batches([example.size for example in examples], tokens, processes)
    return micro_batches([example.length for example in examples], parts, tokens, processes)


def micro_batches(lengths: Sequence[int], parts: int, tokens: int, processes: int = 1) -> list[list[list[int]]]:
    """Cut a step's examples into padded micro-batches: for each process a list of lists of positions into `lengths`.

    Examples are sorted by length and dealt out in turn, so that processes carry equal loads; then cut so that
    longest x count x `parts`, the padded size, is at most `tokens`. Every process gets equally many micro-batches;
    those that run out repeat an example, which the caller must weigh 0: an empty list stands for that.
    """

    def cut(own: Sequence[int]) -> list[list[int]]:
        return consecutive_batches(own, lengths.__getitem__, lambda load: load.padded * parts <= tokens)

    return _dealt(lengths, processes, cut)


def packed_batches(sizes: Sequence[int], tokens: int, processes: int = 1) -> list[list[list[int]]]:
    """`micro_batches` without padding: the `sizes` of the examples of one add up to at most `tokens`.

    There are as few as that allows, and they are about equally large, which leaves the most memory free.
    """

    def cut(own: Sequence[int], most: int) -> list[list[int]]:
        return consecutive_batches(own, sizes.__getitem__, lambda load: load.tokens <= most)

    def balanced(own: Sequence[int]) -> list[list[int]]:
        fewest = len(cut(own, tokens))
        least = 1 + bisect.bisect_left(range(1, tokens), True, key=lambda most: len(cut(own, most)) <= fewest)
        return cut(own, least)

    return _dealt(sizes, processes, balanced)


def _dealt(
    lengths: Sequence[int], processes: int, cut: Callable[[Sequence[int]], list[list[int]]]
) -> list[list[list[int]]]:
    order = by_length(lengths)
    dealt = [cut(order[rank::processes]) for rank in range(processes)]
    most = max(len(batches) for batches in dealt)
    return [batches + [[] for _ in range(most - len(batches))] for batches in dealt]


def smaller_budget(
    dealt: Sequence[Sequence[Sequence[int]]], examples: Sequence[Example], parts: int, packed: bool, stage: str
) -> int:
    """Half of the largest micro-batch that can be cut; AdpaError when each is a single example already."""
    longest = max(example.length for example in examples)
    divisible = [[examples[i] for i in batch] for batches in dealt for batch in batches if len(batch) > 1]
    if not divisible:
        key = f"{stage}.max_length" if stage else "max_length"
        raise AdpaError(
            f"one row of {parts} × {longest:,} tokens does not fit in memory, with the weights and their optimizer",
            f"--set {key}={max(1, longest // 2)}, or {ROOM}",
        )
    if packed:
        return max(1, max(sum(e.size for e in batch) for batch in divisible) // 2)
    return max(1, max(max(e.length for e in batch) * len(batch) * parts for batch in divisible) // 2)
