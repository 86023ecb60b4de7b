"""Intervals of evaluation figures against values worked out independently."""

from __future__ import annotations

import numpy as np

from adpa_cli.stages.eval import bootstrap
from adpa_cli.suites import EvalSpec

SPEC = EvalSpec(template="t", end="e", bootstrap=20_000)


def test_the_interval_is_that_of_the_binomial() -> None:
    values = np.repeat([1.0, 0.0], [300, 100])
    found = bootstrap(values, SPEC)
    half = 1.96 * np.sqrt(0.75 * 0.25 / 400)
    assert found["value"] == 0.75
    assert found["n"] == 400
    np.testing.assert_allclose([found["low"], found["high"]], [0.75 - half, 0.75 + half], atol=0.004)


def test_pairs_of_one_prompt_are_drawn_together() -> None:
    values = np.repeat([1.0, 0.0] * 20, 10)  # 40 prompts, the ten pairs of each agree
    prompts = [str(i // 10) for i in range(400)]
    alone, together = bootstrap(values, SPEC), bootstrap(values, SPEC, prompts)
    wide = [entry["high"] - entry["low"] for entry in (alone, together)]
    np.testing.assert_allclose(wide[1] / wide[0], np.sqrt(10), rtol=0.1)
    assert alone["value"] == together["value"] == 0.5


def test_one_pair_a_prompt_changes_nothing() -> None:
    values = np.linspace(0, 1, 50)
    assert bootstrap(values, SPEC) == bootstrap(values, SPEC, [str(i) for i in range(50)])


def test_prompts_with_more_pairs_weigh_more() -> None:
    found = bootstrap([1.0, 1.0, 1.0, 0.0], SPEC, ["a", "a", "a", "b"])
    assert (found["value"], found["low"], found["high"]) == (0.75, 0.0, 1.0)
