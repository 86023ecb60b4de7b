"""Where the processes of a training meet: at the start, and in sums over all of them, at the same places in each."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn

from adpa_cli.errors import AdpaError, Stopped

Key = TypeVar("Key")
Value = TypeVar("Value")


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


def gathered(accelerator: Accelerator, items: Mapping[Key, Value]) -> dict[Key, Value]:
    """The items of all processes, in each of them; keys are of one process."""
    if accelerator.num_processes == 1:
        return dict(items)
    found: list[Any] = [None] * accelerator.num_processes
    torch.distributed.all_gather_object(found, dict(items))
    return {key: value for part in found for key, value in part.items()}


def all_fit(accelerator: Accelerator, fits: bool) -> bool:
    """Whether the step fitted in every process."""
    failed = torch.tensor(0 if fits else 1, device=accelerator.device)
    return int(accelerator.reduce(failed, reduction="sum")) == 0


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
    names = sorted(sums)
    codes = sorted(Stopped.CODES)
    flags = [float(code == signal) for code in codes]
    packed = torch.stack(
        [*(sums[n].double() for n in names), *torch.tensor(flags, dtype=torch.float64).to(sums[names[0]].device)]
    )
    packed = accelerator.reduce(packed, reduction="sum")
    values = [float(v) for v in packed]
    asked = [code for code, flag in zip(codes, values[len(names) :], strict=True) if flag]
    return dict(zip(names, values, strict=False)), asked[0] if asked else None
