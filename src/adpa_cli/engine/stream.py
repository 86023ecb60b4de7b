"""One answer, token by token, for a conversation at a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from adpa_cli.engine.models import Dtype, computing
from adpa_cli.engine.sampling import NOT_FINITE, Sampling, answer_limit, choose, row_key
from adpa_cli.errors import AdpaError


def stream(
    model: PreTrainedModel,
    prompt: Sequence[int],
    row_id: str,
    end_id: int,
    sampling: Sampling,
    context: int,
    dtype: Dtype = "float32",
) -> Iterator[int]:
    """The ids that `generate_block` would give for this prompt alone, each as soon as it is known.

    The end token is the last of them, unless a limit stops the answer first. Errors as in `generate_block`.
    """
    limit = answer_limit(len(prompt), row_id, sampling, context)
    key = torch.tensor([row_key(sampling.seed, row_id)], device=model.device)
    new, cache = torch.tensor([list(prompt)], device=model.device), None
    for position in range(limit):
        logits, cache = _step(model, new, cache, dtype)
        token = int(choose(logits, key, torch.full_like(key, position), sampling))
        if token == NOT_FINITE:
            raise AdpaError("the logits are not finite", "check the model's weights, or use float32")
        yield token
        if token == end_id:
            return
        new = torch.tensor([[token]], device=model.device)


@torch.no_grad()
def _step(model: Any, new: Tensor, cache: Any, dtype: Dtype) -> tuple[Tensor, Any]:
    """Logits [1, V] after the tokens `new` [1, T], and the cache with them."""
    with computing(dtype, model.device):
        out = model(input_ids=new, past_key_values=cache, use_cache=True)
    return out.logits[:, -1, :], out.past_key_values
