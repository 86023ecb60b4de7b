"""What a teacher says about one answer, which answer that is, and what a shard promises about all of them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from adpa_cli.errors import DataError

Ints = NDArray[np.int32]
Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]

MAX_VOCABULARY = 1 << 22
MAX_DRAWS = 1 << 16
MAX_TOKENS = 1 << 24
"""Most tokens of one answer, and a bound on what a damaged header can make a reader allocate."""


@dataclass(frozen=True)
class AnswerKey:
    """Names one answer: its example, its part (`chosen`, `rejected`, `rollout`) and a hash of its token ids."""

    example_id: str
    part: str
    tokens: str
    """32 hex digits of `token_hash`."""

    @property
    def label(self) -> str:
        """What messages call it."""
        return f"answer {self.example_id!r} ({self.part})"


def token_hash(prompt_ids: Sequence[int] | ArrayLike, answer_ids: Sequence[int] | ArrayLike) -> str:
    """32 hex digits of a sha256 over the prompt's length, its ids and the answer's ids (int64, little endian)."""
    prompt, answer = (np.asarray(ids, dtype="<i8").reshape(-1) for ids in (prompt_ids, answer_ids))
    length = np.array([prompt.size], dtype="<i8")
    return hashlib.sha256(length.tobytes() + prompt.tobytes() + answer.tobytes()).hexdigest()[:32]


@dataclass(frozen=True)
class SignalSpec:
    """What a shard needs besides its rows; everything here is written into its header."""

    k: int
    """Ids per token."""
    vocab_size: int
    step: float = 1 / 32
    """Quantisation step of the log-probs in nats; 0 stores float32."""
    difference_step: float = 1 / 128
    """Step of everything that concerns the reference teacher, in nats; 0 stores float32."""
    teachers: Mapping[str, str] = field(default_factory=dict)
    """Role (`aligned`, `reference`) -> id of the model. A shard holds a pair when `reference` is among the roles."""
    dtype: str = "float32"
    """The dtype that the teachers computed in."""
    draws: int = 0
    """Ids drawn per token from the teacher's softmax, with replacement; 0 where the ids are its top k."""

    def __post_init__(self) -> None:
        if not 0 <= self.draws <= MAX_DRAWS or (self.draws and self.has_reference):
            raise DataError(
                f"a signal of {self.draws} draws per token{' with a reference teacher' * self.has_reference} cannot be "
                f"stored: there are at most {MAX_DRAWS} draws, and none with a reference teacher",
                "choose fewer draws, or leave out the reference teacher",
            )
        if not 1 <= self.k <= self.vocab_size <= MAX_VOCABULARY:
            raise DataError(
                f"a signal of the top {self.k} ids of a vocabulary of {self.vocab_size} cannot be stored: "
                f"1 <= top k <= vocabulary <= {MAX_VOCABULARY} must hold",
                "choose another --top-k",
            )
        for name in ("step", "difference_step"):
            step = getattr(self, name)
            if step != 0 and not 1e-6 <= step <= 16:
                raise DataError(
                    f"{name} must be 0, which stores exact values, or from 1e-6 to 16 nats; got {step:g}",
                    "use --precision 0.03125",
                )

    @property
    def has_reference(self) -> bool:
        """Whether the rows carry the reference teacher too."""
        return "reference" in self.teachers

    @property
    def greatest_errors(self) -> dict[str, float]:
        """The most that rounding moves a log-prob, and a difference to the reference, in nats, besides float32's own.

        What is stored is off by half a step at most. A reader makes the classes of each token sum to 1, by which all
        log-probs of a token move by up to another half, and those of the reference by up to half of both steps.
        """
        errors = {"max_abs_error_nats": self.step / 2, "max_abs_error_nats_read": self.step}
        if self.has_reference:
            errors["max_abs_error_nats_pair"] = self.difference_step / 2
            errors["max_abs_error_nats_pair_read"] = self.step + self.difference_step
        return errors


@dataclass(frozen=True)
class SignalRows:
    """One answer of T tokens; log-probs in nats under the full softmax of the teacher.

    The ids of a row are a set: a shard gives them back in its own order, not by falling probability.
    The fields after `rest_logps` are None without a reference teacher.
    """

    ids: Ints
    """[T, K] the aligned teacher's top K."""
    logps: Floats
    """[T, K] its log-probs there; may be -inf."""
    label_ids: Ints
    """[T] the tokens of the answer, end token included."""
    label_logps: Floats
    """[T] the aligned teacher's log-prob of the label: the entry at that id when the label is among the ids."""
    rest_logps: Floats
    """[T] log of the mass outside the ids and the label; -inf when there is none."""
    difference: Floats | None = None
    """[T, K] aligned - reference at the same ids; where the aligned log-prob is -inf, 0 - reference."""
    in_reference: Bools | None = None
    """[T, K] whether the id is in the reference's own top K."""
    reference_kth: Floats | None = None
    """[T] the reference's own K-th log-prob, the floor of the paper's section 4.1."""
    reference_label_logps: Floats | None = None
    """[T]"""
    reference_rest_logps: Floats | None = None
    """[T] log of the reference's mass outside the aligned ids and the label."""
    weights: Floats | None = None
    """[T, K] the part of the draws that fell on each id, where the ids were drawn. An id that no draw fell on fills the
    row: its log-prob is -inf, unless it is the label, and its mass stays in the rest."""

    def __len__(self) -> int:
        return len(self.label_ids)


PAIR_FIELDS = ("difference", "in_reference", "reference_kth", "reference_label_logps", "reference_rest_logps")
PER_ID = {"ids": np.int32, "logps": np.float32, "difference": np.float32, "in_reference": np.bool_,
          "weights": np.float32}  # fmt: skip
"""The dtypes of the fields [T, K]."""


def pair_of(rows: SignalRows) -> tuple[Floats, Bools, Floats, Floats, Floats]:
    """The five fields of the reference, in their order. Raises DataError when the rows have no reference teacher."""
    values: Any = tuple(getattr(rows, name) for name in PAIR_FIELDS)
    if any(value is None for value in values):
        raise DataError(
            "this signal has no reference teacher", "make one that has: adpa cache-teacher --reference MODEL …"
        )
    pair: tuple[Floats, Bools, Floats, Floats, Floats] = values
    return pair


def per_id(rows: SignalRows, change: Callable[[NDArray[Any]], NDArray[Any]]) -> SignalRows:
    """The rows with a `change` to each of their fields [T, K]."""
    given = {name: getattr(rows, name) for name in PER_ID}
    return replace(rows, **{name: change(values) for name, values in given.items() if values is not None})


def finite_or_zero(logps: Floats) -> Floats:
    """The log-probs with -inf replaced by 0: what a difference is taken from."""
    return np.where(np.isneginf(logps), np.float32(0), logps)


def difference_of(aligned: Floats, reference: Floats) -> Floats:
    """aligned - reference in nats, by the rule of `SignalRows.difference`; +inf where the reference has no mass."""
    return finite_or_zero(aligned) - reference


def reference_logps(rows: SignalRows) -> Floats:
    """[T, K] the reference teacher's log-probs at the aligned ids. Raises DataError when the rows have no reference."""
    return finite_or_zero(rows.logps) - pair_of(rows)[0]


def label_positions(rows: SignalRows) -> tuple[NDArray[np.intp], Bools]:
    """([T] column of the label among the ids, [T] whether it is there)."""
    hits = rows.ids == rows.label_ids[:, None]
    return hits.argmax(axis=1), hits.any(axis=1)


def checked_ids(rows: SignalRows, spec: SignalSpec, where: str) -> Ints:
    """All ids of the rows, flat. Raises DataError naming `where` when one is outside the vocabulary."""
    ids: Ints = np.asarray(rows.ids, dtype=np.int32).reshape(-1)
    if ids.size and not 0 <= ids.min() <= ids.max() < spec.vocab_size:
        raise DataError(f"{where}: `ids` has a token id outside 0 … {spec.vocab_size - 1}")
    return ids


def checked(rows: SignalRows, spec: SignalSpec, where: str, slack: float = 0.01) -> SignalRows:
    """The rows with exact dtypes, or DataError naming `where` and the field that cannot be stored.

    A log-prob may exceed 0 by `slack` nats: rounding lifts it, that of the softmax and that of values read back.
    """
    arrays: dict[str, Any] = {}
    n = len(rows)
    if n > MAX_TOKENS:
        raise DataError(f"{where} has {n} tokens, and at most {MAX_TOKENS} can be stored")
    for name in ("ids", "logps", "label_ids", "label_logps", "rest_logps", *PAIR_FIELDS, "weights"):
        value, wanted = getattr(rows, name), name not in PAIR_FIELDS or spec.has_reference
        absent = "there is no reference teacher"
        if name == "weights":
            wanted, absent = spec.draws > 0, "no ids were drawn"
        if (value is not None) != wanted:
            raise DataError(f"{where}: `{name}` is {'missing' if wanted else f'given, but {absent}'}")
        if not wanted:
            continue
        dtype = np.int32 if name == "label_ids" else PER_ID.get(name, np.float32)
        shape = (n, spec.k) if name in PER_ID else (n,)
        array: NDArray[Any] = np.ascontiguousarray(value, dtype=dtype)
        if array.shape != shape:
            raise DataError(f"{where}: `{name}` has the shape {array.shape}, and {shape} is needed")
        if dtype is np.float32 and np.isnan(array).any():
            raise DataError(f"{where}: `{name}` has a NaN at token {int(np.argwhere(np.isnan(array))[0][0])}")
        if name == "difference" and np.isneginf(array).any():
            raise DataError(f"{where}: `difference` is -inf at a token; an aligned log-prob of -inf counts as 0 in it")
        if name == "weights" and (array.min(initial=0) < 0 or (array.sum(1) > 1.001).any()):
            raise DataError(f"{where}: `weights` must be 0 or more, and sum to at most 1 at each token")
        if dtype is np.float32 and name not in ("difference", "weights") and (array > slack).any():
            raise DataError(f"{where}: `{name}` has a log-prob above 0")
        if dtype is np.int32 and n and not 0 <= array.min() <= array.max() < spec.vocab_size:
            raise DataError(f"{where}: `{name}` has a token id outside 0 … {spec.vocab_size - 1}")
        arrays[name] = array
    return SignalRows(**arrays)


def advantage(rows: SignalRows) -> Floats:
    """[T, K] nats: aligned - max(reference, the reference's k-th): Gao et al. 2025, Eq. 10, floor of section 4.1.

    Raises DataError when the rows have no reference teacher.
    """
    difference, _, kth, *_ = pair_of(rows)
    result: Floats = np.minimum(difference, finite_or_zero(rows.logps) - kth[:, None])
    return result


def rms_advantage(answers: Iterable[SignalRows]) -> float:
    """Root mean square of the advantage in nats, every id of every token weighted alike; 0 without tokens.

    Ids without mass, under either teacher's floor, are left out.
    """
    total, count = 0.0, 0
    for rows in answers:
        values = advantage(rows).astype(np.float64)
        values = values[np.isfinite(values) & np.isfinite(rows.logps)]
        total += float(np.square(values).sum())
        count += values.size
    return math.sqrt(total / count) if count else 0.0


@dataclass(frozen=True)
class AdvantageShape:
    """Sums over the ids of some answers; added up, and told by `shares`."""

    ids: float = 0.0
    mass: float = 0.0
    negative: float = 0.0
    negative_mass: float = 0.0
    above_one: float = 0.0
    clamped_squares: float = 0.0

    @classmethod
    def of(cls, answers: Iterable[SignalRows]) -> AdvantageShape:
        """The sums of some answers, over the ids that `rms_advantage` counts."""
        total = cls()
        for rows in answers:
            values = advantage(rows).astype(np.float64)
            there = np.isfinite(values) & np.isfinite(rows.logps)
            values, mass = values[there], np.exp(rows.logps[there].astype(np.float64))
            below, clamped = values < 0, np.clip(values, 0.0, 1.0)
            sums = values.size, mass.sum(), below.sum(), mass[below].sum(), (values > 1).sum(), np.square(clamped).sum()
            total = total + cls(*map(float, sums))
        return total

    def __add__(self, other: AdvantageShape) -> AdvantageShape:
        return AdvantageShape(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def shares(self) -> dict[str, float]:
        """The share of ids with A < 0, the part of the aligned teacher's mass on them, the share with A > 1, and the
        RMS that is left where A is limited to [0, 1], as the release does."""
        ids, mass = max(self.ids, 1.0), self.mass or 1.0
        return {
            "negative": self.negative / ids, "negative_mass": self.negative_mass / mass,
            "above_one": self.above_one / ids, "clamped_rms": math.sqrt(self.clamped_squares / ids),
        }  # fmt: skip


def entropy(rows: SignalRows) -> Floats:
    """[T] nats: the entropy of the aligned teacher over its top k and one class for the rest, at most the whole one."""
    logps = rows.logps.astype(np.float64)
    mass = np.exp(logps)
    rest = np.maximum(1.0 - mass.sum(1), 0.0)
    inside = np.where(mass > 0, mass * np.where(mass > 0, logps, 0.0), 0.0).sum(1)
    outside = np.where(rest > 0, rest * np.log(np.where(rest > 0, rest, 1.0)), 0.0)
    result: Floats = -(inside + outside)
    return result
