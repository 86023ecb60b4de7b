"""Finished blocks of a capture as files, and the shards that are written from them.

A block is kept exact until its shard is written, so that a killed capture restarts at a block. One thread writes behind
the one that computes.
"""

from __future__ import annotations

import json
import os
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from fnmatch import fnmatchcase
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from adpa_cli.disk import atomic
from adpa_cli.errors import Corrupt, NotFound
from adpa_cli.signal.codec import by_answer
from adpa_cli.signal.rows import AnswerKey, SignalRows, SignalSpec, per_id
from adpa_cli.signal.shard import write_shard

SHARD_TOKENS = 1 << 18
WAITING = 1
"""Blocks that wait to be written: each holds its rows in memory."""


def save_block(path: Path, answers: Sequence[tuple[AnswerKey, SignalRows]]) -> None:
    """Writes the answers of one block in float32, whole or not at all; the same answers give the same bytes."""
    columns = {f.name: [getattr(rows, f.name) for _, rows in answers] for f in fields(SignalRows)} if answers else {}
    tensors = {name: np.concatenate(column) for name, column in columns.items() if column[0] is not None}
    head: dict[str, Any] = {
        "keys": [asdict(key) for key, _ in answers],
        "tokens": [len(rows) for _, rows in answers],
    }
    head["crc"] = _crc(head, tensors)
    with atomic(path) as out:
        out.write(save(tensors, {"block": json.dumps(head, sort_keys=True)}))


def load_block(path: Path) -> list[tuple[AnswerKey, SignalRows]]:
    """The answers of `save_block`, exactly. Raises NotFound, and Corrupt when a byte is damaged."""
    try:
        with safe_open(path, "numpy") as opened:
            head: dict[str, Any] = json.loads(opened.metadata()["block"])
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  it is no mapping
        if head.pop("crc") != _crc(head, tensors):
            raise ValueError("its checksum does not match")
        rows = by_answer(SignalRows(**tensors), head["tokens"]) if tensors else []
        return list(zip((AnswerKey(**key) for key in head["keys"]), rows, strict=True))
    except FileNotFoundError:
        raise NotFound(f"no block of a capture at {path}") from None
    except (SafetensorError, KeyError, TypeError, ValueError, IndexError, RecursionError) as error:
        hint = "delete it: the capture redoes that block"
        raise Corrupt(f"{path}: a damaged block of a capture ({error})", hint) from None


def _crc(head: dict[str, Any], tensors: dict[str, Any]) -> int:
    crc = zlib.crc32(json.dumps(head, sort_keys=True).encode())
    for name in sorted(tensors):
        crc = zlib.crc32(np.ascontiguousarray(tensors[name]).tobytes(), zlib.crc32(name.encode(), crc))
    return crc


def block_path(folder: Path, role: str, index: int) -> Path:
    """The file of one finished block of one teacher."""
    return folder / f"_{role}-{index:06d}.block"


@dataclass(frozen=True)
class BlockPaths(Sequence[Path]):
    """The files of the finished blocks of one teacher, by the numbers of the blocks: `size` from 0 on."""

    folder: Path
    role: str
    size: int

    @classmethod
    def of(cls, folder: Path, role: str) -> BlockPaths:
        """All that are in a folder."""
        with os.scandir(folder) as entries:
            return cls(folder, role, sum(fnmatchcase(entry.name, f"_{role}-*.block") for entry in entries))

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: Any) -> Any:
        return block_path(self.folder, self.role, range(self.size)[index])


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
    path = shard_path(folder, number)
    if not path.exists():
        write_shard(path, signal, Answers(tuple(blocks), signal.k))


@dataclass(frozen=True)
class Answers:
    """The answers of some blocks with `k` ids each, which may be walked several times with one block in memory."""

    paths: tuple[Path, ...]
    k: int

    def __iter__(self) -> Iterator[tuple[AnswerKey, SignalRows]]:
        for path in self.paths:
            for key, rows in load_block(path):
                yield key, rows if rows.ids.shape[1] == self.k else narrowed(rows, self.k)


def narrowed(rows: SignalRows, k: int) -> SignalRows:
    """The rows with their first `k` ids: those of sampled support are followed by ids that were not drawn."""
    return per_id(rows, lambda values: values[:, :k])


@contextmanager
def background_writer() -> Iterator[Callable[..., None]]:
    """A function that leaves a call to a thread, which works off all of them in their order.

    It waits while more than WAITING are not done, and raises what an earlier one raised. Leaving waits for all.
    """
    tasks: deque[Future[Any]] = deque()
    with ThreadPoolExecutor(1, "adpa-write") as pool:

        def write(task: Callable[..., Any], *values: Any) -> None:
            tasks.append(pool.submit(task, *values))
            while len(tasks) > WAITING:
                tasks.popleft().result()

        yield write
        for task in tasks:
            task.result()
