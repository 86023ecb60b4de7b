"""Answers to capture, named by their example, in lists and in mapped tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pyarrow as pa

from adpa_cli.data.tables import table
from adpa_cli.engine.layout.examples import Answer, Answers, Cut, PairAnswers
from adpa_cli.engine.layout.token_rows import PAIR
from adpa_cli.engine.layout.tokenised import rows_batch, schema
from adpa_cli.signal.rows import AnswerKey, token_hash


def named_answer(name: str, prompt: Sequence[int], ids: Sequence[int]) -> Answer:
    """The chosen answer `ids` of the example `name`."""
    return Answer(AnswerKey(name, "chosen", token_hash(prompt, ids)), tuple(prompt), tuple(ids))


def mapped(chosen: Sequence[Answer], rejected: Sequence[Answer]) -> PairAnswers:
    """The same answers, each of which has the prompt of its partner and an id of 16 hex digits, in a mapped table."""
    rows = [
        {"id": int(good.key.example_id, 16), "prompt": good.prompt, "chosen": good.answer, "rejected": bad.answer,
         **{f"{answer.key.part}_hash": bytes.fromhex(answer.key.tokens) for answer in (good, bad)},
         **{f"{answer.key.part}_cut": answer.cut for answer in (good, bad)}}
        for good, bad in zip(chosen, rejected, strict=True)
    ]  # fmt: skip
    batch: pa.RecordBatch = rows_batch(rows, schema(PAIR))

    def fill(add: Callable[[pa.RecordBatch], None]) -> dict[str, int]:
        add(batch)
        return {}

    held = table("answers", None, schema(PAIR), fill)
    return PairAnswers(Answers(held, ["chosen"]), Answers(held, ["rejected"]), Cut())
