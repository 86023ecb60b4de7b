"""What a signal says of its advantage and of its teacher's entropy, by hand and against whole softmaxes."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from adpa_cli.signal.rows import AdvantageShape, advantage, entropy, rms_advantage
from support.signal_samples import sample_rows


def by_hand():
    """Two tokens, two ids each: A = (2, -1), (1/2, -inf where the id has no mass)."""
    rows = sample_rows(0, 2, 2, 9)
    logps = np.log(np.array([[0.5, 0.25], [0.8, 1.0]], dtype=np.float32))
    logps[1, 1] = -np.inf
    return dataclasses.replace(
        rows, logps=logps, difference=np.array([[2, -1], [0.5, 0]], dtype=np.float32),
        reference_kth=np.full(2, -50, dtype=np.float32),
    )  # fmt: skip


def test_shares_by_hand() -> None:
    shares = AdvantageShape.of([by_hand()]).shares()
    assert shares["negative"] == pytest.approx(1 / 3)
    assert shares["negative_mass"] == pytest.approx(0.25 / 1.55)
    assert shares["above_one"] == pytest.approx(1 / 3)
    assert shares["clamped_rms"] == pytest.approx(math.sqrt((1 + 0.25) / 3))


def test_blocks_add_up_to_the_whole_and_a_clamp_never_adds() -> None:
    rows = [sample_rows(seed, 7, 5, 30) for seed in range(4)]
    whole = AdvantageShape.of(rows)
    parts = AdvantageShape.of(rows[:1]) + AdvantageShape.of(rows[1:])
    assert dataclasses.astuple(parts) == pytest.approx(dataclasses.astuple(whole))
    shares = whole.shares()
    values = np.concatenate([advantage(each).ravel() for each in rows])
    assert shares["negative"] == pytest.approx(float((values < 0).mean()))
    assert shares["clamped_rms"] < rms_advantage(rows)
    assert AdvantageShape().shares()["negative"] == 0.0


def test_entropy_is_that_of_the_softmax_where_the_top_k_is_all_of_it() -> None:
    rows = sample_rows(3, 6, 12, 12)
    p = np.exp(rows.logps.astype(np.float64))
    np.testing.assert_allclose(entropy(rows), -(p * np.log(p)).sum(1), rtol=1e-5)


def test_entropy_of_a_rest_and_of_certainty_by_hand() -> None:
    rest, certain = entropy(dataclasses.replace(
        by_hand(), logps=np.array([[math.log(0.5), math.log(0.25)], [0.0, -np.inf]], dtype=np.float32)
    ))  # fmt: skip
    assert rest == pytest.approx(0.5 * math.log(2) + 2 * 0.25 * math.log(4), rel=1e-6)
    assert certain == 0.0
