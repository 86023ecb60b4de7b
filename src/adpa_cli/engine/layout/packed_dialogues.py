"""Dialogues laid end to end and cut into rows of one length, as TRL's `packing=True` did and the released ADPA trains.

A row is one sequence: it may begin inside of a dialogue, and its tokens see those of the dialogue before. That is what
the setting `packed` of a fine-tuning means, and has nothing to do with how a micro-batch is laid out in memory.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from adpa_cli.data.chat import Encoder
from adpa_cli.data.preferences import Dialogue
from adpa_cli.engine.layout.examples import Example, TokenSequence
from adpa_cli.errors import named_row


def packed_examples(
    items: Sequence[Dialogue], encoder: Encoder, length: int, every_token: bool, name: str
) -> list[Example]:
    """Rows of `length` tokens, the last one shorter, from all that the template writes for each dialogue in turn.

    Trained are the tokens of answers, or every token but the first of a row, which no token of it comes before. A row
    without such a token is left out. Raises DataError that names the row of the data `name` which the template refuses.
    """
    ids: list[int] = []
    trained: list[bool] = []
    for item in items:
        with named_row(f"{name} row {item.row}"):
            own, answers = encoder.dialogue(item.messages, behind=True)
        ids += own
        trained += [True] * len(own) if every_token else answers
    rows = []
    for start in range(0, len(ids), length):
        mask = np.array(trained[start : start + length], dtype=np.bool_)
        mask[0] = False
        if mask.any():
            sequence = TokenSequence(np.array(ids[start : start + length], dtype=np.int32), mask)
            rows.append(Example(f"tokens from {start}", {"chosen": sequence}))
    return rows
