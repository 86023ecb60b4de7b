"""Rewards of answers from a sequence-classification reward model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification

from adpa_cli.engine.models import load_tokenizer
from adpa_cli.errors import AdpaError

BATCH_TOKENS = 8192

Turns = Sequence[tuple[str, str]]
"""(role, content) of a prompt's turns."""


@torch.no_grad()
def classifier_rewards(
    folder: Path, dialogues: Sequence[tuple[Turns, str]], template: str, max_length: int, dtype: str, device: str
) -> list[float]:
    """The one logit of a reward model for every (prompt turns, answer), in its own chat template if it has one.

    Too long dialogues keep their end. Raises AdpaError when the model has not exactly one output.
    """
    tokenizer = load_tokenizer(folder)
    loader: Any = AutoModelForSequenceClassification
    model = loader.from_pretrained(
        folder, dtype=getattr(torch, dtype), use_safetensors=True, local_files_only=True, trust_remote_code=False
    )
    if model.config.num_labels != 1:
        raise AdpaError(
            f"the classifier in {folder.name} has {model.config.num_labels} outputs; a reward model has one",
            "give a reward model with a scalar head to --reward-model",
        )
    model.to(device).train(False)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    model.config.pad_token_id = pad
    encoded = [_encode(tokenizer, turns, answer, template)[-max_length:] for turns, answer in dialogues]
    order = sorted(range(len(encoded)), key=lambda i: (len(encoded[i]), i))
    rewards = [0.0] * len(encoded)
    start = 0
    while start < len(order):
        stop = start + 1
        while stop < len(order) and len(encoded[order[stop]]) * (stop + 1 - start) <= BATCH_TOKENS:
            stop += 1
        rows = order[start:stop]
        longest = max(len(encoded[i]) for i in rows)
        ids = torch.tensor([encoded[i] + [pad] * (longest - len(encoded[i])) for i in rows], device=device)
        mask = torch.tensor([[1] * len(encoded[i]) + [0] * (longest - len(encoded[i])) for i in rows], device=device)
        for i, value in zip(rows, model(input_ids=ids, attention_mask=mask).logits[:, 0].float().tolist(), strict=True):
            rewards[i] = value
        start = stop
    return rewards


def _encode(tokenizer: Any, turns: Turns, answer: str, template: str) -> list[int]:
    messages = [{"role": role, "content": content} for role, content in (*turns, ("assistant", answer))]
    text = tokenizer.apply_chat_template(
        messages, chat_template=tokenizer.chat_template or template, tokenize=False, add_generation_prompt=False
    )
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    bos = tokenizer.bos_token_id
    starts = bos is not None and tokenizer("a")["input_ids"][:1] == [bos] and ids[:1] != [bos]
    return [bos, *ids] if starts else ids
