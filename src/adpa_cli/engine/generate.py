"""Answers from a model, where a row's tokens depend on the row alone, up to float rounding."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from adpa_cli.engine.memory import ROOM, fitting
from adpa_cli.engine.models import Dtype, computing
from adpa_cli.engine.plain_generate import plain_generate
from adpa_cli.engine.refill import Row, refill
from adpa_cli.engine.sampling import Sampling, answer_limit, row_key
from adpa_cli.engine.slots import takes_slots
from adpa_cli.errors import AdpaError


@dataclass(frozen=True)
class Generated:
    """An answer's token ids, the end token included where it was generated; `cut` where a limit stopped it first."""

    ids: list[int]
    cut: bool


def generate_block(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    row_ids: Sequence[str],
    end_id: int,
    pad_id: int,
    sampling: Sampling,
    context: int,
    dtype: Dtype = "float32",
    tokens: int | None = None,
) -> list[Generated]:
    """One answer per prompt, of at most `max_new_tokens` and of at most the room left in `context` tokens.

    As many rows are answered at once as fit in `tokens` at their longest, or one; all of them without `tokens`.
    Nothing but `sampling` sets how tokens are chosen: the model folder's generation_config is ignored.
    Raises AdpaError naming the row whose prompt is empty or leaves no room, or whose logits are not numbers.
    """
    if not prompts:
        return []
    rows = [
        Row(name, prompt, row_key(sampling.seed, name), answer_limit(len(prompt), name, sampling, context))
        for name, prompt in zip(row_ids, prompts, strict=True)
    ]
    longest = max(len(row.prompt) + row.limit for row in rows)
    slots = len(rows) if tokens is None else min(len(rows), max(1, tokens // longest))
    with _rounded_once(model), computing(dtype, model.device), torch.no_grad():
        if takes_slots(model):
            refill(model, rows, end_id, pad_id, sampling, slots)
        else:
            for start in range(0, len(rows), slots):
                plain_generate(model, rows[start : start + slots], end_id, pad_id, sampling, context)
    return [Generated(row.answer, cut=row.answer[-1] != end_id) for row in rows]


@contextmanager
def _rounded_once(model: PreTrainedModel) -> Iterator[None]:
    """Autocast keeps what it rounds of weights that take a gradient; others it would round again for every token."""
    frozen = [weight for weight in model.parameters() if not weight.requires_grad]
    for weight in frozen:
        weight.requires_grad_(True)
    try:
        yield
    finally:
        for weight in frozen:
            weight.requires_grad_(False)


def generate_fitting(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    row_ids: Sequence[str],
    end_id: int,
    pad_id: int,
    sampling: Sampling,
    context: int,
    dtype: Dtype,
    tokens: int,
) -> list[Generated]:
    """`generate_block` with half of the `tokens` as often as memory runs out; AdpaError when one row does not fit."""
    one = min(context, max(map(len, prompts), default=0) + sampling.max_new_tokens)
    tokens = min(tokens, one * len(prompts))
    while True:
        rest = (end_id, pad_id, sampling, context, dtype, tokens)
        made = fitting(functools.partial(generate_block, model, prompts, row_ids, *rest))
        if made is not None:
            return made
        if tokens < 2 * one:
            raise AdpaError(f"an answer of {sampling.max_new_tokens:,} tokens does not fit in memory", f"use {ROOM}")
        tokens //= 2
