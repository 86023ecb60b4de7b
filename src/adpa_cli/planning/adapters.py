"""Adapters among the models of a plan: whether a training can go on with one, and whether a stage reads one as it was
trained. Everything here reads JSON and names of tensors."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from adpa_cli.engine.lora import check_lora, check_same, missing_peft
from adpa_cli.errors import AdpaError, UsageError
from adpa_cli.hub import External
from adpa_cli.hub.adapter_folder import AdapterFolder
from adpa_cli.hub.model_folder import ModelFolder
from adpa_cli.planning.lineage import folder_of
from adpa_cli.spec import Quantise, TrainSpec
from adpa_cli.stages import MODEL_ROLES, Input, Node
from adpa_cli.store.store import Store


def check_adapters(node: Node, store: Store) -> tuple[str, ...]:
    """Raise AdpaError where low-rank matrices that a stage is to train cannot be put beside the model that it starts
    from, where it would have to go on with an adapter of another kind, or where it asks for weights of a base that are
    stored otherwise than in the adapter's training; and where peft is missing. Remarks otherwise."""
    said: list[str] = []
    for role, item in node.flat_inputs():
        if role not in MODEL_ROLES or (isinstance(item, External) and not item.is_open):
            continue
        try:
            said += _check(node, role, item, store)
        except AdpaError as error:
            error.hint = error.hint.replace("--set STAGE.", f"--set {node.stage}.")
            raise
    return tuple(said)


def _check(node: Node, role: str, item: Input, store: Store) -> tuple[str, ...]:
    spec = node.spec
    if isinstance(spec, TrainSpec) and role == "model" and spec.lora:
        return _check_training(spec, item, store)
    if isinstance(spec, TrainSpec) and role == "model":
        adapter_of(item, store)
    else:
        _check_stored(node.stage, getattr(spec, "quantise", None), item, store)
    return ()


def adapter_of(item: Input, store: Store) -> TrainSpec | AdapterFolder | None:
    """What a model has beside the weights of its base: an adapter in a folder, or the spec of one that is still to be
    trained; None for whole weights. Raises AdpaError where peft is missing, and for a base that is not there."""
    spec: Any = item.spec if isinstance(item, Node) and store.get(item.label) is None else None
    found = (spec if spec.lora else None) if spec else AdapterFolder.of(folder_of(item, store))
    if found is not None and importlib.util.find_spec("peft") is None:
        raise missing_peft()
    return found


def _check_training(spec: TrainSpec, start: Input, store: Store) -> tuple[str, ...]:
    made = adapter_of(start, store)
    if isinstance(made, TrainSpec):
        check_same(spec, made.rank, made.alpha, made.lora_targets, made.quantise, start.label, ())
        return ()
    folder = folder_of(start, store)
    return check_lora(spec, folder if made else _whole(folder))


def _whole(folder: Path) -> Path:
    """The folder with the shapes of a model that has no adapter when it is trained: one below it was merged."""
    return ModelFolder.of(folder).whole.path


def _check_stored(stage: str, asked: Quantise | None, item: Input, store: Store) -> None:
    """Raise UsageError where a stage asks for another way of storing the base of an adapter than its training had."""
    made = adapter_of(item, store)
    if made is not None and made.quantise and asked not in (None, made.quantise):
        raise UsageError(
            f"quantise={asked}, and the adapter {item.label} was trained beside {made.quantise} weights",
            f"--set {stage}.quantise={made.quantise}, or leave it out",
        )
