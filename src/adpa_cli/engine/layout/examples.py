"""From data sets and rollouts to token ids, the same for every stage: teacher and student see the same tokens."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adpa_cli.data.chat import Encoded, Encoder, fit, fit_answers, fit_dialogue
from adpa_cli.data.examples import half_is_empty, in_half, prompt_key
from adpa_cli.data.preferences import Dialogue, Message, Pair
from adpa_cli.data.templates import Template
from adpa_cli.data.tokenizer import Tokenizer
from adpa_cli.errors import DataError, named_row
from adpa_cli.hub import Located
from adpa_cli.hub.externals import pairs_of
from adpa_cli.hub.model_folder import ModelFolder
from adpa_cli.signal.rows import AnswerKey, token_hash
from adpa_cli.spec import Truncation


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


Reading = tuple[tuple[str, ...], str, int | None, bool, str]
"""What `pairs_of` takes: where data are, the side, how many rows, whether bad ones are left out, and the template."""
ROWS = "rows-00000.parquet"
FIRST_ROWS = 8
"""By which it is seen whose tokens some answers are."""
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


def encoder_of(tokenizer: Tokenizer, spec: Any) -> Encoder:
    """The tokenizer under a spec's template and end token."""
    return Encoder(tokenizer, Template(spec.template, spec.end))


def end_ids(encoder: Encoder, folder: Path) -> tuple[int, ...]:
    """The ids at which an answer of the model in a folder ends: the template's, then those that the model stops at."""
    return tuple(dict.fromkeys((encoder.end_id, *ModelFolder.of(folder).stop_ids)))


@dataclass(frozen=True)
class Cut:
    """What did not fit into `max_length`: how many of `rows` were cut, how many answers lost their end, the tokens that
    were cut away, and how many rows were left out because nothing of them was left to train on."""

    rows: int = 0
    cut: int = 0
    answers: int = 0
    tokens: int = 0
    left_out: int = 0

    @classmethod
    def of(cls, rows: Sequence[Sequence[Encoded] | None]) -> Cut:
        """Of the answers of each row; None where it was left out."""
        kept = [row for row in rows if row is not None]
        tokens = sum(max(each.cut_prompt for each in row) + sum(each.cut_answer for each in row) for row in kept)
        return cls(
            len(rows), sum(any(each.cut_prompt or each.cut_answer for each in row) for row in kept),
            sum(each.cut_answer > 0 for row in kept for each in row), tokens, len(rows) - len(kept),
        )  # fmt: skip

    def words(self, what: str, max_length: int) -> list[str]:
        """What is said of it; nothing where all fits."""
        said = []
        if self.cut:
            said.append(
                f"{self.cut:,} of {self.rows:,} {what} are longer than max_length {max_length}: {self.tokens:,} tokens "
                f"are cut, and {self.answers:,} answers lose their end"
            )
        if self.left_out:
            said.append(f"{self.left_out:,} of {self.rows:,} {what} are left out: nothing to train on fits")
        return said

    def nothing_left(self, data: str, what: str, max_length: int, stage: str) -> DataError:
        """The error for data of which no row fits."""
        tokens = f"{max_length} token{'s' * (max_length != 1)}"
        return DataError(
            f"{data}: none of {self.rows} {what} fits into {tokens}", f"--set {stage}.max_length={4 * max_length}"
        )

    def numbers(self) -> dict[str, dict[str, int]]:
        """What a manifest keeps of it; nothing where all fits."""
        return {"truncation": vars(self).copy()} if self.cut or self.left_out else {}


def dialogue_examples(
    items: Sequence[Dialogue], encoder: Encoder, max_length: int, name: str, every_token: bool = False
) -> tuple[list[Example], Cut]:
    """Supervised examples, every assistant turn trained that the template writes as if it were the last, or
    `every_token` but the first; and what did not fit. Raises DataError that names the row of the data `name` which the
    template refuses."""
    examples: list[Example] = []
    lengths: list[list[Encoded] | None] = []
    for item in items:
        with named_row(f"{name} row {item.row}"):
            ids, mask = encoder.dialogue(item.messages)
            mask = [False, *[True] * (len(ids) - 1)] if every_token else mask
        fitted = fit_dialogue(ids, mask, max_length, bos_id=encoder.bos_id)
        if fitted is None:
            lengths.append(None)
            continue
        kept, answer, cut = fitted
        lost = cut if mask[-1] and not (answer[-1] and kept[-1] == ids[-1]) else 0
        lengths.append([Encoded((), (), cut - lost, lost)])
        sequence = TokenSequence(np.array(kept, dtype=np.int32), np.array(answer, dtype=np.bool_))
        examples.append(Example(item.id, {"chosen": sequence}))
    return examples, Cut.of(lengths)


@dataclass(frozen=True)
class PairAnswers:
    """The chosen and the rejected answers of the same pairs, in their order, and what did not fit."""

    chosen: list[Answer]
    rejected: list[Answer]
    cut: Cut

    def of(self, part: str) -> list[Answer]:
        """Those of one part."""
        return self.chosen if part == "chosen" else self.rejected


def pair_answers(
    items: Sequence[Pair], encoder: Encoder, max_length: int, truncation: Truncation, name: str
) -> PairAnswers:
    """Both answers of every pair of the data `name`, tokenised and fitted.

    With `truncation` "pair" the prompt is cut once, by the longer answer, and pairs of which nothing is left are left
    out, such as those whose answers begin alike. With "answer" each answer is fitted by itself, which may leave its
    prompt longer than the other's; DataError where nothing is left, and where no pair at all is.
    """
    chosen: list[Answer] = []
    rejected: list[Answer] = []
    rows: list[Sequence[Encoded] | None] = []
    for item in items:
        where = f"{name} row {item.row}"
        with named_row(where):
            prompt, answers = encoder.answered(item.prompt, item.chosen, item.rejected)
        fitted = _fitted(prompt, answers, encoder, max_length, truncation, where)
        rows.append(fitted)
        for made, part, each in zip((chosen, rejected), ("chosen", "rejected"), fitted or (), strict=False):
            key = AnswerKey(item.id, part, token_hash(each.prompt, each.answer))
            made.append(Answer(key, each.prompt, each.answer, each.cut_prompt + each.cut_answer > 0))
    if rows and not chosen:
        raise DataError(
            f"{name}: nothing to train on is left of any of {len(rows)} pairs within max_length {max_length}",
            f"--set max_length={4 * max_length}",
        )
    return PairAnswers(chosen, rejected, Cut.of(rows))


def _fitted(
    prompt: list[int], answers: list[list[int]], encoder: Encoder, max_length: int, truncation: Truncation, where: str
) -> list[Encoded] | None:
    """A pair within `max_length`; None where nothing is left to train on."""
    if truncation == "pair":
        both = fit_answers(prompt, answers, max_length, bos_id=encoder.bos_id)
        return None if both is None or both[0].answer == both[1].answer else both
    fitted = []
    for part, answer in zip(("chosen", "rejected"), answers, strict=True):
        fitted.append(fit(prompt, answer, max_length, bos_id=encoder.bos_id, where=f"{where}, {part}"))
        if not fitted[-1].answer:
            raise DataError(f"{where}, {part}: nothing is left of the answer", f"--set max_length={max_length * 2}")
    return fitted


def answers_for(spec: Any, source: Located, split: str, folder: Path) -> PairAnswers:
    """Both answers of the pairs of a stage's data under the tokenizer in `folder`, tokenised once per process."""
    data = (source.where, split, spec.limit, spec.skip_bad_rows, spec.template)
    return _answers_of(data, folder, spec.end, spec.max_length, spec.truncation, source.label)


@functools.lru_cache(maxsize=4)
def _answers_of(
    data: Reading, folder: Path, end: str, max_length: int, truncation: Truncation, name: str
) -> PairAnswers:
    encoder = Encoder(Tokenizer.of(folder), Template(data[-1], end))
    return pair_answers(pairs_of(*data).items, encoder, max_length, truncation, name)


def prompts_of_pairs(spec: Any, source: Located, split: str) -> dict[str, str]:
    """The id of the prompt of every pair of a stage's data, by the id of the pair."""
    pairs = pairs_of(source.where, split, spec.limit, spec.skip_bad_rows, spec.template).items
    return {pair.id: rollout_id(pair) for pair in pairs}


def pair_examples(spec: Any, source: Located, split: str, folder: Path, half: str = "all") -> list[Example]:
    """The chosen and the rejected answer of every pair, under the tokenizer in `folder`; of every pair whose prompt is
    of one `half`. Raises DataError where none is."""
    answers = answers_for(spec, source, split, folder)
    prompts = prompts_of_pairs(spec, source, split)
    examples = [
        Example(good.key.example_id, {"chosen": good.sequence(), "rejected": bad.sequence()})
        for good, bad in zip(answers.chosen, answers.rejected, strict=True)
        if in_half(prompts[good.key.example_id], half)
    ]
    if not examples:
        raise half_is_empty(source.label, half)
    return examples


def fitted_prompt(
    pair: Pair, encoder: Encoder, spec: Any, max_new_tokens: int, label: str, stage: str
) -> tuple[int, ...]:
    """The ids of a prompt that is to be answered: cut only where no answer would fit beside it.

    Raises DataError, naming the row of the data `label`, where even then none does.
    """
    room = [encoder.end_id] * min(LEAST_ROOM, max_new_tokens, spec.max_length // 2)
    where = f"{label} row {pair.row}, prompt"
    with named_row(where):
        ids = encoder.prompt(pair.prompt)
    fitted = fit(ids, room, spec.max_length, bos_id=encoder.bos_id, where=where)
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


def are_foreign(rollouts: Sequence[Rollout], encoder: Encoder) -> bool:
    """Whether some answers are tokens of another tokenizer, or follow another template, than an encoder has."""
    return any(
        tuple(encoder.prompt(row.prompt))[1 - len(row.prompt_ids) :] != row.prompt_ids[1:]
        for row in rollouts[:FIRST_ROWS]
        if len(row.prompt_ids) > 1
    )


def answers_as_text(rollouts: Sequence[Rollout], encoder: Encoder, max_length: int, name: str) -> list[Answer]:
    """The texts of generated answers as the tokens of an encoder, without those that are empty or do not fit.

    An answer that was cut gets no end token. Raises DataError that names the row which the template refuses.
    """
    answers = []
    for number, row in enumerate(rollouts, 1):
        if not row.text.strip():
            continue
        with named_row(f"{name} row {number}"):
            prompt, (answer,) = encoder.answered(row.prompt, row.text)
        fitted = fit_answers(prompt, [answer[:-1] if row.cut else answer], max_length, bos_id=encoder.bos_id)
        if fitted:
            ((kept, said, *_),) = map(astuple, fitted)
            answers.append(Answer(AnswerKey(row.id, "rollout", token_hash(kept, said)), kept, said))
    return answers


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
    prompts = [json.dumps([_turn(turn) for turn in row.prompt], ensure_ascii=False) for row in rows]
    records = [{**vars(row), "prompt": prompt} for row, prompt in zip(rows, prompts, strict=True)]
    pq.write_table(pa.Table.from_pylist(records, schema=schema), path, compression="zstd")


def _turn(turn: Message) -> dict[str, str]:
    """A turn as JSON."""
    return {name: value for name, value in vars(turn).items() if value or name != "more"}


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
