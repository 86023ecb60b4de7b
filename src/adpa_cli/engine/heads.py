"""What a model makes of its last hidden states: its output head, with the scaling and soft-capping after it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from adpa_cli.engine.models import body_and_head, hidden_states
from adpa_cli.errors import AdpaError
from adpa_cli.tensors.output import Head


def output_head(model: PreTrainedModel) -> Head:
    """The head with what its configuration says of scaling (Granite, Cohere) and soft-capping (Gemma) after it."""
    _, weight, bias = body_and_head(model)
    config = model.config.get_text_config()
    found = (getattr(config, name, None) for name in ("logit_scale", "logits_scaling", "final_logit_softcapping"))
    scale, divisor, softcap = (float(value) if isinstance(value, int | float) and value else None for value in found)
    return Head(weight, bias, (scale or 1.0) / (divisor or 1.0), softcap)


@torch.no_grad()
def check_head(model: PreTrainedModel) -> None:
    """Raise AdpaError unless the model's logits are what `output_head` makes of its last hidden states.

    Small logits hide a soft cap, so what the head puts out is also replaced by large known values.
    """
    head = output_head(model)
    ids = torch.arange(5, device=head.weight.device).remainder(head.weight.shape[0])[None]
    mask = torch.ones_like(ids)
    untyped: Any = model
    training = model.training
    model.train(False)
    logits = untyped(input_ids=ids, attention_mask=mask, use_cache=False).logits
    products = nn.functional.linear(hidden_states(model, ids, mask), head.weight)
    known = torch.linspace(-300, 300, logits.numel(), device=logits.device).view_as(logits).to(products.dtype)
    hook = untyped.get_output_embeddings().register_forward_hook(lambda *_: known)
    try:
        through = untyped(input_ids=ids, attention_mask=mask, use_cache=False).logits
    finally:
        hook.remove()
        model.train(training)
    pairs = (logits, head.logits(products, products)), (through, replace(head, bias=None).logits(known, known.clone()))
    if not all(_same(got.float(), expected.float(), head.weight.dtype) for got, expected in pairs):
        raise AdpaError(
            f"{type(model).__name__} changes its logits after the head in a way that its configuration does not tell, "
            "so log-probs through the head would be wrong",
            "use a model whose logits are its head applied to its hidden states, scaled (logit_scale, logits_scaling) "
            "or soft-capped (final_logit_softcapping) at most, such as Llama, Qwen, Mistral or Gemma",
        )


def _same(got: Tensor, expected: Tensor, dtype: torch.dtype) -> bool:
    """Whether logits agree up to the rounding of `dtype`, measured by the greatest."""
    tolerance = 1e-4 if dtype == torch.float32 else 1e-2
    return float((got - expected).abs().max()) <= tolerance * max(1e-6, float(expected.abs().max()))
