"""How much each term pulls at the logits, and the entropy, against dense logits; however the step is cut."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from adpa_cli.engine.ranks import Ranks
from adpa_cli.engine.training.loop import train
from adpa_cli.engine.training.step_report import METRICS, StepLog
from adpa_cli.engine.training.student import Student
from adpa_cli.spec import Runtime
from support.tiny_models import tiny_llama
from support.train_samples import answer_logps, dense_loss, examples, make_run, signal_source, start_of

ROWS = examples(9)
SIGNAL = signal_source(ROWS, tiny_llama(1), tiny_llama(2))


class Dense:
    """A model whose logits are leaves; `pull` is the norm of the gradient at those of the sequences of one part."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.logits: dict[bytes, Tensor] = {}

    def __call__(self, input_ids: Tensor) -> Any:
        key = input_ids.numpy().tobytes()
        if key not in self.logits:
            self.logits[key] = self.model(input_ids=input_ids).logits.detach().requires_grad_()
        return SimpleNamespace(logits=self.logits[key])

    def pull(self, part: str, loss: Tensor) -> float:
        leaves = [self.logits[e.parts[part].ids.astype("int64")[None].tobytes()] for e in ROWS]
        found = torch.autograd.grad(loss, leaves, retain_graph=True, allow_unused=True)
        return sum(float(g.square().sum()) for g in found if g is not None) ** 0.5


def first_step(method: str, tokens: int, work: Path) -> dict[str, float]:
    """The first line of metrics.jsonl of a run whose step holds all rows."""
    settings = {"batch_size": 9, "start_of": start_of(tiny_llama(0), ROWS)}
    run = make_run(method, ROWS, SIGNAL, work, runtime=Runtime(tokens_per_device=tokens), **settings)
    student = Student(tiny_llama(0).requires_grad_(), "float32")
    train(student, run, Ranks.here())
    line: dict[str, float] = json.loads((work / METRICS).read_text().splitlines()[0])
    return line


def dense(method: str) -> Callable[[Dense, Any], Tensor]:
    return lambda model, params: dense_loss(method, model, tiny_llama(0).double(), ROWS, SIGNAL, params)


@pytest.mark.parametrize("tokens", [1, 60, 100_000])
@pytest.mark.parametrize(
    ("method", "term", "part", "without"),
    [
        ("sft", "sft", "chosen", None),
        ("dpo", "dpo", "chosen", None),
        ("dckd", "kl_chosen", "chosen", "sft"),
        ("dckd", "kl_rejected", "rejected", "sft"),
        ("adpa", "advantage", "rollout", "sft"),
        ("adpa", "sft", "chosen", None),
    ],
)
def test_the_pull_of_a_term_is_that_of_dense_logits(
    method: str, term: str, part: str, without: str | None, tokens: int, tmp_path: Path
) -> None:
    """A term alone is the loss without the other term, or where that has no business in its part, the loss itself."""
    line = first_step(method, tokens, tmp_path)
    model, params = Dense(tiny_llama(0).double()), make_run(method, ROWS, SIGNAL, tmp_path).params
    loss = dense(method)(model, params)
    if without is not None:
        loss = loss - dense(without)(model, params)
    expected = model.pull(part, loss)
    if term == "dpo":  # over both sides of the pairs
        expected = (expected**2 + model.pull("rejected", loss) ** 2) ** 0.5
    assert line[f"grad_norm/{term}"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("tokens", [1, 100_000])
def test_entropy_length_tokens_and_padding(tokens: int, tmp_path: Path) -> None:
    line = first_step("adpa", tokens, tmp_path)
    model = tiny_llama(0).double()
    for part in ("chosen", "rollout"):
        logps = torch.cat([answer_logps(model, e.parts[part]) for e in ROWS])
        entropy = -(logps.exp() * logps).sum(1).mean().item()
        assert line[f"entropy/{part}"] == pytest.approx(entropy, rel=1e-5)
    lengths = [e.parts["rollout"].tokens for e in ROWS]
    assert line["length/rollout"] == pytest.approx(sum(lengths) / 9)
    assert line["tokens"] == sum(len(e.parts[part]) for e in ROWS for part in ("chosen", "rollout"))
    longest = [max(len(e.parts[part]) for e in ROWS) for part in ("chosen", "rollout")]
    if tokens == 1:  # a row at a time, whose two sequences lie in one forward
        cells = sum(2 * max(len(e.parts[part]) for part in ("chosen", "rollout")) for e in ROWS)
    else:
        cells = 18 * max(longest)
    assert line["padding"] == pytest.approx(1 - line["tokens"] / cells)


def test_what_is_measured_depends_on_the_step_alone(tmp_path: Path) -> None:
    run = make_run("dckd", ROWS, SIGNAL, tmp_path, epochs=5.0, batch_size=4)  # 12 steps
    train(Student(tiny_llama(0).requires_grad_(), "float32"), run, Ranks.here())
    lines = [json.loads(line) for line in (tmp_path / METRICS).read_text().splitlines()]
    assert [line["step"] for line in lines if "grad_norm/sft" in line] == [1, 11]
    assert [line["step"] for line in lines if "entropy/rejected" in line] == [1, 11]
    log = StepLog(tmp_path / METRICS, 12, False)
    found = log.measured("grad_norm/")
    assert set(found) == {"sft", "kl_chosen", "kl_rejected"}
    assert found["sft"] == pytest.approx((lines[0]["grad_norm/sft"] + lines[10]["grad_norm/sft"]) / 2)
    assert "grad_norm/sft" not in log.summary(12)
