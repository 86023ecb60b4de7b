"""How the models of a plan are stored that a stage only reads, and where their layers wait: what is refused before any
work. Everything here reads JSON."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator, Sequence

from adpa_cli.engine.lora import is_expert, missing_bitsandbytes, other_storage
from adpa_cli.errors import UsageError, hints_for
from adpa_cli.hub import External
from adpa_cli.hub.model_folder import ModelFolder
from adpa_cli.planning.adapters import adapter_of
from adpa_cli.planning.lineage import folder_of
from adpa_cli.planning.planner import Plan
from adpa_cli.planning.settings import UserSettings
from adpa_cli.spec import Quantise, Runtime, TrainSpec
from adpa_cli.stages import MODEL_ROLES, Input, Node
from adpa_cli.store.store import Store

COMPARED = ("aligned", "model")
"""Roles of a model that is compared with the one of the role `reference`."""


def check_stored(node: Node, store: Store) -> tuple[str, ...]:
    """Raise AdpaError where weights are to be read in few bits without the library that does it, and UsageError where
    the two models whose difference a stage computes would be stored otherwise. What is remarked is how much of a model
    stays as it is, and that few bits may leave nothing of the difference of two models with whole weights."""
    asked: Quantise | None = getattr(node.spec, "quantise", None)
    models = {
        role: item for role, item in node.flat_inputs()
        if role in MODEL_ROLES and not (isinstance(item, External) and not item.is_open)
    }  # fmt: skip
    stored = {role: _stored(item, store) or asked for role, item in models.items()}
    if any(stored.values()) and importlib.util.find_spec("bitsandbytes") is None:
        raise missing_bitsandbytes()
    role = next((role for role in COMPARED if role in models), None)
    said = tuple(words for role, item in models.items() if stored[role] for words in _expert_words(node, item, store))
    if isinstance(node.spec, TrainSpec) or role is None or "reference" not in models:
        return said
    if stored[role] != stored["reference"]:
        way = stored[role] or stored["reference"]
        raise UsageError(
            f"{node.stage} would read {models[role].label} with {_words(stored[role])} but {models['reference'].label} "
            f"with {_words(stored['reference'])}, so part of their difference would come from rounding",
            f"read both alike: --set {node.stage}.quantise={way}",
        )
    if asked and adapter_of(models[role], store) is None:
        both = f"{models[role].label} and {models['reference'].label}"
        return (
            *said,
            f"{node.stage} quantises {both} to {asked} separately, which may lose much of their difference; "
            "to measure it: adpa show SIGNAL --fidelity --teacher recorded",
        )
    return said


def check_whole(plan: Plan, user: UserSettings, store: Store) -> None:
    """Raise UsageError where a user wrote `quantise=none` for a model whose adapter was trained beside weights in few
    bits: a spec does not tell that from nothing said."""
    for node in plan.nodes(store):
        is_read = not isinstance(node.spec, TrainSpec) and not node.is_settled
        if not is_read or "quantise" not in plan.typed(node, user) or node.spec.quantise:
            continue
        for role, item in node.flat_inputs():
            if role in MODEL_ROLES and (way := _stored(item, store)):
                with hints_for(node.stage):
                    raise other_storage(item.label, way, "whole")


def _expert_words(node: Node, item: Input, store: Store) -> Iterator[str]:
    shapes = ModelFolder.of(folder_of(item, store)).shapes
    left = sum(math.prod(shape) for name, shape in shapes.items() if is_expert(name, shape))
    share = 100 * left / max(1, sum(map(math.prod, shapes.values())))
    if share >= 1:
        yield (
            f"{node.stage} quantises only the linear layers of {item.label}; {share:.0f} % of its weights are experts, "
            "which are not quantised"
        )


def check_offload(nodes: Sequence[Node], runtime: Runtime) -> tuple[str, ...]:
    """Raise UsageError where layers are to wait elsewhere and no stage only reads models."""
    if runtime.offload != "none" and nodes and all(node.declared.kind == "training" for node in nodes):
        raise UsageError(
            f"--runtime offload={runtime.offload} works for models that are only read, and {nodes[0].stage} trains one",
            "leave it out; to save memory in training: --set lora=16 --set quantise=nf4 --runtime recompute=true",
        )
    return ()


def _stored(item: Input, store: Store) -> Quantise | None:
    """How the weights of a model are stored wherever it is read, for its adapter was trained beside them."""
    made = adapter_of(item, store)
    return made.quantise if made is not None else None


def _words(quantise: Quantise | None) -> str:
    return f"{quantise} weights" if quantise else "whole weights"
