"""Small models of several architectures, and what one forward and backward pass of them computes and keeps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoXConfig,
    MistralConfig,
    OPTConfig,
    Phi3Config,
    Qwen2Config,
)

from adpa_cli.engine.models import hidden_states
from adpa_cli.spec import TrainSpec, make
from support.tiny_models import VOCABULARY, tiny_llama

IDS = torch.tensor([[5, 9, 30, 7, 12, 8], [6, 6, 20, 11, 5, 31]])
SMALL: dict[str, Any] = {"vocab_size": VOCABULARY, "bos_token_id": 2, "eos_token_id": 4, "pad_token_id": 1}
LAYERS = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
ARCHITECTURES: dict[str, Callable[[], Any]] = {
    "llama": tiny_llama,
    "qwen2": lambda: Qwen2Config(**SMALL, **LAYERS, intermediate_size=32, num_key_value_heads=1),
    "mistral": lambda: MistralConfig(**SMALL, **LAYERS, intermediate_size=32, num_key_value_heads=1),
    "phi3": lambda: Phi3Config(**SMALL, **LAYERS, intermediate_size=32),
    "gpt2": lambda: GPT2Config(
        **SMALL, n_embd=16, n_layer=2, n_head=2, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0
    ),
    "gpt-neox": lambda: GPTNeoXConfig(**SMALL, **LAYERS, intermediate_size=32),
    "opt": lambda: OPTConfig(**SMALL, **LAYERS, ffn_dim=32, word_embed_proj_dim=16, dropout=0.0),
}


def made(name: str = "llama") -> Any:
    found = ARCHITECTURES[name]()
    torch.manual_seed(0)
    model = found if name == "llama" else AutoModelForCausalLM.from_config(found)
    return model.train()


def spec(**settings: Any) -> TrainSpec:
    fixed = {"method": "sft", "method_version": 1, "params": {}, "template": "", "end": "", "dtype": "float32"}
    return make(TrainSpec, {**fixed, **settings})


def computed(model: Any) -> tuple[Tensor, dict[str, Tensor], int]:
    """States, gradients of a random sum of them, and bytes kept for the backward pass beside the weights."""
    kept: dict[int, Tensor] = {}
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        states = hidden_states(model, IDS.to(model.device), None)
    torch.manual_seed(1)
    (states * torch.randn(states.shape).to(states.device)).sum().backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return states.detach(), found, sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def check_equal(ours: Any, theirs: Any) -> None:
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-4, atol=1e-5)
    assert ours[1].keys() == theirs[1].keys()
    scale = max(float(grad.abs().max()) for grad in theirs[1].values())
    for name, grad in theirs[1].items():
        torch.testing.assert_close(ours[1][name], grad, rtol=1e-4, atol=1e-5 * scale, msg=name)
