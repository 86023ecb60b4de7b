"""Micro-batches laid out ahead of the loop by one thread: signal is read and decoded while the step before computes."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, TypeVar

Item = TypeVar("Item")
Batch = TypeVar("Batch")
DEPTH = 3
"""Micro-batches that wait, or are being made: the loop takes one while the next is made, and one evens out lengths."""


class Ahead(Generic[Item, Batch]):
    """What `lay_out` makes, in a thread of its own, of the micro-batches that `cut` gives for (step, tokens at a time).

    Where `beyond` holds, those of later steps, up to but not `end`, are made before they are asked for; `cut` is called
    in the thread of the loop. Nothing else may use what `lay_out` reads while this is open. What `lay_out` raises is
    raised where its batch is taken. Used in a `with`, which ends the thread.
    """

    def __init__(
        self, cut: Callable[[int, int], Sequence[Item]], lay_out: Callable[[Item], Batch], end: int, beyond: bool
    ) -> None:
        self._cut, self._lay_out = cut, lay_out
        self._end, self._beyond = end, beyond
        self._waiting: deque[tuple[tuple[int, int, int], Future[Batch]]] = deque()
        self._coming: Iterator[tuple[tuple[int, int, int], Item]] = iter(())
        self._worker = ThreadPoolExecutor(1, "adpa-ahead")
        self.waited = 0.0
        """Seconds that the loop has waited so far."""

    def batches(self, step: int, tokens: int) -> Iterator[Batch]:
        """The micro-batches of a step, in order. What was made for another step, or for another cut, is dropped."""
        if not self._waiting or self._waiting[0][0] != (step, tokens, 0):
            self._drop()
            self._coming = self._from(step, tokens)
            self._fill()
        while self._waiting and self._waiting[0][0][:2] == (step, tokens):
            _, made = self._waiting.popleft()
            self._fill()
            began = time.monotonic()
            try:
                batch = made.result()
            finally:
                self.waited += time.monotonic() - began
            yield batch

    def _from(self, step: int, tokens: int) -> Iterator[tuple[tuple[int, int, int], Item]]:
        for at in range(step, self._end if self._beyond else step + 1):
            for number, item in enumerate(self._cut(at, tokens)):
                yield (at, tokens, number), item

    def _fill(self) -> None:
        while len(self._waiting) < DEPTH and (found := next(self._coming, None)) is not None:
            self._waiting.append((found[0], self._worker.submit(self._lay_out, found[1])))

    def _drop(self) -> None:
        for _, made in self._waiting:
            made.cancel()
        self._waiting.clear()

    def __enter__(self) -> Ahead[Item, Batch]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._drop()
        self._worker.shutdown(wait=True)
