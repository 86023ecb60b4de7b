"""How a token is chosen: greedily over noisy scores, so that a row's draws depend on the row alone.

The argmax of logits plus Gumbel noise is a draw from their softmax. The noise is a pure function of (seed, row id,
position, token id), so a row draws the same noise alone, in any batch, on any device; only float rounding of the logits
is left to differ.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from adpa_cli.errors import AdpaError, UsageError
from adpa_cli.spec import Dtype
from adpa_cli.tensors.rounding import GOLDEN, mixed, shifted

NOT_FINITE = -1
"""Stands for the token of a row whose logits are not numbers."""

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
            raise UsageError(f"temperature must be 0 or more; got {self.temperature}", "use 0 for greedy decoding")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top_p must be above 0 and at most 1; got {self.top_p}", "use 1 for all tokens")
        if self.max_new_tokens < 1:
            raise UsageError(
                f"max_new_tokens must be 1 or more; got {self.max_new_tokens}",
                "use the number of tokens that an answer may have",
            )


@dataclass(frozen=True)
class Decoding:
    """How answers are generated: how their tokens are chosen, the tokens that end them, the one that pads prompts, the
    most tokens of a prompt and its answer together, and the dtype that the model computes in."""

    sampling: Sampling
    end_ids: tuple[int, ...]
    pad_id: int
    context: int
    dtype: Dtype = "float32"


def choose(logits: Tensor, keys: Tensor, positions: Tensor, sampling: Sampling) -> Tensor:
    """The token to take, [B] int64, by `logits` [B, V] of any dtype; NOT_FINITE where they are not numbers.

    `keys` [B] are of the rows (`row_key`), `positions` [B] the numbers of tokens that their answers have so far.
    """
    finite = torch.isfinite(logits.amax(-1))
    return torch.where(finite, noisy(logits.float(), keys, positions, sampling).argmax(-1), NOT_FINITE)


def noisy(scores: Tensor, keys: Tensor, positions: Tensor, sampling: Sampling) -> Tensor:
    """Scores [B, V] float32 whose argmax is the token to take: temperature, nucleus and noise."""
    if sampling.temperature == 0:
        return scores
    kept = nucleus(scores / sampling.temperature, sampling.top_p)
    return kept + gumbel(keys, positions, scores.shape[-1])


def answer_limit(prompt_tokens: int, row_id: str, sampling: Sampling, context: int) -> int:
    """The most tokens that an answer to a prompt may have. Raises AdpaError where the prompt leaves no room."""
    if not 0 < prompt_tokens < context:
        raise AdpaError(
            f"row {row_id!r}: a prompt of {prompt_tokens} tokens leaves no room for an answer in {context} tokens",
            "shorten the prompt, or allow a longer context",
        )
    return min(sampling.max_new_tokens, context - prompt_tokens)


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


def gumbel(keys: Tensor, positions: Tensor, vocabulary: int) -> Tensor:
    """Standard Gumbel noise [B, V] float32, a function of each row's key [B] int64, its position [B] and token id."""
    noise: Tensor = -torch.log(-torch.log(uniforms(keys, positions, vocabulary)))
    return noise.float()


def uniforms(keys: Tensor, positions: Tensor, count: int) -> Tensor:
    """Numbers in (0, 1), [B, count] float64, a function of each row's key [B] int64, its position [B] and the place."""
    step = mixed(keys + positions * GOLDEN)
    counter = torch.arange(1, count + 1, device=keys.device) * GOLDEN
    bits = shifted(mixed(step[:, None] + counter), 64 - _BITS)
    return (bits.double() + 0.5) * 2.0**-_BITS
