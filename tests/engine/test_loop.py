"""One step of the loop is the gradient of the equation; several are AdamW; a stopped run goes on where it was."""

from __future__ import annotations

import copy
import functools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from adpa_cli.data.tables import watching
from adpa_cli.engine.ranks import Ranks
from adpa_cli.engine.training import loop
from adpa_cli.engine.training.loop import Run, train
from adpa_cli.engine.training.objective import Objective
from adpa_cli.engine.training.resume import resume_step
from adpa_cli.engine.training.schedule import Fixed, learning_rate, step_rows
from adpa_cli.engine.training.step_report import METRICS
from adpa_cli.engine.training.student import Student
from adpa_cli.errors import AdpaError, Stopped
from adpa_cli.signal.rows import SignalRows
from adpa_cli.spec import Runtime
from support.stoppable_runs import ROWS, SIGNAL, START, stoppable_run
from support.tiny_models import tiny_llama
from support.train_samples import dense_loss, make_run, start_of

METHODS = ["sft", "dpo", "dckd", "adpa"]


def fresh() -> Student:
    return Student(tiny_llama(0).requires_grad_(), "float32")


def one_step(student: Any, optimizer: Any, run: Run) -> dict[str, float]:
    """The numbers of a step over all rows of a run whose batches hold them."""
    ranks, tokens = Ranks.here(), run.runtime.tokens_per_device
    feed = Fixed(run.examples, run.spec)
    objective = Objective(run.method, run.params, feed.at(0)[0])
    with loop.prefetched_batches(student, run, feed, ranks, 1) as ahead:
        batches = functools.partial(ahead.batches, 0)
        numbers, signal, _ = loop._step(student, optimizer, run, ranks, objective, batches, tokens)
    assert signal is None
    return numbers


def gradients(run: Run, student: Student) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """The gradients that the optimizer meets in one step over all rows, and the numbers of that step."""
    optimizer = torch.optim.SGD(student.model.parameters(), lr=0.0)
    found: dict[str, torch.Tensor] = {}

    def keep(*_: Any) -> None:
        found.update({name: p.grad.clone() for name, p in student.model.named_parameters()})

    optimizer.register_step_pre_hook(keep)
    return found, one_step(student, optimizer, run)


@pytest.mark.parametrize("tokens", [1, 60, 100_000])
@pytest.mark.parametrize("method", METHODS)
def test_one_step_is_the_gradient_of_the_equation(method: str, tokens: int, tmp_path: Path) -> None:
    start = tiny_llama(3)  # the student has moved from its start
    settings = {"clip": 1e9, "batch_size": 9, "start_of": start_of(start, ROWS)}
    run = make_run(method, ROWS, SIGNAL, tmp_path, runtime=Runtime(tokens_per_device=tokens), **settings)
    found, numbers = gradients(run, fresh())
    dense = tiny_llama(0).double().requires_grad_()
    loss = dense_loss(method, dense, start.double(), ROWS, SIGNAL, run.params)
    loss.backward()
    assert numbers["loss"] == pytest.approx(loss.item(), rel=1e-5)
    scale = max(float(p.grad.abs().max()) for p in dense.parameters())
    for name, parameter in dense.named_parameters():
        torch.testing.assert_close(found[name].double(), parameter.grad, rtol=1e-4, atol=1e-5 * scale, msg=name)


def test_dpo_begins_where_no_answer_is_preferred(tmp_path: Path) -> None:
    _, numbers = gradients(make_run("dpo", ROWS, SIGNAL, tmp_path, start_of=START, batch_size=9), fresh())
    assert numbers["loss"] == pytest.approx(math.log(2), abs=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_a_run_is_adamw_with_clipping_and_the_schedule(method: str, tmp_path: Path) -> None:
    settings = {"epochs": 2.0, "batch_size": 4, "lr": 3e-3, "clip": 0.5, "weight_decay": 0.1, "adam_beta2": 0.99}
    run = make_run(method, ROWS, SIGNAL, tmp_path, start_of=START, **settings)
    student = fresh()
    train(student, run, Ranks.here())

    start = tiny_llama(0).double()
    dense = copy.deepcopy(start).requires_grad_()
    optimizer = torch.optim.AdamW(dense.parameters(), betas=(0.9, 0.99), weight_decay=0.1)
    losses, norms = [], []
    for step in range(5):  # ceil(2 epochs x 9 rows / 4)
        optimizer.param_groups[0]["lr"] = learning_rate(step, 5, 3e-3, run.spec.warmup_ratio)
        rows = [ROWS[i] for i in step_rows(9, run.spec, step)]
        optimizer.zero_grad()
        loss = dense_loss(method, dense, start, rows, SIGNAL, run.params)
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(dense.parameters(), 0.5)))
        optimizer.step()
        losses.append(loss.item())
    lines = [json.loads(line) for line in (tmp_path / METRICS).read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]
    assert [line["loss"] for line in lines] == pytest.approx(losses, rel=1e-4)
    assert [line["grad_norm"] for line in lines] == pytest.approx(norms, rel=1e-3)
    assert max(norms) > 0.5
    for name, parameter in dense.named_parameters():
        own = student.model.get_parameter(name).double()
        # Adam divides a gradient by its own size, so that of one near 0 the rounding counts: a fiftieth of a step.
        torch.testing.assert_close(own, parameter, rtol=1e-4, atol=6e-5, msg=name)


def test_terms_are_logged_by_name_and_add_up(tmp_path: Path) -> None:
    run = make_run("adpa", ROWS, SIGNAL, tmp_path)
    summary = train(fresh(), run, Ranks.here())
    assert set(summary) == {"sft", "advantage", "loss", "grad_norm", "length/rollout"}
    assert summary["loss"] == pytest.approx(summary["sft"] + run.params.gamma * summary["advantage"], rel=1e-5)


def bytes_of(student: Student) -> list[bytes]:
    return [p.detach().numpy().tobytes() for p in student.parameters()]


def go(run: Run) -> Student:
    student = fresh()
    train(student, run, Ranks.here())
    return student


def test_a_stopped_run_goes_on_at_that_step_and_ends_with_the_same_bytes(tmp_path: Path) -> None:
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    run, stop = stoppable_run(tmp_path / "whole", None)
    expected = bytes_of(go(run))
    assert stop.seen == list(range(13))
    parts = tmp_path / "parts"
    for at, seen in ((3, [0, 1, 2, 3]), (8, [0, 4, 5, 6, 7, 8])):
        run, stop = stoppable_run(parts, at)
        stop.seen[0] = resume_step(parts)
        with pytest.raises(Stopped, match=f"Stopped by SIGTERM at step {at} of 12; progress is saved") as caught:
            go(run)
        assert caught.value.exit_code == 143
        assert stop.seen[1:] == seen[1:]
        assert resume_step(parts) == at
        assert [path.name for path in parts.glob("_resume-*")] == [f"_resume-{at:06d}"]
    assert bytes_of(go(stoppable_run(parts, None)[0])) == expected
    assert (parts / METRICS).read_bytes() == (tmp_path / "whole" / METRICS).read_bytes()


def test_a_run_that_dies_goes_on_at_its_last_resume_point(tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    def die(step: int, of: int, numbers: Any) -> None:
        if step == 9:
            raise Killed

    (tmp_path / "whole").mkdir()
    expected = bytes_of(go(stoppable_run(tmp_path / "whole", None)[0]))
    run, _ = stoppable_run(tmp_path, None)
    with pytest.raises(Killed):
        go(Run(**{**vars(run), "progress": die}))
    assert resume_step(tmp_path) == 5
    run, stop = stoppable_run(tmp_path, None)
    assert bytes_of(go(run)) == expected
    assert stop.seen[1:] == list(range(6, 13))


def test_a_half_written_resume_point_is_not_used(tmp_path: Path) -> None:
    run, _ = stoppable_run(tmp_path, 6)
    with pytest.raises(Stopped):
        go(run)
    torn = tmp_path / "_resume-000007"
    torn.mkdir()
    (torn / "model.safetensors").write_bytes(b"torn")
    run, stop = stoppable_run(tmp_path, 7)
    stop.seen[0] = 6
    with pytest.raises(Stopped):
        go(run)
    assert stop.seen == [6, 7]
    assert resume_step(tmp_path) == 7


def test_a_signal_at_the_last_step_lets_the_run_end(tmp_path: Path) -> None:
    run, stop = stoppable_run(tmp_path, 12)
    go(run)
    assert stop.seen[-1] == 12


def test_resume_points_come_twice_an_epoch_by_default(tmp_path: Path) -> None:
    found = []

    def look(step: int, of: int, numbers: Any) -> None:
        found.append(resume_step(tmp_path))

    run = make_run("sft", ROWS, SIGNAL, tmp_path, epochs=2.0, batch_size=2, progress=look)
    go(run)
    # 9 rows in steps of 2: a point every ceil(9 / 2 / 2) = 3 steps, none after the last.
    assert found == [0, 0, 0, 3, 3, 3, 6, 6, 6]
    assert resume_step(tmp_path) == 6


def broken(example_id: str, part: str) -> SignalRows:
    rows = SIGNAL(example_id, part)
    return SignalRows(**{**vars(rows), "difference": rows.difference * float("nan")})


def test_a_loss_that_is_not_finite_is_refused_before_the_weights_change(tmp_path: Path) -> None:
    student = fresh()
    before = bytes_of(student)
    with pytest.raises(AdpaError, match="not finite"):
        train(student, make_run("adpa", ROWS, broken, tmp_path), Ranks.here())
    assert bytes_of(student) == before


def test_dropout_is_not_drawn(tmp_path: Path) -> None:
    whole = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        work = tmp_path / str(seed)
        work.mkdir()
        student = fresh()
        torch.manual_seed(seed)
        train(student, make_run("sft", ROWS, SIGNAL, work), Ranks.here())
        whole.append(bytes_of(student))
    assert whole[0] == whole[1]


def test_the_first_step_of_a_run_is_watched_row_by_row(tmp_path: Path) -> None:
    """Also after a resume point, and to the end of the step though a signal came meanwhile."""
    seen: list[tuple[str, int, int]] = []

    def watch(what: str, done: int, of: int) -> None:
        seen.append((what, done, of))
        raise Stopped("SIGINT", "now")

    with watching(watch), pytest.raises(Stopped, match="at step 6 of"):
        go(stoppable_run(tmp_path, 6)[0])
    assert {what for what, _, _ in seen} == {"computing step 1"}
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)
    assert len(seen) > 2
    assert seen[-1][1] == seen[-1][2]
    seen.clear()
    with watching(watch):
        go(stoppable_run(tmp_path, None)[0])
    assert {what for what, _, _ in seen} == {"computing step 7"}
