"""The adapter that a training changes beside a frozen base: a new one, or that of the folder which it starts from."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedModel

from adpa_cli.engine.adapters import Base, add_adapter, train_adapter
from adpa_cli.engine.lora import SCALAR_HEAD, check_lora
from adpa_cli.engine.models import body_of, load, load_checked
from adpa_cli.hub.adapter_folder import AdapterFolder
from adpa_cli.hub.model_folder import ModelFolder
from adpa_cli.hub.repository import title
from adpa_cli.spec import TrainSpec


def load_adapted(folder: Path, spec: TrainSpec, device: str, scalar: bool = False) -> PreTrainedModel:
    """The model in `folder`, held for products in the dtype of the training and stored as its spec says, with the
    adapter that trains; with `scalar` under a scalar head that trains too.

    Raises as `check_lora`, `load_checked` and `add_adapter` do.
    """
    adapter = AdapterFolder.of(folder)
    check_lora(spec, folder, adapter.low_rank if adapter else None, str(folder))
    if scalar:
        model = load(folder, dtype=spec.dtype, device=device, scalar=True, quantise=spec.quantise, new_head=True)
    else:
        model = load_checked(folder, dtype=spec.dtype, device=device, quantise=spec.quantise)
    if adapter is None:
        add_adapter(model, body_of(model), spec)
    train_adapter(model, SCALAR_HEAD if scalar else "")
    return model


def base_of(folder: Path, content: str, spec: TrainSpec) -> Base:
    """What the adapter of a training is one of that starts from `folder`, a model of that content. A base of the hub is
    at the commit that is here."""
    adapter = AdapterFolder.of(folder)
    base, content = (adapter.base, adapter.content) if adapter else (folder, content)
    is_cached = base.parent.name == "snapshots" and title(base) != base.name
    name, revision = (title(base), base.name) if is_cached else ("", "")
    has_text_part = ModelFolder.of(base).has_text_part
    return Base(base, content, name, revision, spec.quantise, spec.lora_targets, has_text_part)
