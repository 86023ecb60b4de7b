"""What a teacher says about given answers: its top k, the label and the mass outside both, per answer token.

Two passes, so that one teacher is in memory at a time: `aligned_pass` picks the ids, `reference_pass` adds the other
teacher's view of the same ids. Only hidden states of answer positions meet the head, tile by tile.

T tokens of an answer, N of all answers of a block, K ids, H hidden size, V the teacher's vocabulary. Nats, float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from adpa_cli.engine.models import Dtype, body_and_head, hidden_states
from adpa_cli.errors import AdpaError, DataError
from adpa_cli.signal.rows import Floats, Ints, SignalRows, difference_of
from adpa_cli.tensors.head import selected_logps
from adpa_cli.tensors.topk import head_topk

MIN_COVERAGE = 1e-6  # an answer none of whose tokens has this much mass on ids the student knows teaches nothing


@dataclass(frozen=True)
class Answer:
    """One row to capture: its id, for messages, and the token ids of its prompt and answer, end token included."""

    row_id: str
    prompt: Sequence[int]
    answer: Sequence[int]


@dataclass(frozen=True)
class Known:
    """The ids that the student has: those below `student_vocab` (None: all) that are not in `excluded`.

    Other ids never enter a top k; their mass stays in the rest.
    """

    student_vocab: int | None = None
    excluded: tuple[int, ...] = ()

    def mask(self, vocabulary: int, device: torch.device) -> Tensor:
        """[V] bool, True where the student has the id."""
        known = torch.arange(vocabulary, device=device) < (
            vocabulary if self.student_vocab is None else self.student_vocab
        )
        known[[token for token in self.excluded if token < vocabulary]] = False
        return known


ALL_KNOWN = Known()


def aligned_pass(
    model: PreTrainedModel,
    answers: Sequence[Answer],
    k: int,
    *,
    teacher: str,
    known: Known = ALL_KNOWN,
    dtype: Dtype = "float32",
) -> list[SignalRows]:
    """The aligned teacher's rows of each answer, without a reference; K is `k`, or all known ids if they are fewer.

    Raises DataError naming the row for an empty prompt or answer, or a token outside a vocabulary, and AdpaError
    naming `teacher` and the row for logits that are not finite or answers with no mass on known ids.
    """
    if not answers:
        return []
    hidden, weight, bias, mask = _states(model, answers, known, dtype)
    labels = torch.tensor([token for answer in answers for token in answer.answer], device=hidden.device)
    ids = _top_ids(hidden, weight, bias, mask, k)
    selected = selected_logps(hidden, weight, torch.cat([labels[:, None], ids], 1), bias)
    rows = []
    for answer, span in _spans(answers):
        row = SignalRows(
            ids=_ints(ids[span]),
            logps=_floats(selected.logps[span, 1:]),
            label_ids=_ints(labels[span]),
            label_logps=_floats(selected.logps[span, 0]),
            rest_logps=_floats(selected.rest[span]),
        )
        _check_finite(teacher, answer, row.logps, row.label_logps, row.rest_logps)
        _check_coverage(teacher, answer, row.logps)
        rows.append(row)
    return rows


def reference_pass(
    model: PreTrainedModel,
    answers: Sequence[Answer],
    rows: Sequence[SignalRows],
    *,
    teacher: str,
    known: Known = ALL_KNOWN,
    dtype: Dtype = "float32",
) -> list[SignalRows]:
    """`rows` with the reference teacher's view of the same answers at the same ids; its own K-th is among known ids.

    Raises what `aligned_pass` raises, and DataError where `rows` belong to other answers.
    """
    if not answers:
        return []
    _check_same(answers, rows)
    hidden, weight, bias, mask = _states(model, answers, known, dtype)
    labels, ids = (
        torch.from_numpy(np.concatenate(parts)).long().to(hidden.device)
        for parts in ([row.label_ids for row in rows], [row.ids for row in rows])
    )
    if int(ids.max()) >= weight.shape[0]:
        raise AdpaError(
            f"The aligned teacher's top k has the id {int(ids.max())}, but {teacher} has {weight.shape[0]} ids.",
            "use two teachers with one vocabulary",
        )
    kth = _top_ids(hidden, weight, bias, mask, ids.shape[1])[:, -1:]
    asked = torch.cat([labels[:, None], ids], 1)
    # One call for all three, so that a log-prob and the K-th it is compared with are rounded alike.
    selected = selected_logps(hidden, weight, torch.cat([asked, kth], 1), bias)
    label_logps, logps, kth_logps = selected.logps[:, 0], selected.logps[:, 1:-1], selected.logps[:, -1]
    new = (asked != kth).all(1)  # the K-th is outside the aligned ids and the label: its mass goes back to the rest
    rest = torch.where(new, torch.logaddexp(selected.rest, kth_logps), selected.rest)
    done = []
    for (answer, span), row in zip(_spans(answers), rows, strict=True):
        here = _floats(logps[span])
        _check_finite(teacher, answer, here, _floats(label_logps[span]), _floats(rest[span]))
        full = replace(
            row,
            difference=difference_of(row.logps, here),
            in_reference=(logps[span] >= kth_logps[span, None]).cpu().numpy(),
            reference_kth=_floats(kth_logps[span]),
            reference_label_logps=_floats(label_logps[span]),
            reference_rest_logps=_floats(rest[span]),
        )
        done.append(full)
    return done


@torch.no_grad()
def _states(
    model: PreTrainedModel, answers: Sequence[Answer], known: Known, dtype: Dtype
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """Hidden states [N, H] of the positions before the answers' tokens; the head's weight [V, H], bias; known [V]."""
    _, weight, bias = body_and_head(model)
    mask = known.mask(weight.shape[0], weight.device)
    if not bool(mask.any()):
        raise AdpaError("No id of the teacher's vocabulary is known to the student.", "use models of one vocabulary")
    has_id = mask.tolist()
    for answer in answers:
        _check_answer(answer, has_id)
    # The last token is predicted, never read.
    sequences = [[*answer.prompt, *answer.answer][:-1] for answer in answers]
    shape = len(sequences), max(map(len, sequences))
    ids, attention, wanted = (torch.zeros(shape, dtype=torch.int64) for _ in range(3))
    for row, (sequence, answer) in enumerate(zip(sequences, answers, strict=True)):
        ids[row, : len(sequence)] = torch.tensor(sequence)
        attention[row, : len(sequence)] = 1
        wanted[row, len(answer.prompt) - 1 : len(sequence)] = 1
    states = hidden_states(model, ids.to(weight.device), attention.to(weight.device), dtype=dtype)
    bias = None if bias is None else bias.detach()
    return states[wanted.bool().to(weight.device)].detach().float(), weight.detach(), bias, mask


def _top_ids(hidden: Tensor, weight: Tensor, bias: Tensor | None, known: Tensor, k: int) -> Tensor:
    """[N, K] known ids by falling probability; K = min(k, known ids)."""
    if not bool(known.all()):
        barred = torch.zeros(known.shape, device=known.device).masked_fill(~known, -float("inf"))
        bias = barred if bias is None else bias.float() + barred
    return head_topk(hidden, weight, min(k, int(known.sum())), bias).ids


def _spans(answers: Sequence[Answer]) -> Iterator[tuple[Answer, slice]]:
    """Each answer and where its tokens lie among the N of the block."""
    start = 0
    for answer in answers:
        yield answer, slice(start, start + len(answer.answer))
        start += len(answer.answer)


def _check_answer(answer: Answer, known: Sequence[bool]) -> None:
    for name, tokens in (("prompt", answer.prompt), ("answer", answer.answer)):
        if not tokens:
            raise DataError(f"Row {answer.row_id!r}: the {name} has no tokens.", "drop the row, or its template")
        outside = [token for token in tokens if not 0 <= token < len(known)]
        if outside:
            raise DataError(
                f"Row {answer.row_id!r}: the {name} has the token {outside[0]}; the teacher has {len(known)} ids.",
                "tokenise the rows with the teacher's own vocabulary",
            )
    lacking = [token for token in answer.answer if not known[token]]
    if lacking:
        raise DataError(
            f"Row {answer.row_id!r}: the answer has the token {lacking[0]}, which the student lacks.",
            "tokenise the rows with the student's own vocabulary",
        )


def _check_finite(teacher: str, answer: Answer, logps: Floats, label: Floats, rest: Floats) -> None:
    """-inf is allowed at an id that is not the label (unused ids of a vocabulary) and for an empty rest (K = V)."""
    if np.isnan(logps).any() or np.isnan(rest).any() or not np.isfinite(label).all():
        raise AdpaError(
            f"{teacher} gives logits that are not finite for row {answer.row_id!r}.",
            "check the model's weights, or compute in float32",
        )


def _check_coverage(teacher: str, answer: Answer, logps: Floats) -> None:
    if float(np.exp(logps.astype(np.float64)).sum(1).max()) < MIN_COVERAGE:
        raise AdpaError(
            f"{teacher} puts no mass on ids that the student has, for row {answer.row_id!r}.",
            "use a teacher and a student of one vocabulary",
        )


def _check_same(answers: Sequence[Answer], rows: Sequence[SignalRows]) -> None:
    for answer, row in zip(answers, rows, strict=True):
        if list(answer.answer) != row.label_ids.tolist():
            raise DataError(
                f"Row {answer.row_id!r}: the aligned teacher's rows are of another answer.",
                "capture both teachers over the same answers",
            )


def _floats(values: Tensor) -> Floats:
    array: Floats = values.float().cpu().numpy()
    return array


def _ints(values: Tensor) -> Ints:
    array: Ints = values.to(torch.int32).cpu().numpy()
    return array
