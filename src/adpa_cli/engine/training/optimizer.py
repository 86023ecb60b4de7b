"""The optimizer of a training, and what `--runtime` and the dtype of the weights do to the model that is trained.

The optimizer is AdamW, or where weights are bfloat16 one that rounds each of its results at random.

A float32 weight w takes 16 bytes (itself, gradient, two moments) and 2 of its copy in products. In bfloat16 all four
take 8, but a step is often smaller than half the distance of two neighbours, so rounding to the nearest would lose it,
and the second moment, which moves by a thousandth, would stand still. A result x between neighbours a < b is rounded to
b with probability (x - a) / (b - a): its mean is x, and small steps add up.

`tune` changes the model that is trained in place, and no other model.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
import sys
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils.import_utils import is_liger_kernel_available

from adpa_cli.engine.layout import row_layout
from adpa_cli.engine.lora import SCALAR_HEAD
from adpa_cli.errors import AdpaError, UsageError
from adpa_cli.spec import Runtime, TrainSpec
from adpa_cli.tensors.rounding import NOISE_BITS, rounded

CHUNK = 2**21
"""Weights updated at a time, in some 40 bytes of float32 and noise each."""
LIGER = "liger-kernel"
WITHOUT_ITS_LOSS = {"cross_entropy": False, "fused_linear_cross_entropy": False, "rope": False}
"""Losses are ours, and rotary positions are a function of transformers' module, which teachers use too."""


def make_optimizer(models: Sequence[nn.Module], peaks: Sequence[float], spec: TrainSpec, fused: bool) -> Any:
    """AdamW with one group for each of `models`, at its own peak learning rate."""
    groups: Any = [
        {"params": [p for p in model.parameters() if p.requires_grad], "lr": peak}
        for model, peak in zip(models, peaks, strict=True)
    ]
    betas = (spec.adam_beta1, spec.adam_beta2)
    if spec.weights == "bfloat16":
        return RoundingAdamW(groups, betas=betas, weight_decay=spec.weight_decay, seed=spec.seed)
    return torch.optim.AdamW(groups, lr=spec.lr, betas=betas, weight_decay=spec.weight_decay, fused=fused)


class RoundingAdamW(torch.optim.Optimizer):
    """AdamW (Loshchilov & Hutter 2019) computed in float32; bfloat16 weights and moments are rounded at random.

    Moments have the dtype of their weight; a float32 weight is updated as ever. The noise is a function of `seed`, the
    step and the weight's number, so that a run that goes on, and every process, ends with the same bytes.
    """

    def __init__(self, groups: Iterable[Any], betas: tuple[float, float], weight_decay: float, seed: int) -> None:
        super().__init__(groups, {"lr": 0.0, "betas": betas, "eps": 1e-8, "weight_decay": weight_decay})
        self.seed = seed

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Update every weight that has a gradient."""
        places = [(group, weight) for group in self.param_groups for weight in group["params"]]
        for number, (group, weight) in enumerate(places):
            if weight.grad is not None:
                self._update(weight, weight.grad, group, number)

    def _update(self, weight: Tensor, grads: Tensor, group: dict[str, Any], number: int) -> None:
        state = self.state[weight]
        if not state:
            state.update(step=torch.zeros(()), exp_avg=torch.zeros_like(weight), exp_avg_sq=torch.zeros_like(weight))
        state["step"] += 1
        step = int(state["step"])
        source = torch.Generator(weight.device)
        source.manual_seed(int(np.random.SeedSequence([self.seed, step, number]).generate_state(1)[0]))
        kept = (weight, state["exp_avg"], state["exp_avg_sq"])
        chunks = (torch.split(tensor.view(-1), CHUNK) for tensor in kept)
        for grad, *old in zip(torch.split(grads.reshape(-1), CHUNK), *chunks, strict=True):
            new = adamw(*(tensor.float() for tensor in (grad, *old)), step=step, **group)
            noise = torch.randint(2 ** (NOISE_BITS * len(old)), grad.shape, generator=source, device=grad.device)
            for tensor, values in zip(old, new, strict=True):
                tensor.copy_(values if tensor.dtype == values.dtype else rounded(values, noise % 2**NOISE_BITS))
                noise >>= NOISE_BITS


def adamw(
    grad: Tensor,
    weight: Tensor,
    mean: Tensor,
    square: Tensor,
    *,
    step: int,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    **_: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """Weight, first and second moment after `step`, counted from 1; all [n] float32, the last three in place."""
    mean.lerp_(grad, 1 - betas[0])
    square.mul_(betas[1]).addcmul_(grad, grad, value=1 - betas[1])
    scale = (square / (1 - betas[1] ** step)).sqrt_().add_(eps)
    weight.mul_(1 - lr * weight_decay).addcdiv_(mean, scale, value=-lr / (1 - betas[0] ** step))
    return weight, mean, square


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
        for name, weight in model.named_parameters():  # tables of rotary positions are no weights, and stay float32
            if name != SCALAR_HEAD:
                weight.data = weight.data.to(torch.bfloat16, memory_format=torch.contiguous_format)
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
    uncompiled: Any = torch.compiler.disable  # attention to packed rows reads their layout, which no two share
    AttentionInterface.register(row_layout.NAME, uncompiled(row_layout.attend))
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
        why, hint = f"{LIGER} is not installed", "in the folder of adpa's source: pip install '.[kernels]'"
    else:
        why = _fused(model)
    if why and asked == "on":
        raise AdpaError(f"--runtime liger=on: {why}", hint)
    return not why


def _fused(model: PreTrainedModel) -> str:
    """Do it; why it cannot be done, or ""."""
    integration: Any = importlib.import_module("transformers.integrations.liger")
    names = vars(sys.modules[type(model).__module__])
    before = dict(names)
    try:
        integration.apply_liger_kernel(model, WITHOUT_ITS_LOSS)
    except ImportError as error:  # of a triton, or for a transformers, that it does not work with
        return str(error)
    finally:  # models loaded later, such as teachers, keep their layers
        names.update(before)
    done = any("forward" in vars(module) for module in model.modules())
    return "" if done else f"{LIGER} does not know {type(model).__name__}"
