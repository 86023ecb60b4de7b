"""From data sets and rollouts to token ids, the same for every stage: teacher and student see the same tokens."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from adpa_cli.data.answers import answers_of
from adpa_cli.data.chat import Encoded, Encoder, fit_answers
from adpa_cli.data.examples import prompt_key
from adpa_cli.data.items import Items
from adpa_cli.data.preferences import Dialogue, Message, Pair
from adpa_cli.data.tables import BATCH, Table, code_digest, file_facts, table, watched
from adpa_cli.data.templates import Template
from adpa_cli.data.tokenizer import Tokenizer
from adpa_cli.engine.layout.sequences import Answer, Cut, Example, TokenSequence
from adpa_cli.engine.layout.token_rows import DIALOGUE, PAIR, ROLLOUT, Answers, Examples, Prompts
from adpa_cli.engine.layout.tokenised import (
    Encoding,
    dialogues_table,
    fitted_dialogue,
    fitted_pair,
    pairs_table,
    prompts_table,
    rows_batch,
    schema,
)
from adpa_cli.errors import DataError, named_row
from adpa_cli.hub import Located
from adpa_cli.hub.externals import dialogues_of, pairs_of
from adpa_cli.hub.model_folder import ModelFolder
from adpa_cli.signal.rows import AnswerKey, token_hash
from adpa_cli.spec import Truncation

__all__ = ["Answer", "Answers", "Cut", "Example", "Examples", "Prompts", "TokenSequence"]

Reading = tuple[tuple[str, ...], str, int | None, bool, str]
"""What `pairs_of` takes: where data are, the side, how many rows, whether bad ones are left out, and the template."""
ROWS = "rows-00000.parquet"
FIRST_ROWS = 8
"""By which it is seen whose tokens some answers are."""
GROUP = 1 << 20
"""Rows of a group in a file of rollouts."""
LEAST_ROOM = 64  # tokens kept for an answer to a prompt that fills the context


@dataclass(frozen=True)
class Rollout:
    """One generated answer of a rollout artifact; `id` is the hash of its prompt."""

    id: str
    prompt: tuple[Message, ...]
    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]
    text: str
    cut: bool


class Rollouts(Sequence[Rollout]):
    """Rows of a rollout artifact, `places` [n] of its table, made when asked for. `made_from` names all of it."""

    def __init__(self, held: Table, made_from: Any, places: NDArray[np.int64] | None = None) -> None:
        self.table, self.made_from = held, made_from
        self.places = np.arange(len(held)) if places is None else places

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, number: int) -> Rollout: ...
    @overload
    def __getitem__(self, number: slice) -> Rollouts: ...
    def __getitem__(self, number: int | slice) -> Rollout | Rollouts:
        if isinstance(number, slice):
            return Rollouts(self.table, None, self.places[number])
        batch, row = self.table.place(int(self.places[number]))
        prompt, answer = (tuple(batch.list(name, row).tolist()) for name in ("prompt", "rollout"))
        id_, turns = f"{batch.cell('id', row):016x}", _turns(batch.cell("turns", row))
        return Rollout(id_, turns, prompt, answer, batch.cell("text", row), batch.cell("cut", row))


def encoder_of(tokenizer: Tokenizer, spec: Any) -> Encoder:
    """The tokenizer under a spec's template and end token."""
    return Encoder(tokenizer, Template(spec.template, spec.end))


def end_ids(encoder: Encoder, folder: Path) -> tuple[int, ...]:
    """The ids at which an answer of the model in a folder ends: the template's, then those that the model stops at."""
    return tuple(dict.fromkeys((encoder.end_id, *ModelFolder.of(folder).stop_ids)))


def dialogue_examples(
    items: Sequence[Dialogue], encoder: Encoder, max_length: int, name: str
) -> tuple[list[Example], Cut]:
    """Supervised examples, every assistant turn trained that the template writes as if it were the last; and what did
    not fit. Raises DataError that names the row of the data `name` which the template refuses."""
    examples: list[Example] = []
    lengths: list[list[Encoded] | None] = []
    for item in items:
        fitted = fitted_dialogue(item, encoder, max_length, name)
        lengths.append(fitted and [fitted[2]])
        if fitted is not None:
            sequence = TokenSequence(np.array(fitted[0], dtype=np.int32), np.array(fitted[1], dtype=np.bool_))
            examples.append(Example(item.id, {"chosen": sequence}))
    return examples, Cut.of(lengths)


def dialogues_for(
    spec: Any, source: Located, split: str, folder: Path, half: str = "all", every_token: bool = False
) -> tuple[Examples, Cut]:
    """The same of a stage's data, or of one `half` of them, under the tokenizer in `folder`, tokenised once for all;
    `every_token` but the first is trained if that is asked for. Raises DataError where a half has none."""
    loaded = dialogues_of(source.where, split, spec.limit, spec.skip_bad_rows, spec.template)
    rules = replace(encoding(folder, spec, source.label), every_token=every_token)
    held, cut = dialogues_table(loaded.items.of_half(half, source.label), rules)
    answers = Answers(held, DIALOGUE)
    return Examples({"chosen": answers}, answers.ids), cut


def encoding(folder: Path, spec: Any, name: str) -> Encoding:
    """How the items of the data `name` become token ids for a stage, under the tokenizer in `folder`."""
    template = Template(spec.template, spec.end)
    tokenizer = ModelFolder.of(folder).tokenizer
    return Encoding(tokenizer, template, spec.max_length, getattr(spec, "truncation", "pair"), name)


@dataclass(frozen=True)
class PairAnswers:
    """The chosen and the rejected answers of the same pairs, in their order, and what did not fit."""

    chosen: Any
    rejected: Any
    cut: Cut

    def of(self, part: str) -> Any:
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
    rows = [fitted_pair(item, encoder, max_length, truncation, name) for item in items]
    for item, fitted in zip(items, rows, strict=True):
        for made, part, each in zip((chosen, rejected), PAIR, fitted or (), strict=False):
            key = AnswerKey(item.id, part, token_hash(each.prompt, each.answer))
            made.append(Answer(key, each.prompt, each.answer, each.cut_prompt + each.cut_answer > 0))
    return _some_left(PairAnswers(chosen, rejected, Cut.of(rows)), max_length, name)


def _some_left(answers: PairAnswers, max_length: int, name: str) -> PairAnswers:
    """The same answers. Raises DataError where there were pairs and none is left."""
    if answers.cut.rows and not len(answers.chosen):
        raise DataError(
            f"{name}: none of the {answers.cut.rows} pairs has anything to train on within max_length {max_length}",
            f"--set max_length={4 * max_length}",
        )
    return answers


def answers_for(spec: Any, source: Located, split: str, folder: Path, half: str = "all") -> PairAnswers:
    """Both answers of the pairs of a stage's data, or of one `half` of them, under the tokenizer in `folder`, tokenised
    once for all. Raises DataError where a half has none."""
    loaded = pairs_of(source.where, split, spec.limit, spec.skip_bad_rows, spec.template)
    held, cut = pairs_table(loaded.items.of_half(half, source.label), encoding(folder, spec, source.label))
    both = PairAnswers(Answers(held, ["chosen"]), Answers(held, ["rejected"]), cut)
    return _some_left(both, spec.max_length, source.label)


def pair_examples(spec: Any, source: Located, split: str, folder: Path, half: str = "all") -> Examples:
    """The chosen and the rejected answer of every pair, or of those of one `half`, as `answers_for`."""
    answers = answers_for(spec, source, split, folder, half)
    return Examples({part: answers.of(part) for part in PAIR}, answers.chosen.ids)


def prompts_for(
    items: Items[Pair], names: NDArray[np.uint64], encoder: Encoder, spec: Any, max_new_tokens: int, label: str,
    stage: str,
) -> Prompts:  # fmt: skip
    """The prompts of some pairs, which are to be answered, by their `names` [n]: tokenised once for all, and cut only
    where no answer would fit beside them. Raises DataError, naming the row of the data `label`, where even then none
    does."""
    room = min(LEAST_ROOM, max_new_tokens, spec.max_length // 2)
    rules = Encoding(encoder.tokenizer, encoder.template, spec.max_length, "pair", label, room, stage)
    return Prompts(prompts_table(items, rules), names)


def rollout_answers(rollouts: Rollouts) -> Answers:
    """Generated answers, by the hash of their prompt; empty ones teach nothing and are left out."""
    lengths = rollouts.table.lengths("rollout")[rollouts.places]
    return Answers(rollouts.table, ROLLOUT, rollouts.places[lengths > 0])


def scored_answers(given: Located, spec: Any, folder: Path) -> tuple[list[str], Answers]:
    """(the ids of all answers of a rollout artifact or of a file, those that are not empty as tokens).

    Answers of a file, and of a model with other tokens than the one in `folder`, become tokens of that one, within the
    `max_length` of a stage's spec.
    """
    encoder = encoder_of(ModelFolder.of(folder).tokenizer, spec)
    if given.kind == "artifact":
        rows = read_rollouts(given.path)
        if not are_foreign(rows, encoder):
            return [f"{id_:016x}" for id_ in rows.table.values("id").tolist()], rollout_answers(rows)
    else:
        answers = answers_of(given.path)
        rows = rollouts_table((Rollout(a.id, a.prompt, (), (), a.text, False) for a in answers), file_facts(given.path))
    return [row.id for row in rows], answers_as_text(rows, encoder, spec.max_length, given.label)


def are_foreign(rollouts: Sequence[Rollout], encoder: Encoder) -> bool:
    """Whether some answers are tokens of another tokenizer, or follow another template, than an encoder has."""
    return any(
        tuple(encoder.prompt(row.prompt))[1 - len(row.prompt_ids) :] != row.prompt_ids[1:]
        for row in rollouts[:FIRST_ROWS]
        if len(row.prompt_ids) > 1
    )


def answers_as_text(rollouts: Rollouts, encoder: Encoder, max_length: int, name: str) -> Answers:
    """The texts of generated answers as the tokens of an encoder, without those that are empty or do not fit.

    An answer that was cut gets no end token. Raises DataError that names the row which the template refuses.
    """

    def fill(add: Callable[[Any], None]) -> dict[str, Any]:
        rows = []
        for number, row in enumerate(watched(rollouts, f"tokenising {name}", len(rollouts)), 1):
            if not row.text.strip():
                continue
            with named_row(f"{name} row {number}"):
                prompt, (answer,) = encoder.answered(row.prompt, row.text)
            said = answer[:-1] if row.cut else answer
            if fitted := fit_answers(prompt, [said], max_length, bos_id=encoder.bos_id):
                rows.append(_rollout_row(row, fitted[0].prompt, fitted[0].answer))
            if len(rows) == BATCH:
                add(_rollout_batch(rows))
                rows.clear()
        add(_rollout_batch(rows))
        return {}

    made_from = [rollouts.made_from, encoder.tokenizer.digest, encoder.template.text, encoder.template.end, max_length]
    return Answers(table("rollouts", [*made_from, code_digest(__file__)], _rollout_schema(), fill), ROLLOUT)


def rollout_id(pair: Pair) -> str:
    """The id under which a pair's prompt is answered: pairs with one prompt share their rollout."""
    return prompt_key(pair)[:16]


def write_rollouts(path: Path, rows: Iterable[Rollout]) -> None:
    """Write rollouts as one Parquet file, of which a group of rows is in memory."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    ids = pa.list_(pa.int32())
    columns = pa.schema([
        ("id", pa.string()), ("prompt", pa.string()), ("prompt_ids", ids), ("answer_ids", ids),
        ("text", pa.string()), ("cut", pa.bool_()),
    ])  # fmt: skip
    written = iter(rows)
    batches = iter(lambda: [_written(row) for row in itertools.islice(written, BATCH)], [])
    with pq.ParquetWriter(path, columns, compression="zstd") as out:
        while group := [rows_batch(batch, columns) for batch in itertools.islice(batches, GROUP // BATCH)]:
            out.write_table(pa.Table.from_batches(group).combine_chunks())


def _written(row: Rollout) -> dict[str, Any]:
    return {**vars(row), "prompt": json.dumps([_turn(turn) for turn in row.prompt], ensure_ascii=False)}


def _turn(turn: Message) -> dict[str, str]:
    """A turn as JSON."""
    return {name: value for name, value in vars(turn).items() if value or name != "more"}


def read_rollouts(folder: Path) -> Rollouts:
    """The rows of a rollout artifact."""
    import pyarrow.parquet as pq

    path = folder / ROWS

    def read() -> Iterator[Rollout]:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(BATCH):
                yield from (Rollout(**{**row, "prompt": _turns(row["prompt"])}) for row in batch.to_pylist())

    return rollouts_table(read(), file_facts(path))


def rollouts_table(rows: Iterable[Rollout], made_from: Any = None) -> Rollouts:
    """Rollouts in a mapped table; `made_from` tells where they come from."""

    def fill(add: Callable[[Any], None]) -> dict[str, Any]:
        given = (_rollout_row(row, row.prompt_ids, row.answer_ids) for row in rows)
        for batch in iter(lambda: list(itertools.islice(given, BATCH)), []):
            add(_rollout_batch(batch))
        return {}

    name = made_from and [*made_from, code_digest(__file__)]
    return Rollouts(table("rollouts", name, _rollout_schema(), fill), made_from)


def _turns(text: str) -> tuple[Message, ...]:
    return tuple(Message(**turn) for turn in json.loads(text))


def _rollout_schema() -> Any:
    """That of a table of answers, with the text of each, the turns that asked for it, and whether it was cut short."""
    import pyarrow as pa

    more = [("turns", pa.large_string()), ("text", pa.large_string()), ("cut", pa.bool_())]
    return pa.schema([*schema(ROLLOUT), *map(pa.field, *zip(*more, strict=True))])


def _rollout_row(row: Rollout, prompt: Sequence[int], answer: Sequence[int]) -> dict[str, Any]:
    turns = json.dumps([_turn(turn) for turn in row.prompt], ensure_ascii=False)
    key = bytes.fromhex(token_hash(prompt, answer))
    return {
        "id": int(row.id, 16), "prompt": prompt, "rollout": answer, "rollout_hash": key, "rollout_cut": False,
        "turns": turns, "text": row.text, "cut": row.cut,
    }  # fmt: skip


def _rollout_batch(rows: Sequence[Mapping[str, Any]]) -> Any:
    return rows_batch(rows, _rollout_schema())
