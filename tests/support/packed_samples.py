"""Pairs of answers to one prompt, as a packed row lays them out."""

from __future__ import annotations

import numpy as np

from adpa_cli.engine.layout.examples import Example, TokenSequence
from adpa_cli.methods import Need
from support.tiny_models import VOCABULARY

PARTS = ("chosen", "rejected")
NEEDS = tuple(Need(part) for part in PARTS)


def pairs(lengths: list[tuple[int, int, int]]) -> list[Example]:
    """Pairs of answers of these lengths to prompts of these lengths."""
    rng = np.random.default_rng(0)
    made = []
    for n, (prompt, *answers) in enumerate(lengths):
        ids = rng.integers(5, VOCABULARY, prompt)
        rows = [np.concatenate([ids, rng.integers(5, VOCABULARY, size)]).astype(np.int32) for size in answers]
        parts = zip(PARTS, rows, strict=True)
        made.append(
            Example(f"row{n}", {part: TokenSequence(row, np.arange(len(row)) >= prompt) for part, row in parts})
        )
    return made


ROWS = pairs([(9, 4, 7), (1, 5, 1), (20, 1, 1), (3, 12, 12), (14, 2, 11)])
