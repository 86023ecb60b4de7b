"""One micro-batch as tensors: what goes into the model, and how its answers come back as the views of a method.

The student's log-probs are computed flat, for the N answer positions of all sequences, at the label and at the K ids of
the teacher's signal; `views` lays them out again as [B,T] per part.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adpa_cli.engine.layout.examples import Example
from adpa_cli.engine.layout.row_layout import Packer, RowLayout, changed, moved, row_layouts
from adpa_cli.methods import Experience, Need, Signal, View, required
from adpa_cli.signal.rows import SignalRows
from adpa_cli.tensors.output import Stats

SignalOf = Callable[[str, str], SignalRows]
"""(example id, part) -> the cached signal of that answer."""
ExperienceOf = Mapping[str, Mapping[str, NDArray[Any]]]
"""Example id -> the fields [T] of the experience of its drawn answer."""
SIGNAL_FIELDS = tuple(field.name for field in fields(Signal))


@dataclass(frozen=True)
class PartBatch:
    """One part of a micro-batch: `where` [B,T] indexes the flat positions, `mask` [B,T] says which of them count."""

    where: Tensor
    mask: Tensor
    end: Tensor
    in_topk: Tensor | None
    signal: Signal | None
    start: Tensor | None
    experience: Experience | None = None
    reward: Tensor | None = None


@dataclass(frozen=True)
class Batch:
    """The sequences as `layouts`, with little padding or none; their N answer positions are numbered by part, then
    example. `ids` [N,1+K] holds the label, then the signal's ids, -1 where there is none. `tokens` are those of all
    sequences. `drawn` are the layouts that the critic reads: the answers drawn online, which are the last ones."""

    layouts: tuple[RowLayout, ...]
    ids: Tensor
    parts: Mapping[str, PartBatch]
    tokens: int
    drawn: tuple[RowLayout, ...] = ()

    @property
    def cells(self) -> int:
        """Positions that go through the model."""
        return sum(layout.input_ids.numel() for layout in self.layouts)

    @property
    def padding(self) -> int:
        """How many of them are no token; none where tokens that sequences share go through once."""
        return max(0, self.cells - self.tokens)

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        return moved(self, device)

    def pinned(self) -> Batch:
        """The same batch in memory that a GPU copies from while it computes."""
        other: Batch = changed(self, Tensor.pin_memory)
        return other


def collate(
    examples: Sequence[Example],
    needs: Sequence[Need],
    end_id: int = -1,
    signal_of: SignalOf | None = None,
    start_of: Mapping[tuple[str, str], NDArray[Any]] | None = None,
    experience_of: ExperienceOf | None = None,
    reward_of: Mapping[tuple[str, str], float] | None = None,
    packer: Packer | None = None,
    in_one: bool = False,
) -> Batch:
    """Lay out a micro-batch, packed where a `packer` asks for it, with what the `needs` ask for. `start_of` gives the
    start model's label log-probs [T] of (example id, part), `reward_of` what a reward model gave to it. With `in_one`
    there is one forward pass, as processes need that share a model out: they make equally many.
    """
    needs = sorted(needs, key=lambda need: need.online)
    sequences = [example.parts[need.part] for need in needs for example in examples]
    labels = [sequence.ids[sequence.answer].astype(np.int64) for sequence in sequences]
    flat = np.concatenate(labels)
    signals = {need.part: [required(signal_of)(*e.name(need.part)) for e in examples] for need in needs if need.signal}
    k = max((s.ids.shape[1] for part in signals.values() for s in part), default=0)
    ids = np.full((len(flat), 1 + k), -1, dtype=np.int64)
    ids[:, 0] = flat
    parts: dict[str, PartBatch] = {}
    starts = np.concatenate([[0], np.cumsum([len(part) for part in labels])])
    for n, need in enumerate(needs):
        own = slice(n * len(examples), (n + 1) * len(examples))
        keys = [(example.id, need.part) for example in examples]
        rows = signals.get(need.part)
        for offset, row in zip(starts[own], rows or (), strict=False):
            ids[offset : offset + len(row), 1 : 1 + row.ids.shape[1]] = row.ids
        where, mask = _places(starts[:-1][own], np.diff(starts)[own])
        longest = mask.shape[1]
        drawn_as = [experience_of[example.id] for example in examples] if need.online and experience_of else None
        rewards = [reward_of[key] for key in keys] if need.reward and reward_of is not None else None
        parts[need.part] = PartBatch(
            torch.from_numpy(where), torch.from_numpy(mask), torch.from_numpy((flat == end_id)[where] & mask),
            in_topk=torch.from_numpy((ids[where, 1:] == ids[where, :1]).any(-1)) if rows else None,
            signal=_signal(rows, longest) if rows else None,
            start=_padded([required(start_of)[key] for key in keys], longest) if need.start else None,
            experience=_experience(drawn_as, longest) if drawn_as else None,
            reward=None if rewards is None else torch.tensor(rewards, dtype=torch.float32),
        )  # fmt: skip
    fixed = sum(not need.online for need in needs) * len(examples)
    drawn = row_layouts(sequences[fixed:], starts[fixed:]) if fixed < len(sequences) else ()
    layouts, tokens = row_layouts(sequences, starts, packer, in_one), sum(map(len, sequences))
    return Batch(layouts, torch.from_numpy(ids), parts, tokens, drawn)


def views(
    batch: Batch, logps: Tensor, rest: Tensor, stats: Stats | None = None, values: Tensor | None = None
) -> dict[Any, View]:
    """The student's log-probs [N,1+K], rest mass [N] and log of Σ p² [N], if asked for, as one `View` per part.

    `values` are those of the critic at the drawn answers, whose positions are the last of the N, or of a model that is
    trained to give them, at all.
    """
    out = {}
    fixed = 0 if values is None else len(logps) - len(values)
    for name, part in batch.parts.items():
        picked = logps[part.where]
        k = part.signal.logps.shape[-1] if part.signal else 0
        out[name] = View(
            logps=picked[..., 0], mask=part.mask, end=part.end,
            topk_logps=picked[..., 1 : 1 + k] if part.signal else None,
            rest_logps=rest[part.where] if part.signal else None,
            label_in_topk=part.in_topk, signal=part.signal, start_logps=part.start,
            log_sum_squares=None if stats is None else stats.log_sum_squares[part.where],
            values=None if values is None or (fixed and not part.experience)
            else values[(part.where - fixed).clamp(min=0)],
            experience=part.experience, reward=part.reward,
        )  # fmt: skip
    return out


def _places(begins: NDArray[Any], lengths: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """[B,T] the flat position of each token of rows that begin at `begins` [B], and which of them there are."""
    steps = np.arange(max(1, lengths.max()))
    mask = steps < lengths[:, None]
    return np.where(mask, begins[:, None] + steps, 0), mask


def _padded(rows: Sequence[Any], longest: int) -> Tensor:
    """[B,T,...] of arrays [t,...], padded with 0."""
    first = rows[0]
    out = np.zeros((len(rows), longest, *first.shape[1:]), dtype=first.dtype)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return torch.from_numpy(out)


def _experience(rows: Sequence[Mapping[str, Any]], longest: int) -> Experience:
    return Experience(**{name: _padded([row[name] for row in rows], longest) for name in rows[0]})


def _signal(rows: Sequence[SignalRows], longest: int) -> Signal:
    columns = {name: [getattr(row, name) for row in rows] for name in SIGNAL_FIELDS}
    return Signal(**{name: _padded(own, longest) for name, own in columns.items() if own[0] is not None})
