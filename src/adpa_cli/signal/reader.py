"""All shards of one artifact behind one lookup by answer."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from adpa_cli.errors import Corrupt, DataError, NotFound
from adpa_cli.signal.rows import AnswerKey, SignalRows, SignalSpec
from adpa_cli.signal.shard import Shard


class SignalReader:
    """The teacher signal of an artifact folder: every `signal-*.adpa` in it.

    Raises NotFound without a shard, Corrupt when a header is damaged or the shards do not belong together.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.shards = [Shard(path) for path in sorted(self.folder.glob("signal-*.adpa"))]
        if not self.shards:
            raise NotFound(f"no teacher signal in {self.folder}", "make one with `adpa cache-teacher`")
        self.spec: SignalSpec = self.shards[0].spec
        self._rows: dict[str, dict[str, tuple[AnswerKey, Shard, int]]] = {}
        for shard in self.shards:
            if shard.spec != self.spec:
                raise Corrupt(f"{shard.path}: its header differs from that of {self.shards[0].path.name}")
            for i, key in enumerate(shard.keys):
                if self._rows.setdefault(key.example_id, {}).setdefault(key.part, (key, shard, i))[1:] != (shard, i):
                    raise Corrupt(f"{shard.path}: example {key.example_id!r} ({key.part}) is in two shards")
        self.tokens: int = sum(sum(shard.tokens) for shard in self.shards)
        self.parts: tuple[str, ...] = tuple(sorted({key.part for shard in self.shards for key in shard.keys}))

    def __len__(self) -> int:
        return sum(len(shard) for shard in self.shards)

    def read(self, key: AnswerKey, *, raw: bool = False) -> SignalRows:
        """The rows of one answer. Raises DataError naming what differs: the example, its part or its tokens."""
        found, shard, i = self._find(key)
        if found.tokens != key.tokens:
            raise DataError(
                f"{self.folder}: example {key.example_id!r} ({key.part}), field tokens: the signal is for tokens "
                f"{found.tokens}, the data now give {key.tokens}",
                "the data, the chat template or the tokenizer changed: run `adpa cache-teacher` again",
            )
        return shard.read(i, raw=raw)

    def covers(self, keys: Iterable[AnswerKey]) -> list[AnswerKey]:
        """The keys that `read` would refuse."""
        return [key for key in keys if self._rows.get(key.example_id, {}).get(key.part, (None,))[0] != key]

    def _find(self, key: AnswerKey) -> tuple[AnswerKey, Shard, int]:
        parts = self._rows.get(key.example_id)
        if parts is None:
            raise DataError(
                f"{self.folder}: field example_id: {key.example_id!r} is not among its {len(self._rows)} examples",
                "run `adpa cache-teacher` on these data",
            )
        if key.part not in parts:
            raise DataError(
                f"{self.folder}: example {key.example_id!r}, field part: {key.part!r} was not captured, "
                f"only {', '.join(sorted(parts))}",
                "run `adpa cache-teacher` on these answers",
            )
        return parts[key.part]
