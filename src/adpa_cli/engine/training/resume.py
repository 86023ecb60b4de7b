"""Resume points: weights that train, optimizer moments and the step, written whole or not at all.

One process writes two safetensors files; several write torch's distributed checkpoint, each its part. Either is read by
any number of processes.
"""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from adpa_cli.disk import share, sync_file, sync_folder, write_atomic
from adpa_cli.engine.ranks import Ranks
from adpa_cli.engine.sharding import put

POINTER = "_resume.json"
PARTS = ".metadata"
"""The file by which a folder is known as torch's distributed checkpoint."""
MODEL, OPTIMIZER = "model", "optimizer"


def save_resume(work: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, ranks: Ranks) -> None:
    """Keep the state after `step` steps, of what is trained, then forget the state before it. Every process takes
    part."""
    folder = work / f"_resume-{step:06d}"
    if ranks.is_first:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    state: dict[int, dict[str, Tensor]] = optimizer.state_dict()["state"]
    moments = {f"{i}.{name}": value for i, entry in state.items() for name, value in entry.items()}
    trained = {name: weight.detach() for name, weight in model.named_parameters() if weight.requires_grad}
    files = {MODEL: trained, OPTIMIZER: moments}
    if ranks.count > 1:
        ranks.wait()
        save(_flat(files), checkpoint_id=folder)
    else:
        for name, tensors in files.items():
            path = folder / f"{name}.safetensors"
            save_file({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}, path)
            share(path)
            sync_file(path)
    if ranks.is_first:
        sync_folder(folder)
        write_atomic(work / POINTER, json.dumps({"step": step, "folder": folder.name}).encode())
        for old in work.glob("_resume-*"):
            if old != folder:
                shutil.rmtree(old)


def resume_step(work: Path) -> int:
    """Steps done at the last resume point; 0 without one."""
    path = work / POINTER
    return int(json.loads(path.read_text())["step"]) if path.exists() else 0


def load_resume(work: Path, model: nn.Module, optimizer: torch.optim.Optimizer, ranks: Ranks) -> int:
    """Put the last resume point into `model` and `optimizer`; returns its step, 0 (and nothing changed) without one."""
    step = resume_step(work)
    if not step:
        return 0
    folder = work / json.loads((work / POINTER).read_text())["folder"]
    weights: dict[str, Tensor] = {name: own for name, own in model.named_parameters() if own.requires_grad}
    owners = [weight for group in optimizer.param_groups for weight in group["params"]]
    read = _parts if (folder / PARTS).exists() else _files
    moments = read(folder, weights, owners, ranks)
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in moments.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return step


def _files(folder: Path, weights: dict[str, Tensor], owners: list[Tensor], ranks: Ranks) -> dict[str, Tensor]:
    """Fill the weights from what one process wrote; the moments, as parts where the weights they are of are."""
    whole = load_file(folder / f"{MODEL}.safetensors")
    for name, weight in weights.items():
        put(weight, whole[name])
    moments = {}
    for key, value in load_file(folder / f"{OPTIMIZER}.safetensors").items():
        moments[key] = value
        if value.dim():
            moments[key] = torch.zeros_like(owners[_owner(key)], dtype=value.dtype)
            put(moments[key], value)
    return moments


def _parts(folder: Path, weights: dict[str, Tensor], owners: list[Tensor], ranks: Ranks) -> dict[str, Tensor]:
    """The same from what several processes wrote."""
    known: dict[str, Any] = FileSystemReader(folder).read_metadata().state_dict_metadata
    moments = {}
    for full, about in known.items():
        file, key = full.split("/", 1)
        if file == OPTIMIZER:
            own = about.properties.dtype
            moments[key] = (
                torch.zeros_like(owners[_owner(key)], dtype=own) if len(about.size) else torch.zeros((), dtype=own)
            )
    trained = {name: weight.detach() for name, weight in weights.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of reading in a single process, which is meant
        load(_flat({MODEL: trained, OPTIMIZER: moments}), checkpoint_id=folder, no_dist=ranks.count == 1)
    return moments


def _owner(key: str) -> int:
    """The number of the weight that a moment is of."""
    return int(key.split(".", 1)[0])


def _flat(files: dict[str, dict[str, Tensor]]) -> dict[str, Any]:
    return {f"{file}/{key}": tensor for file, tensors in files.items() for key, tensor in tensors.items()}
