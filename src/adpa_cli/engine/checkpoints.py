"""Resume points of a training run: weights, optimizer moments and the step, written whole or not at all.

There is no other state: dropout is off, the order of the data and the learning rate are functions of the step.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from adpa_cli.store.disk import sync_file, sync_folder, write_atomic

POINTER = "_resume.json"


def save_resume(work: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Keep the state after `step` steps, then forget the state before it."""
    folder = work / f"_resume-{step:06d}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    save_file(
        {name: p.detach().cpu().contiguous() for name, p in model.named_parameters()}, folder / "model.safetensors"
    )
    save_file(_moments(optimizer), folder / "optimizer.safetensors")
    for path in folder.iterdir():
        sync_file(path)
    sync_folder(folder)
    write_atomic(work / POINTER, json.dumps({"step": step, "folder": folder.name}).encode())
    for old in work.glob("_resume-*"):
        if old != folder:
            shutil.rmtree(old)


def resume_step(work: Path) -> int:
    """Steps done at the last resume point; 0 without one."""
    path = work / POINTER
    return int(json.loads(path.read_text())["step"]) if path.exists() else 0


def load_resume(work: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Put the last resume point into `model` and `optimizer`; returns its step, 0 (and nothing changed) without one."""
    step = resume_step(work)
    if not step:
        return 0
    folder = work / json.loads((work / POINTER).read_text())["folder"]
    weights = load_file(folder / "model.safetensors")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])
    flat = load_file(folder / "optimizer.safetensors")
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in flat.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return step


def _moments(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    state: dict[int, dict[str, Any]] = optimizer.state_dict()["state"]
    return {f"{i}.{name}": v.detach().cpu().contiguous() for i, entry in state.items() for name, v in entry.items()}
