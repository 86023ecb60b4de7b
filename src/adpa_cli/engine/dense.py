"""What a model says of every id of the vocabulary at the tokens of one answer: the yardstick for a signal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from adpa_cli.engine.heads import output_head
from adpa_cli.engine.models import Dtype, hidden_states

BLOCK_BYTES = 1 << 26


@torch.no_grad()
def dense_logps(
    model: PreTrainedModel, prompt: Sequence[int], answer: Sequence[int], known: int, dtype: Dtype
) -> Iterator[Tensor]:
    """[t, `known` + 1] float64 log-probs of the first ids and of all others together, for runs of the answer's tokens.

    The runs are as long as BLOCK_BYTES allow; together they have a row for each token of `answer`.
    """
    head = output_head(model)
    weight = head.weight.float()
    ids = torch.tensor([[*prompt, *answer][:-1]], device=weight.device)
    states = hidden_states(model, ids, torch.ones_like(ids), dtype=dtype)[0, len(prompt) - 1 :].float()
    rows = max(1, BLOCK_BYTES // (8 * weight.shape[0]))
    for run in torch.split(states, rows):
        products = torch.nn.functional.linear(run, weight)
        logps = head.logits(products, products).double().log_softmax(-1).cpu()
        yield torch.cat([logps[:, :known], logps[:, known:].logsumexp(-1, keepdim=True)], 1)
