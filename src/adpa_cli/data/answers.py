"""A model's answers to prompts: those of a rollout artifact, or of a file in AlpacaEval's `model_outputs.json` format.

Such a file is a list of objects with `instruction`, `output` and, for people, `generator`; JSON Lines will do too.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adpa_cli.data.examples import Message, Problem, make_prompt, prompt_key
from adpa_cli.data.files import whole_rows
from adpa_cli.data.shapes import after_columns, given_prompt
from adpa_cli.data.tables import file_facts
from adpa_cli.errors import Corrupt, DataError

ANSWER = "output"
"""The column that holds the answer."""


@dataclass(frozen=True)
class Answered:
    """An answer to a prompt; `id` is 16 hex of the prompt, by which rollouts and held-out prompts are named too.

    `tokens` is its length and `cut` says whether it ends at the limit; both are None where a file does not tell.
    """

    id: str
    prompt: tuple[Message, ...]
    text: str
    tokens: int | None = None
    cut: bool | None = None


def answers_of(path: Path) -> Sequence[Answered]:
    """The answers of a rollout artifact, whose folder is given, or of a file, in their order, one to a prompt.

    A file is read once in a process, as long as it does not change.

    Raises NotFound for a missing file, DataError that names file and row for a row that is no answer and for a prompt
    that is answered twice, and Corrupt where the rows of an artifact cannot be read.
    """
    if path.is_dir():
        return list(_of_rollout(path))
    return _in_file(path, tuple(file_facts(path)) if path.is_file() else ())


@functools.lru_cache(maxsize=8)
def _in_file(path: Path, facts: tuple[Any, ...]) -> tuple[Answered, ...]:
    """The answers of a file of which `facts` tell the content."""
    answers: dict[str, Answered] = {}
    rows: dict[str, int] = {}
    for number, answer in _of_file(path):
        if answer.id in answers:
            raise DataError(
                f"{path.name} row {number} answers the same prompt as row {rows[answer.id]}",
                "keep one answer per prompt",
            )
        answers[answer.id], rows[answer.id] = answer, number
    return tuple(answers.values())


def _of_file(path: Path) -> Iterator[tuple[int, Answered]]:
    """(row number, answer) of each row of a file."""
    for number, row in whole_rows(path):
        try:
            prompt = make_prompt(after_columns(row, given_prompt(row)))
        except Problem as problem:
            said = f"{path.name} row {number}, {problem.field}: {problem.content}"
            raise DataError(said, "every row needs the columns instruction and output") from None
        if not isinstance(row.get(ANSWER), str):
            found = (
                f"its type is {type(row[ANSWER]).__name__}, and text is needed"
                if ANSWER in row
                else "the column is missing"
            )
            raise DataError(
                f"{path.name} row {number}, {ANSWER}: {found}", "every row needs the columns instruction and output"
            )
        yield number, Answered(prompt_key(prompt)[:16], prompt.prompt, row[ANSWER])


def _of_rollout(folder: Path) -> Iterator[Answered]:
    """The answers of an artifact."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = ["id", "prompt", "answer_ids", "text", "cut"]
    try:
        for path in sorted(folder.glob("rows-*.parquet")):
            for row in pq.ParquetFile(path).read(columns, use_threads=False).to_pylist():
                turns = tuple(Message(**turn) for turn in json.loads(row["prompt"]))
                yield Answered(row["id"], turns, row["text"], len(row["answer_ids"]), row["cut"])
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        name = f"{folder.parent.name}/{folder.name}"
        raise Corrupt(f"the answers of {name} cannot be read: {error}", f"adpa verify {name}") from error
