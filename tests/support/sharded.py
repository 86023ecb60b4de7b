"""Trainings that several processes share out; alone, a process makes the same of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from transformers.modeling_layers import GradientCheckpointingLayer

from adpa_cli.engine.layout import row_layout
from adpa_cli.engine.layout.row_layout import Packer
from adpa_cli.engine.models import save
from adpa_cli.engine.ranks import Ranks
from adpa_cli.engine.sharding import WholeModel, share_out
from adpa_cli.engine.training.adapted import load_adapted
from adpa_cli.engine.training.checkpoint_selection import HeldOut
from adpa_cli.engine.training.loop import train
from adpa_cli.engine.training.optimizer import tune
from adpa_cli.engine.training.student import Student
from adpa_cli.errors import Stopped
from adpa_cli.spec import Runtime
from support.stoppable_runs import ROWS, SIGNAL, START, stoppable_run
from support.tiny_models import TEMPLATE, tiny_llama, tiny_tokenizer
from support.train_samples import make_run
from support.tuned_models import spec

STEPS = 30
SETTINGS: Mapping[str, Any] = {
    "epochs": 10.0,
    "batch_size": 3,
    "lr": 1e-3,
    "start_of": START,
    "runtime": Runtime(tokens_per_device=60, checkpoint_steps=20),
}
LORA = {"lora": 4, "lora_targets": "q_proj,v_proj,gate_proj,down_proj", "seed": 3}
CASES = {
    "sft": "sft", "dpo recompute": "dpo", "dckd packed": "dckd", "adpa tied": "adpa", "lora": "adpa",
    "lora tied packed": "sft",
}  # fmt: skip
"""Methods by what is said of the model that they train."""


def student_of(case: str, folder: Path) -> Student:
    """The same at every start; `folder` holds the base of one with an adapter."""
    model: Any = tiny_llama(0, tie_word_embeddings="tied" in case).requires_grad_().train()
    if "lora" in case:
        if Ranks.here().is_first:
            save(model, tiny_tokenizer(), folder / case, TEMPLATE, "<end>")
        Ranks.here().wait()
        model = load_adapted(folder / case, spec(**LORA, dtype="float32"), "cpu")
    if "packed" in case:
        model.set_attn_implementation("packed")
    if "recompute" in case:
        tune(model, spec(), Runtime(recompute=True))
    student = Student(model, "float32")
    student.packer = Packer(16, True) if "packed" in case else None
    return student


def trained(student: Student, work: Path, run: Callable[[Path], Any]) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Weights and scores of a student after a run, whole in the first process."""
    ranks = Ranks.here()
    whole = WholeModel.of(student.model, ranks, ranks.count > 1)
    if ranks.count > 1:
        share_out(student, ranks)
        layers = [module for module in student.modules() if isinstance(module, GradientCheckpointingLayer)]
        assert len(layers) == 2
        assert all(isinstance(module, FSDPModule) for module in (student, *layers))
    work.mkdir(parents=True, exist_ok=True)
    train(student, run(work), ranks)
    scores = HeldOut(ROWS, ("chosen", "rejected")).score(student, ranks)
    model = whole.gathered()
    found = {} if model is None else {name: weight.detach().clone() for name, weight in model.named_parameters()}
    return found, scores


def case(name: str, folder: Path) -> dict[str, Tensor]:
    """The weights after the thirty steps of a case, and what held-out rows say of them."""
    weights, scores = trained(
        student_of(name, folder / "bases"),
        folder / name,
        lambda work: make_run(CASES[name], ROWS, SIGNAL, work, **SETTINGS),
    )
    return {**weights, **{key: torch.tensor(value, dtype=torch.float64) for key, value in scores.items()}}


def resumed(work: Path, at: int | None) -> dict[str, Tensor]:
    """The weights of a run that goes on in `work`, if it was begun there; none where it stops `at` a step again."""
    try:
        return trained(student_of("dpo", work), work, lambda work: stoppable_run(work, at)[0])[0]
    except Stopped:
        return {}


def main(folder: Path) -> None:
    """Leave the weights of all cases, and of the runs that were begun in `folder`, each by its name."""
    row_layout.FEW_TOKENS = 0  # processes would make unequally many forward passes, if they could
    ranks = Ranks.here()
    made = {name: case(name, folder) for name in CASES}
    made |= {work.name: resumed(work, None) for work in sorted(folder.glob("begun-*"))}
    if ranks.count == 2:
        resumed(folder / "left-2", 7)
    for name, weights in made.items() if ranks.is_first else ():
        save_file(weights, folder / f"{name}.safetensors")
