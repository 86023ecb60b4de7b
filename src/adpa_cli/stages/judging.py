"""Rewards of answers: what a reward model says of dialogues, whether it was made here or comes from outside."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from adpa_cli.data.chat import Encoder, Template, fit
from adpa_cli.data.turns import Message
from adpa_cli.stages.job import Located

Dialogues = Sequence[tuple[Sequence[Message], str]]
"""(turns of the prompt, answer)."""


def rewards_of(model: Located, dialogues: Dialogues, spec: Any, tokens: int, option: str) -> list[float]:
    """The reward of every dialogue, under the dtype and `max_length` of a stage's spec, `tokens` at a time.

    A model that was made here reads the tokens it was trained on; another one its own chat template, else the stage's.
    Raises AdpaError as `engine.reward` does, and where a block does not fit in memory: `option`, if any, makes it
    smaller.
    """
    from adpa_cli.engine.memory import ROOM, refused_when_full
    from adpa_cli.engine.reward import classifier_rewards, sequence_rewards
    from adpa_cli.stages.device import device

    smaller = f"{option}{max(1, tokens // 2)}, or {ROOM}" if option else f"use {ROOM}"
    with refused_when_full(f"a block of {tokens:,} tokens of the reward model", smaller):
        if model.kind == "artifact":
            encoded = _as_trained(model, dialogues)
            return sequence_rewards(model.path, encoded, spec.dtype, device(), tokens)
        plain = [([(m.role, m.content) for m in turns], answer) for turns, answer in dialogues]
        return classifier_rewards(model.path, plain, spec.template, spec.max_length, spec.dtype, device(), tokens)


def _as_trained(model: Located, dialogues: Dialogues) -> list[list[int]]:
    """Token ids as in the training of `model`: under its template, to its end token, within its length."""
    from adpa_cli.engine.models import load_tokenizer

    encoder = Encoder(load_tokenizer(model.path), Template(model.values["template"], model.values["end"]))
    longest = int(model.values["max_length"])
    found = []
    for n, (turns, answer) in enumerate(dialogues, 1):
        said = encoder.answer(answer)
        fitted = fit(encoder.prompt(tuple(turns)), said, longest, bos_id=encoder.bos_id, where=f"dialogue {n}")
        found.append([*fitted.prompt, *fitted.answer])
    return found
