"""What few bits do to a signal: answers that a teacher, or a pair, has computed, beside the same in float32.

The error of one teacher's log-probs is small beside them. Of a pair the signal is the difference of two nearly equal
models, and the error, which is of the same size, may be larger than it.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel

from adpa_cli.engine.capture import aligned_pass, reference_pass
from adpa_cli.engine.layerwise import load_layerwise
from adpa_cli.engine.layout.examples import Answer
from adpa_cli.engine.layout.micro_batches import cut_blocks
from adpa_cli.engine.models import load
from adpa_cli.engine.overflow import overflow_named
from adpa_cli.methods import required
from adpa_cli.signal.rows import SignalRows
from adpa_cli.spec import Dtype, Quantise

Floats = NDArray[np.float64]
Item = TypeVar("Item")
VANISHED = 1e-4
"""Part of the spread of exact numbers below which those that were found are the rounding of float32, and no more."""


@dataclass(frozen=True)
class Teacher:
    """A teacher's folder and what it is called."""

    folder: Path
    label: str


@dataclass(frozen=True)
class Sampled:
    """How a sample is captured: `k` ids of the first `vocabulary` of them, in blocks of `tokens`, on a device, for a
    stage; and how the weights of the teachers are stored."""

    k: int
    vocabulary: int | None
    tokens: int
    device: str
    stage: str
    quantise: Quantise | None = None


def first_by_hash(items: Iterable[Item], name_of: Callable[[Item], str], count: int) -> list[Item]:
    """`count` of the items by the hashes of their names, whatever their order."""
    return heapq.nsmallest(count, items, key=lambda item: hashlib.sha256(name_of(item).encode()).digest())


def capture_noise(
    teachers: Mapping[str, Teacher],
    answers: Sequence[Answer],
    dtype: Dtype,
    how: Sampled,
    progress: Callable[[int], None] = lambda step: None,
) -> dict[str, Any]:
    """What capture in `dtype` is off by on some `answers`, against float32; in nats.

    For one teacher ("aligned") `logps`: the RMS of the error of its log-probs at its top k and at the labels. For a
    pair also `advantage`, of the difference at these ids, and `log_ratio`, of the sum over the labels of an answer:
    each with the RMS of the true value, of its error, and the correlation of the two. What a quantised teacher is off
    by is no part of it: the true one computes with what is stored. Each model is read twice, and one is in memory at a
    time; `progress` is told of each. Raises as `aligned_pass` does.
    """
    blocks = [b.items for b in cut_blocks(answers, _length, lambda a: f"{a.key.example_id}/{a.key.part}", how.tokens)]
    roles = [role for role in ("aligned", "reference") if role in teachers]
    rows: list[list[SignalRows]] = []
    off: dict[str, list[SignalRows]] = {}
    for n, role in enumerate(roles):
        teacher = teachers[role]
        few = load(teacher.folder, dtype=dtype, device=how.device, quantise=how.quantise)
        with overflow_named(few, dtype, how.stage):
            rows = list(_captured(few, teacher, role, blocks, rows, dtype, how))
        progress(2 * n + 1)
        del few
        exact = load_layerwise(teacher.folder, how.device, quantise=how.quantise)
        true = _captured(exact, teacher, "reference", blocks, rows, "float32", how)
        off[role] = [row for block in true for row in block]
        progress(2 * n + 2)
        del exact
    return _figures([row for block in rows for row in block], off)


def _captured(
    model: PreTrainedModel,
    teacher: Teacher,
    role: str,
    blocks: Sequence[Sequence[Answer]],
    rows: Sequence[Sequence[SignalRows]],
    dtype: Dtype,
    how: Sampled,
) -> Iterator[list[SignalRows]]:
    """The rows of each block with what a model says: of its own top k, or as the reference of `rows` at their ids."""
    settings: dict[str, Any] = {"teacher": teacher.label, "student_vocab": how.vocabulary, "dtype": dtype}
    for n, block in enumerate(blocks):
        if role == "aligned":
            yield aligned_pass(model, block, how.k, **settings)
        else:
            yield reference_pass(model, block, rows[n], **settings)


def _figures(rows: Sequence[SignalRows], off: Mapping[str, Sequence[SignalRows]]) -> dict[str, Any]:
    """From the rows as captured, and from each teacher in float32 as the reference of the rows.

    The difference of the rows and of the same teacher in float32 is what few bits have done to it.
    """
    at_ids = {role: _flat([row.difference for row in exact]) for role, exact in off.items()}
    at_labels = {role: [_label_ratios(row) for row in exact] for role, exact in off.items()}
    error = np.concatenate([at_ids["aligned"], _flat(at_labels["aligned"])])
    found: dict[str, Any] = {
        "answers": len(rows), "tokens": sum(map(len, rows)), "logps": {"error": _rms(error[np.isfinite(error)])},
    }  # fmt: skip
    if "reference" not in off:
        return found
    # Both are differences to the aligned log-probs as captured, which drop out.
    advantage = at_ids["reference"] - at_ids["aligned"]
    ratios = np.array([
        (reference - aligned).sum()
        for reference, aligned in zip(at_labels["reference"], at_labels["aligned"], strict=True)
    ])  # fmt: skip
    captured = np.array([_label_ratios(row).sum() for row in rows])
    return {
        **found, "advantage": compared(_flat([row.difference for row in rows]), advantage),
        "log_ratio": compared(captured, ratios),
    }  # fmt: skip


def compared(found: Floats, exact: Floats) -> dict[str, float | None]:
    """The RMS of exact numbers and of the errors of those that were found, and their correlation, None where one does
    not vary; numbers that are not finite are left out."""
    both = np.isfinite(found) & np.isfinite(exact)
    found, exact = found[both], exact[both]
    varies = len(found) > 1 and found.std() > VANISHED * exact.std() > 0
    correlation = float(np.corrcoef(found, exact)[0, 1]) if varies else None
    return {"rms": _rms(exact), "error": _rms(found - exact), "correlation": correlation}


def _label_ratios(row: SignalRows) -> Floats:
    """[T] log-prob of the label under the aligned teacher minus that under the other."""
    return row.label_logps.astype(np.float64) - required(row.reference_label_logps).astype(np.float64)


def _flat(columns: Sequence[Any]) -> Floats:
    return np.concatenate([required(column).astype(np.float64).reshape(-1) for column in columns])


def _rms(values: Floats) -> float:
    return float(np.sqrt(np.square(values).mean())) if values.size else 0.0


def _length(answer: Answer) -> int:
    return len(answer.prompt) + len(answer.answer)
