"""Where a capture keeps its finished blocks, which of them make a shard, and the thread that writes them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adpa_cli.signal import AnswerKey, SignalRows, SignalSpec

SHARD_TOKENS = 1 << 18
WAITING = 1
"""Blocks that wait to be written: each holds its rows in memory."""


def block_path(folder: Path, role: str, index: int) -> Path:
    """The file of one finished block of one teacher."""
    return folder / f"_{role}-{index:06d}.block"


def shard_path(folder: Path, number: int) -> Path:
    """The file of one shard."""
    return folder / f"signal-{number:05d}.adpa"


def shards_of(tokens: Sequence[int]) -> list[range]:
    """Blocks by shard, from the answer tokens of each block: a shard is full once it has SHARD_TOKENS."""
    starts, held = [0] if tokens else [], 0
    for number, count in enumerate(tokens):
        if held >= SHARD_TOKENS:
            starts.append(number)
            held = 0
        held += count
    return [range(a, b) for a, b in pairwise([*starts, len(tokens)])]


def write(folder: Path, number: int, signal: SignalSpec, blocks: Sequence[Path]) -> None:
    """Encode one shard from its blocks, unless it is there: it appears whole, and equal blocks give equal bytes."""
    from adpa_cli.signal import write_shard

    path = shard_path(folder, number)
    if not path.exists():
        write_shard(path, signal, Answers(tuple(blocks), signal.k))


@dataclass(frozen=True)
class Answers:
    """The answers of some blocks with `k` ids each, which may be walked several times with one block in memory."""

    paths: tuple[Path, ...]
    k: int

    def __iter__(self) -> Iterator[tuple[AnswerKey, SignalRows]]:
        from adpa_cli.signal import load_block

        for path in self.paths:
            for key, rows in load_block(path):
                yield key, rows if rows.ids.shape[1] == self.k else narrowed(rows, self.k)


def narrowed(rows: SignalRows, k: int) -> SignalRows:
    """The rows with their first `k` ids: those of sampled support are followed by ids that were not drawn."""
    weights = None if rows.weights is None else rows.weights[:, :k]
    return replace(rows, ids=rows.ids[:, :k], logps=rows.logps[:, :k], weights=weights)


@dataclass
class Behind:
    """Works off tasks in their order in one thread; `do` waits while more than WAITING are not done."""

    pool: ThreadPoolExecutor
    tasks: deque[Future[Any]] = field(default_factory=deque)

    def do(self, task: Callable[..., Any], *values: Any) -> None:
        """Add a task. Raises what an earlier one raised."""
        self.tasks.append(self.pool.submit(task, *values))
        while len(self.tasks) > WAITING:
            self.tasks.popleft().result()


@contextmanager
def behind() -> Iterator[Behind]:
    """A thread for writing; leaving waits for all of its tasks and raises what one of them raised."""
    with ThreadPoolExecutor(1, "adpa-write") as pool:
        writer = Behind(pool)
        yield writer
        for task in writer.tasks:
            task.result()
