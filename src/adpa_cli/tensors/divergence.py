"""Divergences and advantages at a teacher's K ids, their expectations, and the only means that are taken of them.

Pure functions over [...,K] tensors of full-softmax log-probs, nats per token. A teacher's id that the student lacks has
the teacher log-prob -inf and adds nothing. `rest` is the log of the mass outside the ids, [...]. `reduce` turns values
per token into the part of the loss that a micro-batch adds, given the sizes of the global batch.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

Missing = Literal["kth", "aligned", "exact"]
StudentTail = Literal["zero", "bucket", "floor"]
Reduction = Literal["seqmean", "tokmean", "seqsum"]

LEAST_REST = 1e-8
RELEASED_FLOOR = math.log(1e-7)
LOWEST = -1e4


def outside(label_logps: Tensor, rest_logps: Tensor, label_in_topk: Tensor) -> Tensor:
    """Log of the mass outside the ids alone, from the mass outside the ids and the label; all [...]."""
    return torch.where(label_in_topk, rest_logps, torch.logaddexp(label_logps, rest_logps))


def bucket_kl(teacher_logps: Tensor, teacher_rest: Tensor, student_logps: Tensor, student_rest: Tensor) -> Tensor:
    """KL(teacher || student) over the K ids and one class for all that is outside them, [...]; methods.md KL51.

    `teacher_logps`, `student_logps` [...,K]; the rests [...]. The rest class is skipped where the teacher has less than
    1e-8 there: 0 log 0 = 0.
    """
    inside = _gap(teacher_logps, student_logps, 0.0).sum(-1)
    return inside + _gap(teacher_rest, student_rest, LEAST_REST)


def renormalised_kl(teacher_logps: Tensor, student_logps: Tensor) -> Tensor:
    """KL(teacher renormalised over its K ids || student's full softmax), [...]: presses all mass onto the ids."""
    return _gap(teacher_logps.log_softmax(-1), student_logps, 0.0).sum(-1)


def sampled_kl(weights: Tensor, teacher_logps: Tensor, student_logps: Tensor) -> Tensor:
    """Σ w (log p - log q) over ids drawn from the teacher, [...]: in expectation KL(teacher || student), and so its
    gradient that of the full KL. `weights` [...,K], the part of the draws on each id. Anshumann et al. 2025 (ACL)."""
    counts = weights > 0
    gap = torch.where(counts, teacher_logps, 0.0) - torch.where(counts, student_logps.clamp_min(LOWEST), 0.0)
    return (weights * gap).sum(-1)


def advantage(
    logps: Tensor,
    difference: Tensor,
    reference_kth: Tensor,
    in_reference: Tensor,
    *,
    missing_reference: Missing = "kth",
    clamp: tuple[float, float] | None = None,
) -> Tensor:
    """A = log p_aligned - log p_reference at the aligned ids, [...,K]; Eq. 10 and section 4.1 of Gao et al. 2025.

    `logps`, `difference` (aligned - reference), `in_reference` (bool) [...,K]; `reference_kth` [...]. An id outside the
    reference's top k takes that list's last log-prob (`kth`), or the least of the aligned list, both sides floored at
    probability 1e-7 (`aligned`, the released code), or its own (`exact`). `clamp` bounds the result.
    """
    present = logps > -math.inf
    if missing_reference == "kth":
        value = torch.minimum(difference, logps - reference_kth[..., None])
    elif missing_reference == "aligned":
        least = torch.where(present, logps, math.inf).amin(-1, keepdim=True)
        reference = torch.where(in_reference, logps - difference, least)
        value = logps.clamp_min(RELEASED_FLOOR) - reference.clamp_min(RELEASED_FLOOR)
    else:
        value = difference
    if clamp is not None:
        value = value.clamp(*clamp)
    return torch.where(present, value, 0.0)


def rest_advantage(aligned_rest: Tensor, reference_rest: Tensor, clamp: tuple[float, float] | None = None) -> Tensor:
    """Advantage of the one class outside the aligned ids, [...]; masses below 1e-8 count as 1e-8, so it is finite."""
    least = math.log(LEAST_REST)
    value = aligned_rest.clamp_min(least) - reference_rest.clamp_min(least)
    return value if clamp is None else value.clamp(*clamp)


def expected_advantage(
    student_logps: Tensor,
    values: Tensor,
    *,
    student_tail: StudentTail = "zero",
    student_rest: Tensor | None = None,
    rest_values: Tensor | None = None,
    present: Tensor | None = None,
) -> Tensor:
    """Sum over the ids of p_student * A, [...]; the inner sum of Eq. 10.

    `student_logps`, `values` [...,K]. The student's mass outside the ids, `student_rest` [...], scores 0 (`zero`),
    `rest_values` [...] (`bucket`), or the least of `values` (`floor`) where `present` [...,K], by default everywhere.
    """
    inside = (student_logps.exp() * values).sum(-1)
    if student_tail == "zero":
        return inside
    real = values if present is None else values.masked_fill(~present, math.inf)
    tail = real.amin(-1) if student_tail == "floor" else rest_values
    if student_rest is None or tail is None:
        raise TypeError(f"student_tail={student_tail!r} needs the student's rest and, for 'bucket', rest_values")
    return inside + student_rest.exp() * tail


def _gap(teacher: Tensor, student: Tensor, least: float) -> Tensor:
    """p * (log p - log q) elementwise; 0, in value and gradient, where p <= least."""
    weight = teacher.exp()
    counts = weight > least
    student = torch.where(counts & (student > -math.inf), student, torch.where(counts, LOWEST, 0.0))
    return weight * (torch.where(counts, teacher, 0.0) - student)


def reduce(
    values: Tensor, mask: Tensor, reduction: Reduction = "seqmean", *, batch_rows: int, batch_tokens: int
) -> Tensor:
    """One scalar; over the micro-batches of a step these add up to the global reduction, however it was split.

    `values` [B,T] per token or [B] per example; `mask` [B,T] bool. `batch_rows` and `batch_tokens` are the rows and the
    unmasked tokens of this part in the global batch. `seqmean`: mean over rows of each row's token mean; `tokmean`:
    mean over all tokens; `seqsum`: mean over rows of each row's sum. [B] values: mean over rows. An empty row adds 0.
    """
    if values.dim() == 1:
        return values.sum() / batch_rows
    if reduction == "tokmean":
        return torch.where(mask, values, 0.0).sum() / max(batch_tokens, 1)
    return over_answer(values, mask, mean=reduction == "seqmean").sum() / batch_rows


def over_answer(values: Tensor, mask: Tensor, *, mean: bool) -> Tensor:
    """Sum or mean of `values` [B,T] over the positions of `mask` [B,T] bool of each row, [B]; 0 for an empty row."""
    sums = torch.where(mask, values, 0.0).sum(1)
    return sums / mask.sum(1).clamp_min(1) if mean else sums
