"""Rows cut into batches by a token budget: blocks of an inference stage, and micro-batches of a training step.

A block's shape decides its rounding, so that cut depends on the rows alone: never on processes, resume or device. How a
step is cut into micro-batches is a matter of the machine, and never changes more than rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from adpa_cli.engine.device import ROOM
from adpa_cli.engine.layout.examples import Example
from adpa_cli.engine.layout.row_layout import Packer
from adpa_cli.errors import AdpaError

Item = TypeVar("Item")


@dataclass(frozen=True)
class Block(Generic[Item]):
    """Rows that are computed together; `index` numbers the blocks of a stage from 0, shortest rows first."""

    index: int
    items: tuple[Item, ...]


def cut_blocks(
    items: Iterable[Item], length_of: Callable[[Item], int], id_of: Callable[[Item], str], tokens: int
) -> list[Block[Item]]:
    """`items` sorted by length then id, cut so that longest × count, the padded size, is at most `tokens`.

    A row longer than `tokens` has a block of its own. Raises AdpaError where two rows share an id (the order, and so
    the cut, would depend on the order given) or where `tokens` is below 1.
    """
    if tokens < 1:
        raise AdpaError(f"a block of {tokens} tokens was asked for", "give a token budget of 1 or more")
    ordered = sorted(items, key=lambda item: (length_of(item), id_of(item)))
    seen: set[str] = set()
    blocks: list[Block[Item]] = []
    current: list[Item] = []
    for item in ordered:
        if id_of(item) in seen:
            raise AdpaError(f"two rows have the id {id_of(item)!r}", "give every row an id of its own")
        seen.add(id_of(item))
        if current and length_of(item) * (len(current) + 1) > tokens:
            blocks.append(Block(len(blocks), tuple(current)))
            current = []
        current.append(item)
    if current:
        blocks.append(Block(len(blocks), tuple(current)))
    return blocks


def step_batches(
    examples: Sequence[Example], parts: int, tokens: int, processes: int, packer: Packer | None
) -> list[list[list[int]]]:
    """The micro-batches of each process as positions into `examples`, which have `parts` sequences each."""
    if packer is not None:
        return packed_batches([example.size for example in examples], tokens, processes)
    return micro_batches([example.length for example in examples], parts, tokens, processes)


def less(
    dealt: Sequence[Sequence[Sequence[int]]], examples: Sequence[Example], parts: int, packer: Packer | None, stage: str
) -> int:
    """Half of the largest micro-batch that can be cut; AdpaError when each is a single example already."""
    longest = max(example.length for example in examples)
    cut = [[examples[i] for i in batch] for batches in dealt for batch in batches if len(batch) > 1]
    if not cut:
        key = f"{stage}.max_length" if stage else "max_length"
        raise AdpaError(
            f"one row of {parts} × {longest:,} tokens does not fit in memory, with the weights and their optimizer",
            f"--set {key}={max(1, longest // 2)}, or {ROOM}",
        )
    if packer is not None:
        return max(1, max(sum(e.size for e in batch) for batch in cut) // 2)
    return max(1, max(max(e.length for e in batch) * len(batch) * parts for batch in cut) // 2)


def micro_batches(lengths: Sequence[int], parts: int, tokens: int, processes: int = 1) -> list[list[list[int]]]:
    """Cut a step's examples into padded micro-batches: for each process a list of lists of positions into `lengths`.

    Examples are sorted by length and dealt out in turn, so that processes carry equal loads; then cut so that
    longest x count x `parts`, the padded size, is at most `tokens`. Every process gets equally many micro-batches;
    those that run out repeat an example, which the caller must weigh 0: an empty list stands for that.
    """
    return _dealt(
        lengths, processes, lambda own: _cut(own, tokens, lambda _, count, i: lengths[i] * (count + 1) * parts)
    )


def packed_batches(sizes: Sequence[int], tokens: int, processes: int = 1) -> list[list[list[int]]]:
    """`micro_batches` without padding: the `sizes` of the examples of one add up to at most `tokens`.

    There are as few as that allows, and they are about equally large, which leaves the most memory free.
    """

    def cut(own: Sequence[int], most: int) -> list[list[int]]:
        return _cut(own, most, lambda held, _, i: held + sizes[i])

    def balanced(own: Sequence[int]) -> list[list[int]]:
        fewest = len(cut(own, tokens))
        low, high = 1, tokens
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if len(cut(own, middle)) <= fewest else (middle + 1, high)
        return cut(own, high)

    return _dealt(sizes, processes, balanced)


def _dealt(
    lengths: Sequence[int], processes: int, cut: Callable[[Sequence[int]], list[list[int]]]
) -> list[list[list[int]]]:
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    dealt = [cut(order[rank::processes]) for rank in range(processes)]
    most = max(len(batches) for batches in dealt)
    return [batches + [[] for _ in range(most - len(batches))] for batches in dealt]


def _cut(order: Sequence[int], most: int, size: Callable[[int, int, int], int]) -> list[list[int]]:
    """Consecutive batches; `size` of (size, count, i) is that of a batch of this size and count with i as one more.

    Only a batch of one may exceed `most`.
    """
    batches: list[list[int]] = []
    held = 0
    for i in order:
        if batches and (more := size(held, len(batches[-1]), i)) <= most:
            batches[-1].append(i)
            held = more
        else:
            batches.append([i])
            held = size(0, 0, i)
    return batches
