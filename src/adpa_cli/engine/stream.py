"""One answer, token by token, for a conversation at a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from adpa_cli.engine.generate import Chooser, Sampling, answer_limit
from adpa_cli.engine.models import Dtype, computing
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
    chooser = Chooser(sampling, [row_id], len(prompt))
    ids = torch.tensor([list(prompt)], device=model.device)
    new, cache = ids, None
    for _ in range(limit):
        scores, cache = _step(model, new, cache, dtype)
        token = int(chooser(ids, scores).argmax(-1))
        if chooser.broken is not None and bool(chooser.broken.any()):
            raise AdpaError("the logits are not finite", "check the model's weights, or use float32")
        yield token
        if token == end_id:
            return
        new = torch.tensor([[token]], device=model.device)
        ids = torch.cat([ids, new], dim=1)


@torch.no_grad()
def _step(model: Any, new: Tensor, cache: Any, dtype: Dtype) -> tuple[Tensor, Any]:
    """Scores [1, V] float32 after the tokens `new` [1, T], and the cache with them."""
    with computing(dtype, model.device):
        out = model(input_ids=new, past_key_values=cache, use_cache=True)
    return out.logits[:, -1, :].float(), out.past_key_values
