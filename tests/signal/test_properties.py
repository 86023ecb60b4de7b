"""Any signal that can be written comes back: large vocabularies, any k, empty answers, -inf and denormal log-probs."""

from __future__ import annotations

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adpa_cli.signal.rows import SignalRows, SignalSpec, reference_logps
from adpa_cli.signal.shard import Shard, write_shard
from support.signal_samples import by_id, classes_of, key_of, spec_of

QUICK = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
ODD = np.array([-np.inf, -0.0, 0.0, -1e-45, -1.2e-38, -1e-7, -3.7, -103.9, -1e5], dtype=np.float32)
ROUNDING = 2 * float(np.spacing(np.float32(1e5)))
"""What a sum with the greatest of these loses in float32."""


def odd_logps(rng: np.random.Generator, shape: tuple[int, ...], odd: float) -> np.ndarray:
    """float32 log-probs, the part `odd` of them at the edges of what float32 has."""
    usual = -rng.gamma(2.0, 3.0, shape)
    return np.where(rng.random(shape) < odd, rng.choice(ODD, shape), usual).astype(np.float32)


def rows_of(rng: np.random.Generator, tokens: int, spec: SignalSpec, odd: float) -> SignalRows:
    """Rows whose classes need not sum to 1: the codec stores what it is given."""
    k, size = spec.k, spec.vocab_size
    drawn = [rng.choice(size, k, replace=False) for _ in range(tokens)]
    ids = np.array(drawn, dtype=np.int32).reshape(tokens, k)
    logps, labels = odd_logps(rng, (tokens, k), odd), rng.integers(0, size, tokens).astype(np.int32)
    if tokens:
        labels[::2] = ids[::2, rng.integers(k)]
    inside = ids == labels[:, None]
    label = np.where(inside.any(axis=1), np.where(inside, logps, 0).sum(axis=1), odd_logps(rng, (tokens,), odd))
    rest = odd_logps(rng, (tokens,), odd)
    if not spec.has_reference:
        return SignalRows(ids, logps, labels, label.astype(np.float32), rest)
    other = odd_logps(rng, (tokens, k), odd)
    ends = odd_logps(rng, (2, tokens), odd)
    finite = np.where(np.isneginf(logps), np.float32(0), logps)
    beside = np.where(inside.any(axis=1), np.where(inside, other, 0).sum(axis=1), ends[0]).astype(np.float32)
    member, kth = rng.random((tokens, k)) < 0.5, odd_logps(rng, (tokens,), odd)
    return SignalRows(ids, logps, labels, label.astype(np.float32), rest, finite - other, member, kth, beside, ends[1])


def near(stored: np.ndarray, given: np.ndarray, bound: float) -> None:
    absent = np.isneginf(given)
    np.testing.assert_array_equal(np.isneginf(stored), absent)
    gap = np.abs(stored[~absent].astype(np.float64) - given[~absent])
    assert (gap <= bound + 1e-6 * np.abs(given[~absent]) + 1e-9).all()


@QUICK
@given(
    seed=st.integers(0, 2**32 - 1),
    lengths=st.lists(st.integers(0, 40), max_size=5),
    vocab_size=st.one_of(st.integers(60, 262_144), st.sampled_from([60, 255, 256, 257, 32_000, 128_256, 262_144])),
    k=st.one_of(st.integers(1, 60), st.just(50)),
    pair=st.booleans(),
    step=st.sampled_from([0, 1 / 32, 1 / 128, 0.1]),
    pair_step=st.sampled_from([0, 1 / 128, 0.03]),
    odd=st.sampled_from([0.0, 0.1, 1.0]),
)
def test_what_is_written_comes_back(tmp_path, seed, lengths, vocab_size, k, pair, step, pair_step, odd):
    rng, path = np.random.default_rng(seed), tmp_path / "s.adpa"
    spec = spec_of(k, vocab_size, pair=pair, step=step, pair_step=pair_step)
    made = [rows_of(rng, n, spec, odd) for n in lengths]
    answers = [(key_of(rows, str(i)), rows) for i, rows in enumerate(made)]
    write_shard(path, spec, answers)
    shard = Shard(path)
    assert (shard.spec, shard.keys[:]) == (spec, tuple(key for key, _ in answers))
    assert shard.tokens.tolist() == list(lengths)
    for i, rows in enumerate(made):
        stored = shard.read(i, raw=True)
        np.testing.assert_array_equal(np.sort(stored.ids, axis=1), np.sort(rows.ids, axis=1))
        np.testing.assert_array_equal(stored.label_ids, rows.label_ids)
        for name in ("label_logps", "rest_logps"):
            near(getattr(stored, name), getattr(rows, name), step / 2)
        near(by_id(stored.ids, stored.logps), by_id(rows.ids, rows.logps), step / 2)
        if pair:
            ours, theirs = (by_id(r.ids, reference_logps(r)) for r in (stored, rows))
            near(ours, theirs, (step + pair_step) / 2 + (ROUNDING if odd else 0))
            np.testing.assert_array_equal(by_id(stored.ids, stored.in_reference), by_id(rows.ids, rows.in_reference))
    streamed = [rows for _, rows in shard]
    for i, rows in enumerate(streamed):
        alone = shard.read(i)
        np.testing.assert_array_equal(alone.ids, rows.ids)
        np.testing.assert_array_equal(alone.logps, rows.logps)
        total = np.exp(classes_of(rows, rows.logps, rows.label_logps, rows.rest_logps).astype(np.float64)).sum(axis=1)
        assert (np.isclose(total, 1, atol=ROUNDING if odd else 1e-5) | (total == 0)).all()
