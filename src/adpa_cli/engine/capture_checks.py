"""What a capture refuses, naming the row: answers that cannot be scored, and teachers whose numbers mean nothing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from adpa_cli.engine.prompts import Answer
from adpa_cli.errors import AdpaError, DataError
from adpa_cli.signal.rows import Floats, Ints, SignalRows

MIN_COVERAGE = 1e-6  # an answer none of whose tokens has this much mass on ids the student knows teaches nothing


def check_answer(answer: Answer, known: Sequence[bool]) -> None:
    for name, tokens in (("prompt", answer.prompt), ("answer", answer.answer)):
        if not tokens:
            raise DataError(f"row {answer.row_id!r}: the {name} has no tokens", "drop the row, or its template")
        outside = [token for token in tokens if not 0 <= token < len(known)]
        if outside:
            raise DataError(
                f"row {answer.row_id!r}: the {name} has the token {outside[0]}; the teacher has {len(known)} ids",
                "tokenise the rows with the teacher's own vocabulary",
            )
    lacking = [token for token in answer.answer if not known[token]]
    if lacking:
        raise DataError(
            f"row {answer.row_id!r}: the answer has the token {lacking[0]}, which the student lacks",
            "tokenise the rows with the student's own vocabulary",
        )


def check_finite(teacher: str, answer: Answer, logps: Floats, label: Floats, rest: Floats) -> None:
    """-inf is allowed at an id that is not the label (unused ids of a vocabulary) and for an empty rest (K = V)."""
    if np.isnan(logps).any() or np.isnan(rest).any() or not np.isfinite(label).all():
        raise AdpaError(
            f"{teacher} gives logits that are not finite for row {answer.row_id!r}",
            "check the model's weights, or compute in float32",
        )


def check_coverage(teacher: str, answer: Answer, logps: Floats) -> None:
    if float(np.exp(logps.astype(np.float64)).sum(1).max()) < MIN_COVERAGE:
        raise AdpaError(
            f"{teacher} puts no mass on ids that the student has, for row {answer.row_id!r}",
            "use a teacher and a student of one vocabulary",
        )


def check_ids(ids: Ints, teacher: str, vocabulary: int) -> None:
    if int(ids.max()) >= vocabulary:
        raise AdpaError(
            f"the aligned teacher's top k has the id {int(ids.max())}, but {teacher} has {vocabulary} ids",
            "use two teachers with one vocabulary",
        )


def check_same(answers: Sequence[Answer], rows: Sequence[SignalRows]) -> None:
    for answer, row in zip(answers, rows, strict=True):
        if list(answer.answer) != row.label_ids.tolist():
            raise DataError(
                f"row {answer.row_id!r}: the aligned teacher's rows are of another answer",
                "capture both teachers over the same answers",
            )
