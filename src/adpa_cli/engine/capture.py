"""What a teacher says about given answers: its top k, the label and the mass outside both, per answer token.

Two passes, so that one teacher is in memory at a time: `aligned_pass` picks the ids, `reference_pass` adds the other
teacher's view of the same ids. Only hidden states of answer positions meet the head, some rows at a time, and once.

T tokens of an answer, N of all answers of a block, K ids, H hidden size, V the teacher's vocabulary. Nats, float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from adpa_cli.engine.capture_checks import check_answer, check_coverage, check_finite, check_ids, check_same
from adpa_cli.engine.draws import Draws, sampled
from adpa_cli.engine.heads import output_head
from adpa_cli.engine.models import Dtype
from adpa_cli.engine.prompts import Answer, apart, together
from adpa_cli.engine.prompts import states as states_of
from adpa_cli.engine.sampling import uniforms
from adpa_cli.errors import AdpaError
from adpa_cli.signal.rows import Floats, Ints, SignalRows, difference_of
from adpa_cli.tensors.output import Head
from adpa_cli.tensors.topk import split, top_ids


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
    share: bool = False,
    draws: Draws | None = None,
) -> list[SignalRows]:
    """The aligned teacher's rows of each answer, without a reference; K is `k`, or all known ids if they are fewer.

    With `share` the prompt of answers that follow one another is computed once; with `draws` the ids are drawn. Raises
    DataError naming the row for an empty prompt or answer, or a token outside a vocabulary, and AdpaError naming
    `teacher` and the row for logits that are not finite or answers with no mass on known ids.
    """
    if not answers:
        return []
    states, where, head, mask = _forward(model, answers, known, dtype, share)
    labels = torch.tensor([token for answer in answers for token in answer.answer], device=states.device)
    k = min(k, int(mask.sum()))
    if draws is None:
        tiles = [_likeliest(logits, labels[span], mask, k) for span, logits in head.rows(states, where)]
    else:
        keys, positions = draws.noise([len(answer.answer) for answer in answers], states.device)
        tiles = [
            _drawn(logits, labels[span], mask, uniforms(keys[span], positions[span], draws.count))
            for span, logits in head.rows(states, where)
        ]
    ids, logps, rest, weights = _joined(tiles)
    rows = []
    for answer, span in _spans(answers):
        row = SignalRows(
            ids=ids[span],
            logps=logps[span, 1:],
            label_ids=np.array(answer.answer, dtype=np.int32),
            label_logps=logps[span, 0],
            rest_logps=rest[span],
            weights=None if draws is None else weights[span],
        )
        check_finite(teacher, answer, row.logps, row.label_logps, row.rest_logps)
        check_coverage(teacher, answer, row.logps)
        rows.append(row)
    return rows


def _likeliest(logits: Tensor, labels: Tensor, known: Tensor, k: int) -> tuple[Any, ...]:
    """One tile of a top k: ids [n,K], log-probs of the label and of them [n,1+K], of the mass outside [n]."""
    ids = top_ids(_barred(logits, known), k)
    logps, rest = split(logits, torch.cat([labels[:, None], ids], 1))
    return _ints(ids), _floats(logps), _floats(rest), np.zeros((len(ids), 0), dtype=np.float32)


def _drawn(logits: Tensor, labels: Tensor, known: Tensor, noise: Tensor) -> tuple[Any, ...]:
    """One tile of drawn ids: as `_likeliest`, and the part of the draws on each id [n,K]."""
    ids, logps, weights, label, rest = sampled(logits, labels, known, noise)
    return _ints(ids), _floats(torch.cat([label[:, None], logps], 1)), _floats(rest), _floats(weights)


def reference_pass(
    model: PreTrainedModel,
    answers: Sequence[Answer],
    rows: Sequence[SignalRows],
    *,
    teacher: str,
    known: Known = ALL_KNOWN,
    dtype: Dtype = "float32",
    share: bool = False,
) -> list[SignalRows]:
    """`rows` with the reference teacher's view of the same answers at the same ids; its own K-th is among known ids.

    Raises what `aligned_pass` raises, and DataError where `rows` belong to other answers.
    """
    if not answers:
        return []
    check_same(answers, rows)
    states, where, head, mask = _forward(model, answers, known, dtype, share)
    asked = np.concatenate([np.concatenate([row.label_ids[:, None], row.ids], 1) for row in rows])
    check_ids(asked, teacher, head.weight.shape[0])
    wanted = torch.from_numpy(asked).long().to(states.device)
    tiles = [
        _at_ids(logits, wanted[span], top_ids(_barred(logits, mask), wanted.shape[1] - 1)[:, -1:])
        for span, logits in head.rows(states, where)
    ]
    logps, kth, rest = _joined(tiles)
    done = []
    for (answer, span), row in zip(_spans(answers), rows, strict=True):
        here, label = logps[span, 1:], logps[span, 0]
        check_finite(teacher, answer, here, label, rest[span])
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


def _at_ids(logits: Tensor, asked: Tensor, kth: Tensor) -> tuple[Floats, Floats, Floats]:
    """Log-probs at the `asked` ids [n,1+K] and at the `kth` one [n,1], and of the mass outside the asked [n]."""
    # One call for both, so that a log-prob and the K-th it is compared with are rounded alike.
    logps, rest = split(logits, torch.cat([asked, kth], 1))
    new = (asked != kth).all(1)  # the K-th is outside the aligned ids and the label: its mass goes back to the rest
    rest = torch.where(new, torch.logaddexp(rest, logps[:, -1]), rest)
    return _floats(logps[:, :-1]), _floats(logps[:, -1:]), _floats(rest)


def _forward(
    model: PreTrainedModel, answers: Sequence[Answer], known: Known, dtype: Dtype, share: bool
) -> tuple[Tensor, Tensor, Head, Tensor]:
    """Hidden states [P,H]; which of them [N] predict the answers' tokens; the head; known ids [V]."""
    head = output_head(model)
    mask = known.mask(head.weight.shape[0], head.weight.device)
    if not bool(mask.any()):
        raise AdpaError("no id of the teacher's vocabulary is known to the student", "use models of one vocabulary")
    has_id = mask.tolist()
    for answer in answers:
        check_answer(answer, has_id)
    layout = (together if share else apart)(answers)
    return states_of(model, layout, dtype), layout.where.to(head.weight.device), head, mask


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


def _floats(values: Tensor) -> Floats:
    array: Floats = values.float().cpu().numpy()
    return array


def _ints(values: Tensor) -> Ints:
    array: Ints = values.to(torch.int32).cpu().numpy()
    return array
