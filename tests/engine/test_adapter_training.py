"""The loop with an adapter: its steps are those of the equation, what is frozen stays, and a stopped run goes on."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from adpa_cli.engine.adapters import NAME, adapter_layers, adapter_weights
from adpa_cli.engine.generation.sampling import Decoding, Sampling
from adpa_cli.engine.layout.row_layout import Packer
from adpa_cli.engine.models import load, save
from adpa_cli.engine.ranks import Ranks
from adpa_cli.engine.scoring import label_logps
from adpa_cli.engine.training.adapted import load_adapted
from adpa_cli.engine.training.loop import train
from adpa_cli.engine.training.online import Online, Scorer, Sources
from adpa_cli.engine.training.schedule import learning_rate, step_rows
from adpa_cli.engine.training.step_report import METRICS, parameters_of
from adpa_cli.engine.training.student import Student, critic_of
from adpa_cli.errors import Stopped
from adpa_cli.spec import Dtype
from support.peft_folders import adapter_state
from support.stoppable_runs import ROWS, SIGNAL, stoppable_run
from support.tiny_models import END, PAD, TEMPLATE, tiny_llama, tiny_tokenizer
from support.train_samples import dense_loss, make_run, start_of
from support.tuned_models import spec

LORA = {"lora": 4, "lora_targets": "q_proj,v_proj,gate_proj,down_proj", "seed": 3}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "base"
    save(tiny_llama(0), tiny_tokenizer(), folder, TEMPLATE, "<end>")
    return folder


def fresh(base: Path, dtype: Dtype = "float32") -> Student:
    return Student(load_adapted(base, spec(**LORA, dtype=dtype), "cpu"), dtype)


def lines(work: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (work / METRICS).read_text().splitlines()]


@pytest.mark.parametrize("method", ["sft", "dpo", "dckd", "adpa"])
def test_a_run_is_adamw_over_the_low_rank_matrices_alone(method: str, base: Path, tmp_path: Path) -> None:
    start: Any = tiny_llama(0).double()
    settings = {"epochs": 2.0, "batch_size": 4, "lr": 3e-3, "clip": 0.5, "warmup_ratio": 0.0}
    run = make_run(method, ROWS, SIGNAL, tmp_path, start_of=start_of(tiny_llama(0), ROWS), **settings)
    student = fresh(base)
    frozen = {n: p.clone() for n, p in student.model.named_parameters() if not p.requires_grad}
    begun = {n: t.double().requires_grad_() for n, t in adapter_state(student.model).items()}
    train(student, run, Ranks.here())

    class Merged(torch.nn.Module):
        """The dense model with the products of the matrices added to its weights."""

        def forward(self, **given: Any) -> Any:
            changed = {}
            for path in adapter_layers(student.model):
                down, up = (begun[f"{path}.{part}.{NAME}.weight"] for part in ("lora_A", "lora_B"))
                changed[f"{path}.weight"] = start.get_submodule(path).weight + 2.0 * up @ down
            return torch.func.functional_call(start, changed, (), given)

    optimizer = torch.optim.AdamW(begun.values(), lr=3e-3, weight_decay=0.0)
    losses = []
    for step in range(5):
        optimizer.param_groups[0]["lr"] = learning_rate(step, 5, 3e-3, 0.0)
        optimizer.zero_grad()
        loss = dense_loss(method, Merged(), start, [ROWS[i] for i in step_rows(9, run.spec, step)], SIGNAL, run.params)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(begun.values(), 0.5)
        optimizer.step()
        losses.append(loss.item())
    assert [line["loss"] for line in lines(tmp_path)] == pytest.approx(losses, rel=1e-4)
    for name, tensor in adapter_state(student.model).items():
        torch.testing.assert_close(tensor.double(), begun[name].detach(), rtol=1e-4, atol=6e-5, msg=name)
    assert all(torch.equal(p, frozen[n]) for n, p in student.model.named_parameters() if n in frozen)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_dpo_begins_where_no_answer_is_preferred(dtype: Dtype, base: Path, tmp_path: Path) -> None:
    """Under bfloat16 too, where start log-probs and the training read the same held weights."""
    scored = label_logps(Student(load(base, dtype=dtype), dtype), ROWS, ("chosen", "rejected"), 100_000, "cpu")
    run = make_run("dpo", ROWS, SIGNAL, tmp_path, start_of=scored, batch_size=9)
    train(fresh(base, dtype), run, Ranks.here())
    assert lines(tmp_path)[0]["loss"] == pytest.approx(math.log(2), abs=1e-6 if dtype == "float32" else 2e-3)


def test_packed_rows_give_the_same_gradients(base: Path, tmp_path: Path) -> None:
    ends = []
    for packer in (None, Packer(16, True)):
        student = fresh(base)
        student.packer = packer
        if packer:
            student.model.set_attn_implementation("packed")
        work = tmp_path / str(packer is None)
        train(student, make_run("sft", ROWS, SIGNAL, work, batch_size=9, lr=1e-3), Ranks.here())
        ends.append((adapter_state(student.model), lines(work)[0]["grad_norm"]))
    assert ends[1][1] == pytest.approx(ends[0][1], rel=1e-4)
    for name, tensor in ends[0][0].items():
        torch.testing.assert_close(ends[1][0][name], tensor, rtol=1e-4, atol=1e-4, msg=name)


def test_a_stopped_run_goes_on_to_the_same_bytes_and_keeps_no_frozen_weight(base: Path, tmp_path: Path) -> None:
    whole, stopped = fresh(base), fresh(base)
    train(whole, stoppable_run(tmp_path / "whole", None)[0], Ranks.here())
    with pytest.raises(Stopped):
        train(stopped, stoppable_run(tmp_path / "cut", 7)[0], Ranks.here())
    kept = load_file(next((tmp_path / "cut").glob("_resume-*")) / "model.safetensors")
    assert kept.keys() == {f"model.{name}" for name in adapter_weights(stopped.model)}
    again = fresh(base)
    train(again, stoppable_run(tmp_path / "cut", None)[0], Ranks.here())
    ours, theirs = adapter_state(again.model), adapter_state(whole.model)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert (tmp_path / "cut" / METRICS).read_bytes() == (tmp_path / "whole" / METRICS).read_bytes()


def test_online_training_has_one_base_for_student_and_critic(base: Path, tmp_path: Path) -> None:
    rows = [dataclasses.replace(row, parts={"chosen": row.parts["chosen"]}) for row in ROWS[:4]]
    prompts = {row.id: tuple(int(i) for i in row.parts["chosen"].ids[~row.parts["chosen"].answer]) for row in rows}
    student = fresh(base)
    student.critic = critic_of(student.model, "float32")
    size, trained = parameters_of(student.model), parameters_of(student.model, trained=True)
    assert parameters_of(student) == size + trained + 16, "an adapter and a scalar head more"
    run = make_run("dppo", rows, None, tmp_path, batch_size=2, lr=3e-3)
    params = run.method.params(rollout_batch=4, max_new_tokens=4)
    own = dataclasses.replace(run.spec, params=dataclasses.asdict(params), max_length=32)
    sampling = Sampling(params.temperature, 1.0, params.max_new_tokens, own.seed)
    scorers = {"start": Scorer(base, "float32")}
    for seed, name in enumerate(("aligned", "reference"), 1):
        tiny_llama(seed).save_pretrained(tmp_path / name)
        scorers[name] = Scorer(tmp_path / name, "float32")
    sources = Sources(prompts, scorers, Decoding(sampling, (END,), PAD, own.max_length))
    feed = Online(student, Ranks.here(), rows, sources, own, params, tmp_path, 60)
    before: dict[str, Tensor] = {name: p.clone() for name, p in student.named_parameters()}
    critic_lr = params.critic_lr
    train(student, dataclasses.replace(run, spec=own, params=params, feed=feed, critic_lr=critic_lr), Ranks.here())
    assert lines(tmp_path)[0]["kl"] == pytest.approx(0.0, abs=1e-4), "the student begins as its start"
    moved = {name for name, p in student.named_parameters() if not torch.equal(p, before[name])}
    assert {name.partition(".")[0] for name in moved} == {"model", "critic"}
    assert all(dict(student.named_parameters())[name].requires_grad for name in moved)
