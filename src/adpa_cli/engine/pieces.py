"""How the sequences of a micro-batch lie in the forward passes of a model.

Either *padded*: sequences of similar length side by side, a row each. Or *packed*: one row without padding, in which
stretches of tokens lie end to end; a stretch sees itself, causally, and the prompt that it follows. Answers to one
prompt may share it: it is computed once, and what a token sees, and so its state, is as behind a prompt of its own.

S sequences, T tokens of a row, N answer positions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from adpa_cli.engine.models import Dtype, computing
from adpa_cli.engine.schedule import TokenSequence

FEW_TOKENS = 512


@dataclass(frozen=True)
class Packer:
    """Asks for packed rows. `width` is the model's hidden size, by which costs are told; `share` allows shared
    prompts."""

    width: int
    share: bool


@dataclass(frozen=True)
class Packing:
    """The stretches of a packed row: `positions` [1,T] of each token in its sequence, `lengths` of the stretches, and
    the number of the stretch that each `follows`, -1 for none. `masks` [n,p+n] bool say what a stretch of n tokens
    sees of the p before it and of itself, None where it follows none. `bounds` [S+1] int32 are the places where
    stretches begin, and T.
    """

    positions: Tensor
    lengths: tuple[int, ...]
    follows: tuple[int, ...]
    masks: tuple[Tensor | None, ...]
    bounds: Tensor


@dataclass(frozen=True)
class Piece:
    """One forward: `input_ids` [S,L], right padded, or [1,T] with their `packing`; the answer position that is number
    `where`[n] of the batch is predicted at (`rows`[n], `columns`[n])."""

    input_ids: Tensor
    rows: Tensor
    columns: Tensor
    where: Tensor
    packing: Packing | None = None


def pieces_of(sequences: Sequence[TokenSequence], starts: Any, packer: Packer | None = None) -> tuple[Piece, ...]:
    """Lay out `sequences`; their answer positions are numbered from `starts` [S+1]."""
    if packer is not None:
        return (_packed(sequences, starts, packer),)
    return tuple(_padded(group, sequences, starts) for group in similar([len(sequence) for sequence in sequences]))


def piece_states(body: nn.Module, piece: Piece, dtype: Dtype) -> Tensor:
    """Last hidden states [N,H] of the decoder `body` at the answer positions of a piece.

    There is no attention mask: padding is on the right, where a causal model cannot see it.
    """
    packing = piece.packing
    more: dict[str, Any] = {"attention_mask": None}
    if packing is not None:
        # A mask that is "prepared already", which transformers passes on as it is: the packing tells who sees whom.
        mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=packing.positions.device)
        more = {"attention_mask": mask, "position_ids": packing.positions, "packing": packing}
    with computing(dtype, piece.input_ids.device):
        states: Tensor = body(input_ids=piece.input_ids, use_cache=False, **more).last_hidden_state
    return states[piece.rows, piece.columns]


def in_order(found: Sequence[Tensor], pieces: Sequence[Piece]) -> Tensor:
    """What was computed at the positions of each of the pieces, put together in the order of their numbers."""
    return torch.cat(list(found))[torch.cat([piece.where for piece in pieces]).argsort()]


def moved(value: Any, device: torch.device) -> Any:
    """The same dataclasses, tuples and mappings with every tensor in them on `device`."""
    return changed(value, lambda tensor: tensor.to(device, non_blocking=True))


def changed(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same dataclasses, tuples and mappings with a `change` to every tensor in them."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, tuple):
        return tuple(changed(item, change) for item in value)
    if isinstance(value, Mapping):
        return {key: changed(item, change) for key, item in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return type(value)(**{name: changed(item, change) for name, item in vars(value).items()})
    return value


def similar(lengths: Sequence[int]) -> list[list[int]]:
    """Group positions of `lengths`, longest first, so that a group is at most a tenth padding.

    A group of few tokens, or of less than an eighth of all, takes the next one anyway: small forwards cost more than
    padding.
    """
    least = max(FEW_TOKENS, sum(lengths) / 8)
    groups: list[list[int]] = []
    held = 0
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        padding = lengths[groups[-1][0]] * (len(groups[-1]) + 1) - held - lengths[i] if groups else 0
        if not groups or (held >= least and padding > (held + lengths[i]) / 10):
            groups.append([])
            held = 0
        groups[-1].append(i)
        held += lengths[i]
    return groups


def _padded(group: Sequence[int], sequences: Sequence[TokenSequence], starts: Any) -> Piece:
    """The sequences of `group`, the first of which is the longest; `starts` [S+1] numbers their answer positions."""
    input_ids = np.zeros((len(group), len(sequences[group[0]])), dtype=np.int64)
    rows, columns, where = [], [], []
    for row, i in enumerate(group):
        sequence = sequences[i]
        input_ids[row, : len(sequence)] = sequence.ids
        at = np.flatnonzero(sequence.answer)
        rows.append(np.full(len(at), row))
        columns.append(at - 1)
        where.append(np.arange(starts[i], starts[i + 1]))
    flat = [torch.from_numpy(np.concatenate(numbers)) for numbers in (rows, columns, where)]
    return Piece(torch.from_numpy(input_ids), flat[0], flat[1], flat[2])


def _packed(sequences: Sequence[TokenSequence], starts: Any, packer: Packer) -> Piece:
    """One row; the last token of a sequence, which is predicted and never read, is left out."""
    row = _Row()
    columns: list[NDArray[np.int64]] = []
    where: list[NDArray[np.int64]] = []
    for group in _by_prompt(sequences, packer.share):
        prompt = _prompt(sequences[group[0]])
        tails = [len(sequences[i]) - 1 - prompt for i in group]
        shared = len(group) > 1 and _saves(prompt, tails, packer.width)
        begin = row.add(sequences[group[0]].ids[:prompt]) if shared else -1
        first = len(row.lengths) - 1
        for i in group:
            own = sequences[i].ids[:-1]
            at = np.flatnonzero(sequences[i].answer) - 1
            if shared:
                tail = row.add(own[prompt:], prompt, first)
                at = np.where(at < prompt, begin + at, tail + at - prompt)
            else:
                at = at + row.add(own)
            columns.append(at)
            where.append(np.arange(starts[i], starts[i + 1]))
    flat = torch.from_numpy(np.concatenate(columns))
    ids, packing = row.done()
    return Piece(ids, torch.zeros_like(flat), flat, torch.from_numpy(np.concatenate(where)), packing)


def _prompt(sequence: TokenSequence) -> int:
    """Tokens before the first answer token."""
    return int(sequence.answer.argmax())


def _by_prompt(sequences: Sequence[TokenSequence], share: bool) -> list[list[int]]:
    """The positions of sequences that begin with the same prompt, or each alone."""
    groups: dict[Any, list[int]] = {}
    for i, sequence in enumerate(sequences):
        key = sequence.ids[: _prompt(sequence)].tobytes() if share else i
        groups.setdefault(key, []).append(i)
    return list(groups.values())


def _saves(prompt: int, tails: Sequence[int], width: int) -> bool:
    """Whether one prompt for all costs less than one for each.

    A token costs about 24 width² operations in a layer. Behind a shared prompt attention takes a mask, and then does
    not skip the half of its own square that causality leaves out: 2 width n² operations for n tokens.
    """
    return 12 * width * prompt * (len(tails) - 1) > sum(n * n for n in tails)


class _Row:
    """A packed row in the making."""

    def __init__(self) -> None:
        self.ids: list[NDArray[Any]] = []
        self.positions: list[NDArray[Any]] = []
        self.lengths: list[int] = []
        self.follows: list[int] = []
        self.size = 0

    def add(self, ids: NDArray[Any], position: int = 0, after: int = -1) -> int:
        """Append a stretch whose first token has `position`; returns where it begins. An empty one is left out."""
        begin = self.size
        if len(ids):
            self.ids.append(ids)
            self.positions.append(np.arange(position, position + len(ids)))
            self.lengths.append(len(ids))
            self.follows.append(after)
            self.size += len(ids)
        return begin

    def done(self) -> tuple[Tensor, Packing]:
        """The token ids [1,T] and how they lie."""
        ids, positions = (
            torch.from_numpy(np.concatenate(parts).astype(np.int64))[None] for parts in (self.ids, self.positions)
        )
        bounds = torch.from_numpy(np.cumsum([0, *self.lengths]).astype(np.int32))
        masks = tuple(self._mask(n, after) for n, after in zip(self.lengths, self.follows, strict=True))
        return ids, Packing(positions, tuple(self.lengths), tuple(self.follows), masks, bounds)

    def _mask(self, length: int, after: int) -> Tensor | None:
        if after < 0:
            return None
        before = self.lengths[after]
        return torch.ones(length, before + length, dtype=torch.bool).tril(before)
