"""Model folders shaped as on the hub: byte-level tokenizers without merges, their families' kinds of templates."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

CHATML = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\nYou are Q.<|im_end|>\\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
ALTERNATING = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\\n' }}"
    "{{ m['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)
REASONING = (
    "{% set last = messages | length - 1 %}{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' }}"
    "{% set said = m['content'].split('</think>')[-1].lstrip('\\n') %}"
    "{% if m['role'] == 'assistant' and loop.index0 == last %}"
    "{% set reason = m['content'].split('</think>')[0].split('<think>')[-1].strip('\\n') "
    "if '</think>' in m['content'] %}"
    "{{ '<think>\\n' + (reason or '') + '\\n</think>\\n\\n' }}{% endif %}"
    "{{ (said if m['role'] == 'assistant' else m['content']) + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}"
    "{% endif %}"
)
SPACED = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] + eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)


@dataclass(frozen=True)
class Kind:
    """A template, the special tokens by id, those that the configuration names, and where generation stops."""

    template: str
    tokens: tuple[str, ...]
    named: dict[str, str]
    stops: Any


KINDS = {
    "qwen-base": Kind(
        CHATML, ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}, 0,
    ),
    "gemma": Kind(
        ALTERNATING, ("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"),
        {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}, [1, 4],
    ),
    "qwen3": Kind(
        REASONING, ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"),
        {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}, [2, 0],
    ),
    "mistral": Kind(
        SPACED, ("<unk>", "<s>", "</s>", "[INST]", "[/INST]"),
        {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<unk>"}, 2,
    ),
}  # fmt: skip


def wild_folder(folder: Path, kind: str, template: str | None = None, **config: Any) -> Path:
    """A 2-layer random model of a kind, with another template where one is given."""
    of = KINDS[kind]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(_ids(of, letters), []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_tokens([AddedToken(token, special="think" not in token, normalized=False) for token in of.tokens])
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    size = {"vocab_size": len(of.tokens) + len(letters), "max_position_embeddings": 512, **config}
    model = LlamaForCausalLM(LlamaConfig(**{**shape, **size}))
    model.save_pretrained(folder)
    core.save(str(folder / "tokenizer.json"))
    named = {**of.named, "tokenizer_class": "PreTrainedTokenizerFast", "chat_template": template or of.template}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
    (folder / "generation_config.json").write_text(
        json.dumps({"eos_token_id": of.stops, "do_sample": True, "temperature": 0.7, "top_p": 0.8})
    )
    return folder


def _ids(kind: Kind, letters: list[str]) -> dict[str, int]:
    return {token: number for number, token in enumerate((*kind.tokens, *letters))}
