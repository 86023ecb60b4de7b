"""Answers from a model, where a row's tokens depend on the row alone, up to float rounding.

Continuous batching gives them; for models whose state its cache cannot hold (`kv_cache.supports_kv_cache`) it is static
batching by transformers' own `generate`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel

from adpa_cli.engine.arithmetic import computing, has_units
from adpa_cli.engine.device import halving
from adpa_cli.engine.frozen import expanded
from adpa_cli.engine.generation.continuous_batching import PartialAnswer, generate_continuously, left_padded
from adpa_cli.engine.generation.kv_cache import supports_kv_cache
from adpa_cli.engine.generation.sampling import NOT_FINITE, Decoding, Sampling, answer_limit, noisy, row_key
from adpa_cli.engine.layout.micro_batches import cut_blocks
from adpa_cli.engine.ranks import Ranks
from adpa_cli.sizes import DRAW_TOKENS
from adpa_cli.spec import Dtype

POOL = 4
"""How many times the rows answered at once a block of answers has, so that a row that ends has a successor."""


@dataclass(frozen=True)
class Generated:
    """An answer's token ids, the end token included where it was generated; `cut` where a limit stopped it first."""

    ids: list[int]
    cut: bool


def generate_block(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    row_ids: Sequence[str],
    decoding: Decoding,
    tokens: int | None = None,
) -> list[Generated]:
    """One answer per prompt, of at most `max_new_tokens` and of at most the room left in its context.

    As many rows are answered at once as fit in `tokens` at their longest, or one; all of them without `tokens`.
    Nothing but `decoding` sets how tokens are chosen: the model folder's generation_config is ignored.
    Raises AdpaError naming the row whose prompt is empty or leaves no room, or whose logits are not numbers.
    """
    if not prompts:
        return []
    sampling = decoding.sampling
    rows = [
        PartialAnswer(
            name, prompt, row_key(sampling.seed, name), answer_limit(len(prompt), name, sampling, decoding.context)
        )
        for name, prompt in zip(row_ids, prompts, strict=True)
    ]
    longest = max(len(row.prompt) + row.limit for row in rows)
    batch_size = len(rows) if tokens is None else min(len(rows), max(1, tokens // longest))
    few_bits = computing(decoding.dtype, model.device)
    with cast_once(model, decoding.dtype), few_bits, torch.no_grad():
        if supports_kv_cache(model):
            generate_continuously(model, rows, decoding, batch_size)
        else:
            for start in range(0, len(rows), batch_size):
                generate_statically(model, rows[start : start + batch_size], decoding)
    return [Generated(row.answer, cut=row.answer[-1] not in decoding.end_ids) for row in rows]


def cast_once(model: PreTrainedModel, dtype: Dtype) -> AbstractContextManager[None]:
    """Lets the weights of a model be read for one token after the other without a cast for each."""
    if dtype == "float16" and has_units(model.device):
        return nullcontext()
    return expanded(model)


def generate_share(
    model: PreTrainedModel,
    prompts: Mapping[str, Sequence[int]],
    row_id: Callable[[str], str],
    decoding: Decoding,
    ranks: Ranks,
) -> dict[str, Generated]:
    """Answers to this process's share of some prompts, by their names; `row_id` of a name seeds the noise of its row.

    The blocks in which they are generated depend on the prompts alone. Where memory runs out, fewer rows of a block are
    answered at once; AdpaError when one row does not fit.
    """
    new = decoding.sampling.max_new_tokens

    def length(name: str) -> int:
        return min(len(prompts[name]) + new, decoding.context)

    answers: dict[str, Generated] = {}
    blocks = cut_blocks(prompts, length, str, POOL * DRAW_TOKENS)
    for block in ranks.share(blocks):
        asked, row_ids = [prompts[name] for name in block.items], [row_id(name) for name in block.items]
        make = functools.partial(generate_block, model, asked, row_ids, decoding)
        one = max(map(length, block.items))
        made = halving(make, min(DRAW_TOKENS, one * len(asked)), 2 * one - 1, f"an answer of {new:,} tokens")
        answers.update(zip(block.items, made, strict=True))
    return answers


def generate_statically(model: Any, rows: Sequence[PartialAnswer], decoding: Decoding) -> None:
    """Complete the answer of every row by static batching: all are carried along until the last one ends.

    Positions stay inside the context, for models that look them up in a table. The model's own generation_config,
    which fills every setting left out, is put aside.
    """

    def stay_inside(_module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if kwargs.get("position_ids") is not None:
            kwargs["position_ids"] = kwargs["position_ids"].clamp(max=decoding.context - 1)
        return args, kwargs

    make: Any = GenerationConfig
    ids, mask = left_padded([row.prompt for row in rows], decoding.pad_id, model.device)
    processor = _Noisy(decoding.sampling, torch.tensor([row.key for row in rows], device=model.device), ids.shape[1])
    settings = make(
        do_sample=False, num_beams=1, use_cache=True, eos_token_id=list(decoding.end_ids), pad_token_id=decoding.pad_id,
        max_new_tokens=max(row.limit for row in rows),
    )  # fmt: skip
    hook = model.register_forward_pre_hook(stay_inside, with_kwargs=True)
    own, model.generation_config = model.generation_config, make()
    try:
        tokens = model.generate(
            input_ids=ids, attention_mask=mask, logits_processor=LogitsProcessorList([processor]),
            generation_config=settings,
        )  # fmt: skip
    finally:
        model.generation_config = own
        hook.remove()
    new = torch.where(processor.broken[:, None], NOT_FINITE, tokens[:, ids.shape[1] :])
    for row, answer in zip(rows, new.tolist(), strict=True):
        row.take(answer, decoding.end_ids)


class _Noisy(LogitsProcessor):
    """Makes the argmax of its output the token to take."""

    def __init__(self, sampling: Sampling, keys: Tensor, width: int) -> None:
        self.sampling, self.keys, self.width = sampling, keys, width
        self.broken = torch.zeros_like(keys, dtype=torch.bool)  # read once, after the loop

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """Scores [B, V] float32 for the token after `input_ids` [B, width + position]."""
        self.broken |= ~torch.isfinite(scores.amax(-1))
        positions = torch.full_like(self.keys, input_ids.shape[1] - self.width)
        return noisy(scores, self.keys, positions, self.sampling)
