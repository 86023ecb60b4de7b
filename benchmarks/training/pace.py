"""Training loops in processes of their own, each stepped at the word of one parent, and what a step takes."""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch
from common.memory import Peak
from torch import nn

MEMORY = 1
"""The first step makes the optimizer's state and is not measured; of this one memory is, of those after it time."""


@dataclass(frozen=True)
class Ran:
    """What a side found: the `seconds` of each timed step, the `peak` of bytes of one beyond weights, gradients and
    optimizer state, the losses of all steps, and how it was set up."""

    seconds: list[float]
    peak: float
    losses: list[float]
    settings: dict[str, Any]


class Clock:
    """Seconds of every step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def begin(self) -> None:
        _wait()
        self.start = time.perf_counter()

    def end(self, model: nn.Module) -> None:
        _wait()
        self.seconds.append(time.perf_counter() - self.start)


class Pace:
    """Takes each step at the word of a parent, which is told its seconds, and measures the memory of one.

    Memory is what the allocator of the GPU reports, and on a CPU the profiler, which sees every tensor. What is held
    when a step begins (weights, optimizer state, a teacher) does not count, nor do the gradients that are there when it
    has been computed.
    """

    def __init__(self, parent: Connection) -> None:
        self.parent = parent
        self.steps = 0
        self.peak = 0.0
        self.memory = Peak()

    def begin(self) -> None:
        self.parent.recv()
        _wait()
        if self.steps == MEMORY:
            self.memory.__enter__()
        self.start = time.perf_counter()

    def end(self, model: nn.Module) -> None:
        _wait()
        seconds = time.perf_counter() - self.start
        if self.steps == MEMORY:
            gradients = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
            self.memory.__exit__(None, None, None)
            self.peak = self.memory.bytes - gradients
        self.steps += 1
        self.parent.send(seconds)


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


Loop = Callable[[Pace, int], tuple[list[float], dict[str, Any]]]
"""Trains so many steps, each between `begin` and `end` of its pace; the losses, and the settings to report."""


class Side:
    """A loop in a process of its own, which waits for `go` and then for each `step`.

    When it has failed, its end of the pipe is closed: EOFError or ConnectionError.
    """

    def __init__(self, loop: Loop, steps: int, threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.parent, child = context.Pipe()
        self.process = context.Process(target=_serve, args=(child, loop, steps, threads), daemon=True)
        self.process.start()
        child.close()
        self.seconds: list[float] = []

    def go(self) -> None:
        """Let it build its model."""
        self.parent.send(None)

    def step(self) -> None:
        """Let it take one step."""
        self.parent.send(None)
        self.seconds.append(self.parent.recv())

    def finish(self) -> Ran:
        """What it found, when it has taken its last step and given back its memory."""
        losses, peak, settings = self.parent.recv()
        self.process.join()
        return Ran(self.seconds[MEMORY + 1 :], peak, losses, settings)

    def stop(self) -> None:
        """End it, wherever it is."""
        self.process.kill()
        self.process.join()


def _serve(parent: Connection, loop: Loop, steps: int, threads: int) -> None:
    sys.stdout = sys.stderr  # the JSON of the parent is all that is to be read there
    torch.set_num_threads(threads)
    parent.recv()
    pace = Pace(parent)
    losses, settings = loop(pace, steps)
    parent.send((losses, pace.peak, settings))
