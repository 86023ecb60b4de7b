"""Attention over packed rows, as an attention implementation of transformers, and which models it serves.

On a CPU each stretch attends by itself; on a GPU one flash attention kernel takes all of them.
"""

from __future__ import annotations

import inspect
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from adpa_cli.engine.models import Dtype, body_and_head
from adpa_cli.engine.pieces import Packer, Packing, in_order, moved, piece_states, pieces_of
from adpa_cli.engine.prompts import windows
from adpa_cli.engine.schedule import TokenSequence

NAME = "packed"
TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2}
LEAST_WORK = 500_000
"""Tokens of a sequence times the square of a model's width, from where on a CPU spends more on padding than on calling
attention for each stretch: that takes about 0.1 ms of a layer, as 70 operations on a fifth of so many numbers do."""
LEAST_CAPABILITY = (8, 0)  # of a GPU that flash attention runs on
GROUPED = "enable_gqa" in inspect.signature(varlen_attn).parameters  # torch 2.12; earlier keys and values are repeated
TRIAL = ((4, 3), (4, 2), (3, 4))
"""Tokens of prompt and answer of the sequences that a model is tried with; those of equal prompts share one."""


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
    found = []
    for i, (after, mask) in enumerate(zip(packing.follows, packing.masks, strict=True)):
        k, v = keys[i], values[i]
        if after >= 0:
            k, v = torch.cat([keys[after], k], 2), torch.cat([values[after], v], 2)
        found.append(
            F.scaled_dot_product_attention(
                queries[i], k, v, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=grouped
            )
        )
    return torch.cat(found, 2)


def _flash(query: Tensor, key: Tensor, value: Tensor, scaling: float | None, packing: Packing) -> Tensor:
    """[1,T,heads,d] by torch's kernel for sequences of varying length."""
    grouped = query.shape[1] != key.shape[1]
    more: dict[str, Any] = {"enable_gqa": grouped} if GROUPED else {}
    if grouped and not GROUPED:
        key, value = (states.repeat_interleave(query.shape[1] // key.shape[1], 1) for states in (key, value))
    # Under autocast rotary embeddings leave queries and keys in float32, and the kernel is not on its list.
    query, key, value = (states[0].transpose(0, 1).to(value.dtype) for states in (query, key, value))
    bounds, longest = packing.bounds, max(packing.lengths)
    found: Any = varlen_attn(
        query, key, value, bounds, bounds, longest, longest, scale=scaling, window_size=(-1, 0), **more
    )
    output: Tensor = found[None]
    return output


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)


def packer_of(model: PreTrainedModel, dtype: Dtype, longest: int, mean: float = math.inf) -> Packer | None:
    """How `model` may be given packed rows of sequences of up to `longest` tokens, and `mean` tokens on average; None
    where it may not, or where that would take longer than padding.

    From then on it attends in the way that this asks for. It must take positions and hand what it does not know on to
    its attention, as current models of transformers do: a few tokens are tried. Windows are read from its
    configuration, since no short trial meets them.
    """
    device = body_and_head(model)[1].device
    if model.config._attn_implementation != "sdpa" or any(window < longest for window in windows(model.config)):
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


@torch.no_grad()
def _same(model: PreTrainedModel, packer: Packer, dtype: Dtype) -> bool:
    """Whether the states of a few sequences, two of them with one prompt, do not depend on how they lie."""
    body, weight, _ = body_and_head(model)
    trial = [_sequence(prompt, answer, weight.shape[0]) for prompt, answer in TRIAL]
    starts = np.cumsum([0, *(sequence.tokens for sequence in trial)])
    found = []
    try:
        for how in (None, packer):
            pieces = moved(pieces_of(trial, starts, how), weight.device)
            found.append(in_order([piece_states(body, piece, dtype) for piece in pieces], pieces).float())
    except Exception:  # whatever a model makes of an argument that it does not know, padded rows it takes
        return False
    return float((found[0] - found[1]).abs().max()) <= TOLERANCE[dtype] * float(found[0].abs().max())


def _sequence(prompt: int, answer: int, vocabulary: int) -> TokenSequence:
    ids = np.array([*range(2, 2 + prompt), *range(11 * answer, 12 * answer)], dtype=np.int32) % vocabulary
    return TokenSequence(ids, np.arange(len(ids)) >= prompt)
