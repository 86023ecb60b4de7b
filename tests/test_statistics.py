"""Intervals and tests against values worked out independently."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from adpa_cli.statistics import FLIPS, bootstrap, crossed_bootstrap, holm, sign_flip_p


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


def test_crossed_resamples_add_the_variance_of_seeds_to_that_of_prompts() -> None:
    """Additive effects of seeds and prompts: the variance of the mean is σ²/n of the one plus that of the other."""
    drawn = np.random.default_rng(0)
    seeds, prompts = drawn.normal(0, 1, 40), drawn.normal(0, 2, 300)
    table = 5 + seeds[:, None] + prompts[None, :]
    found = crossed_bootstrap(table, resamples=20_000)
    half = 1.96 * math.sqrt(seeds.var() / 40 + prompts.var() / 300)
    assert found["value"] == pytest.approx(table.mean())
    assert found["n"] == 12_000
    np.testing.assert_allclose([found["low"], found["high"]], [table.mean() - half, table.mean() + half], atol=0.02)


def test_seeds_that_disagree_widen_an_interval_that_prompts_alone_make_narrow() -> None:
    table = np.repeat([[0.2], [-0.1]], 500, axis=1)
    found = crossed_bootstrap(table)
    assert (found["low"], found["high"]) == pytest.approx((-0.1, 0.2))
