"""The device that this process computes on: its kernels and its memory.

Training goes on with less at a time when memory runs out, which changes rounding only. A block of an inference stage is
part of what its bytes depend on, so there the message names what to ask for.
"""

from __future__ import annotations

import contextlib
import functools
import os
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


def device() -> str:
    """`cuda:N` for the local rank N where there is a GPU, else `cpu`. A launcher may show each process its own card
    alone."""
    if not torch.cuda.is_available():
        return "cpu"
    return f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % torch.cuda.device_count()}"


def prepare(threads: int) -> None:
    """Set the threads of this process, and choose the kernels that give the same bytes each time."""
    torch.set_num_threads(threads)
    if torch.cuda.is_available():
        # cuBLAS reads this when it starts; kernels without a deterministic form only warn.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)


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


def halving(action: Callable[[int], Result], tokens: int, least: int, what: str) -> Result:
    """What `action` gives with `tokens` at a time, or with half of them as often as memory runs out.

    Each process does its work by itself, so none need agree. Raises AdpaError, which says that `what` does not fit,
    when there is nothing to halve: at no more than `least` tokens.
    """
    while True:
        done = fitting(functools.partial(action, tokens))
        if done is not None:
            return done
        if tokens <= least:
            raise AdpaError(f"{what} does not fit in memory", f"use {ROOM}")
        tokens //= 2


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
