"""Answers to capture, named by their example."""

from __future__ import annotations

from collections.abc import Sequence

from adpa_cli.engine.layout.examples import Answer
from adpa_cli.signal.rows import AnswerKey, token_hash


def named_answer(name: str, prompt: Sequence[int], ids: Sequence[int]) -> Answer:
    """The chosen answer `ids` of the example `name`."""
    return Answer(AnswerKey(name, "chosen", token_hash(prompt, ids)), tuple(prompt), tuple(ids))
