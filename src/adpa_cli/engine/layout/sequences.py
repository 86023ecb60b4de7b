"""What everything else lays out and learns from: token ids of an answer, of an example, and what did not fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields

import numpy as np
from numpy.typing import NDArray

from adpa_cli.data.chat import Encoded
from adpa_cli.errors import DataError
from adpa_cli.signal.rows import AnswerKey


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
    names: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """By part the example id and the part that name its answer in a signal, where these are not `id` and that part: a
    rollout is named by its prompt."""

    def name(self, part: str) -> tuple[str, str]:
        """The example id and the part in the key of an answer."""
        return self.names.get(part, (self.id, part))

    @property
    def length(self) -> int:
        """Tokens of the longest part."""
        return max(len(part) for part in self.parts.values())

    @property
    def size(self) -> int:
        """Tokens of all parts."""
        return sum(len(part) for part in self.parts.values())


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

    def __add__(self, other: Cut) -> Cut:
        return Cut(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(Cut)))

    def words(self, what: str, max_length: int) -> list[str]:
        """What is said of it; nothing where all fits."""
        said = []
        if self.cut:
            said.append(
                f"{self.cut:,} of {self.rows:,} {what} are longer than max_length {max_length}: {self.tokens:,} tokens "
                f"are cut, and {self.answers:,} answers lose their end"
            )
        if self.left_out:
            said.append(
                f"{self.left_out:,} of {self.rows:,} {what} are left out: max_length leaves no token to train on"
            )
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
