"""How the sequences of a micro-batch lie in the forward passes of a model.

Either *padded*: sequences of similar length side by side, a row each. Or *packed*: one row without padding, in which
stretches of tokens lie end to end; a stretch sees itself, causally, and the prompt that it follows. Answers to one
prompt may share it: it is computed once, and what a token sees, and so its state, is as behind a prompt of its own.

Attention over packed rows is registered with transformers as an implementation of its own. On a CPU each stretch
attends by itself; on a GPU one flash attention kernel takes all of them. `packer_of` finds out which models it serves.

S sequences, T tokens of a row, N answer positions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from adpa_cli.engine.arithmetic import computing
from adpa_cli.engine.layout.examples import TokenSequence
from adpa_cli.engine.layout.micro_batches import by_length, consecutive_batches
from adpa_cli.engine.layout.shared_prompt import sees_all
from adpa_cli.engine.models import body_and_head
from adpa_cli.spec import Dtype

Item = TypeVar("Item")
NAME = "packed"
TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2}
LEAST_WORK = 500_000
"""Tokens of a sequence times the square of a model's width, from where on a CPU spends more on padding than on calling
attention for each stretch: that takes about 0.1 ms of a layer, as 70 operations on a fifth of so many numbers do."""
LEAST_CAPABILITY = (8, 0)  # of a GPU that flash attention runs on
TRIAL = ((4, 3), (4, 2), (3, 4))
"""Tokens of prompt and answer of the sequences that a model is tried with; those of equal prompts share one."""
FEW_TOKENS = 512
"""Of a group of sequences in one forward: smaller ones cost more than padding."""


@dataclass(frozen=True)
class Packer:
    """Asks for packed rows. `width` is the model's hidden size, by which costs are reckoned; `share` allows shared
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
class RowLayout:
    """One forward: `input_ids` [S,L], right padded, or [1,T] with their `packing`; the answer position that is number
    `where`[n] of the batch is predicted at (`rows`[n], `columns`[n])."""

    input_ids: Tensor
    rows: Tensor
    columns: Tensor
    where: Tensor
    packing: Packing | None = None


def row_layouts(
    sequences: Sequence[TokenSequence], starts: Any, packer: Packer | None = None, in_one: bool = False
) -> tuple[RowLayout, ...]:
    """Lay out `sequences`; their answer positions are numbered from `starts` [S+1]. All are in one layout where they
    are packed, or have to be."""
    if packer is not None:
        return (_packed(sequences, starts, packer),)
    lengths = [len(sequence) for sequence in sequences]
    groups = [by_length(lengths)[::-1]] if in_one else length_groups(lengths)
    return tuple(_padded(group, sequences, starts) for group in groups)


def answer_states(body: nn.Module, layout: RowLayout, dtype: Dtype) -> Tensor:
    """Last hidden states [N,H] of the decoder `body` at the answer positions of a layout.

    There is no attention mask: padding is on the right, where a causal model cannot see it.
    """
    packing = layout.packing
    more: dict[str, Any] = {"attention_mask": None}
    if packing is not None:
        # A mask that is "prepared already", which transformers passes on as it is: the packing tells who sees whom.
        mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=packing.positions.device)
        more = {"attention_mask": mask, "position_ids": packing.positions, "packing": packing}
    with computing(dtype, layout.input_ids.device):
        states: Tensor = body(input_ids=layout.input_ids, use_cache=False, **more).last_hidden_state
    return states[layout.rows, layout.columns]


def in_order(values: Sequence[Tensor], layouts: Sequence[RowLayout]) -> Tensor:
    """What was computed at the positions of each of the layouts, put together in the order of their numbers."""
    return torch.cat(list(values))[torch.cat([layout.where for layout in layouts]).argsort()]


def packer_of(model: PreTrainedModel, dtype: Dtype, longest: int, mean: float = math.inf) -> Packer | None:
    """How `model` may be given packed rows of sequences of up to `longest` tokens, and `mean` tokens on average; None
    where it may not, or where that would take longer than padding.

    From then on it attends in the way that this asks for. It must take positions and hand what it does not know on to
    its attention, as current models of transformers do: a few tokens are tried. Windows are read from its
    configuration, since no short trial meets them.
    """
    device = body_and_head(model)[1].device
    if not sees_all(model, longest):
        return None
    width = model.config.get_text_config().hidden_size
    if device.type == "cpu" and mean * width**2 < LEAST_WORK:
        return None
    if device.type == "cuda" and (dtype != "bfloat16" or torch.cuda.get_device_capability(device) < LEAST_CAPABILITY):
        return None
    packer = Packer(width, share=device.type == "cpu")
    model.set_attn_implementation(NAME)
    if _same(model, packer, dtype):
        return packer
    model.set_attn_implementation("sdpa")
    return None


def length_groups(lengths: Sequence[int]) -> list[list[int]]:
    """Positions of `lengths` in groups, longest first, so that a group is at most a tenth padding.

    A group of few tokens, or of less than an eighth of all, takes the next one anyway: small forwards cost more than
    padding.
    """
    longest_first = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    least = max(FEW_TOKENS, sum(lengths) / 8)
    return consecutive_batches(
        longest_first, lengths.__getitem__, lambda load: load.padded - load.tokens <= load.tokens / 10, least
    )


def moved(value: Item, device: torch.device) -> Item:
    """The same dataclasses, tuples and mappings with every tensor in them on `device`."""
    other: Item = changed(value, lambda tensor: tensor.to(device, non_blocking=True))
    return other


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


def _padded(group: Sequence[int], sequences: Sequence[TokenSequence], starts: Any) -> RowLayout:
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
    return RowLayout(torch.from_numpy(input_ids), flat[0], flat[1], flat[2])


def _packed(sequences: Sequence[TokenSequence], starts: Any, packer: Packer) -> RowLayout:
    """One row; the last token of a sequence, which is predicted and never read, is left out."""
    row = _Row()
    columns: list[NDArray[np.int64]] = []
    where: list[NDArray[np.int64]] = []
    for group in _by_prompt(sequences, packer.share):
        prompt = _prompt(sequences[group[0]])
        tails = [len(sequences[i]) - 1 - prompt for i in group]
        shared = len(group) > 1 and _saves(prompt, tails, packer.width)
        begin = row.add(sequences[group[0]].ids[:prompt]) if shared else -1
        first = len(row.stretches) - 1
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
    return RowLayout(ids, torch.zeros_like(flat), flat, torch.from_numpy(np.concatenate(where)), packing)


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
        self.stretches: list[tuple[NDArray[Any], int, int]] = []
        self.size = 0

    def add(self, ids: NDArray[Any], position: int = 0, after: int = -1) -> int:
        """Append a stretch whose first token has `position`; returns where it begins. An empty one is left out."""
        begin = self.size
        if len(ids):
            self.stretches.append((ids, position, after))
            self.size += len(ids)
        return begin

    def done(self) -> tuple[Tensor, Packing]:
        """The token ids [1,T] and how they lie."""
        parts, begins, follows = zip(*self.stretches, strict=True)
        lengths = tuple(map(len, parts))
        counted = [np.arange(begin, begin + n) for begin, n in zip(begins, lengths, strict=True)]
        ids, positions = (torch.from_numpy(np.concatenate(own).astype(np.int64))[None] for own in (parts, counted))
        bounds = torch.from_numpy(np.cumsum([0, *lengths]).astype(np.int32))
        before = [0 if after < 0 else lengths[after] for after in follows]
        masks = tuple(
            torch.ones(n, seen + n, dtype=torch.bool).tril(seen) if seen else None
            for n, seen in zip(lengths, before, strict=True)
        )
        return ids, Packing(positions, lengths, follows, masks, bounds)


@torch.no_grad()
def _same(model: PreTrainedModel, packer: Packer, dtype: Dtype) -> bool:
    """Whether the states of a few sequences, two of them with one prompt, do not depend on how they lie."""
    body, weight, _ = body_and_head(model)
    tokens = [(range(2, 2 + prompt), range(11 * answer, 12 * answer)) for prompt, answer in TRIAL]
    trial = [TokenSequence.of(*([i % len(weight) for i in ids] for ids in both)) for both in tokens]
    starts = np.cumsum([0, *(sequence.tokens for sequence in trial)])
    states = []
    try:
        for how in (None, packer):
            layouts = moved(row_layouts(trial, starts, how), weight.device)
            states.append(in_order([answer_states(body, layout, dtype) for layout in layouts], layouts).float())
    except Exception:  # whatever a model makes of an argument that it does not know, padded rows it takes
        return False
    return float((states[0] - states[1]).abs().max()) <= TOLERANCE[dtype] * float(states[0].abs().max())


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    packing: Packing | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """[B,T,heads,d] from `query` [B,heads,T,d], `key` and `value`, which may have fewer heads.

    Without `packing` it is transformers' own for `sdpa`. Raises TypeError for what packed rows are not offered with.
    """
    if packing is None:
        usual: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **more
        )
        return usual
    if any(more.get(name) is not None for name in ("softcap", "position_bias", "s_aux")):
        raise TypeError("packed rows are not offered with soft-capped, biased or sink attention")
    if query.device.type == "cuda":
        return _flash(query, key, value, scaling, packing), None
    return _stretches(query, key, value, scaling, packing).transpose(1, 2), None


def _stretches(query: Tensor, key: Tensor, value: Tensor, scaling: float | None, packing: Packing) -> Tensor:
    """[1,heads,T,d]; splitting once, not slicing, keeps the backward pass linear in the number of stretches."""
    untyped: Any = torch
    queries, keys, values = (untyped.split(states, packing.lengths, 2) for states in (query, key, value))
    grouped = query.shape[1] != key.shape[1]
    outputs = []
    for i, (after, mask) in enumerate(zip(packing.follows, packing.masks, strict=True)):
        k, v = keys[i], values[i]
        if after >= 0:
            k, v = torch.cat([keys[after], k], 2), torch.cat([values[after], v], 2)
        outputs.append(
            F.scaled_dot_product_attention(
                queries[i], k, v, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=grouped
            )
        )
    return torch.cat(outputs, 2)


def _flash(query: Tensor, key: Tensor, value: Tensor, scaling: float | None, packing: Packing) -> Tensor:
    """[1,T,heads,d] by torch's kernel for sequences of varying length."""
    grouped = query.shape[1] != key.shape[1]
    # Under autocast rotary embeddings leave queries and keys in float32, and the kernel is not on its list.
    query, key, value = (states[0].transpose(0, 1).to(value.dtype) for states in (query, key, value))
    bounds, longest = packing.bounds, max(packing.lengths)
    kernel: Any = varlen_attn
    output: Tensor = kernel(
        query, key, value, bounds, bounds, longest, longest, scale=scaling, window_size=(-1, 0), enable_gqa=grouped
    )
    return output[None]


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
