"""What `--runtime` and the dtype of the weights do to the model that is trained, in place, and to no other model."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import shutil
import sys
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import torch
from transformers import AttentionInterface, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils.import_utils import is_liger_kernel_available

from adpa_cli.engine import packed
from adpa_cli.engine.models import SCALAR_HEAD
from adpa_cli.errors import AdpaError, UsageError
from adpa_cli.spec import Runtime, TrainSpec

LIGER = "liger-kernel"
WITHOUT_ITS_LOSS = {"cross_entropy": False, "fused_linear_cross_entropy": False, "rope": False}
"""Losses are ours, and rotary positions are a function of transformers' module, which teachers use too."""


def tune(model: PreTrainedModel, spec: TrainSpec, runtime: Runtime) -> dict[str, Any]:
    """Prepare a loaded `model` for training as asked; what was done, where that is not the default, by key.

    Raises AdpaError or UsageError, with what else to ask for, where the machine or the model cannot do it.
    """
    done: dict[str, Any] = {} if runtime.fused or spec.weights == "bfloat16" else {"fused": False}
    _narrow(model)
    if runtime.attention != "auto":
        _attend(model, runtime.attention)
        done["attention"] = runtime.attention
    # The compiler fuses the same layers, and cannot look into kernels of others.
    if _fuse(model, "off" if runtime.compile else runtime.liger):
        done["liger"] = version(LIGER)
    if runtime.recompute:
        _recompute(model)
        done["recompute"] = True
    if runtime.compile:
        _compile(model, runtime.recompute)
        done["compile"] = True
    if spec.weights == "bfloat16":
        _round(model)
    return done


def _narrow(model: PreTrainedModel) -> None:
    """Let the norms before attention and feed-forward round their output under autocast.

    Each of the products that read it would round it for itself, and hand back a float32 gradient for itself.
    """
    for layer in model.modules():
        if isinstance(layer, GradientCheckpointingLayer) and not hasattr(layer, "post_feedforward_layernorm"):
            for name in ("input_layernorm", "post_attention_layernorm"):
                norm = getattr(layer, name, None)
                if norm is not None:
                    norm.register_forward_hook(_narrowed)


def _narrowed(_module: torch.nn.Module, _args: Any, output: torch.Tensor) -> torch.Tensor:
    kind = output.device.type
    return output.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else output


def _round(model: PreTrainedModel) -> None:
    """Weights in bfloat16; tables of rotary positions, which are no weights, and a scalar head stay float32."""
    for name, weight in model.named_parameters():
        if name != SCALAR_HEAD:
            weight.data = weight.data.to(torch.bfloat16, memory_format=torch.contiguous_format)


def _attend(model: PreTrainedModel, name: str) -> None:
    before = model.config._attn_implementation
    try:
        model.set_attn_implementation(name)
        if before != name and model.config._attn_implementation == before:  # which it only logs
            raise ValueError(f"{type(model).__name__} has {before} only")
    except (ValueError, ImportError, OSError) as error:
        raise UsageError(
            f"--runtime attention={name}: {str(error).strip().splitlines()[0]}",
            "--runtime attention=auto, or one of eager, sdpa, flex_attention, flash_attention_2",
        ) from error


def _recompute(model: PreTrainedModel) -> None:
    untyped: Any = model
    # newer versions of transformers warn of the second name, the oldest that we take have no other
    enable = getattr(untyped, "activation_checkpointing_enable", None) or untyped.gradient_checkpointing_enable
    try:
        enable({"use_reentrant": False})
    except ValueError as error:
        raise AdpaError(
            f"--runtime recompute=true: {error}", "--tokens-per-device N with a smaller N saves memory too"
        ) from error


def _compile(model: PreTrainedModel, recompute: bool) -> None:
    """Compile each layer by itself, for any batch and length: all have one code, so this takes the time of one.

    What is computed again must be one graph to the compiler, which attention to packed rows is not: there the parts of
    a layer are compiled.
    """
    kind = model.device.type
    named = os.environ.get("CXX" if kind == "cpu" else "CC", "")
    compilers = [name for name in (named, "g++", "gcc", "clang++", "clang", "cc") if name]
    lacking = None if any(map(shutil.which, compilers)) else "a C++ compiler, such as g++"
    if kind == "cuda" and importlib.util.find_spec("triton") is None:
        lacking = "triton"
    layers = [layer for layer in model.modules() if isinstance(layer, GradientCheckpointingLayer)]
    if lacking or not layers:
        why = f"torch.compile needs {lacking}" if lacking else f"the layers of {type(model).__name__} are not known"
        raise AdpaError(f"--runtime compile=true: {why}", "--runtime compile=false")
    apart: Any = torch.compiler.disable  # attention to packed rows reads their layout, which no two share
    AttentionInterface.register(packed.NAME, apart(packed.attend))
    for part in [part for layer in layers for part in layer.children()] if recompute else layers:
        part.compile(dynamic=True)


def _fuse(model: PreTrainedModel, asked: str) -> bool:
    """Give this model the norms and feed-forward layers of liger-kernel; whether that was done.

    Raises AdpaError where `asked` is "on" and it cannot be.
    """
    if asked == "off":
        return False
    why, hint = "", "--runtime liger=auto"
    if model.device.type != "cuda":
        why = f"{LIGER} runs on GPUs, and this is {model.device.type}"
    elif not is_liger_kernel_available():
        why, hint = f"{LIGER} is not installed", "pip install 'adpa-cli[kernels]'"
    else:
        why = _fused(model)
    if why and asked == "on":
        raise AdpaError(f"--runtime liger=on: {why}", hint)
    return not why


def _fused(model: PreTrainedModel) -> str:
    """Do it; why it cannot be done, or ""."""
    integration: Any = importlib.import_module("transformers.integrations.liger")
    try:
        with _restored(sys.modules[type(model).__module__]):
            integration.apply_liger_kernel(model, WITHOUT_ITS_LOSS)
    except ImportError as error:  # of a triton, or for a transformers, that it does not work with
        return str(error)
    done = any("forward" in vars(module) for module in model.modules())
    return "" if done else f"{LIGER} does not know {type(model).__name__}"


@contextlib.contextmanager
def _restored(module: Any) -> Iterator[None]:
    """What is done to the names of a module is undone: models loaded later, such as teachers, keep their layers."""
    before = dict(vars(module))
    try:
        yield
    finally:
        vars(module).update(before)
