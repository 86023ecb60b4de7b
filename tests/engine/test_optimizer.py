"""Random rounding is unbiased to the last bit, a step is AdamW's, and bytes depend on seed, step and weight alone."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from adpa_cli.engine.ranks import Ranks
from adpa_cli.engine.training import optimizer as module
from adpa_cli.engine.training.loop import train
from adpa_cli.engine.training.optimizer import RoundingAdamW, make_optimizer, tune
from adpa_cli.engine.training.student import Student
from adpa_cli.errors import Stopped
from adpa_cli.spec import Runtime
from adpa_cli.tensors.rounding import rounded
from support.stoppable_runs import stoppable_run
from support.tiny_models import tiny_llama
from support.train_samples import examples, make_run

BETAS, EPS = (0.9, 0.999), 1e-8
EVERY_NOISE = torch.arange(2**16)


@pytest.mark.parametrize(
    "value", [1.0, 1.001, -1.001, math.pi, -3e-39, 1.99999, 65_535.4, -1e-20, 0.0, 2.0**-126 * 1.7]
)
def test_over_all_noise_the_mean_of_a_rounding_is_the_value(value: float) -> None:
    exact = torch.tensor(value)
    found = rounded(exact.expand(2**16).contiguous(), EVERY_NOISE)
    assert found.dtype == torch.bfloat16
    assert found.double().mean().item() == exact.item()
    assert len(found.unique()) == 1 + (exact.bfloat16() != exact)


def test_what_bfloat16_has_is_kept() -> None:
    every = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(torch.bfloat16)
    kept = rounded(every.float(), torch.full((2**16,), 2**16 - 1))
    assert torch.equal(kept[every.isfinite()], every[every.isfinite()])
    assert kept[every.isinf()].isinf().all()


def weights(count: int, seed: int, dtype: torch.dtype) -> nn.Parameter:
    torch.manual_seed(seed)
    return nn.Parameter(torch.randn(count).to(dtype))


def rounding(found: list[nn.Parameter], **settings: Any) -> RoundingAdamW:
    groups = [{"params": found, "lr": settings.pop("lr", 1e-2)}]
    return RoundingAdamW(groups, **{"betas": BETAS, "weight_decay": 0.1, "seed": 3, **settings})


def reference(weight: Tensor, grads: list[Tensor], lr: float, decay: float) -> tuple[Tensor, Tensor, Tensor]:
    """Weight, first and second moment after AdamW's steps, from the equations, in float64."""
    value, mean, square = weight.double(), torch.zeros_like(weight).double(), torch.zeros_like(weight).double()
    for t, grad in enumerate(grads, 1):
        mean = BETAS[0] * mean + (1 - BETAS[0]) * grad.double()
        square = BETAS[1] * square + (1 - BETAS[1]) * grad.double() ** 2
        step = (mean / (1 - BETAS[0] ** t)) / ((square / (1 - BETAS[1] ** t)).sqrt() + EPS)
        value = value - lr * decay * value - lr * step
    return value, mean, square


def spacing(values: Tensor) -> Tensor:
    """The distance of the bfloat16 numbers around each value."""
    return 2.0 ** (values.abs().log2().floor() - 7)


def test_one_step_is_adamw_between_two_neighbours_and_on_average() -> None:
    start, grad = weights(1, 0, torch.bfloat16), weights(1, 1, torch.bfloat16)
    many = nn.Parameter(start.detach().repeat(40_000))
    many.grad = grad.detach().repeat(40_000)
    stepped = rounding([many])
    stepped.step()
    exact = reference(start.detach(), [grad.detach()], 1e-2, 0.1)
    state = stepped.state[many]
    for found, value in zip((many, state["exp_avg"], state["exp_avg_sq"]), exact, strict=True):
        seen = found.detach().double()
        assert seen.unique().numel() == 2, "the two neighbours"
        assert float((seen - value).abs().max()) < float(spacing(value))
        error = float(seen.std()) / math.sqrt(40_000)
        assert float(seen.mean()) == pytest.approx(float(value), abs=5 * error)


def test_steps_too_small_for_the_nearest_add_up() -> None:
    kept = nn.Parameter(torch.ones(4096, dtype=torch.bfloat16))
    stepped = rounding([kept], lr=1e-5, weight_decay=0.0)  # the next number below 1 is 0.4 % away
    for _ in range(200):
        kept.grad = torch.ones_like(kept)
        stepped.step()
    assert torch.equal((torch.ones(1) - 1e-5).bfloat16(), torch.ones(1).bfloat16()), "the nearest loses every step"
    assert kept.detach().double().mean().item() == pytest.approx(1 - 200e-5, abs=2e-4)


def test_a_float32_weight_is_updated_as_by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 100)  # so that one weight takes several
    ours = [weights(257, 0, torch.float32), weights(8, 1, torch.float32)]
    theirs = copy.deepcopy(ours)
    pair = rounding(ours), torch.optim.AdamW(theirs, lr=1e-2, betas=BETAS, weight_decay=0.1)
    for step in range(5):
        for own, other in zip(ours, theirs, strict=True):
            own.grad = torch.randn(own.shape, generator=torch.Generator().manual_seed(step))
            other.grad = own.grad.clone()
        for each in pair:
            each.step()
    for own, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-7)


def test_noise_is_a_function_of_seed_step_and_weight() -> None:
    def after(seed: int, steps: int) -> list[bytes]:
        found = [weights(512, 0, torch.bfloat16) for _ in range(2)]
        stepped = rounding(found, seed=seed)
        for step in range(steps):
            torch.manual_seed(step)  # what else is drawn has no effect
            for weight in found:
                weight.grad = torch.full_like(weight, 0.5)
            stepped.step()
        return [w.detach().view(torch.int16).numpy().tobytes() for w in found]

    once = after(3, 2)
    assert once == after(3, 2)
    assert once[0] != once[1]
    assert once[0] != after(4, 2)[0]


def rounding_student(seed: int = 0) -> Student:
    """A student of bfloat16 weights, as the stages make it."""
    model = tiny_llama(seed).train().requires_grad_()
    spec = make_run("sft", examples(1), None, Path(), weights="bfloat16").spec
    assert tune(model, spec, Runtime()) == {}
    return Student(model, spec.dtype)


def go(run: Any) -> Student:
    student = rounding_student()
    train(student, run, Ranks.here())
    return student


def sft_run(work: Path, at: int | None) -> Any:
    run, stop = stoppable_run(work, at, weights="bfloat16")
    sft = make_run("sft", run.examples, None, work)
    stop.seen[0] = 0
    return dataclasses.replace(
        run, method=sft.method, params=sft.params, spec=dataclasses.replace(run.spec, method="sft")
    )


def test_a_stopped_run_of_bfloat16_weights_ends_with_the_same_bytes(tmp_path: Path) -> None:
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    expected = go(sft_run(tmp_path / "whole", None))
    with pytest.raises(Stopped):
        go(sft_run(tmp_path / "parts", 5))
    [point] = (tmp_path / "parts").glob("_resume-*")
    for name in ("model", "optimizer"):
        kinds = {key.rpartition(".")[2]: t.dtype for key, t in load_file(point / f"{name}.safetensors").items()}
        assert kinds.pop("step", torch.float32) == torch.float32
        assert set(kinds.values()) == {torch.bfloat16}
    ended = go(sft_run(tmp_path / "parts", None))
    for own, other in zip(ended.parameters(), expected.parameters(), strict=True):
        assert own.dtype == torch.bfloat16
        assert torch.equal(own, other)
    logs = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("whole", "parts")]
    assert logs[0] == logs[1]


def test_bfloat16_weights_learn_what_float32_weights_learn(tmp_path: Path) -> None:
    """Step by step the loss is that of float32 weights under autocast to the noise of bfloat16, and falls as far."""
    curves = []
    for weights, student in (
        ("float32", Student(tiny_llama(0).requires_grad_(), "bfloat16")), ("bfloat16", rounding_student()),
    ):  # fmt: skip
        work = tmp_path / weights
        work.mkdir()
        run = make_run("sft", examples(12), None, work, weights=weights, epochs=10.0, batch_size=6, lr=5e-3)
        run = dataclasses.replace(run, spec=dataclasses.replace(run.spec, dtype="bfloat16"))
        train(student, run, Ranks.here())
        curves.append([json.loads(line)["loss"] for line in (work / "metrics.jsonl").read_text().splitlines()])
    assert curves[0][-1] < 0.6 * curves[0][0]
    assert curves[1] == pytest.approx(curves[0], rel=0.05)


def test_adamw_of_torch_serves_float32_weights() -> None:
    spec = make_run("sft", examples(1), None, Path(), weight_decay=0.2).spec
    made = make_optimizer([nn.Linear(2, 2), nn.Linear(2, 1)], (0.5, 0.25), spec, fused=False)
    assert isinstance(made, torch.optim.AdamW)
    assert [(g["lr"], g["fused"], g["weight_decay"]) for g in made.param_groups] == [
        (0.5, False, 0.2),
        (0.25, False, 0.2),
    ]
