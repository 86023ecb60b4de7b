"""Win rates from P(win): figures that others published, and ones worked out by hand."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard

from adpa_cli.judges.win_rates import Judged, detectable, judged_prompts, lc_win_rate, standard_error


def published(path: Path) -> list[Judged]:
    text = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(path.read_bytes())).read()
    rows = json.loads(text)
    return [
        Judged(str(n), row["preference"] - 1, None, (len(row["output_2"]), len(row["output_1"])))
        for n, row in enumerate(rows)
    ]


@pytest.mark.parametrize(
    ("name", "rate", "lc"), [("near", 0.29921932, pytest.approx(0.2593, abs=0.0005)), ("far", 0.02591451, None)]
)
def test_published_annotations(shared_data: Path, name: str, rate: float, lc: Any) -> None:
    """The leaderboard's win rates; length control is supported where both sides have longer answers."""
    judged = published(shared_data / f"alpaca_eval_annotations_{name}.json.zst")
    assert np.mean([one.win for one in judged]) == pytest.approx(rate, abs=1e-8)
    controlled = lc_win_rate(judged, 50, 0)
    assert controlled["supported"] == (lc is not None)
    if lc is not None:
        assert standard_error([one.win for one in judged]) == pytest.approx(0.01393458, abs=1e-8)
        assert controlled["value"] == lc
        assert controlled["low"] < controlled["value"] < controlled["high"]


def test_a_judge_that_always_names_the_first() -> None:
    rows = [{"id": "a", "order": order, "verdict": 1.0, "chars": [1, 2]} for order in (1, 2)]
    assert judged_prompts(rows) == [Judged("a", 1.0, 0.0, (1, 2))]
    (judged,) = judged_prompts(rows)
    assert (judged.win, judged.bias, judged.is_consistent) == (0.5, 0.5, False)
    assert standard_error([judged.win] * 3) == 0.0
    assert standard_error([0.5]) is None


def test_orders_count_as_one_prompt_and_equal_answers_as_half() -> None:
    rows = [
        {"id": "b", "order": 2, "verdict": 0.3, "chars": [4, 2]},
        {"id": "c", "order": 0, "identical": True, "chars": [3, 3]},
        {"id": "b", "order": 1, "verdict": 0.9, "chars": [4, 2]},
        {"id": "d", "order": 1, "verdict": None, "chars": [1, 1]},
        {"id": "e", "order": 1, "verdict": None, "chars": [1, 2]},
        {"id": "e", "order": 2, "verdict": 0.6, "chars": [1, 2]},
    ]
    b, c, e = judged_prompts(rows)
    assert (b.win, b.bias, b.is_consistent) == (pytest.approx(0.8), pytest.approx(0.1), True)
    assert (c.win, c.bias, c.is_identical) == (0.5, None, True)
    assert (e.first, e.win, e.is_consistent) == (None, pytest.approx(0.4), None)


def test_length_control_finds_the_rate_that_was_put_in() -> None:
    """P(win) = σ(0.4 + 0.8·tanh(Δ/sd)) exactly: at equal length σ(0.4)."""
    more = np.arange(-50, 51)
    p = 1 / (1 + np.exp(-(0.4 + 0.8 * np.tanh(more / more.std()))))
    judged = [Judged(str(n), float(p[n]), float(p[n]), (100 + int(more[n]), 100)) for n in range(101)]
    found = lc_win_rate(judged, 20, 0)
    assert found["value"] == pytest.approx(1 / (1 + math.exp(-0.4)), abs=1e-6)
    assert found["sides"] == pytest.approx({"longer": 50 / 101, "shorter": 50 / 101})


def test_length_control_of_what_cannot_be_fitted_is_still_a_number() -> None:
    judged = [Judged(str(n), float(n > 2), float(n > 2), (n + 10, 12)) for n in range(6)]
    found = lc_win_rate(judged, 20, 0)
    assert 0 <= found["low"] <= found["high"] <= 1
    same = lc_win_rate([Judged(str(n), n / 4, None, (5, 5)) for n in range(4)], 5, 0)
    assert same["value"] == pytest.approx(0.375, abs=1e-6)
    assert not same["supported"]


def test_what_805_prompts_can_tell() -> None:
    assert detectable(805) == pytest.approx(0.0395, abs=1e-4)
    assert detectable(0) is None
