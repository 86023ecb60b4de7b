"""A reference on bfloat16's grid and a teacher whose update is below half of its step, so that bfloat16 has none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from adpa_cli.engine.layout.examples import Answer
from adpa_cli.signal.rows import AnswerKey, token_hash
from support.tiny_models import VOCABULARY, pretrained_tokenizer, tiny_llama

UPDATE = 2.0**-9.2
"""Relative to each weight; half a step of bfloat16 is 2^-9 to 2^-8 of it."""


def answers(count: int = 12) -> list[Answer]:
    generator = torch.Generator().manual_seed(0)
    rows = []
    for n in range(count):
        ids = torch.randint(5, VOCABULARY, (20,), generator=generator).tolist()
        prompt, answer = tuple(ids[:6]), tuple(ids[6:])
        rows.append(Answer(AnswerKey(str(n), "chosen", token_hash(prompt, answer)), prompt, answer))
    return rows


def write_pair(folder: Path, update: float = UPDATE, template: str = "", **config: Any) -> tuple[Path, Path]:
    """(teacher, reference): folders of models with a tokenizer."""
    reference, teacher = tiny_llama(**config).bfloat16(), tiny_llama(**config)
    teacher.load_state_dict(reference.float().state_dict())
    untyped: Any = teacher
    for row in answers(4):
        ids = torch.tensor([[*row.prompt, *row.answer]])
        untyped(input_ids=ids).logits.log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None]).sum().backward()
    with torch.no_grad():
        for name, weight in teacher.named_parameters():
            if "proj" in name:
                weight += weight.abs() * weight.grad.sign() * update
    places = folder / "teacher", folder / "reference"
    tokenizer = pretrained_tokenizer()
    tokenizer.chat_template = template or None
    for place, model in zip(places, (teacher, reference.bfloat16()), strict=True):
        model.save_pretrained(place)
        tokenizer.save_pretrained(place)
    return places
