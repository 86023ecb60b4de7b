"""Continuous batching: an answer that ends leaves its place in the batch to the next prompt.

All of it is chosen from sizes and tokens, never from a clock, so that a block gives the same bytes whenever it is
computed.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from adpa_cli.engine.generation.kv_cache import KvCache
from adpa_cli.engine.generation.sampling import NOT_FINITE, Decoding, choose
from adpa_cli.engine.layout.micro_batches import padded
from adpa_cli.errors import NotFinite
from adpa_cli.sizes import PREFILL_TOKENS

LOOK_EVERY = {"cpu": 1, "cuda": 8}
"""Steps until the host looks which rows have ended: a card would stand still for each look."""


@dataclass
class PartialAnswer:
    """A prompt, the key of its noise, the most tokens of its answer, and the answer as far as it is known."""

    name: str
    prompt: Sequence[int]
    key: int
    limit: int
    answer: list[int] = field(default_factory=list)

    def take(self, tokens: Sequence[int], end_ids: Sequence[int]) -> bool:
        """Append tokens up to the end token or the limit; whether the answer ends there."""
        for token in tokens:
            if token == NOT_FINITE:
                raise NotFinite(f"the logits of row {self.name!r} are not finite", [*self.prompt, *self.answer])
            self.answer.append(token)
            if token in end_ids or len(self.answer) == self.limit:
                return True
        return False


def generate_continuously(model: Any, rows: Sequence[PartialAnswer], decoding: Decoding, batch_size: int) -> None:
    """Complete the answer of every row, at most `batch_size` of them at a time, longest prompts first.

    Prompts are read several at once as soon as an eighth of the batch is free.
    """
    waiting = sorted(rows, key=lambda row: -len(row.prompt))
    batch = _Batch(model, decoding, KvCache(batch_size, max(len(row.prompt) + row.limit for row in rows)))
    while waiting or batch.rows:
        free = batch_size - len(batch.rows)
        if waiting and (not batch.rows or free >= min(len(waiting), -(-batch_size // 8))):
            count = min(free, max(1, PREFILL_TOKENS // len(waiting[0].prompt)))
            group, waiting = waiting[:count], waiting[count:]
            tokens = batch.add(group)
        else:
            group = batch.rows
            steps = min(LOOK_EVERY.get(model.device.type, 1), min(row.limit - len(row.answer) for row in group))
            tokens = torch.stack([batch.step() for _ in range(steps)], dim=1)
        first = len(batch.rows) - len(group)
        news = zip(group, tokens.tolist(), strict=True)
        batch.drop([place for place, (row, new) in enumerate(news, first) if row.take(new, decoding.end_ids)])


class _Batch:
    """The rows that are being answered. `state` [4, B] int64: each row's last token, which is chosen and not yet in the
    cache, the number of its tokens that are, the length of its answer, and its key."""

    def __init__(self, model: Any, decoding: Decoding, cache: KvCache) -> None:
        self.model, self.decoding, self.cache = model, decoding, cache
        self.rows: list[PartialAnswer] = []
        self.state = torch.empty(4, 0, dtype=torch.int64, device=model.device)
        self.last = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}

    def add(self, rows: Sequence[PartialAnswer]) -> Tensor:
        """Read the prompts of some rows; their first tokens [R, 1]."""
        ids, mask = left_padded([row.prompt for row in rows], self.decoding.pad_id, self.model.device)
        new = DynamicCache()
        logits = self._forward(ids, mask, (mask.cumsum(1) - 1).clamp(min=0), new)
        self.cache.add(new)
        zeros = [0] * len(rows)
        lengths = [len(row.prompt) for row in rows]
        state = torch.tensor([zeros, lengths, zeros, [row.key for row in rows]], device=self.model.device)
        self._choose(logits, state)
        self.rows = [*self.rows, *rows]
        self.state = torch.cat([self.state, state], dim=1)
        return state[0, :, None]

    def step(self) -> Tensor:
        """One more token of every row, [B]."""
        token, length = self.state[0].clamp(min=0), self.state[1]
        width = self.cache.get_seq_length()
        mask = (torch.arange(width + 1, device=length.device) >= width - length[:, None]).long()
        logits = self._forward(token[:, None], mask, length[:, None], self.cache)
        length += 1
        self._choose(logits, self.state)
        return self.state[0].clone()

    def drop(self, places: Sequence[int]) -> None:
        """Take the rows in some places away; the last ones move there."""
        if not places:
            return
        kept = kept_rows(len(self.rows), places)
        self.rows = [self.rows[place] for place in kept]
        self.state = self.state[:, kept]
        self.cache.keep(kept, max((len(row.prompt) + len(row.answer) - 1 for row in self.rows), default=0))

    def _choose(self, logits: Tensor, state: Tensor) -> None:
        state[0] = choose(logits, state[3], state[2], self.decoding.sampling)
        state[2] += 1

    def _forward(self, ids: Tensor, mask: Tensor, positions: Tensor, cache: Any) -> Tensor:
        out = self.model(
            input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True,
            **self.last,
        )  # fmt: skip
        logits: Tensor = out.logits[:, -1]
        return logits


def kept_rows(count: int, dropped: Sequence[int]) -> list[int]:
    """Which of `count` rows stands in each place once some were dropped and the last ones moved into the gaps."""
    gone = set(dropped)
    stay = count - len(gone)
    movers = iter([row for row in range(stay, count) if row not in gone])
    return [next(movers) if place in gone else place for place in range(stay)]


def left_padded(prompts: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and mask [B, T] int64 of prompts that end in the last column."""
    ones = [[1] * len(prompt) for prompt in prompts]
    return padded(prompts, pad_id, "left").to(device), padded(ones, side="left").to(device)
