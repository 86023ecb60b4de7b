"""From data sets and rollouts to token ids, the same for every stage: teacher and student see the same tokens."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adpa_cli.data.chat import Encoder, Template, fit, fit_dialogue
from adpa_cli.data.examples import prompt_key
from adpa_cli.data.preferences import Dialogue, Message, Pair
from adpa_cli.errors import DataError
from adpa_cli.hub import Located
from adpa_cli.hub.externals import pairs_of
from adpa_cli.signal.rows import AnswerKey, token_hash


@dataclass(frozen=True)
class TokenSequence:
    """Token ids [L] of one dialogue, and which are answer tokens [L] (trained; predicted from the one before)."""

    ids: NDArray[np.int32]
    answer: NDArray[np.bool_]

    @classmethod
    def of(cls, prompt: Sequence[int], answer: Sequence[int] | NDArray[np.int32]) -> TokenSequence:
        """A prompt and its answer."""
        ids = np.array([*prompt, *answer], dtype=np.int32)
        return cls(ids, np.arange(len(ids)) >= len(prompt))

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def tokens(self) -> int:
        """Answer tokens."""
        return int(self.answer.sum())


@dataclass(frozen=True)
class Example:
    """One row of the data: the sequences it is trained on, by part (`chosen`, `rejected`, `rollout`)."""

    id: str
    parts: Mapping[str, TokenSequence]

    @property
    def length(self) -> int:
        """Tokens of the longest part."""
        return max(len(part) for part in self.parts.values())

    @property
    def size(self) -> int:
        """Tokens of all parts."""
        return sum(len(part) for part in self.parts.values())


ROWS = "rows-00000.parquet"
LEAST_ROOM = 64  # tokens kept for an answer to a prompt that fills the context


@dataclass(frozen=True)
class Answer:
    """One answer as it is trained on and captured: `key` names it in a signal, `cut` tells that some was cut away."""

    key: AnswerKey
    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    cut: bool = False

    def sequence(self) -> TokenSequence:
        """The whole as ids with a mask on the answer."""
        return TokenSequence.of(self.prompt, self.answer)


@dataclass(frozen=True)
class Rollout:
    """One generated answer of a rollout artifact; `id` is the hash of its prompt."""

    id: str
    prompt: tuple[Message, ...]
    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]
    text: str
    cut: bool


def encoder_of(tokenizer: Any, spec: Any) -> Encoder:
    """The tokenizer under a spec's template and end token."""
    return Encoder(tokenizer, Template(spec.template, spec.end))


def dialogue_examples(
    items: Sequence[Dialogue], encoder: Encoder, max_length: int, name: str
) -> tuple[list[Example], int]:
    """Supervised examples, every assistant turn trained; and how many of them were cut to fit."""
    examples, shorter = [], 0
    for item in items:
        ids, mask = encoder.dialogue(item.messages)
        kept, answer, cut = fit_dialogue(ids, mask, max_length, bos_id=encoder.bos_id, where=f"{name} row {item.row}")
        sequence = TokenSequence(np.array(kept, dtype=np.int32), np.array(answer, dtype=np.bool_))
        examples.append(Example(item.id, {"chosen": sequence}))
        shorter += cut > 0
    return examples, shorter


def cut_words(cut: int, of: int, what: str, max_length: int) -> list[str]:
    """What is said of rows that were cut to fit; nothing when none was."""
    return [f"{cut:,} of {of:,} {what} were cut to max_length {max_length}"] if cut else []


def pair_answers(items: Sequence[Pair], part: str, encoder: Encoder, max_length: int, name: str) -> list[Answer]:
    """The chosen or rejected answer of every pair, tokenised and fitted."""
    answers = []
    for item in items:
        text = item.chosen if part == "chosen" else item.rejected
        where = f"{name} row {item.row}, {part}"
        fitted = fit(encoder.prompt(item.prompt), encoder.answer(text), max_length, bos_id=encoder.bos_id, where=where)
        if not fitted.answer:
            raise DataError(f"{where}: nothing is left of the answer", f"--set max_length={max_length * 2}")
        key = AnswerKey(item.id, part, token_hash(fitted.prompt, fitted.answer))
        answers.append(Answer(key, fitted.prompt, fitted.answer, fitted.cut_prompt + fitted.cut_answer > 0))
    return answers


def answers_for(spec: Any, source: Located, split: str, part: str, folder: Path) -> list[Answer]:
    """The chosen or rejected answers of a stage's data under the tokenizer in `folder`, tokenised once per process."""
    data = (source.where, split, spec.limit, spec.skip_bad_rows)
    return _answers_of(data, part, folder, Template(spec.template, spec.end), spec.max_length, source.label)


@functools.lru_cache(maxsize=4)
def _answers_of(
    data: tuple[Any, ...], part: str, folder: Path, template: Template, max_length: int, name: str
) -> list[Answer]:
    """`data` as `pairs_of` takes it."""
    from adpa_cli.engine.models import load_tokenizer

    encoder = Encoder(load_tokenizer(folder), template)
    return pair_answers(pairs_of(*data).items, part, encoder, max_length, name)


def pair_examples(spec: Any, source: Located, split: str, folder: Path) -> list[Example]:
    """The chosen and the rejected answer of every pair, under the tokenizer in `folder`."""
    chosen, rejected = (answers_for(spec, source, split, part, folder) for part in ("chosen", "rejected"))
    return [
        Example(good.key.example_id, {"chosen": good.sequence(), "rejected": bad.sequence()})
        for good, bad in zip(chosen, rejected, strict=True)
    ]


def fitted_prompt(
    pair: Pair, encoder: Encoder, spec: Any, max_new_tokens: int, label: str, stage: str
) -> tuple[int, ...]:
    """The ids of a prompt that is to be answered: cut only where no answer would fit beside it.

    Raises DataError, naming the row of the data `label`, where even then none does.
    """
    room = [encoder.end_id] * min(LEAST_ROOM, max_new_tokens, spec.max_length // 2)
    where = f"{label} row {pair.row}, prompt"
    fitted = fit(encoder.prompt(pair.prompt), room, spec.max_length, bos_id=encoder.bos_id, where=where)
    if len(fitted.prompt) >= spec.max_length:
        raise DataError(
            f"{where}: leaves no answer to generate in {spec.max_length} tokens",
            f"--set {stage}.max_length={2 * spec.max_length}",
        )
    return fitted.prompt


def rollout_answers(rollouts: Sequence[Rollout]) -> list[Answer]:
    """Generated answers, by the hash of their prompt; empty ones teach nothing and are left out."""
    return [
        Answer(AnswerKey(row.id, "rollout", token_hash(row.prompt_ids, row.answer_ids)), row.prompt_ids, row.answer_ids)
        for row in rollouts
        if row.answer_ids
    ]


def rollout_id(pair: Pair) -> str:
    """The id under which a pair's prompt is answered: pairs with one prompt share their rollout."""
    return prompt_key(pair)[:16]


def write_rollouts(path: Path, rows: Sequence[Rollout]) -> None:
    """Write rollouts as one Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    ids = pa.list_(pa.int32())
    schema = pa.schema([
        ("id", pa.string()), ("prompt", pa.string()), ("prompt_ids", ids), ("answer_ids", ids),
        ("text", pa.string()), ("cut", pa.bool_()),
    ])  # fmt: skip
    prompts = [json.dumps([vars(turn) for turn in row.prompt], ensure_ascii=False) for row in rows]
    records = [{**vars(row), "prompt": prompt} for row, prompt in zip(rows, prompts, strict=True)]
    pq.write_table(pa.Table.from_pylist(records, schema=schema), path, compression="zstd")


def read_rollouts(folder: Path) -> list[Rollout]:
    """The rows of a rollout artifact."""
    import pyarrow.parquet as pq

    return [
        Rollout(
            id=row["id"], prompt=tuple(Message(**turn) for turn in json.loads(row["prompt"])),
            prompt_ids=tuple(row["prompt_ids"]), answer_ids=tuple(row["answer_ids"]), text=row["text"], cut=row["cut"],
        )
        for row in pq.read_table(folder / ROWS).to_pylist()
    ]  # fmt: skip
