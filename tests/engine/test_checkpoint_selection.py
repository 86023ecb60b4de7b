"""Evaluations of a run: scores worked out by hand, the best weights kept, the same bytes whenever it was stopped."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from adpa_cli.data.examples import win
from adpa_cli.engine.ranks import Ranks
from adpa_cli.engine.training import schedule
from adpa_cli.engine.training.checkpoint_selection import SCORES, CheckpointSelection, HeldOut, best, records
from adpa_cli.engine.training.loop import train
from adpa_cli.engine.training.student import Student
from adpa_cli.errors import UsageError
from support.tiny_models import tiny_llama
from support.train_samples import _taken, examples, make_run, start_of

ROWS, TEST = examples(9), examples(7, seed=5)
START = start_of(tiny_llama(0), ROWS)
PAIRS = HeldOut(TEST, ("chosen", "rejected"))
SETTINGS = {"epochs": 3.0, "batch_size": 3, "lr": 5e-2}  # 9 steps; points 2, 4, 6, 8, 9


class Killed(Exception):
    pass


def go(
    work: Path, keep_all: bool = False, held: HeldOut | None = PAIRS, die: Callable[[int], None] | None = None
) -> CheckpointSelection:
    """Train in `work`, going on with what is there; `die` is called before each evaluation, and after it."""
    work.mkdir(exist_ok=True)
    student = Student(tiny_llama(0).requires_grad_(), "float32")
    save = functools.partial(keep, student)
    selection = CheckpointSelection(work, student, Ranks.here(), save, held, keep_all)

    def at(step: int) -> None:
        if die:
            die(step)
        selection.evaluate(step)
        if die:
            die(-step)

    steps = schedule.evaluation_steps(len(ROWS), 3, 9)
    run = make_run("dpo", ROWS, None, work, evaluation_steps=steps, evaluate=at, start_of=START, **SETTINGS)
    train(student, run, Ranks.here())
    return selection


def keep(student: Student, folder: Path) -> None:
    folder.mkdir()
    np.save(folder / "weights.npy", np.concatenate([p.detach().numpy().ravel() for p in student.parameters()]))


def test_evaluations_come_each_half_epoch_and_at_the_end() -> None:
    assert schedule.evaluation_steps(9, 3, 9) == {2, 4, 6, 8, 9}
    assert schedule.evaluation_steps(8, 4, 6) == {1, 2, 3, 4, 5, 6}
    assert schedule.evaluation_steps(100, 8, 3) == {3}
    assert schedule.evaluation_steps(1, 32, 1) == {1}


def test_pairs_are_scored_by_their_mean_log_probs() -> None:
    model = tiny_llama(0)
    with torch.no_grad():
        margins = [
            float(_taken(model, e.parts["chosen"]).mean() - _taken(model, e.parts["rejected"]).mean()) for e in TEST
        ]
    found = PAIRS.score(Student(model, "float32"), Ranks.here())
    assert found["accuracy"] == pytest.approx(sum(m > 0 for m in margins) / 7)
    assert found["margin"] == pytest.approx(sum(margins) / 7, rel=1e-4)
    assert found["pairs"] == 7
    assert 0 < found["accuracy"] < 1
    assert list(map(win, (2.0, 0.0, -1.0))) == [1.0, 0.5, 0.0]


def test_dialogues_are_scored_by_the_likelihood_of_a_token() -> None:
    model = tiny_llama(0)
    with torch.no_grad():
        every = torch.cat([_taken(model, e.parts["chosen"]) for e in TEST])
    found = HeldOut(TEST, ("chosen",)).score(Student(model, "float32"), Ranks.here())
    assert found["nll"] == pytest.approx(-float(every.double().mean()), rel=1e-5)
    assert found["tokens"] == len(every)


def test_the_best_is_the_most_accurate_then_the_widest_then_the_latest() -> None:
    def pairs(*rows: tuple[int, float, float]) -> int:
        return int(best([{"step": s, "accuracy": a, "margin": m} for s, a, m in rows])["step"])

    assert pairs((2, 0.7, 0.1), (4, 0.6, 0.9)) == 2
    assert pairs((2, 0.7, 0.1), (4, 0.7, 0.3), (6, 0.7, 0.2)) == 4
    assert pairs((2, 0.7, 0.1), (4, 0.7, 0.1)) == 4
    assert best([{"step": 2, "nll": 1.5}, {"step": 4, "nll": 1.2}, {"step": 6, "nll": 1.3}])["step"] == 4


def test_only_the_best_weights_so_far_are_kept(tmp_path: Path) -> None:
    seen: list[tuple[int, list[str]]] = []

    def look(step: int) -> None:
        if step < 0:
            seen.append((-step, sorted(path.name for path in tmp_path.glob("*step-*"))))

    selection = go(tmp_path, die=look)
    found = records(tmp_path)
    assert [record["step"] for record in found] == [2, 4, 6, 8, 9]
    assert len({record["margin"] for record in found}) == 5
    for n, (step, names) in enumerate(seen):
        so_far = best(found[: n + 1])["step"]
        assert found[n]["step"] == step
        assert f"_step-{so_far:06d}" in names
        assert len(names) <= 2
    wanted = selection.folder(best(found)["step"]) / "weights.npy"
    expected = wanted.read_bytes()
    assert selection.take_best() == best(found)["step"]
    assert (tmp_path / "weights.npy").read_bytes() == expected


@pytest.mark.parametrize("keep_all", [False, True])
@pytest.mark.parametrize("where", [4, -4, 8, -8, 9, -9])
def test_a_run_that_dies_around_a_point_ends_alike(where: int, keep_all: bool, tmp_path: Path) -> None:
    def die(step: int) -> None:
        if step == where:
            raise Killed

    whole = go(tmp_path / "whole", keep_all)
    with pytest.raises(Killed):
        go(tmp_path / "parts", keep_all, die=die)
    torn = tmp_path / "parts" / "_new-step-000004"
    torn.mkdir(exist_ok=True)
    (torn / "weights.npy").write_bytes(b"torn")
    parts = go(tmp_path / "parts", keep_all)
    assert (parts.work / SCORES).read_bytes() == (whole.work / SCORES).read_bytes()
    assert parts.take_best() == whole.take_best()
    for name in ["weights.npy", *(f"step-{step:06d}/weights.npy" for step in (2, 4, 6, 8, 9) if keep_all)]:
        assert (parts.work / name).read_bytes() == (whole.work / name).read_bytes()


def test_all_weights_are_kept_without_scores(tmp_path: Path) -> None:
    go(tmp_path, keep_all=True, held=None)
    assert json.loads((tmp_path / SCORES).read_text()) == [{"step": step} for step in (2, 4, 6, 8, 9)]
    assert sorted(path.name for path in tmp_path.glob("step-*")) == [f"step-{s:06d}" for s in (2, 4, 6, 8, 9)]


def test_a_step_is_the_one_of_the_whole_run(tmp_path: Path) -> None:
    def weights(name: str, **more: Any) -> list[bytes]:
        (tmp_path / name).mkdir()
        student = Student(tiny_llama(0).requires_grad_(), "float32")
        seen: list[int] = []
        found: list[bytes] = []

        def at(step: int) -> None:
            found.extend(p.detach().numpy().tobytes() for p in student.parameters())

        run = make_run(
            "dpo", ROWS, None, tmp_path / name, evaluation_steps=frozenset({4}), evaluate=at,
            progress=lambda step, of, numbers: seen.append(of), start_of=START, **SETTINGS, **more,
        )  # fmt: skip
        train(student, run, Ranks.here())
        assert seen == [4] * 4 if more else [9] * 9
        return found

    assert weights("cut", select="4") == weights("whole")
    with pytest.raises(UsageError, match="--select 10 is not possible: the run has only 9 steps"):
        weights("beyond", select="10")
