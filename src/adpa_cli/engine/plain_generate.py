"""Answers by transformers' own `generate`, for models whose state cannot be held in slots (`slots.takes_slots`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from adpa_cli.engine.refill import Row, left_padded
from adpa_cli.engine.sampling import NOT_FINITE, Sampling, noisy


def plain_generate(
    model: Any,
    rows: Sequence[Row],
    end_id: int,
    pad_id: int,
    sampling: Sampling,
    context: int,
) -> None:
    """Complete the answer of every row; all are carried along until the last one ends.

    Positions stay inside the context, for models that look them up in a table. The model's own generation_config,
    which fills every setting left out, is put aside.
    """

    def stay_inside(_module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if kwargs.get("position_ids") is not None:
            kwargs["position_ids"] = kwargs["position_ids"].clamp(max=context - 1)
        return args, kwargs

    make: Any = GenerationConfig
    ids, mask = left_padded([row.prompt for row in rows], pad_id, model.device)
    processor = _Noisy(sampling, torch.tensor([row.key for row in rows], device=model.device), ids.shape[1])
    settings = make(
        do_sample=False, num_beams=1, use_cache=True, eos_token_id=end_id, pad_token_id=pad_id,
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
    for row, found in zip(rows, new.tolist(), strict=True):
        row.take(found, end_id)


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
