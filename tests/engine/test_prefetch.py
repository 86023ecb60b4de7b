"""Micro-batches are made ahead, in order, by one thread that never outlives the loop."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress

import pytest

from adpa_cli.engine.training.loop import DEPTH, Prefetch
from adpa_cli.errors import DataError

PATIENCE = 30.0


def cut(step: int, tokens: int) -> list[str]:
    """Two micro-batches at 8 tokens, four at 4."""
    return [f"{step}/{number}" for number in range(16 // tokens)]


def ahead(lay_out: Callable[[str], str], end: int = 3, beyond: bool = True) -> Prefetch[str, str]:
    return Prefetch(cut, lay_out, end, beyond)


def workers() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("adpa-prefetch")]


def test_every_step_gets_its_batches_in_order() -> None:
    with ahead(lambda item: f"<{item}>") as reading:
        found = [list(reading.batches(step, 8)) for step in range(3)]
    assert found == [["<0/0>", "<0/1>"], ["<1/0>", "<1/1>"], ["<2/0>", "<2/1>"]]


def test_later_steps_are_made_by_another_thread_before_they_are_asked_for() -> None:
    made: list[tuple[str, str]] = []
    enough = threading.Event()

    def lay_out(item: str) -> str:
        made.append((item, threading.current_thread().name))
        if len(made) == DEPTH + 1:
            enough.set()
        return item

    with ahead(lay_out) as reading:
        assert next(reading.batches(0, 8)) == "0/0"
        assert enough.wait(PATIENCE), "nothing is made while the loop computes"
        assert [item for item, _ in made] == ["0/0", "0/1", "1/0", "1/1"]
        assert {name for _, name in made} == set(workers())


def test_a_step_that_is_not_known_yet_is_not_cut() -> None:
    asked: list[int] = []

    def noted(step: int, tokens: int) -> list[str]:
        asked.append(step)
        return cut(step, tokens)

    with Prefetch(noted, str, 3, False) as reading:
        for step in range(3):
            assert list(reading.batches(step, 8)) == cut(step, 8)
            assert asked == list(range(step + 1))


def test_what_was_made_for_another_cut_is_dropped() -> None:
    with ahead(str) as reading:
        assert next(reading.batches(0, 8)) == "0/0"
        assert list(reading.batches(0, 4)) == ["0/0", "0/1", "0/2", "0/3"]
        assert list(reading.batches(1, 4)) == ["1/0", "1/1", "1/2", "1/3"]
        assert list(reading.batches(2, 8)) == ["2/0", "2/1"]


def test_a_failure_is_raised_as_it_is_where_its_batch_is_taken() -> None:
    failure = DataError("row 7 is damaged", "adpa verify")

    def lay_out(item: str) -> str:
        if item == "1/0":
            raise failure
        return item

    with ahead(lay_out) as reading:
        assert list(reading.batches(0, 8)) == ["0/0", "0/1"]
        with pytest.raises(DataError) as caught:
            next(reading.batches(1, 8))
    assert caught.value is failure


@pytest.mark.parametrize("leave", ["at the end", "early", "by an error"])
def test_no_thread_is_left_behind(leave: str) -> None:
    class Left(Exception):
        pass

    with suppress(Left), ahead(str) as reading:
        batches = reading.batches(0, 8)
        next(batches)
        assert workers()
        if leave == "by an error":
            raise Left
        if leave == "at the end":
            assert list(batches) == ["0/1"]
    assert workers() == []


def test_the_time_that_the_loop_waits_is_counted() -> None:
    begun, go = threading.Event(), threading.Event()

    def lay_out(item: str) -> str:
        begun.set()
        assert go.wait(PATIENCE)
        return item

    with ahead(lay_out) as reading:
        threading.Thread(target=lambda: begun.wait(PATIENCE) and go.set()).start()
        assert reading.waited == 0.0
        next(reading.batches(0, 8))
        assert reading.waited > 0.0
