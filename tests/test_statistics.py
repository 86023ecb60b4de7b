"""Intervals and tests against values worked out independently."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from adpa_cli.statistics import FLIPS, T_QUANTILES, bootstrap, crossed_interval, holm, sign_flip_p


def test_the_interval_is_that_of_the_binomial() -> None:
    found = bootstrap(np.repeat([1.0, 0.0], [300, 100]), resamples=20_000)
    half = 1.96 * np.sqrt(0.75 * 0.25 / 400)
    assert found["value"] == 0.75
    assert found["n"] == 400
    np.testing.assert_allclose([found["low"], found["high"]], [0.75 - half, 0.75 + half], atol=0.004)


def test_pairs_of_one_prompt_are_drawn_together() -> None:
    values = np.repeat([1.0, 0.0] * 20, 10)  # 40 prompts, the ten pairs of each agree
    prompts = [str(i // 10) for i in range(400)]
    alone, together = bootstrap(values, resamples=20_000), bootstrap(values, prompts, resamples=20_000)
    wide = [entry["high"] - entry["low"] for entry in (alone, together)]
    np.testing.assert_allclose(wide[1] / wide[0], np.sqrt(10), rtol=0.1)
    assert alone["value"] == together["value"] == 0.5


def test_one_pair_a_prompt_changes_nothing() -> None:
    values = np.linspace(0, 1, 50)
    assert bootstrap(values) == bootstrap(values, [str(i) for i in range(50)])


def test_prompts_with_more_pairs_weigh_more() -> None:
    found = bootstrap([1.0, 1.0, 1.0, 0.0], ["a", "a", "a", "b"])
    assert (found["value"], found["low"], found["high"]) == (0.75, 0.0, 1.0)


def test_the_signs_of_few_differences_are_all_tried() -> None:
    values = [0.3, -0.1, 0.5, 0.2, 0.0]
    means = [abs(np.dot(signs, values)) for signs in itertools.product((1, -1), repeat=5)]
    assert sign_flip_p(values) == np.mean(np.array(means) >= abs(sum(values)) - 1e-12)
    assert sign_flip_p([1.0] * 4) == 2 / 16
    assert sign_flip_p([0.0, 0.0]) == 1.0


def test_many_differences_come_close_to_the_normal_test() -> None:
    values = np.random.Generator(np.random.PCG64(1)).normal(0.1, 1.0, 400)
    z = values.sum() / np.sqrt((values**2).sum())
    assert sign_flip_p(values) == pytest.approx(math.erfc(abs(z) / math.sqrt(2)), abs=0.01)
    assert sign_flip_p(np.full(400, 1.0)) == 1 / (FLIPS + 1)


def test_the_pairs_of_a_prompt_change_sides_together() -> None:
    assert sign_flip_p([1.0] * 6, ["a"] * 3 + ["b"] * 3) == 2 / 4


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_a_crossed_interval_adds_the_variance_of_seeds_to_that_of_prompts() -> None:
    """By hand: the means by seed are 1 and 3, those by prompt 1, 2 and 3; t of one degree of freedom is 12.706."""
    table = [[0.0, 1.0, 2.0], [2.0, 3.0, 4.0]]
    half = 12.706 * math.sqrt(2 / 2 + 1 / 3)
    assert crossed_interval(table) == pytest.approx((2.0, 2 - half, 2 + half))
    assert crossed_interval([[0.0, 1.0]]) == (0.5, -math.inf, math.inf)


def test_a_crossed_interval_holds_for_other_seeds_and_prompts() -> None:
    """Few seeds: at least 95 of 100 intervals contain the mean of the distributions that both are drawn from."""
    drawn = np.random.default_rng(0)
    held = 0
    for _ in range(1000):
        table = drawn.normal(0, 1, (3, 1)) + drawn.normal(0, 2, (1, 50)) + drawn.normal(0, 1, (3, 50))
        _, low, high = crossed_interval(table)
        held += low <= 0 <= high
    assert held >= 950


def test_the_quantiles_are_those_of_students_t() -> None:
    for freedom, quantile in enumerate(T_QUANTILES, 1):
        ts = np.linspace(-quantile, quantile, 200_001)
        scale = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(freedom * math.pi)
        density = scale * (1 + ts**2 / freedom) ** (-(freedom + 1) / 2)
        assert density.sum() * (ts[1] - ts[0]) == pytest.approx(0.95, abs=5e-5)
