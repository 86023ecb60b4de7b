"""The processes that compute a job together: which of them this one is, and what only all of them know.

Whatever is a sum, a union or an agreement here is asked for at the same places in each of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from adpa_cli.engine.device import device
from adpa_cli.errors import Stopped

Item = TypeVar("Item")
Key = TypeVar("Key")
Value = TypeVar("Value")


@dataclass(frozen=True)
class Ranks:
    """Process `rank` of `count`, which computes on `device`."""

    rank: int = 0
    count: int = 1
    device: torch.device = field(default_factory=lambda: torch.device(device()))

    @classmethod
    def here(cls) -> Ranks:
        """Those of torch's process group, or this process alone."""
        return cls(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else cls()

    @property
    def is_first(self) -> bool:
        """Whether this is the one that writes and speaks."""
        return self.rank == 0

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """The items that are this process's work."""
        return items[self.rank :: self.count]

    def gathered(self, items: Mapping[Key, Value]) -> dict[Key, Value]:
        """The items of all processes, in each of them; keys are of one process."""
        if self.count == 1:
            return dict(items)
        every: list[Any] = [None] * self.count
        dist.all_gather_object(every, dict(items))
        return {key: value for own in every for key, value in own.items()}

    def summed(self, values: Iterable[Tensor | float]) -> list[float]:
        """Each of the values, of one number, summed over all processes."""
        numbers = torch.stack([torch.as_tensor(value, dtype=torch.float64, device=self.device) for value in values])
        if self.count > 1:
            dist.all_reduce(numbers)
        sums: list[float] = numbers.tolist()
        return sums

    def all_fit(self, fits: bool) -> bool:
        """Whether a step fitted in every process."""
        return self.summed([float(not fits)]) == [0.0]

    def agree(self, sums: Mapping[str, Tensor], signal: str | None) -> tuple[dict[str, float], str | None]:
        """Sum the numbers over all processes, and let a signal that reached one of them stop all at the same step."""
        names, codes = sorted(sums), sorted(Stopped.CODES)
        values = self.summed([*(sums[name] for name in names), *(float(code == signal) for code in codes)])
        asked = [code for code, flag in zip(codes, values[len(names) :], strict=True) if flag]
        return dict(zip(names, values, strict=False)), asked[0] if asked else None

    def sum_gradients(self, model: nn.Module) -> None:
        """Add up the gradients of all processes, each of which holds all of a model."""
        for parameter in model.parameters() if self.count > 1 else ():
            if parameter.grad is not None:
                dist.all_reduce(parameter.grad)

    def wait(self) -> None:
        """Go on when all processes are here."""
        if self.count > 1:
            dist.barrier()
