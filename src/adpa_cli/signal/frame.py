"""What writing and reading a frame share: the order of the vocabulary, the key's tag, the rule for membership."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from adpa_cli.signal.rows import AnswerKey, Bools, Floats, Ints, SignalSpec, finite_or_zero


@dataclass(frozen=True)
class Ranking:
    """The shard's order of its vocabulary: the `frequent` ids first, then all others by number."""

    frequent: Ints
    """[N] distinct ids, most frequent first."""
    vocab_size: int

    @cached_property
    def ids(self) -> Ints:
        """[V] rank -> id."""
        others = np.ones(self.vocab_size, dtype=np.bool_)
        others[self.frequent] = False
        return np.concatenate([self.frequent, np.flatnonzero(others).astype(np.int32)])

    @cached_property
    def ranks(self) -> Ints:
        """[V] id -> rank."""
        ranks = np.empty(self.vocab_size, dtype=np.int32)
        ranks[self.ids] = np.arange(self.vocab_size, dtype=np.int32)
        return ranks


def key_tag(key: AnswerKey) -> int:
    """What ties a frame to its row of the index: a crc32 of the three parts of the key, joined by zero bytes."""
    return zlib.crc32("\0".join((key.example_id, key.part, key.tokens)).encode())


def most_content(tokens: int, spec: SignalSpec) -> int:
    """The most bytes that the content of a frame can have: every integer an escape of four bytes more."""
    per_id, per_token = 5, 8
    return 128 + 5 * tokens * (per_id * spec.k + per_token)


def lowest(logps: Floats) -> Floats:
    """[T] the least finite log-prob of each token; 0 when there is none."""
    least: Floats = finite_or_zero(logps).min(axis=1)
    return least


def expected_in_reference(logps: Floats, difference: Floats, kth: Floats) -> Bools:
    """[T, K] whether the reference's stored log-prob reaches its stored k-th, in float32 arithmetic."""
    return (finite_or_zero(logps) - difference) >= kth[:, None]
