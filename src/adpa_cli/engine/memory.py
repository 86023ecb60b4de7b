"""Running out of memory: telling it from other failures, and what is done about it.

Training goes on with less at a time, which changes rounding only. A block of an inference stage is part of what its
bytes depend on, so there the user is told what to ask for.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

from adpa_cli import machine
from adpa_cli.errors import AdpaError

Result = TypeVar("Result")
_WORDS = (
    "can't allocate memory", "DefaultCPUAllocator", "CUDA out of memory", "_STATUS_ALLOC_FAILED",
    "can't start new thread",
)  # fmt: skip
"""How allocators, libraries that have their own, and threads without room for a stack say it in a RuntimeError."""
ROOM = "a device with more memory, or a smaller model"
DRAW_TOKENS = 32768  # of the prompts and answers, at their longest, that a training holds at once
POOL = 4
"""How many times the rows answered at once a block of answers has, so that a row that ends has a successor."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory, of the device or the host, could not be allocated."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _WORDS)


def fitting(action: Callable[[], Result]) -> Result | None:
    """What `action` returns, or None when memory ran out in it; nothing it held is kept alive then."""
    try:
        return action()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    # Outside of the handler: until here the traceback kept the tensors of every frame alive.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None


def forget_peak(device: torch.device) -> None:
    """Let `peak_memory` begin anew."""
    machine.forget_peak()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> int:
    """The most bytes that tensors of this process took on a card; on a CPU all that was resident of it."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else machine.peak_resident()


@contextlib.contextmanager
def refused_when_full(what: str, hint: str) -> Iterator[None]:
    """Turn running out of memory into an AdpaError that says what does not fit, and what would help."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise AdpaError(f"{what} does not fit in memory", hint) from error


@contextlib.contextmanager
def block_that_fits(stage: str, rows: int, length: int) -> Iterator[None]:
    """Around the work on one inference block of `rows` x `length` padded tokens: AdpaError naming one half the size."""
    if rows > 1:
        what = f"a block of {rows:,} rows of {length:,} tokens"
        hint = f"--set {stage}.block_tokens={rows * length // 2}"
    else:
        what = f"one row of {length:,} tokens"
        hint = f"--set {stage}.max_length={max(1, length // 2)}, or {ROOM}"
    with refused_when_full(f"{stage}: {what}", hint):
        yield
