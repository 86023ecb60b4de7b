"""The device that this process computes on: its kernels, its memory, and the other processes.

Training goes on with less at a time when memory runs out, which changes rounding only. A block of an inference stage is
part of what its bytes depend on, so there the message names what to ask for. The processes of a training meet at the
start, and in sums over all of them, at the same places in each.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, gather_object
from torch import Tensor, nn

from adpa_cli import machine
from adpa_cli.errors import AdpaError, Stopped

Result = TypeVar("Result")
Key = TypeVar("Key")
Value = TypeVar("Value")
_WORDS = (
    "can't allocate memory", "DefaultCPUAllocator", "CUDA out of memory", "_STATUS_ALLOC_FAILED",
    "can't start new thread",
)  # fmt: skip
"""How allocators, libraries that have their own, and threads without room for a stack say it in a RuntimeError."""
ROOM = "a device with more memory, or a smaller model"


def device() -> str:
    """`cuda:N` for the local rank N where there is a GPU, else `cpu`."""
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"


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


def make_accelerator(rendezvous: str = "") -> Accelerator:
    """One process on the GPU or CPU at hand, or a rank of several (gloo on CPU, nccl on GPU).

    Ranks know their number from the environment and find each other through the file `rendezvous`.
    """
    if rendezvous and not torch.distributed.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        torch.distributed.init_process_group(
            "nccl" if torch.cuda.is_available() else "gloo", init_method=f"file://{rendezvous}",
            rank=int(os.environ["RANK"]), world_size=int(os.environ["WORLD_SIZE"]),
        )  # fmt: skip
    # Both would otherwise be read from the environment, and change results under the same id.
    accelerator = Accelerator(cpu=not torch.cuda.is_available(), mixed_precision="no", gradient_accumulation_steps=1)
    kinds = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
    if accelerator.distributed_type not in kinds:
        raise AdpaError(
            f"training under {accelerator.distributed_type.value} is not offered",
            "launch plain processes: --gpus N",
        )
    return accelerator


def gathered(items: Mapping[Key, Value]) -> dict[Key, Value]:
    """The items of all processes, in each of them; keys are of one process."""
    return dict(gather_object(list(items.items())))


def summed(accelerator: Accelerator, values: Iterable[Tensor | float]) -> list[float]:
    """Each of the values, of one number, summed over all processes."""
    numbers = [torch.as_tensor(value, dtype=torch.float64, device=accelerator.device) for value in values]
    sums: list[float] = accelerator.reduce(torch.stack(numbers), reduction="sum").tolist()
    return sums


def all_fit(accelerator: Accelerator, fits: bool) -> bool:
    """Whether the step fitted in every process."""
    return summed(accelerator, [float(not fits)]) == [0.0]


def sum_gradients(student: nn.Module, accelerator: Accelerator) -> None:
    """Add up the gradients of all processes: the only place where they meet, and only after each has its own."""
    if accelerator.num_processes > 1:
        for parameter in student.parameters():
            if parameter.grad is not None:
                torch.distributed.all_reduce(parameter.grad)


def agree(
    accelerator: Accelerator, sums: Mapping[str, Tensor], signal: str | None
) -> tuple[dict[str, float], str | None]:
    """Sum the numbers over all processes, and let a signal that reached one of them stop all at the same step."""
    names, codes = sorted(sums), sorted(Stopped.CODES)
    values = summed(accelerator, [*(sums[name] for name in names), *(float(code == signal) for code in codes)])
    asked = [code for code, flag in zip(codes, values[len(names) :], strict=True) if flag]
    return dict(zip(names, values, strict=False)), asked[0] if asked else None
