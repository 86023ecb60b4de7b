"""The cut of rows into blocks depends on the rows alone and keeps to its budget."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from adpa_cli.engine.layout.micro_batches import Block, cut_blocks, mapped_blocks
from adpa_cli.errors import AdpaError

Row = tuple[str, int]


def cut(rows: list[Row], tokens: int) -> list[Block[Row]]:
    return cut_blocks(rows, lambda row: row[1], lambda row: row[0], tokens)


def test_a_hand_worked_cut() -> None:
    rows = [("d", 4), ("a", 2), ("c", 3), ("b", 2), ("e", 11)]
    assert cut(rows, 8) == [
        Block(0, (("a", 2), ("b", 2))),  # a third row of 3 would pad to 9
        Block(1, (("c", 3), ("d", 4))),
        Block(2, (("e", 11),)),  # longer than the budget: alone
    ]


def test_no_rows_give_no_blocks() -> None:
    assert cut([], 8) == []


@given(st.lists(st.integers(1, 40), max_size=30), st.integers(1, 100), st.randoms())
def test_every_row_is_in_one_block_within_the_budget_in_any_order(
    lengths: list[int], tokens: int, order: random.Random
) -> None:
    rows = [(f"row-{number}", length) for number, length in enumerate(lengths)]
    blocks = cut(rows, tokens)
    assert sorted(row for block in blocks for row in block.items) == sorted(rows)
    assert [block.index for block in blocks] == list(range(len(blocks)))
    for block in blocks:
        longest = max(length for _, length in block.items)
        assert len(block.items) == 1 or longest * len(block.items) <= tokens
    shuffled = list(rows)
    order.shuffle(shuffled)
    assert cut(shuffled, tokens) == blocks


def test_ids_that_repeat_and_empty_budgets_are_refused() -> None:
    with pytest.raises(AdpaError, match="'a'"):
        cut([("a", 1), ("a", 2)], 8)
    with pytest.raises(AdpaError, match="1 or more; got 0"):
        cut([("a", 1)], 0)


@pytest.mark.parametrize("tokens", [1, 40, 4096])
def test_rows_that_are_not_in_memory_are_cut_like_those_that_are(tokens: int) -> None:
    draw = np.random.default_rng(0)
    lengths, ids = draw.integers(1, 20, 200), draw.permutation(200)

    class Numbers:
        def at(self, numbers: NDArray[np.int64]) -> list[int]:
            return [int(number) for number in numbers]

    expected = cut_blocks(range(200), lambda n: int(lengths[n]), lambda n: f"{ids[n]:04}", tokens)
    blocks, numbers = mapped_blocks(Numbers(), lengths, [ids], tokens)
    assert [(b.index, list(b.items)) for b in blocks] == [(b.index, list(b.items)) for b in expected]
    assert [own.tolist() for own in numbers] == [list(b.items) for b in expected]
    with pytest.raises(AdpaError, match="two rows have the same id"):
        mapped_blocks(Numbers(), lengths, [ids // 2], tokens)
