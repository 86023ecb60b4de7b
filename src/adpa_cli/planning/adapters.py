"""Adapters among the models of a plan: whether a training can go on with one, and whether a stage reads one as it was
trained. Everything here reads JSON and names of tensors."""

from __future__ import annotations

import importlib.util

from adpa_cli.engine.lora import check_lora, left_behind, missing_peft, stored_as
from adpa_cli.errors import hints_for
from adpa_cli.hub import External
from adpa_cli.hub.adapter_folder import AdapterFolder
from adpa_cli.planning.lineage import folder_of
from adpa_cli.spec import LowRank, TrainSpec
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
        with hints_for(node.stage):
            said += _check(node, role, item, store)
    return tuple(said)


def _check(node: Node, role: str, item: Input, store: Store) -> tuple[str, ...]:
    spec, made = node.spec, adapter_of(item, store)
    training = spec if isinstance(spec, TrainSpec) and role == "model" else None
    if (made or (training and training.lora)) and importlib.util.find_spec("peft") is None:
        raise missing_peft()
    if training:
        if not training.lora:
            return ()
        said = check_lora(training, folder_of(item, store), made, item.label)
        adapter = _adapter_folder(item, store)
        return (*said, *left_behind(adapter, item.label)) if adapter else said
    stored_as(made, getattr(spec, "quantise", None), item.label)
    return ()


def libraries_of(node: Node, store: Store) -> tuple[str, ...]:
    """The libraries of adapters and of weights in few bits that a stage computes with."""
    adapters = [adapter_of(item, store) for role, item in node.flat_inputs() if role in MODEL_ROLES]
    adapters += [node.spec.low_rank] if isinstance(node.spec, TrainSpec) else []
    stored = [getattr(node.spec, "quantise", None), *(made.quantise for made in adapters if made)]
    return ("peft",) * any(adapters) + ("bitsandbytes",) * any(stored)


def adapter_of(item: Input, store: Store) -> LowRank | None:
    """The low-rank matrices that a model has beside the weights of its base, trained or still to be; None for whole
    weights, and for a model that could not be looked at."""
    if isinstance(item, Node) and store.get(item.label) is None:
        trained: TrainSpec = item.spec
        return trained.low_rank
    adapter = _adapter_folder(item, store)
    return adapter.low_rank if adapter else None


def _adapter_folder(item: Input, store: Store) -> AdapterFolder | None:
    """The folder of an adapter that is there; None for one that is still to be trained, and for another model."""
    is_open = item.is_open if isinstance(item, External) else store.get(item.label) is not None
    return AdapterFolder.of(folder_of(item, store)) if is_open else None
