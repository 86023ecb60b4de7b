"""Every row is met once an epoch, and how a step is cut never changes which rows it holds."""

from __future__ import annotations

import math
from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from adpa_cli.engine.layout.examples import Example, TokenSequence
from adpa_cli.engine.layout.micro_batches import micro_batches, packed_batches
from adpa_cli.engine.training.schedule import learning_rate, step_rows, whole_steps


def run_rows(rows: int, epochs: float, batch_size: int, seed: int = 0) -> list[list[int]]:
    steps = whole_steps(rows, epochs, batch_size)
    spec: Any = SimpleNamespace(epochs=epochs, batch_size=batch_size, seed=seed)
    return [step_rows(rows, spec, step) for step in range(steps)]


@pytest.mark.parametrize(
    ("rows", "epochs", "batch_size", "steps"),
    [(10, 1, 5, 2), (10, 1, 4, 3), (10, 2, 4, 5), (10, 0.5, 4, 2), (3, 3, 128, 1), (7, 1.5, 1, 10), (4, 2.5, 3, 4)],
)
def test_steps_and_their_sizes(rows: int, epochs: float, batch_size: int, steps: int) -> None:
    sizes = [len(step) for step in run_rows(rows, epochs, batch_size)]
    assert len(sizes) == steps
    assert sizes[:-1] == [batch_size] * (steps - 1)
    assert sum(sizes) == round(rows * epochs)


@pytest.mark.parametrize(("most", "steps"), [(None, 25), (7, 7), (25, 25), (100, 25)])
def test_max_steps_only_cuts_off_the_end(most: int | None, steps: int) -> None:
    assert whole_steps(100, 2, 8, most) == steps


@pytest.mark.parametrize("batch_size", [1, 3, 4, 11, 22, 50])
def test_every_row_occurs_once_in_every_epoch(batch_size: int) -> None:
    flat = [row for step in run_rows(11, 3, batch_size) for row in step]
    epochs = [flat[start : start + 11] for start in (0, 11, 22)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(11))
    assert epochs[0] != epochs[1] != epochs[2]


def test_a_share_of_an_epoch_that_is_no_row_is_one_row() -> None:
    assert [len(step) for step in run_rows(20, 0.01, 4)] == [1]


def test_half_an_epoch_meets_half_the_rows_once() -> None:
    flat = [row for step in run_rows(10, 1.5, 4) for row in step]
    assert Counter(Counter(flat).values()) == {1: 5, 2: 5}


def test_the_order_follows_from_seed_and_epoch_alone() -> None:
    by_one = [row for step in run_rows(11, 2, 1, seed=5) for row in step]
    assert [row for step in run_rows(11, 2, 4, seed=5) for row in step] == by_one
    assert [row for step in run_rows(11, 2, 4, seed=6) for row in step] != by_one
    # Rows in an order that a later version must keep: a resumed run would otherwise see other data.
    assert by_one[:11] == np.random.Generator(np.random.PCG64([5, 0])).permutation(11).tolist()


def test_warm_up_then_cosine_by_hand() -> None:
    # 10 steps, ratio 0.25: warm-up over ceil(2.5) = 3 steps, then a half cosine over the remaining 7.
    rates = [learning_rate(step, 10, 2.0, 0.25) for step in range(10)]
    assert rates[:3] == pytest.approx([2 / 3, 4 / 3, 2.0])
    assert rates[3] == pytest.approx(2.0)
    assert rates[3:] == pytest.approx([1 + math.cos(math.pi * i / 7) for i in range(7)])
    assert rates[9] > 0
    assert rates[3:] == sorted(rates[3:], reverse=True)


@pytest.mark.parametrize(("steps", "ratio", "first"), [(1, 0.1, 3.0), (2, 1.0, 1.5), (5, 0.0, 3.0)])
def test_the_first_rate_of_very_short_runs(steps: int, ratio: float, first: float) -> None:
    assert learning_rate(0, steps, 3.0, ratio) == pytest.approx(first)


LENGTHS = [5, 30, 7, 7, 12, 1, 22, 9, 18, 3, 30]


@pytest.mark.parametrize("processes", [1, 2, 3, 16])
@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("tokens", [1, 40, 64, 10_000])
def test_micro_batches_cover_a_step_within_the_budget(tokens: int, parts: int, processes: int) -> None:
    dealt = micro_batches(LENGTHS, parts, tokens, processes)
    assert len(dealt) == processes
    assert len({len(batches) for batches in dealt}) == 1
    met = [i for batches in dealt for batch in batches for i in batch]
    assert sorted(met) == list(range(len(LENGTHS)))
    for batch in (batch for batches in dealt for batch in batches if len(batch) > 1):
        assert max(LENGTHS[i] for i in batch) * len(batch) * parts <= tokens


def test_the_budget_is_used() -> None:
    assert micro_batches([10, 10, 10, 10], 2, 40) == [[[0, 1], [2, 3]]]
    assert micro_batches([10, 10, 10, 10], 1, 40) == [[[0, 1, 2, 3]]]
    assert micro_batches([4, 50, 4, 4], 1, 12) == [[[0, 2, 3], [1]]]


def test_processes_that_run_out_repeat_nothing_of_weight() -> None:
    assert micro_batches([5], 1, 100, 3) == [[[0]], [[]], [[]]]
    assert micro_batches([5, 60, 5], 1, 60, 2) == [[[0], [1]], [[2], []]]


def test_a_pair_counts_as_its_longer_part() -> None:
    def sequence(length: int) -> TokenSequence:
        return TokenSequence(np.zeros(length, dtype=np.int32), np.arange(length) >= 2)

    pair = Example("a", {"chosen": sequence(4), "rejected": sequence(9)})
    assert pair.length == 9
    assert pair.parts["chosen"].tokens == 2
    assert len(pair.parts["rejected"]) == 9


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("tokens", [1, 50, 100, 10_000])
def test_packed_micro_batches_hold_every_row_once_within_the_budget(tokens: int, processes: int) -> None:
    dealt = packed_batches(LENGTHS, tokens, processes)
    assert len({len(batches) for batches in dealt}) == 1
    assert sorted(i for batches in dealt for batch in batches for i in batch) == list(range(len(LENGTHS)))
    for batches in dealt:
        for batch in batches:
            assert len(batch) <= 1 or sum(LENGTHS[i] for i in batch) <= tokens


def test_packed_micro_batches_are_few_and_equal() -> None:
    assert packed_batches([10] * 9, 40) == [[[0, 1, 2], [3, 4, 5], [6, 7, 8]]], "not 4, 4 and 1"
    assert packed_batches([5, 60, 5], 60) == [[[0, 2], [1]]]
    assert packed_batches([5], 100, 3) == [[[0]], [[]], [[]]]


def test_the_steps_of_an_epoch_share_one_permutation(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    kept = np.random.Generator
    monkeypatch.setattr(np.random, "Generator", lambda bits: made.append(1) or kept(bits))
    spec: Any = SimpleNamespace(epochs=2.0, batch_size=7, seed=1234)
    assert sorted(row for step in range(29) for row in step_rows(100, spec, step)) == sorted([*range(100)] * 2)
    assert len(made) == 2
