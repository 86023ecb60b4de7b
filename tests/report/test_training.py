"""What the page and the bar show of a training, its curves included, and when its terms are worth a warning."""

from __future__ import annotations

from pathlib import Path

import pytest

from adpa_cli.cli.console import progress as screen
from adpa_cli.report import page
from adpa_cli.stages.training import unequal_gradients

METRICS = {
    "final": {"loss": 1.25, "sft": 1.0, "kl": 0.5, "grad_norm": 2.0, "length/rollout": 312.0},
    "gradients": {"kl": 0.02, "sft": 0.125},
    "entropy": {"chosen": 1.5, "rollout": 1.25},
    "update": {
        "rms": 7.156e-05, "seen": {"bfloat16": 0.0396, "float16": 0.302, "computed": 1.0},
        "differ": {"bfloat16": 0.0214, "float16": 0.166},
    },
    "speed": {"tokens_per_s": 12345.6, "wait": 0.0031, "mfu": 0.4123, "padding": 0.04, "seconds": 2880.0},
    "memory": {"peak": 1_200_000_000, "device": "cuda", "estimate": 1_100_000_000},
}  # fmt: skip


def test_the_page_shows_terms_with_their_gradients_speed_and_memory() -> None:
    assert page.training_lines(METRICS, 250) == [
        "terms     loss 1.25 · kl 0.5, ∇ 0.02 · sft 1, ∇ 0.125 · grad_norm 2 · length/rollout 312"
        " · entropy/chosen 1.5 · entropy/rollout 1.25",
        "update    weights moved by 0.007156 % (rms) · the forward pass saw 100.0 % of the change"
        " · rounding to bfloat16 keeps 4.0 % (2.1 % of weights differ)"
        " · rounding to float16 keeps 30.2 % (16.6 % of weights differ)",
        "speed     12,346 tokens/s · 41.2 % of the device's peak · 0.3 % waiting for data · 4.0 % padding"
        " · 48 min in steps",
        "memory    1.2 GB at most (cuda) · 1.1 GB expected",
    ]


def test_the_page_tells_of_a_sample_in_float32() -> None:
    noise = {"answers": 4, "advantage": {"rms": 0.0992, "error": 0.0065, "correlation": 0.998}}
    assert page.training_lines({"noise": noise}, 250) == [
        "noise     4 answers were computed in float32 too: "
        "difference to the reference 0.0992 nat with an error of 0.0065 (correlation 0.998)"
    ]


def test_what_is_not_known_is_left_out() -> None:
    assert page.training_lines({}, 100) == []
    speed = {**METRICS["speed"], "mfu": None}
    memory = {"peak": 500, "device": "cpu", "estimate": None}
    found = page.training_lines({"final": {"loss": 1.0, "grad_norm": 2.0}, "speed": speed, "memory": memory}, 120)
    assert found[0] == "terms     loss 1 · grad_norm 2"
    assert "peak" not in found[1]
    assert found[2] == "memory    500 B at most (cpu)"


def test_curves_bear_gaps_and_torn_lines(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 1, "loss": 1.5, "terms": {"kl": 2}}\nnot json\n[1]\n{"step": 2, "loss": null}\n{"st'
    )
    assert page.read_curves(tmp_path) == {"step": [1.0, 2.0], "loss": [1.5, None], "terms.kl": [2.0, None]}
    assert page.read_curves(tmp_path / "none") == {}
    assert page.curve_lines({}, 80) == []


def test_curves_join_what_is_measured_on_some_steps_and_put_gradients_last() -> None:
    steps = {"grad_norm": [4.0, 3.0], "sft": [2.0, 1.0], "entropy/chosen": [1.5, None, None, 0.5], "loss": [3.0, 1.0]}
    (line,) = page.curve_lines(steps, 120)
    assert line == "curves    loss 3 █▁ 1    entropy/chosen 1.5 █▁ 0.5    sft 2 █▁ 1    grad_norm 4 █▁ 3"


@pytest.mark.parametrize(
    ("gradients", "words"),
    [
        ({}, []),
        ({"sft": 1.0}, []),
        ({"sft": 1.0, "kl": 0.04}, []),
        ({"sft": 1.0, "idle": 0.0}, []),
        ({"sft": 1.0, "kl": 0.5, "advantage": 45.0}, ["advantage is 90 times that of kl (45 and 0.5 at the logits)"]),
    ],
)
def test_terms_on_different_scales_are_worth_a_warning(gradients: dict[str, float], words: list[str]) -> None:
    found = unequal_gradients(gradients)
    assert len(found) == len(words)
    assert all(expected in said for expected, said in zip(words, found, strict=True))


def test_the_bar_tells_the_loss_two_terms_and_the_speed(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = screen.Screen(quiet=False)
    monkeypatch.setattr(shown._pace, "is_due", lambda share: True)
    numbers = {
        "advantage": 0.5, "entropy/chosen": 1.0, "grad_norm/sft": 3.0, "loss": 2.0, "sft": 1.5, "third": 9.0,
        "tokens": 800, "padding": 0.1, "grad_norm": 4.0, "tokens_per_s": 5123.4, "wait": 0.01, "mfu": 0.4,
    }  # fmt: skip
    shown.progress(1, 3, numbers)
    shown.progress(2, 3, {**numbers, "wait": 0.123})
    calm, waiting = capfd.readouterr().err.splitlines()
    assert calm.endswith("loss 2  advantage 0.5  sft 1.5  5,123 tokens/s")
    assert waiting.endswith("5,123 tokens/s  12 % waiting for data")
