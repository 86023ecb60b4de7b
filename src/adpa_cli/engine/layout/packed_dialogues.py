"""Dialogues laid end to end and cut into rows of one length, as TRL's `packing=True` did and the released ADPA trains.

A row is one sequence: it may begin inside of a dialogue, and its tokens see those of the dialogue before. That is what
the setting `packed` of a fine-tuning means, and has nothing to do with how a micro-batch is laid out in memory.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adpa_cli.data.items import Items
from adpa_cli.data.preferences import Dialogue
from adpa_cli.data.tables import WATCH, Batch, code_digest, table
from adpa_cli.engine.layout.examples import encoding
from adpa_cli.engine.layout.token_rows import DIALOGUE, Answers, Examples, sequence_of
from adpa_cli.engine.layout.tokenised import Encoding, dialogue_row, encoded_batches, rows_batch, schema
from adpa_cli.hub import Located
from adpa_cli.hub.externals import dialogues_of


def packed_examples(spec: Any, source: Located, folder: Path, every_token: bool) -> Examples:
    """Rows of `max_length` tokens, the last one shorter, from all that the template writes for each dialogue in turn;
    a table, made once for all.

    Trained are the tokens of answers, or every token but the first of a row, which no token of it comes before. A row
    without such a token is left out. Raises DataError that names the row of the data which the template refuses.
    """
    items = dialogues_of(source.where, "train", spec.limit, spec.skip_bad_rows, spec.template).items
    rules = encoding(folder, spec, source.label)
    whole = replace(rules, max_length=sys.maxsize, every_token=every_token, behind=True)

    def fill(add: Any) -> dict[str, Any]:
        for rows in _rows(items, whole, spec.max_length):
            add(rows_batch(rows, schema(DIALOGUE)))
        return {}

    made_from = [*whole.made_from(items, DIALOGUE), spec.max_length, code_digest(__file__)]
    answers = Answers(table("packed", made_from, schema(DIALOGUE), fill), DIALOGUE)
    return Examples({"chosen": answers}, answers.ids)


def _rows(items: Items[Dialogue], whole: Encoding, length: int) -> Iterator[list[dict[str, Any]]]:
    """The rows that some dialogues fill, a batch of dialogues at a time; what they leave goes on with the next."""
    begin, seen = 0, 0
    ids, trained = np.zeros(0, np.int32), np.zeros(0, np.bool_)
    for made, _ in encoded_batches(items, DIALOGUE, whole):
        own = [sequence_of(Batch(made), "chosen", row) for row in range(len(made))]
        ids = np.concatenate([ids, *(each.ids for each in own)])
        trained = np.concatenate([trained, *(each.answer | whole.every_token for each in own)])
        full = len(ids) // length * length
        yield _cut(ids[:full], trained[:full], length, begin)
        begin, ids, trained, seen = begin + full, ids[full:], trained[full:], seen + len(own)
        WATCH.get()(f"packing {whole.name}", seen, len(items))
    yield _cut(ids, trained, length, begin)


def _cut(ids: NDArray[np.int32], trained: NDArray[np.bool_], length: int, begin: int) -> list[dict[str, Any]]:
    rows = []
    for start in range(0, len(ids), length):
        mask = trained[start : start + length].astype(np.uint8)
        mask[0] = 0
        if mask.any():
            rows.append(dialogue_row(begin + start, ids[start : start + length], mask, False))
    return rows
