"""The most memory that tensors take at once, as the allocator of a GPU or on a CPU torch's profiler reports it."""

from __future__ import annotations

from types import TracebackType

import torch
from torch.profiler import ProfilerActivity, profile


class Peak:
    """Around some work: `bytes` are afterwards the most that was alive at once, beyond what was before."""

    bytes = 0

    def __enter__(self) -> Peak:
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
        else:
            self.seen = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
            self.seen.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if torch.cuda.is_available():
            self.bytes = torch.cuda.max_memory_allocated() - self.before
            return
        self.seen.stop()
        held = 0
        for event in self.seen.profiler.kineto_results.events():
            if event.name() == "[memory]":
                held += event.nbytes()
                self.bytes = max(self.bytes, held)
