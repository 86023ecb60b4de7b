"""Weights in another dtype, file by file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from adpa_cli.engine.models import Dtype


def recast(folder: Path, dtype: Dtype) -> None:
    """Write the float tensors of every safetensors file of a model folder in `dtype`, and say so in its config."""
    wanted = getattr(torch, dtype)
    total = 0
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  it is no mapping
        cast = {name: tensor.to(wanted) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
        total += sum(tensor.nbytes for tensor in cast.values())
        mode = path.stat().st_mode
        save_file(cast, path, {"format": metadata.get("format", "pt")})
        path.chmod(mode)  # safetensors writes for the owner alone
    _edit(folder / "config.json", {"dtype": dtype})
    _edit(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}})


def _edit(path: Path, changes: Mapping[str, Any]) -> None:
    if path.exists():
        raw = {**json.loads(path.read_text(encoding="utf-8")), **changes}
        path.write_text(json.dumps(raw, indent=2) + "\n", encoding="utf-8")
