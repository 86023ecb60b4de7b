"""Adapter folders as other programs write them: by peft, with matrices that change what the base says."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from adpa_cli.engine.adapters import adapter_weights


def adapter_state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A copy of the low-rank matrices of a model, by name."""
    return {name: weight.detach().clone() for name, weight in adapter_weights(model).items()}


def write_adapter(folder: Path, base: Path, named: str | Path | None = None, seed: int = 0, **lora: Any) -> Path:
    """A LoRA adapter of the model in `base`, whose place is written as `named`; its second matrices are not 0."""
    settings = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "down_proj"], **lora}
    whole = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers 5 by an older name
        model: Any = get_peft_model(whole, LoraConfig(task_type="CAUSAL_LM", **settings))
    torch.manual_seed(seed)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=0.1)
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    path = folder / "adapter_config.json"
    said = json.loads(path.read_text())
    path.write_text(json.dumps({**said, "base_model_name_or_path": str(base if named is None else named)}))
    return folder
