"""What a teacher says about given answers: its top k, the label and the mass outside both, per answer token.

Two passes, so that one teacher is in memory at a time: `aligned_pass` picks the ids, `reference_pass` adds the other
teacher's view of the same ids. Only hidden states of answer positions meet the head, some rows at a time, and once.
Instead of its top k the ids may be sampled support, which is drawn from the teacher's softmax (Anshumann et al. 2025,
ACL). Answers that cannot be scored, and teachers whose numbers mean nothing, are refused with the row named.

n positions or N of all answers of a block, H hidden size, V the teacher's vocabulary, S draws with replacement, K ids.
Nats, float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from adpa_cli.engine.generation.sampling import uniforms
from adpa_cli.engine.layout.examples import Answer
from adpa_cli.engine.layout.shared_prompt import answer_states
from adpa_cli.engine.models import output_head
from adpa_cli.errors import AdpaError, DataError, NotFinite
from adpa_cli.signal.rows import Floats, SignalRows, difference_of
from adpa_cli.spec import Dtype
from adpa_cli.tensors.output import Head
from adpa_cli.tensors.sums import split, top_ids

MIN_COVERAGE = 1e-6  # an answer none of whose tokens has this much mass on ids the student knows teaches nothing


@dataclass(frozen=True)
class SampledSupport:
    """How many ids are drawn for each token, and a key for each answer: its noise is a function of key and position.

    The ids are those of Anshumann et al. 2025 (ACL): drawn from a teacher's softmax instead of its top k.
    """

    count: int
    keys: Sequence[int]


def aligned_pass(
    model: PreTrainedModel,
    answers: Sequence[Answer],
    k: int,
    *,
    teacher: str,
    student_vocab: int | None = None,
    dtype: Dtype = "float32",
    share: bool = False,
    support: SampledSupport | None = None,
) -> list[SignalRows]:
    """The aligned teacher's rows of each answer, without a reference; K is `k`, or all known ids if they are fewer.

    Known are ids that the student has: those below `student_vocab`, if it is given. The others never enter a top k;
    their mass stays in the rest. With `share` the prompt of answers that follow one another is computed once; with
    `support` the ids are drawn. Raises DataError naming the row for an empty prompt or answer, or a token outside a
    vocabulary, and AdpaError naming `teacher` and the row for logits that are not finite or answers with no mass on
    known ids.
    """
    if not answers:
        return []
    states, head, mask = _forward(model, answers, student_vocab, dtype, share)
    labels = torch.tensor([token for answer in answers for token in answer.answer], device=states.device)
    k = min(k, int(mask.sum()))
    if support is None:
        tiles = [_arrays(*_likeliest(logits, labels[span], mask, k)) for span, logits in head.rows(states)]
    else:
        lengths = torch.tensor([len(answer.answer) for answer in answers])
        keys = torch.tensor(support.keys).repeat_interleave(lengths).to(states.device)
        positions = torch.cat([torch.arange(length) for length in lengths.tolist()]).to(states.device)
        tiles = [
            _arrays(*sampled_support(logits, labels[span], mask, uniforms(keys[span], positions[span], support.count)))
            for span, logits in head.rows(states)
        ]
    ids, logps, rest, *weights = _joined(tiles)
    rows = []
    for answer, span in _spans(answers):
        row = SignalRows(
            ids=ids[span],
            logps=logps[span, 1:],
            label_ids=np.array(answer.answer, dtype=np.int32),
            label_logps=logps[span, 0],
            rest_logps=rest[span],
            weights=weights[0][span] if weights else None,
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
    student_vocab: int | None = None,
    dtype: Dtype = "float32",
    share: bool = False,
) -> list[SignalRows]:
    """`rows` with the reference teacher's view of the same answers at the same ids; its own K-th is among known ids.

    Raises what `aligned_pass` raises, and DataError where `rows` belong to other answers.
    """
    if not answers:
        return []
    for answer, row in zip(answers, rows, strict=True):
        if list(answer.answer) != row.label_ids.tolist():
            raise DataError(
                f"the reference teacher is given other tokens for the answer of row {answer.key.example_id!r} than the "
                "aligned teacher was",
                "give both teachers the same answers",
            )
    states, head, mask = _forward(model, answers, student_vocab, dtype, share)
    asked = np.concatenate([np.concatenate([row.label_ids[:, None], row.ids], 1) for row in rows])
    if int(asked.max()) >= len(head.weight):
        raise AdpaError(
            f"the aligned teacher's top k has the token id {int(asked.max())}, while {teacher} has {len(head.weight)}",
            "use two teachers with the same vocabulary",
        )
    wanted = torch.from_numpy(asked).long().to(states.device)
    tiles = [
        _arrays(*_at_ids(logits, wanted[span], top_ids(_barred(logits, mask), wanted.shape[1] - 1)[:, -1:]))
        for span, logits in head.rows(states)
    ]
    logps, kth, rest = _joined(tiles)
    done = []
    for (answer, span), row in zip(_spans(answers), rows, strict=True):
        here, label = logps[span, 1:], logps[span, 0]
        _check_finite(teacher, answer, here, label, rest[span])
        full = replace(
            row,
            difference=difference_of(row.logps, here),
            in_reference=here >= kth[span],
            reference_kth=kth[span, 0],
            reference_label_logps=label,
            reference_rest_logps=rest[span],
        )
        done.append(full)
    return done


def sampled_support(
    logits: Tensor, labels: Tensor, known: Tensor, noise: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(ids [n,K], log-probs of `labels` and of them [n,1+K], of the mass elsewhere [n], part of the draws on each).

    Ids that were drawn come first, then the label, then others, which have no log-prob. Draws of ids that are not
    `known` [V] are lost to the weights, as their terms are to a student that lacks them. `logits` are used up.
    """
    ids = sampled_ids(logits, noise)
    counts = torch.zeros_like(logits).scatter_add_(1, ids, torch.ones_like(noise, dtype=logits.dtype))
    counts.masked_fill_(~known, 0)
    order = counts.scatter_add(1, labels[:, None], torch.full_like(labels[:, None], 0.5, dtype=logits.dtype))
    ids = top_ids(order, noise.shape[1])
    weights = counts.gather(1, ids) / noise.shape[1]
    filler = (weights == 0) & (ids != labels[:, None])
    label = labels[:, None]
    logps, rest = split(logits, torch.cat([label, torch.where(filler, label, ids)], 1))
    logps[:, 1:].masked_fill_(filler, -float("inf"))
    return ids, logps, rest, weights


def sampled_ids(logits: Tensor, noise: Tensor) -> Tensor:
    """[n,S] int64 ids of softmax(`logits` [n,V]), one for each number of `noise` [n,S] in (0, 1)."""
    reached = logits.double().softmax(1).cumsum(1)
    # The last sum is 1 but for rounding; scaled to it no draw falls behind the last id, or on one without mass.
    return torch.searchsorted(reached, noise * reached[:, -1:]).clamp_max(logits.shape[1] - 1)


def _likeliest(logits: Tensor, labels: Tensor, known: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Ids of a top k [n,K], log-probs of `labels` and of them [n,1+K], of the mass outside [n]."""
    ids = top_ids(_barred(logits, known), k)
    return ids, *split(logits, torch.cat([labels[:, None], ids], 1))


def _at_ids(logits: Tensor, asked: Tensor, kth: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probs at the `asked` ids [n,1+K] and at the `kth` one [n,1], and of the mass outside the asked [n]."""
    # One call for both, so that a log-prob and the K-th it is compared with are rounded alike.
    logps, rest = split(logits, torch.cat([asked, kth], 1))
    new = (asked != kth).all(1)  # the K-th is outside the aligned ids and the label: its mass goes back to the rest
    rest = torch.where(new, torch.logaddexp(rest, logps[:, -1]), rest)
    return logps[:, :-1], logps[:, -1:], rest


def _forward(
    model: PreTrainedModel, answers: Sequence[Answer], student_vocab: int | None, dtype: Dtype, share: bool
) -> tuple[Tensor, Head, Tensor]:
    """Hidden states [N,H] that predict the answers' tokens; the head; which ids are known [V]."""
    head = output_head(model)
    size = len(head.weight)
    mask = torch.arange(size, device=head.weight.device) < (size if student_vocab is None else student_vocab)
    if not bool(mask.any()):
        raise AdpaError("teacher and student have no token in common", "use models with the same vocabulary")
    has_id = mask.tolist()
    for answer in answers:
        _check_answer(answer, has_id)
    return answer_states(model, answers, share, dtype), head, mask


def _barred(logits: Tensor, known: Tensor) -> Tensor:
    """The logits with -inf at ids that the student lacks; the same tensor where it lacks none."""
    return logits if bool(known.all()) else logits.masked_fill(~known, -float("inf"))


def _joined(tiles: Sequence[tuple[Any, ...]]) -> tuple[Any, ...]:
    """The columns of all tiles, each in one array."""
    return tuple(np.concatenate(column) for column in zip(*tiles, strict=True))


def _spans(answers: Sequence[Answer]) -> Iterator[tuple[Answer, slice]]:
    """Each answer and where its tokens lie among the N of the block."""
    start = 0
    for answer in answers:
        yield answer, slice(start, start + len(answer.answer))
        start += len(answer.answer)


def _arrays(*columns: Tensor) -> tuple[Any, ...]:
    """The columns of one tile as they are kept: float32, or int32, in the memory of the host."""
    return tuple(c.to(torch.float32 if c.is_floating_point() else torch.int32).cpu().numpy() for c in columns)


def _check_answer(answer: Answer, known: Sequence[bool]) -> None:
    row = answer.key.example_id
    for name, tokens in (("prompt", answer.prompt), ("answer", answer.answer)):
        if not tokens:
            raise DataError(f"row {row!r}: the {name} has no tokens", "remove the row, or use another template")
        outside = [token for token in tokens if not 0 <= token < len(known)]
        if outside:
            raise DataError(
                f"row {row!r}: the {name} has the token id {outside[0]}, and the teacher has {len(known)} ids",
                "tokenise the rows with the teacher's own vocabulary",
            )
    lacking = [token for token in answer.answer if not known[token]]
    if lacking:
        raise DataError(
            f"row {row!r}: the answer has the token id {lacking[0]}, which the student does not have",
            "tokenise the rows with the student's own vocabulary",
        )


def _check_finite(teacher: str, answer: Answer, logps: Floats, label: Floats, rest: Floats) -> None:
    """-inf is allowed at an id that is not the label (unused ids of a vocabulary) and for an empty rest (K = V)."""
    if np.isnan(logps).any() or np.isnan(rest).any() or not np.isfinite(label).all():
        message = f"{teacher} gives logits that are not finite for row {answer.key.example_id!r}"
        raise NotFinite(message, [*answer.prompt, *answer.answer])


def _check_coverage(teacher: str, answer: Answer, logps: Floats) -> None:
    if float(np.exp(logps.astype(np.float64)).sum(1).max()) < MIN_COVERAGE:
        raise AdpaError(
            f"{teacher} gives no probability to any token that the student has, in row {answer.key.example_id!r}",
            "use a teacher and a student with the same vocabulary",
        )
