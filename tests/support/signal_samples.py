"""Teacher signal to test on: rows whose classes sum to 1 under both teachers, made from full softmaxes in float64."""

from __future__ import annotations

import numpy as np

from adpa_cli.signal.rows import AnswerKey, SignalRows, SignalSpec, difference_of, token_hash


def spec_of(
    k: int, vocab_size: int, *, pair: bool = True, step: float = 1 / 32, pair_step: float = 1 / 128
) -> SignalSpec:
    teachers = {"aligned": "aa" * 6, "reference": "bb" * 6} if pair else {"aligned": "aa" * 6}
    return SignalSpec(k, vocab_size, step, pair_step, teachers, "float32")


def log_softmax(logits: np.ndarray) -> np.ndarray:
    top = logits.max(axis=1, keepdims=True)
    return logits - top - np.log(np.exp(logits - top).sum(axis=1, keepdims=True))


def log_mass(logps: np.ndarray, left_out: np.ndarray) -> np.ndarray:
    """[T] log of the mass of the classes that are not left out."""
    with np.errstate(divide="ignore"):
        return np.log(np.where(left_out, 0, np.exp(logps)).sum(axis=1))


def sample_rows(
    seed: int, tokens: int, k: int, vocab_size: int, *, pair: bool = True, scale: float = 3.0
) -> SignalRows:
    """Rows of two related random softmaxes; labels are drawn from the aligned one's, often outside the top k."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, scale, (tokens, vocab_size))
    aligned = log_softmax(logits)
    reference = log_softmax(logits + rng.normal(0, 0.3, logits.shape))
    ids = np.argsort(-aligned, axis=1, kind="stable")[:, :k]
    labels = rng.integers(0, vocab_size, tokens)
    each = np.arange(tokens)
    left_out = np.zeros(aligned.shape, dtype=bool)
    np.put_along_axis(left_out, ids, True, axis=1)
    left_out[each, labels] = True
    at = np.take_along_axis(aligned, ids, axis=1).astype(np.float32)
    rows = (ids.astype(np.int32), at, labels.astype(np.int32))
    rows += tuple(a.astype(np.float32) for a in (aligned[each, labels], log_mass(aligned, left_out)))
    if not pair:
        return SignalRows(*rows)
    other = np.take_along_axis(reference, ids, axis=1).astype(np.float32)
    kth = np.sort(reference, axis=1)[:, -k].astype(np.float32)
    rest = (a.astype(np.float32) for a in (reference[each, labels], log_mass(reference, left_out)))
    return SignalRows(*rows, difference_of(at, other), other >= kth[:, None], kth, *rest)


def key_of(rows: SignalRows, example_id: str, part: str = "rollout") -> AnswerKey:
    return AnswerKey(example_id, part, token_hash([1, 2, 3], rows.label_ids))


def sample_answers(
    lengths: tuple[int, ...], k: int, vocab_size: int, *, pair: bool = True
) -> list[tuple[AnswerKey, SignalRows]]:
    made = (sample_rows(i, n, k, vocab_size, pair=pair) for i, n in enumerate(lengths))
    return [(key_of(rows, f"example-{i}"), rows) for i, rows in enumerate(made)]


def by_id(ids: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The values of each token in the order of its ids: rows are sets, so this is what two of them compare by."""
    return np.take_along_axis(values, np.argsort(ids, axis=1), axis=1)


def classes_of(rows: SignalRows, logps: np.ndarray, label: np.ndarray, rest: np.ndarray) -> np.ndarray:
    """[T, K + 2] log-probs of the classes {ids, label when outside, rest}."""
    outside = ~(rows.ids == rows.label_ids[:, None]).any(axis=1)
    return np.concatenate([logps, np.where(outside, label, -np.inf)[:, None], rest[:, None]], axis=1)
