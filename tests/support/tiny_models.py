"""Random models of a few thousand parameters with a word-level tokenizer, for the tests of the engine."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer as Core
from tokenizers import models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from adpa_cli.data.tokenizer import NAMED, Tokenizer

SPECIAL = ("<unk>", "<pad>", "<s>", "</s>", "<end>")
WORDS = tuple(f"w{number}" for number in range(32))
VOCABULARY = len(SPECIAL) + len(WORDS)
PAD, END = 1, 4
TEMPLATE = "{% for message in messages %}{{ message['content'] }} <end> {% endfor %}"


def tiny_tokenizer() -> Tokenizer:
    return as_ours(pretrained_tokenizer())


def as_ours(tokenizer: Any) -> Tokenizer:
    """A tokenizer of transformers as it is when it is saved and read here."""
    named = {name: token for name in NAMED if (token := getattr(tokenizer, name)) is not None}
    return Tokenizer(tokenizer.backend_tokenizer, named)


def pretrained_tokenizer() -> Any:
    """The same tokenizer as transformers has it."""
    vocabulary = {token: number for number, token in enumerate(SPECIAL + WORDS)}
    inner = Core(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        unk_token="<unk>",
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=["<end>"],
    )


def tiny_llama(seed: int = 0, vocabulary: int = VOCABULARY, **settings: Any) -> LlamaForCausalLM:
    """Weights large enough for next-token distributions that are far from flat."""
    usual = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(
        vocab_size=vocabulary, **{**usual, "max_position_embeddings": 64, "initializer_range": 0.4, **settings}
    )
    torch.manual_seed(seed)
    return LlamaForCausalLM(config).eval()
