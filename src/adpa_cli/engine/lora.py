"""Which layers low-rank matrices are put beside, and what of them can be refused by names and shapes alone, before any
work. No torch."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from adpa_cli.errors import AdpaError, UsageError
from adpa_cli.hub.adapter_folder import AdapterFolder
from adpa_cli.hub.model_folder import IN_LAYERS, ModelFolder, header
from adpa_cli.spec import ALL_LINEAR, LowRank, Quantise, TrainSpec, one_spelling
from adpa_cli.store.identity import ADAPTER_WEIGHTS

SCALAR_HEAD = "score.weight"
"""As classifiers of decoders call it in transformers."""
INSTALL = "pip install peft bitsandbytes"
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
"""As configurations call how many outputs a router has."""
_EXPERT = re.compile(r"\.experts?\.")


def missing_peft() -> AdpaError:
    """The error where peft is not installed."""
    return AdpaError("adapters (lora) need the package peft, which is not installed", INSTALL)


def missing_bitsandbytes() -> AdpaError:
    """The error where bitsandbytes is not installed."""
    return AdpaError("quantised weights (quantise) need the package bitsandbytes, which is not installed", INSTALL)


def chosen_layers(names: Sequence[str], targets: str) -> list[str]:
    """Those of the linear layers of a body that `targets` means by ends of names. Raises UsageError for one of none."""
    if targets == ALL_LINEAR:
        return list(names)
    ends = [end.strip() for end in targets.split(",")]
    for end in ends:
        if not any(ends_with(name, end) for name in names):
            there = ",".join(dict.fromkeys(name.rpartition(".")[2] for name in names))
            raise UsageError(
                f"lora_targets: no linear layer in the body of the model is called {end!r}",
                f"name some of its layers, --set STAGE.lora_targets={there}, or all: "
                f"--set STAGE.lora_targets={ALL_LINEAR}",
            )
    return [name for name in names if any(ends_with(name, end) for end in ends)]


def ends_with(name: str, end: str) -> bool:
    """Whether a name ends with whole words of it."""
    return f".{name}".endswith(f".{end}")


def check_rank(rank: int, name: str, shape: Sequence[int]) -> None:
    """Raise UsageError for a rank beyond the weights [out, in] of a layer of that name."""
    if rank > min(shape):
        raise UsageError(
            f"lora={rank} exceeds the rank of {name}, which has {shape[0]:,} × {shape[1]:,} weights",
            f"--set STAGE.lora={min(shape)}, or choose other layers: --set STAGE.lora_targets=NAME,NAME",
        )


def check_lora(spec: TrainSpec, folder: Path, there: LowRank | None, start: str) -> tuple[str, ...]:
    """Raise UsageError where the low-rank matrices of a spec cannot be put beside the model `start`, whose weights are
    in a folder, or where they are not those that it has already, whose training would go on; what is worth saying
    otherwise.

    What a folder without weights does not tell is seen when the model is loaded.
    """
    model = ModelFolder.of(folder)
    shapes = model.shapes
    layers = _linear_layers(shapes)
    if there and (asked := spec.low_rank):
        _check_same(asked, there, start, list(layers))
        if model.adapter:
            _check_apart(model.adapter, start)
    elif layers:
        for name in chosen_layers(list(layers), spec.lora_targets):
            check_rank(spec.rank, name, layers[name])
    has_experts = any(is_expert(name, shape) for name, shape in shapes.items())
    return (f"lora leaves the experts of {start} as they are: they are no linear layers",) if has_experts else ()


def left_behind(adapter: AdapterFolder, start: str) -> tuple[str, ...]:
    """What an adapter called `start` was trained with that a training which goes on with it does not do."""
    said = []
    if dropout := adapter.config.get("lora_dropout"):
        said.append(f"{start} was trained with lora_dropout={dropout:g}, and its training goes on without dropout")
    if kept := sorted({*(adapter.config.get("modules_to_save") or ())} - {SCALAR_HEAD.removesuffix(".weight")}):
        said.append(f"{start} brings {', '.join(kept)} whole, which stay as they are: only its matrices are trained")
    return tuple(said)


def is_expert(name: str, shape: Sequence[int]) -> bool:
    """Whether a tensor of a file is of experts, which are one tensor in a model, or else of no linear layer."""
    return _EXPERT.search(name) is not None or len(shape) > 2


def _linear_layers(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """The linear layers of a body with their shapes, by the names of its weights; none for one with experts, which are
    other tensors in files than in models."""
    if any(is_expert(name, shape) for name, shape in shapes.items()):
        return {}
    return {
        name.removesuffix(".weight"): shape for name, shape in shapes.items()
        if name.endswith(".weight") and len(shape) == 2 and IN_LAYERS.search(name)
    }  # fmt: skip


def _check_same(asked: LowRank, there: LowRank, start: str, layers: Sequence[str]) -> None:
    """Raise UsageError where a training from the adapter `start` asks for another one, and would not go on with it."""
    merge = "or merge it and train all weights: leave lora out"
    for key in ("lora", "lora_alpha", "quantise"):
        wanted, own = (_word(getattr(one, key)) for one in (asked, there))
        if wanted != own:
            raise UsageError(
                f"{start} is an adapter with {key}={own}, and its training cannot continue with {key}={wanted}",
                f"--set STAGE.{key}={own}, {merge}",
            )
    if not _same_layers(asked.lora_targets, there.lora_targets, layers):
        raise UsageError(
            f"{start} is an adapter with lora_targets={there.lora_targets}, and its training cannot continue with "
            f"lora_targets={asked.lora_targets}",
            f"--set {shlex.quote(f'STAGE.lora_targets={there.lora_targets}')}, {merge}",
        )


def _check_apart(adapter: AdapterFolder, start: str) -> None:
    """Raise UsageError for an adapter of which a part is merged when it is read: what is beside the embedding or the
    head, and biases of layers with matrices. A training would lose that part."""
    file = adapter.path / ADAPTER_WEIGHTS
    names = header(file) if file.is_file() else {}
    merged = [n for n in names if ".base_layer." in n or (".lora_" in n and not IN_LAYERS.search(n))]
    if merged:
        raise UsageError(
            f"the training of the adapter {start} cannot continue: a part of it is merged on loading ({merged[0]})",
            f"merge it once and train an adapter of that: adpa export {start} MERGED; or train all weights: leave lora "
            "out",
        )


def stored_as(made: LowRank | None, asked: Quantise | None, name: str) -> Quantise | None:
    """How the weights of a model of that name are stored: as in the training of its adapter, else as is asked.

    Raises UsageError where both say something else.
    """
    there = made.quantise if made else None
    if there and asked not in (None, there):
        raise other_storage(name, there, asked)
    return there or asked


def other_storage(name: str, there: Quantise, asked: str) -> UsageError:
    """The error where the base of an adapter is to be read otherwise than it was stored in training."""
    return UsageError(
        f"{name} is an adapter that was trained with {there} weights, and {asked} weights were requested",
        f"--set STAGE.quantise={there}, or remove that setting",
    )


def _same_layers(asked: str, there: str, layers: Sequence[str]) -> bool:
    """Whether two ways to name layers mean the same among those of a model; where none are known, the same words."""
    if asked == one_spelling(there):
        return True
    try:
        return bool(layers) and set(chosen_layers(layers, asked)) == set(chosen_layers(layers, there))
    except UsageError:
        return False


def _word(value: float | str | None) -> str:
    return "none" if value is None else value if isinstance(value, str) else f"{value:g}"
