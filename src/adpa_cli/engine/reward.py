"""Rewards of answers from a sequence-classification reward model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForSequenceClassification

from adpa_cli.engine.models import load_tokenizer
from adpa_cli.errors import AdpaError

BLOCK_TOKENS = 16384

Turns = Sequence[tuple[str, str]]
"""(role, content) of a prompt's turns."""


def classifier_rewards(
    folder: Path,
    dialogues: Sequence[tuple[Turns, str]],
    template: str,
    max_length: int,
    dtype: str,
    device: str,
    block_tokens: int = BLOCK_TOKENS,
) -> list[float]:
    """`sequence_rewards` of every (prompt turns, answer), in the model's own chat template if it has one.

    Too long dialogues keep their end.
    """
    tokenizer = load_tokenizer(folder)
    encoded = [_encode(tokenizer, turns, answer, template)[-max_length:] for turns, answer in dialogues]
    return sequence_rewards(folder, encoded, dtype, device, block_tokens)


@torch.no_grad()
def sequence_rewards(
    folder: Path, encoded: Sequence[Sequence[int]], dtype: str, device: str, block_tokens: int = BLOCK_TOKENS
) -> list[float]:
    """The one logit of a reward model for every sequence of ids, read at its last one.

    At most `block_tokens` padded tokens go through at once, or one longer sequence. Raises AdpaError when the model
    does not load, has not exactly one output, lacks the weights of its head, or gives a reward that is no number.
    """
    model = _load(folder, dtype).to(device)
    pad = model.config.pad_token_id
    if pad is None:
        # The head reads the last token that is no padding, so padding must be an id that no dialogue ends with.
        ends = {ids[-1] for ids in encoded}
        pad = model.config.pad_token_id = next(i for i in range(len(ends) + 1) if i not in ends)
    order = sorted(range(len(encoded)), key=lambda i: (len(encoded[i]), i))
    rewards = [0.0] * len(encoded)
    start = 0
    while start < len(order):
        stop = start + 1
        while stop < len(order) and len(encoded[order[stop]]) * (stop + 1 - start) <= block_tokens:
            stop += 1
        rows = order[start:stop]
        longest = max(len(encoded[i]) for i in rows)
        ids = torch.tensor([[*encoded[i]] + [pad] * (longest - len(encoded[i])) for i in rows], device=device)
        mask = torch.tensor([[1] * len(encoded[i]) + [0] * (longest - len(encoded[i])) for i in rows], device=device)
        for i, value in zip(rows, model(input_ids=ids, attention_mask=mask).logits[:, 0].float().tolist(), strict=True):
            rewards[i] = value
        start = stop
    broken = next((n for n, reward in enumerate(rewards, 1) if not math.isfinite(reward)), None)
    if broken:
        raise AdpaError(f"{folder.name} gives row {broken} the reward {rewards[broken - 1]}", "check its weights")
    return rewards


def _load(folder: Path, dtype: str) -> Any:
    loader: Any = AutoModelForSequenceClassification
    hint = "give the folder of a reward model with a scalar head to --reward-model"
    plain: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        outputs = AutoConfig.from_pretrained(folder, **plain).num_labels
        if outputs != 1:
            raise AdpaError(f"the classifier in {folder.name} has {outputs} outputs; a reward model has one", hint)
        model, info = loader.from_pretrained(
            folder, dtype=getattr(torch, dtype), use_safetensors=True, output_loading_info=True, **plain
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        problem = (str(error) or type(error).__name__).splitlines()[0]
        raise AdpaError(f"the reward model in {folder.name} does not load: {problem}", hint) from error
    if info["missing_keys"]:
        lacking = ", ".join(sorted(info["missing_keys"])[:3])
        raise AdpaError(f"{folder.name} is no reward model: its weights lack {lacking}", hint)
    return model.train(False)


def _encode(tokenizer: Any, turns: Turns, answer: str, template: str) -> list[int]:
    messages = [{"role": role, "content": content} for role, content in (*turns, ("assistant", answer))]
    text = tokenizer.apply_chat_template(
        messages, chat_template=tokenizer.chat_template or template, tokenize=False, add_generation_prompt=False
    )
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    bos = tokenizer.bos_token_id
    starts = bos is not None and tokenizer("a")["input_ids"][:1] == [bos] and ids[:1] != [bos]
    return [bos, *ids] if starts else ids
