"""Training on answers that are drawn meanwhile: the steps are PPO's, and nothing depends on how they were computed."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from adpa_cli.engine.generation import generate
from adpa_cli.engine.generation.generate import generate_block
from adpa_cli.engine.generation.sampling import Decoding, Sampling
from adpa_cli.engine.layout.examples import Example
from adpa_cli.engine.ranks import Ranks
from adpa_cli.engine.training import online
from adpa_cli.engine.training.loop import Run, train
from adpa_cli.engine.training.online import Online, RolloutBuffer, Scorer, Sources
from adpa_cli.engine.training.resume import resume_step
from adpa_cli.engine.training.schedule import learning_rate, step_rows
from adpa_cli.engine.training.step_report import METRICS
from adpa_cli.engine.training.student import Student, critic_of
from adpa_cli.spec import Runtime
from support.tiny_models import END, PAD, tiny_llama
from support.train_samples import answer_logps, examples, labels, make_run

CHOSEN = [Example(row.id, {"chosen": row.parts["chosen"]}) for row in examples(7)]
PROMPTS = {row.id: tuple(int(i) for i in row.parts["chosen"].ids[~row.parts["chosen"].answer]) for row in CHOSEN}
SMALL = {"rollout_batch": 4, "max_new_tokens": 6, "beta": 0.2, "critic_lr": 3e-3}
"""Buffers of two steps of two rows; 7 rows are met in 4 steps."""
ONE_PASS: Any = SimpleNamespace(epochs=1.0, batch_size=2, seed=0)

KEEPING = Runtime(tokens_per_device=60, checkpoint_steps=100)
"""Without a resume point, so that every buffer stays."""
RESUMING = {"ppo_epochs": 2, "runtime": Runtime(tokens_per_device=60, checkpoint_steps=3)}
"""Eight steps: two buffers of two batches, two passes over each; resume points after steps 3 and 6."""


class Killed(Exception):
    """Stands for a signal that cannot be caught."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {}
    for seed, name in enumerate(("start", "aligned", "reference")):
        made[name] = tmp_path_factory.mktemp("models") / name
        tiny_llama(seed).save_pretrained(made[name])
    return made


def learner() -> Student:
    model = tiny_llama(0).train().requires_grad_()
    return Student(model, "float32", critic_of(model, "float32"))


def prepared(student: Student, folders: dict[str, Path], work: Path, **settings: Any) -> Run:
    """A run of DPPO; settings are of the method, the training or the loop."""
    work.mkdir(exist_ok=True)
    own = {f.name for f in dataclasses.fields(make_run("dppo", CHOSEN, None, work).params)}
    params = {**SMALL, **{k: v for k, v in settings.items() if k in own}}
    rest = {"batch_size": 2, "lr": 3e-3, **{k: v for k, v in settings.items() if k not in own}}
    run = make_run("dppo", CHOSEN, None, work, **rest)
    read = run.method.params(**params)
    spec = dataclasses.replace(run.spec, params=dataclasses.asdict(read), max_length=32)
    sampling = Sampling(read.temperature, 1.0, read.max_new_tokens, spec.seed)
    scorers = {name: Scorer(folder, "float32") for name, folder in folders.items()}
    sources = Sources(PROMPTS, scorers, Decoding(sampling, (END,), PAD, spec.max_length))
    feed = Online(student, Ranks.here(), CHOSEN, sources, spec, read, work, run.runtime.tokens_per_device)
    return dataclasses.replace(run, spec=spec, params=read, feed=feed, critic_lr=read.critic_lr)


def go(folders: dict[str, Path], work: Path, **settings: Any) -> tuple[Student, list[dict[str, float]]]:
    student = learner()
    run = prepared(student, folders, work, **settings)
    train(student, run, Ranks.here())
    return student, [json.loads(line) for line in (work / METRICS).read_text().splitlines()]


def bytes_of(student: Student) -> list[bytes]:
    return [p.detach().numpy().tobytes() for p in student.parameters()]


def taken(model: Any, part: Any) -> torch.Tensor:
    return answer_logps(model, part).gather(1, labels(part)[:, None])[:, 0]


@pytest.mark.parametrize("reward", ["token", "sequence"])
def test_the_steps_of_a_buffer_are_those_of_ppo(reward: str, folders: dict[str, Path], tmp_path: Path) -> None:
    """Four steps, two passes over one buffer, against plain loops in double precision."""
    student, lines = go(
        folders, tmp_path, reward=reward, ppo_epochs=2, max_steps=4, gae_lambda=0.8, discount=0.9, value_weight=0.5,
        clip=0.1, value_clip=0.05,
    )  # fmt: skip
    buffer = RolloutBuffer.load(tmp_path / "_buffer-000000.safetensors")
    steps = [step_rows(7, ONE_PASS, step) for step in (0, 1, 0, 1)]
    rows = sorted({row for step in steps for row in step})
    drawn = {}
    for row, ids in zip(rows, buffer.ids, strict=True):
        prompt = PROMPTS[CHOSEN[row].id]
        whole = np.array([*prompt, *ids], dtype=np.int32)
        drawn[row] = type(CHOSEN[row].parts["chosen"])(whole, np.arange(len(whole)) >= len(prompt))

    start, aligned, reference = (tiny_llama(seed).double() for seed in range(3))
    old, returns, gained = {}, {}, {}
    with torch.no_grad():
        for row, part in drawn.items():
            old[row] = taken(start, part)
            earned = (0.2 * (taken(aligned, part) - taken(reference, part))).tolist()
            if reward == "sequence":
                earned = [0.0] * (len(earned) - 1) + [sum(earned)]
            following, found = 0.0, []
            for one in reversed(earned):  # the critic values everything at 0, and the policy is the start
                following = one + 0.9 * 0.8 * following
                found.insert(0, following)
            returns[row] = torch.tensor(found, dtype=torch.float64)
    flat = torch.cat(list(returns.values()))
    for row, values in returns.items():
        gained[row] = (values - flat.mean()) / flat.std()

    actor = copy.deepcopy(start).requires_grad_()
    critic = critic_of(start, "float32").double()
    groups = [{"params": list(actor.parameters())}, {"params": list(critic.parameters())}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.999), weight_decay=0.0)
    losses = []
    for step, batch in enumerate(steps):
        for group, peak in zip(optimizer.param_groups, (3e-3, SMALL["critic_lr"]), strict=True):
            group["lr"] = learning_rate(step, 4, peak, 0.1)
        optimizer.zero_grad()
        total = torch.zeros((), dtype=torch.float64)
        for row in batch:
            part, gain = drawn[row], gained[row]
            ratio = (taken(actor, part) - old[row]).exp()
            state = critic.body(torch.from_numpy(part.ids.astype(np.int64))[None]).last_hidden_state[0]
            value = critic.score(state[np.flatnonzero(part.answer) - 1])[:, 0]
            error = torch.stack([(value - returns[row]) ** 2, (value.clamp(-0.05, 0.05) - returns[row]) ** 2])
            objective = torch.stack([ratio * gain, ratio.clamp(0.9, 1.1) * gain])
            total = total - objective.amin(0).mean() + 0.5 * 0.5 * error.amax(0).mean()
            total = total - taken(actor, CHOSEN[row].parts["chosen"]).mean()
        (total / len(batch)).backward()
        for group in groups:
            torch.nn.utils.clip_grad_norm_(group["params"], 1.0)
        optimizer.step()
        losses.append(total.item() / len(batch))
    assert [line["loss"] for line in lines] == pytest.approx(losses, rel=1e-4)
    for module, dense in ((student.model, actor), (student.critic, critic)):
        for name, parameter in dense.named_parameters():
            torch.testing.assert_close(
                module.get_parameter(name).double(), parameter, rtol=1e-3, atol=3e-5, msg=f"{name}"
            )


def test_equal_teachers_pay_nothing_so_that_only_sft_is_left(folders: dict[str, Path], tmp_path: Path) -> None:
    """As long as the student is the one that it started from, which it is when the first buffer is drawn."""
    equal = {**folders, "reference": folders["aligned"]}
    student, lines = go(equal, tmp_path / "dppo", max_steps=2)
    alone = Student(tiny_llama(0).train().requires_grad_(), "float32")
    (tmp_path / "sft").mkdir()
    run = make_run("sft", CHOSEN, None, tmp_path / "sft", batch_size=2, lr=3e-3, max_steps=2)
    train(alone, run, Ranks.here())
    for name, parameter in alone.model.named_parameters():
        torch.testing.assert_close(student.model.get_parameter(name), parameter, rtol=1e-4, atol=1e-6)
    assert [line["reward"] for line in lines] == pytest.approx([0.0, 0.0], abs=1e-5)
    assert [line["actor"] for line in lines] == pytest.approx([0.0, 0.0], abs=1e-4)


def test_the_numbers_of_a_buffer_are_logged_with_its_steps(folders: dict[str, Path], tmp_path: Path) -> None:
    student, lines = go(folders, tmp_path, lr=3e-2, max_new_tokens=2, runtime=KEEPING)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    about = [tuple(line[k] for k in ("reward", "kl", "entropy", "answer_tokens", "cut")) for line in lines]
    assert about[0] == about[1] != about[2] == about[3]
    assert about[0][1] == pytest.approx(0.0, abs=1e-5)
    assert about[2][1] > 1e-3
    first = RolloutBuffer.load(tmp_path / "_buffer-000000.safetensors")
    assert all(cut == (ids[-1] != END) for cut, ids in zip(first.cut, first.ids, strict=True))
    assert lines[0]["cut"] == sum(first.cut) / len(first.ids) > 0
    assert lines[0]["answer_tokens"] == np.mean([len(ids) for ids in first.ids]) <= 2
    apart = [sum(a - b) for a, b in zip(first.scores["aligned"], first.scores["reference"], strict=True)]
    assert lines[0]["reward"] == pytest.approx(0.2 * np.mean(apart), rel=1e-5)
    assert lines[0]["entropy"] == pytest.approx(-np.concatenate(first.scores["drawn"]).mean(), rel=1e-5)
    assert all(math.isfinite(line["critic_grad_norm"]) for line in lines)
    assert "critic.score.weight" in dict(student.named_parameters())


def test_an_answer_depends_on_its_row_and_buffer_alone(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = go(folders, tmp_path / "whole", runtime=KEEPING)
    buffers = [RolloutBuffer.load(path) for path in sorted((tmp_path / "whole").glob("_buffer-*"))]
    first = [i for step in (0, 1) for i in step_rows(7, ONE_PASS, step)]
    row = CHOSEN[min(first)].id
    decoding = Decoding(Sampling(1.0, 1.0, 6, 0), (END,), PAD, 32)
    [alone] = generate_block(tiny_llama(0), [PROMPTS[row]], [f"{row} in buffer 0"], decoding)
    assert alone.ids == buffers[0].ids[0].tolist()

    tried = []

    def cramped(model: Any, prompts: Any, *others: Any) -> Any:
        together = others[-1] // (max(map(len, prompts)) + 6)
        tried.append(together)
        if together > 1:
            raise torch.OutOfMemoryError
        return generate_block(model, prompts, *others)

    monkeypatch.setattr(generate, "generate_block", cramped)
    halved, _ = go(folders, tmp_path / "halved", runtime=KEEPING)
    assert max(tried) == 4
    again = [RolloutBuffer.load(path) for path in sorted((tmp_path / "halved").glob("_buffer-*"))]
    assert [[ids.tolist() for ids in b.ids] for b in again] == [[ids.tolist() for ids in b.ids] for b in buffers]
    for ours, theirs in zip(whole.parameters(), halved.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.fixture(scope="module")
def whole(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[list[bytes], bytes]:
    """The weights and the log of a run that was not interrupted."""
    work = tmp_path_factory.mktemp("whole")
    return bytes_of(go(folders, work, **RESUMING)[0]), (work / METRICS).read_bytes()


@pytest.mark.parametrize("dies", [2, 5, 7])
def test_a_run_that_dies_ends_with_the_same_bytes(dies: int, folders: Any, whole: Any, tmp_path: Path) -> None:
    """In the first buffer before any resume point; in the second with one in the first; and with one in the second."""

    def die(step: int, of: int, numbers: Any) -> None:
        assert of == 8
        if step == dies:
            raise Killed

    with pytest.raises(Killed):
        go(folders, tmp_path, **RESUMING, progress=die)
    assert resume_step(tmp_path) == (dies - 1) // 3 * 3
    found, _ = go(folders, tmp_path, **RESUMING)
    assert (bytes_of(found), (tmp_path / METRICS).read_bytes()) == whole


def test_a_buffer_is_forgotten_once_no_resumed_run_needs_it(folders: dict[str, Path], tmp_path: Path) -> None:
    settings = {"rollout_batch": 2, "runtime": Runtime(checkpoint_steps=1)}
    go(folders, tmp_path, **settings)
    assert [path.name for path in tmp_path.glob("_buffer-*")] == ["_buffer-000003.safetensors"]


def test_a_student_with_tokens_that_a_teacher_lacks_is_told_so(folders: dict[str, Path], tmp_path: Path) -> None:
    small = tmp_path / "small"
    tiny_llama(1, vocabulary=8).save_pretrained(small)
    with pytest.raises(online.AdpaError, match="a token that small does not have: its vocabulary has 8 ids"):
        go({**folders, "aligned": small}, tmp_path / "work")
