"""Low-rank adapters (LoRA, Hu et al. 2022) beside the frozen weights of a model, as peft has them.

A layer with the weight W computes W x + s B (A x), where A [r, in] and B [out, r] are float32 and s is alpha / r. B is
0 at the start, so that an adapter begins as the model without it, to the bit. W stays as it is held (`frozen`): what an
adapter learns is never rounded to it. Under float16 and tf32 the products with A and B are float32, outside of
autocast; under bfloat16 they are as autocast makes them in a training.

The head is no layer of the body, for log-probs are computed through its weight alone. Where a folder of others changes
the head or the embedding, that is merged, for neither is held in fewer bits. Tensors that a folder brings whole, such
as the scalar head of a reward model, take the place of the model's own.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from adpa_cli.engine.arithmetic import HELD_IN, in_float32
from adpa_cli.engine.frozen import Place, check_finite, held, held_places
from adpa_cli.engine.lora import EXPERTS, check_rank, chosen_layers, ends_with, missing_peft
from adpa_cli.engine.quantised import QuantisedLinear, library
from adpa_cli.errors import AdpaError, NotFound
from adpa_cli.hub.adapter_folder import AdapterFolder
from adpa_cli.hub.model_folder import header
from adpa_cli.hub.portable import edit_settings, write_settings
from adpa_cli.spec import ALL_LINEAR, Dtype, Quantise, TrainSpec
from adpa_cli.store.identity import ADAPTER, ADAPTER_BASE, ADAPTER_WEIGHTS

NAME = "default"
"""What peft calls an adapter in a model, which stands in the names of its tensors there."""
PREFIX = "base_model.model."
"""What stands before the names of tensors in a folder of peft."""
TEXT_PART = "language_model."
"""What stands in the names of the part that reads text in a model of several parts."""
LAYERS = (nn.Linear, Conv1D)


@dataclass(frozen=True)
class Base:
    """What an adapter is trained on: its `folder`, and what that has by `content`, "" where nobody knows; where it is
    of the hub its `name` and `revision`; how its weights are stored; its layers that were asked for; and whether it has
    several parts, of which the adapter's model is the one that reads text."""

    folder: Path
    content: str
    name: str = ""
    revision: str = ""
    quantise: Quantise | None = None
    targets: str = ""
    has_text_part: bool = False


def peft(module: str = "") -> Any:
    """The library, or a module of it. Raises AdpaError, with what to install, where it is missing."""
    with contextlib.suppress(AdpaError):
        library()  # which peft would import otherwise, and which then warns of kernels that are not used here
    try:
        return importlib.import_module(f"peft{module}")
    except ImportError as error:
        raise missing_peft() from error


def has_adapter(model: nn.Module) -> bool:
    """Whether a model has an adapter beside its weights."""
    return "peft_config" in vars(model)


def adapter_layers(model: nn.Module) -> dict[str, Any]:
    """The layers of a model with low-rank matrices, by name."""
    kind: Any = peft(".tuners.lora").LoraLayer
    return {name: module for name, module in model.named_modules() if isinstance(module, kind)}


def adapter_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """The low-rank matrices of a model, and whatever else belongs to its adapter alone, by name."""
    return {name: weight for name, weight in model.named_parameters() if _is_adapter_weight(name)}


def _is_adapter_weight(name: str) -> bool:
    return ".lora_" in name


def add_adapter(model: PreTrainedModel, body: nn.Module, spec: TrainSpec) -> None:
    """Put a new adapter beside those layers of `body` that a spec asks for.

    A is drawn by the seed of the spec and the number of its layer, alike in every process and on every device; B is 0.
    Raises UsageError for targets that match nothing, and for a rank beyond a matrix.
    """
    layers, ends = _targets(model, body, spec.lora_targets)
    for name, layer in layers.items():
        check_rank(spec.rank, name, _shape(layer))
    settings = {
        "r": spec.rank, "lora_alpha": _plain(spec.alpha), "target_modules": ends,
        "fan_in_fan_out": any(isinstance(layer, Conv1D) for layer in layers.values()),
        "task_type": "CAUSAL_LM" if model.can_generate() else "SEQ_CLS",
    }  # fmt: skip
    _inject(model, settings, str(model.device))
    with torch.no_grad():
        for number, layer in enumerate(adapter_layers(model).values()):
            _begin(layer.lora_A[NAME].weight, spec.seed, number)
            layer.lora_B[NAME].weight.zero_()


def _begin(weight: Tensor, seed: int, number: int) -> None:
    """Fill A [r, in] as peft does, evenly between ± 1 / √in, with numbers of a CPU that depend on nothing else."""
    source = torch.Generator().manual_seed(int(np.random.SeedSequence([seed, number]).generate_state(1)[0]))
    bound = weight.shape[1] ** -0.5
    weight.copy_(torch.empty(weight.shape).uniform_(-bound, bound, generator=source))


def _plain(value: float) -> float | int:
    """A number as peft writes it: a whole one without a point."""
    return int(value) if float(value).is_integer() else value


def train_adapter(model: nn.Module, scalar_head: str = "") -> None:
    """Let the adapter of a model train, it alone, or with the tensor of that name; a scalar head is saved with it."""
    model.train(True)
    for name, weight in model.named_parameters():
        weight.requires_grad_(_is_adapter_weight(name) or name == scalar_head)
    if scalar_head:
        _keep_whole(model, [scalar_head])
        untyped: Any = model
        untyped.peft_config[NAME].task_type = "SEQ_CLS"  # whatever the adapter was before that goes on


def _shape(layer: Any) -> tuple[int, int]:
    """Outputs and inputs of a linear layer, whatever its weights are stored as."""
    if isinstance(layer, nn.Linear):
        return layer.out_features, layer.in_features
    inputs, outputs = layer.weight.shape
    return int(outputs), int(inputs)


def _targets(model: PreTrainedModel, body: nn.Module, targets: str) -> tuple[dict[str, nn.Module], list[str]]:
    """The layers that get matrices, and the ends of names by which peft finds these and no other module. A gate, or a
    router of experts, is one only where it is named."""
    within, modules = set(body.modules()), dict(model.named_modules())
    linear = [name for name, module in modules.items() if module in within and isinstance(module, LAYERS)]
    usable = _read_by_peft(model, linear)
    names = chosen_layers([name for name in linear if name in usable], targets)
    if targets == ALL_LINEAR:
        config = model.config.get_text_config()
        gates = {1, *(getattr(config, name, None) for name in EXPERTS)}
        names = [name for name in names if _shape(modules[name])[0] not in gates]
    ends = sorted({name.rpartition(".")[2] for name in names})
    if {name for name in modules if any(ends_with(name, end) for end in ends)} != set(names):
        ends = sorted(names)
    return {name: modules[name] for name in names}, ends


def _read_by_peft(model: PreTrainedModel, names: Sequence[str]) -> set[str]:
    """Those of some layers that peft finds by their names.

    Where transformers keeps all experts of a layer in one tensor, peft takes names that single experts once had for
    that tensor, also where other layers are called so.
    """
    if int(transformers.__version__.partition(".")[0]) < 5:
        return set(names)
    conversion = peft(".utils.transformers_weight_conversion")
    trial = peft().LoraConfig(target_modules=list(names))
    conversion.convert_peft_config_for_transformers(trial, model=model, conversions=None)
    return set(trial.target_modules)


def _inject(model: PreTrainedModel, settings: Mapping[str, Any], device: str) -> None:
    """Put low-rank matrices beside the layers that a configuration of peft names. What they hold is yet to be written,
    in float32."""
    library = peft()
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of fan_in_fan_out, which peft corrects by itself
        library.inject_adapter_in_model(library.LoraConfig(**settings), model, NAME)
    for name, weight in adapter_weights(model).items():
        path, _, attribute = name.rpartition(".")
        Place(model.get_submodule(path), attribute).put(torch.empty(weight.shape, device=device))


@torch.no_grad()
def attach_adapter(
    model: PreTrainedModel, body: nn.Module, adapter: AdapterFolder, dtype: Dtype, device: str = "cpu"
) -> None:
    """Put the adapter of a folder beside the layers of a frozen model that is held for products in `dtype`.

    Raises AdpaError for one that does not fit the model, that is damaged, or that computes in a way which is not read.
    """
    settings, tensors = adapter.settings, adapter_tensors(adapter)
    if settings.get("use_dora") and any(isinstance(module, QuantisedLinear) for module in body.modules()):
        raise AdpaError(
            f"the adapter {adapter.path} is a DoRA, which needs the unquantised weights of its base",
            "do not quantise the base: --set STAGE.quantise=none",
        )
    whole = {name: tensors.pop(name) for name in list(tensors) if not _is_adapter_weight(name)}
    _put_whole(model, body, adapter, whole, dtype, device)
    try:
        _inject(model, settings, device)
    except ValueError as error:  # none of its layers is there
        raise _misfit(adapter, str(error).splitlines()[0]) from error
    _fill(model, tensors, adapter)
    _keep_whole(model, whole)
    products = {module for module in body.modules() if isinstance(module, LAYERS)}
    merge_adapter(model, [name for name, layer in adapter_layers(model).items() if layer.base_layer not in products])
    if dtype in ("float16", "tf32"):
        for layer in adapter_layers(model).values():
            for part in (*layer.lora_A.values(), *layer.lora_B.values()):
                part.forward = in_float32(part.forward)


def shape_in(adapter: AdapterFolder, name: str) -> tuple[int, ...]:
    """The shape of a tensor of the model that a folder brings whole; () where it does not. Raises DataError."""
    path = adapter.path / ADAPTER_WEIGHTS
    entries = header(path) if path.is_file() else {}
    return next((tuple(entry["shape"]) for key, entry in entries.items() if _own_name(key) == name), ())


def adapter_tensors(adapter: AdapterFolder) -> dict[str, Tensor]:
    """The tensors of an adapter, float32, by their names in the model. Raises AdpaError where they cannot be read."""
    path = adapter.path / ADAPTER_WEIGHTS
    if not path.is_file():
        raise NotFound(f"the adapter {adapter.path} has no {ADAPTER_WEIGHTS}", "download or write the folder again")
    try:
        read = load_file(path)
    except (OSError, SafetensorError) as error:
        raise AdpaError(f"{path} cannot be read: {error}", "download or write the folder again") from error
    for name, tensor in read.items():
        check_finite(tensor, name, adapter.path)
    return {_own_name(name): tensor.float() for name, tensor in read.items()}


def _own_name(name: str) -> str:
    """What a tensor of an adapter's file is called in the model; the part that reads text stands alone there."""
    return re.sub(rf"(^|\.){re.escape(TEXT_PART)}", r"\1", name.removeprefix(PREFIX).replace(".base_layer.", "."))


def _key(name: str) -> str:
    """What low-rank matrices of a model are called in a file: without what peft calls the adapter."""
    key = re.sub(rf"(\.lora_\w+)\.{NAME}", r"\1", name)
    return key.removesuffix(".weight") if ".lora_magnitude_vector" in key else key


def _put_whole(
    model: PreTrainedModel,
    body: nn.Module,
    adapter: AdapterFolder,
    tensors: Mapping[str, Tensor],
    dtype: Dtype,
    device: str,
) -> None:
    """Put tensors in the place of the model's own, those of products as they are held or stored."""
    held_keys = {(id(p.module), p.attribute): p.key for p in held_places(body, dtype)} if dtype in HELD_IN else {}
    own = dict(model.named_parameters(remove_duplicate=False))
    for name, tensor in tensors.items():
        path, _, attribute = name.rpartition(".")
        if name not in own:
            raise _misfit(adapter, f"it has no {name}")
        if own[name].untyped_storage().nbytes() < own[name].nbytes:
            raise AdpaError(
                f"the adapter {adapter.path} replaces {name} as a whole, which does not work with offloading",
                "remove --runtime offload",
            )
        module: Any = model.get_submodule(path)
        is_stored = isinstance(module, QuantisedLinear) and attribute == "weight"
        shape = torch.Size(_shape(module)) if is_stored else own[name].shape
        if shape != tensor.shape:
            raise _misfit(adapter, f"{name} is {list(shape)} there, and {list(tensor.shape)} in the adapter")
        key = held_keys.get((id(module), attribute), "")
        if is_stored:
            module.store(tensor.to(device), name)
        else:
            Place(module, attribute).put(held(tensor.to(device), key, dtype) if key else tensor.to(device))


def _fill(model: PreTrainedModel, tensors: Mapping[str, Tensor], adapter: AdapterFolder) -> None:
    """Write tensors into the matrices of a model; AdpaError where some fit none, or where some are missing."""
    own = {_key(name): weight for name, weight in adapter_weights(model).items()}
    if beyond := sorted(tensors.keys() - own.keys()):
        raise _misfit(adapter, f"it has no layer for {len(beyond)} tensors, {beyond[0]} among them")
    if missing := sorted(own.keys() - tensors.keys()):
        raise _misfit(adapter, f"{len(missing)} of the adapter's tensors are missing, {missing[0]} among them")
    for name, weight in own.items():
        if weight.shape != tensors[name].shape:
            shapes = f"{list(weight.shape)} there, and {list(tensors[name].shape)} in the adapter"
            raise _misfit(adapter, f"{name} is {shapes}")
        weight.copy_(tensors[name])


def _misfit(adapter: AdapterFolder, why: str) -> AdpaError:
    return AdpaError(
        f"the adapter {adapter.path} does not fit its base {adapter.base}: {why}",
        f"name the model that it was trained on in {adapter.path / ADAPTER}, as base_model_name_or_path",
    )


def _keep_whole(model: Any, names: Iterable[str]) -> None:
    """Remember tensors of a model that are saved with its adapter."""
    config = model.peft_config[NAME]
    modules = {name.rpartition(".")[0] for name in names}
    config.modules_to_save = sorted(modules.union(config.modules_to_save or ())) or None


@torch.no_grad()
def merge_adapter(model: Any, names: Sequence[str] | None = None) -> None:
    """Add what low-rank matrices make to the weights of their layers, float32, and take them away: of some layers, or
    of all. The tensors of the model then have the names that they had before."""
    layers = adapter_layers(model)
    for name in layers if names is None else names:
        layer, (path, _, attribute) = layers[name], name.rpartition(".")
        base = layer.base_layer
        base.weight = nn.Parameter(base.weight.float(), requires_grad=False)  # a tensor that is tied stays as it is
        try:
            layer.merge(safe_merge=True)
        except (ValueError, RuntimeError) as error:
            raise AdpaError(f"the adapter cannot be merged into {name}: {error}", "use it as an adapter") from error
        setattr(model.get_submodule(path), attribute, base)
    if names is None:
        del model.peft_config


def write_adapter(model: Any, folder: Path, base: Base) -> None:
    """Write the adapter of a model as peft does; equal weights give equal bytes. Its base is a path from `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    config = model.peft_config[NAME]
    whole = {
        name: tensor for name, tensor in model.state_dict().items()
        if name.rpartition(".")[0] in (config.modules_to_save or ())
    }  # fmt: skip
    tensors = {_key(name): weight.detach() for name, weight in adapter_weights(model).items()} | whole
    if base.has_text_part:
        tensors = {re.sub(r"^model\.", f"model.{TEXT_PART}", name): tensor for name, tensor in tensors.items()}
    written = {f"{PREFIX}{name}": tensor.to("cpu", torch.float32).contiguous() for name, tensor in tensors.items()}
    save_file(written, folder / ADAPTER_WEIGHTS, {"format": "pt"})
    values = {key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()}
    write_settings(folder / ADAPTER, {**values, "inference_mode": True})
    write_settings(folder / ADAPTER_BASE, {"content": base.content, "quantise": base.quantise, "targets": base.targets})
    name_base(folder, base)


def name_base(folder: Path, base: Base) -> None:
    """Write into an adapter folder where its base is, as seen from there: after it was moved it is elsewhere."""
    place = os.path.relpath(os.path.realpath(base.folder), os.path.realpath(folder))
    said = {"base_model_name_or_path": base.name or place, "revision": base.revision or None}
    edit_settings(folder / ADAPTER, said)
