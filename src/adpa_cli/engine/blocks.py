"""Blocks: the fixed cut of an inference stage's rows, computed whole, in one shape, by one process.

A block's shape decides its rounding, so the cut depends on the rows alone: never on processes, resume or device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

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
