"""What a model computes in: the numbers that its matrix products read and write.

In `float16` products take inputs that are rounded to float16, sum in float32, and round their output to float16; in
`tf32` inputs have the same eleven bits in the range of float32, and outputs are float32. Both read weights that are
held in float16 (`frozen`). A GPU has units for these products. A CPU has none, or none whose sums are known to be
float32, so there the same roundings are made around float32 products: results differ by the order of sums, and by what
the fused attention of a GPU rounds inside.

In `bfloat16` products read and write bfloat16, and in `float32` nothing is rounded.

Everything else (norms, softmax, the residual stream, the embedding and the head) is float32, but for the head of a
model that is trained in bfloat16, and of its log-probs at the start.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from adpa_cli.spec import Dtype

HELD_IN: Mapping[Dtype, torch.dtype] = {
    "tf32": torch.float16, "bfloat16": torch.bfloat16, "float16": torch.float16
}  # fmt: skip
"""What the frozen weights of products are held in."""
EXPANDED = "expanded"
"""An attribute of float32 weights that have the bits of float16."""
_ATTENTION = nn.functional.scaled_dot_product_attention
_PRODUCTS = {
    nn.functional.linear, nn.functional.conv1d, torch.conv1d, _ATTENTION, torch.einsum, torch.addmm, Tensor.addmm,
    torch.mm, Tensor.mm, torch.bmm, Tensor.bmm, torch.baddbmm, Tensor.baddbmm, torch.matmul, Tensor.matmul,
    Tensor.__matmul__, Tensor.__rmatmul__, torch._grouped_mm, getattr(nn.functional, "grouped_mm", torch._grouped_mm),
}  # fmt: skip
"""Those that models are written with, among the ones that autocast computes in few bits; it computes any other."""


def computing(dtype: Dtype, device: torch.device) -> AbstractContextManager[Any]:
    """The context in which the body of a model computes in `dtype`."""
    if dtype == "float32":
        return nullcontext()
    if dtype == "bfloat16":
        return torch.autocast(device.type, torch.bfloat16)
    if dtype == "float16" and has_units(device):
        return torch.autocast(device.type, torch.float16)
    return _rounding(dtype, device)


def computing_head(dtype: Dtype, device: torch.device) -> AbstractContextManager[Any]:
    """The context in which the head of a model that is trained computes, whose body computes in `dtype`."""
    return torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16")


def has_units(device: torch.device) -> bool:
    """Whether a device has units for products of float16 that sum in float32."""
    return device.type == "cuda"


def path_of(dtype: Dtype, device: torch.device) -> str:
    """How products in `dtype` are computed on a device: what their last bits hang on besides the device."""
    return f"float32 around {dtype} roundings" if dtype == "float16" and not has_units(device) else dtype


def in_float32(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The forward pass of a linear layer with float32 weights, in float32 whatever the model around it computes in.

    It does not hold the layer, which may then hold it and still go when it is no longer used.
    """
    method: Any = weakref.WeakMethod(forward)

    def plain(states: Tensor, *rest: Any, **more: Any) -> Tensor:
        with torch.autocast(states.device.type, enabled=False):
            computed: Tensor = method()(states.float(), *rest, **more)
            return computed

    return plain


@contextmanager
def _rounding(dtype: Dtype, device: torch.device) -> Iterator[None]:
    # Autocast is on as well, so that the places where a model asks for float32 are seen.
    with torch.autocast(device.type, torch.float16), Rounded(dtype, device.type):
        yield


class Rounded(TorchFunctionMode):
    """Makes products in `dtype`, "float16" or "tf32", of float32 ones wherever autocast is on.

    The parameters of a model that are held in float16 are read as they are.
    """

    def __init__(self, dtype: Dtype, device: str) -> None:
        super().__init__()
        self.device = device
        self.round = to_float16 if dtype == "float16" else to_tf32
        self.result: Callable[[Tensor], Tensor] = Tensor.half if dtype == "float16" else Tensor.float

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = kwargs or {}
        if func not in _PRODUCTS or not torch.is_autocast_enabled(self.device):
            return func(*args, **named)
        masks = 3 if func is _ATTENTION else len(args)  # behind them is a mask, which is no operand of a product
        operands = [self._operand(value) for value in args[:masks]] + list(args[masks:])
        others = {key: value if key == "attn_mask" else self._operand(value) for key, value in named.items()}
        with torch.autocast(self.device, enabled=False), _tensor_float_32(self.device):
            return self.result(func(*operands, **others))

    def _operand(self, value: Any) -> Any:
        if isinstance(value, Sequence) and not isinstance(value, str):
            return [self._operand(item) for item in value]  # the operands of torch.einsum
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        has_the_bits = value.dtype == torch.float16 or getattr(value, EXPANDED, False)
        return value.float() if has_the_bits else self.round(value)


def to_float16(values: Tensor) -> Tensor:
    """Float32 values with the bits of float16: the nearest, infinite beyond its range."""
    return values.half().float()


def to_tf32(values: Tensor) -> Tensor:
    """Float32 values with eleven significant bits: the nearest, as the units of a GPU round them."""
    wide = values.float()
    nearest = (wide.view(torch.int32) + (1 << 12)) & -(1 << 13)
    return torch.where(wide.isnan(), wide, nearest.view(torch.float32))  # some NaNs would carry over to 0


@contextmanager
def _tensor_float_32(device: str) -> Iterator[None]:
    """Lets products of a GPU read eleven bits of their operands, which have no more."""
    if device != "cuda":
        yield
        return
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
