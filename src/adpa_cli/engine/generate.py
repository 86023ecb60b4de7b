"""Answers from a model, where a row's tokens depend on the row alone.

Sampling is greedy decoding over noisy scores: the argmax of logits plus Gumbel noise is a draw from their softmax. The
noise is a pure function of (seed, row id, position, token id), so a row draws the same noise alone, in any batch, on
any device; only float rounding of the logits is left to differ.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel

from adpa_cli.engine.memory import ROOM, fitting
from adpa_cli.engine.models import Dtype, computing
from adpa_cli.errors import AdpaError, UsageError

_GOLDEN = 0x9E3779B97F4A7C15 - 2**64  # splitmix64's increment, as a signed 64-bit integer
_MIX_1 = 0xBF58476D1CE4E5B9 - 2**64
_MIX_2 = 0x94D049BB133111EB - 2**64
_BITS = 52  # the most for which (bits + 0.5) / 2**bits is exact in float64 and below 1


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. `temperature` 0 is greedy; `top_p` in (0, 1] is the nucleus' mass, after temperature.

    Raises UsageError where a value has no meaning.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    max_new_tokens: int = 1024
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise UsageError(f"temperature is {self.temperature}", "give 0 (greedy) or more")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top_p is {self.top_p}", "give a number above 0, at most 1")
        if self.max_new_tokens < 1:
            raise UsageError(f"max_new_tokens is {self.max_new_tokens}", "give 1 or more")


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
) -> list[Generated]:
    """One answer per prompt, of at most `max_new_tokens` and of at most the room left in `context` tokens.

    Nothing but `sampling` sets how tokens are chosen: the model folder's generation_config is ignored.
    Raises AdpaError naming the row whose prompt is empty or leaves no room, or whose logits are not numbers.
    """
    if not prompts:
        return []
    limits = [answer_limit(len(prompt), row, sampling, context) for prompt, row in zip(prompts, row_ids, strict=True)]
    width = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), width), pad_id, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    chooser = Chooser(sampling, row_ids, width)
    settings = {"max_new_tokens": max(limits), "eos_token_id": end_id, "pad_token_id": pad_id}
    with computing(dtype, model.device):
        output = _greedy(model, ids, mask, chooser, context, settings)
    if chooser.broken is not None and bool(chooser.broken.any()):
        row = int(chooser.broken.int().argmax())
        raise AdpaError(
            f"the logits of row {row_ids[row]!r} are not finite", "check the model's weights, or use float32"
        )
    return [_kept(tokens[width:].tolist(), end_id, limit) for tokens, limit in zip(output, limits, strict=True)]


def generate_fitting(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    row_ids: Sequence[str],
    end_id: int,
    pad_id: int,
    sampling: Sampling,
    context: int,
    dtype: Dtype = "float32",
) -> list[Generated]:
    """`generate_block`, half of it at a time as often as memory runs out; AdpaError when one answer does not fit."""
    rest = (end_id, pad_id, sampling, context, dtype)
    made = fitting(functools.partial(generate_block, model, prompts, row_ids, *rest))
    if made is not None:
        return made
    if len(prompts) == 1:
        raise AdpaError(f"an answer of {sampling.max_new_tokens:,} tokens does not fit in memory", f"use {ROOM}")
    half = len(prompts) // 2
    return [
        *generate_fitting(model, prompts[:half], row_ids[:half], *rest),
        *generate_fitting(model, prompts[half:], row_ids[half:], *rest),
    ]


def answer_limit(prompt_tokens: int, row_id: str, sampling: Sampling, context: int) -> int:
    """The most tokens that an answer to a prompt may have. Raises AdpaError where the prompt leaves no room."""
    if not 0 < prompt_tokens < context:
        raise AdpaError(
            f"row {row_id!r}: a prompt of {prompt_tokens} tokens leaves no answer to generate in {context}",
            "cut the prompt from the left, or allow a longer context",
        )
    return min(sampling.max_new_tokens, context - prompt_tokens)


def _kept(tokens: list[int], end_id: int, limit: int) -> Generated:
    tokens = tokens[:limit]
    if end_id in tokens:
        return Generated(tokens[: tokens.index(end_id) + 1], cut=False)
    return Generated(tokens, cut=True)


def _greedy(
    model: Any, ids: Tensor, mask: Tensor, chooser: LogitsProcessor, context: int, settings: dict[str, int]
) -> Tensor:
    """`model.generate` in greedy mode: tokens [B, T + new].

    A row at its limit is carried along until the last one ends; its positions stay inside the context, for models
    that look positions up in a table. The model's own generation_config, which fills every setting left out, is put
    aside.
    """

    def stay_inside(_module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if kwargs.get("position_ids") is not None:
            kwargs["position_ids"] = kwargs["position_ids"].clamp(max=context - 1)
        return args, kwargs

    make: Any = GenerationConfig
    hook = model.register_forward_pre_hook(stay_inside, with_kwargs=True)
    own, model.generation_config = model.generation_config, make()
    try:
        with torch.no_grad():
            tokens: Tensor = model.generate(
                input_ids=ids.to(model.device),
                attention_mask=mask.to(model.device),
                generation_config=make(do_sample=False, num_beams=1, use_cache=True, **settings),
                logits_processor=LogitsProcessorList([chooser]),
            )
    finally:
        model.generation_config = own
        hook.remove()
    return tokens


class Chooser(LogitsProcessor):
    """Makes the argmax of its output the token to take: temperature, nucleus and noise, in float32."""

    def __init__(self, sampling: Sampling, row_ids: Sequence[str], width: int) -> None:
        self.sampling, self.width = sampling, width
        self.keys = torch.tensor([row_key(sampling.seed, row_id) for row_id in row_ids])
        self.broken: Tensor | None = None  # [B], rows that met a logit that is no number; read once, after the loop

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """Scores [B, V] float32 for the token after `input_ids` [B, width + position]."""
        broken = ~torch.isfinite(scores.amax(-1))
        self.broken = broken if self.broken is None else self.broken | broken
        if self.sampling.temperature == 0:
            return scores
        scores = nucleus(scores.float() / self.sampling.temperature, self.sampling.top_p)
        return scores + gumbel(self.keys.to(scores.device), input_ids.shape[1] - self.width, scores.shape[-1])


def nucleus(logits: Tensor, top_p: float) -> Tensor:
    """`logits` [B, V] with -inf outside the smallest set of likeliest tokens whose mass reaches `top_p`.

    The likeliest token always stays; of equal tokens the lower id comes first.
    """
    if top_p >= 1:
        return logits
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    probs = ordered.softmax(-1)
    outside = probs.cumsum(-1) - probs >= top_p
    outside[:, 0] = False
    return logits.masked_fill(torch.zeros_like(outside).scatter(-1, order, outside), -float("inf"))


def row_key(seed: int, row_id: str) -> int:
    """A signed 64-bit key from the seed and the row's id."""
    digest = hashlib.sha256(f"{seed}\0{row_id}".encode()).digest()
    return int.from_bytes(digest[:8], "little", signed=True)


def gumbel(keys: Tensor, position: int, vocabulary: int) -> Tensor:
    """Standard Gumbel noise [B, V] float32, a function of each row's key [B] int64, the position and the token id."""
    at = torch.tensor(position, device=keys.device)
    noise: Tensor = -torch.log(-torch.log(uniforms(keys, at, vocabulary)))
    return noise.float()


def uniforms(keys: Tensor, positions: Tensor, count: int) -> Tensor:
    """Numbers in (0, 1), [B, count] float64, a function of each row's key [B] int64, its position [B] and the place."""
    step = _mix(keys + positions * _GOLDEN)
    counter = torch.arange(1, count + 1, device=keys.device) * _GOLDEN
    bits = _shift(_mix(step[:, None] + counter), 64 - _BITS)
    return (bits.double() + 0.5) * 2.0**-_BITS


def _mix(x: Tensor) -> Tensor:
    """The output function of splitmix64 (Steele et al. 2014), on int64 that wraps around."""
    x = (x ^ _shift(x, 30)) * _MIX_1
    x = (x ^ _shift(x, 27)) * _MIX_2
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift: torch's is arithmetic."""
    low: Tensor = (x >> bits) & (2 ** (64 - bits) - 1)
    return low
