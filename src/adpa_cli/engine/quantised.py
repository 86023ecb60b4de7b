"""Frozen weights of products in four bits or in eight, as bitsandbytes stores them, and the products that read them.

`nf4` keeps for each run of 64 weights the largest, and for each weight the nearest of sixteen multiples of it that part
a normal distribution evenly (Dettmers et al. 2023, QLoRA): 0.5625 bytes a weight. `int8` keeps for each output the
largest, and each weight as a multiple of its 127th part: one byte a weight.

Only what is stored has few bits. A product reads it as numbers of the dtype that its model computes in, as it reads
any frozen weights, so that what it is given keeps the digits of that dtype, on every machine. Products of the library
do not: some round to eight bits what they are given, others compute in bfloat16 where a CPU has units for it.
"""

from __future__ import annotations

import functools
import importlib
import logging
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from adpa_cli.engine.arithmetic import HELD_IN
from adpa_cli.engine.lora import EXPERTS, missing_bitsandbytes
from adpa_cli.errors import AdpaError
from adpa_cli.spec import Dtype, Quantise

RUN = 64
"""Weights that share a scale in nf4."""
LEVELS = 127
"""Of int8, on each side of 0."""


@functools.cache
def library() -> Any:
    """bitsandbytes. Raises AdpaError, with what to install, where it is missing."""
    logger = logging.getLogger("bitsandbytes")
    level = logger.level
    logger.setLevel(logging.ERROR)  # on some CPUs it warns that a kernel is missing which is not used here
    try:
        return importlib.import_module("bitsandbytes")
    except ImportError as error:
        raise missing_bitsandbytes() from error
    finally:
        logger.setLevel(level)


class QuantisedLinear(nn.Linear):
    """A frozen linear layer whose `weight` is stored in few bits beside its `scales`, both as `store` makes them.

    It has the parameters of a `layer`, which may be one of GPT-2, [inputs, outputs] in files. `read_in` is the dtype
    that the product reads.
    """

    scales: Tensor

    def __init__(self, layer: Any, how: Quantise, read_in: torch.dtype) -> None:
        is_linear = isinstance(layer, nn.Linear)
        inputs, outputs = (layer.in_features, layer.out_features) if is_linear else (layer.nx, layer.nf)
        with torch.device("meta"):
            super().__init__(inputs, outputs)
        self.weight, self.bias = layer.weight, layer.bias
        self.how, self.read_in, self.is_transposed = how, read_in, not is_linear
        self.register_buffer("scales", None, persistent=False)

    @property
    def stored_bytes(self) -> int:
        """Bytes of what is stored, its scales included."""
        outputs, count = self.out_features, self.in_features * self.out_features
        return count + 4 * outputs if self.how == "int8" else -(-count // RUN) * (RUN // 2 + 4)

    @torch.no_grad()
    def store(self, weight: Tensor, name: str) -> None:
        """Take the weight of a file, in any float dtype and on any device.

        Raises AdpaError, with its `name`, for one out of the range of what the product reads.
        """
        matrix = (weight.T if self.is_transposed else weight).contiguous()
        packed, scales = _packed(matrix, self.how)
        if not float(scales.max()) <= torch.finfo(self.read_in).max:
            raise AdpaError(
                f"the weight {name} reaches {float(weight.abs().max()):.4g}, and the largest float16 is 65,504",
                "use another dtype: --set STAGE.dtype=float32, or --set STAGE.dtype=bfloat16",
            )
        self.weight, self.scales = nn.Parameter(packed, requires_grad=False), scales

    def forward(self, input: Tensor) -> Tensor:
        """The product of [..., inputs] with what is stored, as the model around it computes products."""
        stored = self.weight, self.scales, (self.out_features, self.in_features), self.how, self.read_in
        if torch.is_grad_enabled() and input.requires_grad:
            apply: Any = _Product.apply
            product: Tensor = apply(input, self.bias, *stored)
            return product
        return nn.functional.linear(input, weight_as_read(*stored), self.bias)


class _Product(torch.autograd.Function):
    """A product that reads its weight once more for the backward pass, instead of keeping what it has read."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, bias: Tensor | None, packed: Tensor, scales: Tensor, *how: Any) -> Tensor:
        ctx.save_for_backward(packed, scales)
        ctx.how = how
        return nn.functional.linear(states, weight_as_read(packed, scales, *how), bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (gradient,) = gradients
        weight = weight_as_read(*ctx.saved_tensors, *ctx.how)
        return (gradient @ weight.to(gradient.dtype), *[None] * (3 + len(ctx.how)))


@torch.no_grad()
def weight_as_read(packed: Tensor, scales: Tensor, shape: tuple[int, int], how: Quantise, dtype: torch.dtype) -> Tensor:
    """What is stored, as a matrix of `shape` of the nearest numbers of `dtype`."""
    if how == "int8":
        return (packed * (scales / LEVELS)[:, None]).to(dtype)
    library()
    runs = torch.ops.bitsandbytes.dequantize_4bit(packed, scales, RUN, how, [len(scales), RUN], dtype)
    found: Tensor = runs.view(-1)[: shape[0] * shape[1]].view(shape)
    return found


def _packed(matrix: Tensor, how: Quantise) -> tuple[Tensor, Tensor]:
    """What is stored of a matrix [outputs, inputs]: int8 of its shape, or uint8 with two weights in each; the scales,
    float32."""
    library()
    if how == "int8":
        # The library takes float16, whose range is not that of weights: the largest of each row is brought to about 1.
        exponents = torch.frexp(matrix.abs().amax(1, keepdim=True).float()).exponent
        packed, scales, _ = torch.ops.bitsandbytes.int8_vectorwise_quant(torch.ldexp(matrix.float(), -exponents).half())
        return packed, torch.ldexp(scales, exponents.view(-1))
    # In whole runs, for which neither the length of a row nor an odd number of weights is a special case.
    runs = nn.functional.pad(matrix.view(-1), (0, -matrix.numel() % RUN)).view(-1, RUN)
    packed, scales = torch.ops.bitsandbytes.quantize_4bit(runs, RUN, how, torch.uint8)
    return packed.view(-1), scales


def quantise_layers(body: nn.Module, config: Any, how: Quantise, dtype: Dtype) -> None:
    """Let the linear layers of a body, whose configuration is `config`, store their weights in few bits, for products
    in `dtype`. A weight that is not there yet, on the device meta, is taken by `store`.

    Routers, experts that are one tensor, and convolutions are left. Raises AdpaError where nothing else is there.
    """
    library()
    experts = {getattr(config, name, None) for name in EXPERTS}
    layers = dict(_linear(body, experts))
    if not layers:
        raise AdpaError(
            f"{type(body).__name__} has no linear layer that could be stored as {how}",
            "do not quantise it: --set STAGE.quantise=none",
        )
    for name, layer in layers.items():
        stored = QuantisedLinear(layer, how, HELD_IN.get(dtype, torch.float32))
        if not layer.weight.is_meta:
            stored.store(layer.weight, f"{name}.weight")
        body.set_submodule(name, stored.train(layer.training))


def _linear(body: nn.Module, experts: set[Any]) -> Iterator[tuple[str, Any]]:
    """The layers of a body by name that are linear and no more, and no routers."""
    for name, module in body.named_modules():
        if type(module) is Conv1D or (type(module) is nn.Linear and module.out_features not in experts):
            yield name, module
