"""The output head of a language model: what turns hidden states into logits.

N positions, H hidden size, V vocabulary. Logits in nats.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Head:
    """Logits are `softcap * tanh(x / softcap)` of x = `scale` * (states @ weight.T + bias); x without a `softcap`.

    `weight` [V,H], `bias` [V].
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    def part(self, columns: slice, dtype: torch.dtype) -> Head:
        """The head of some tokens, its weight in `dtype`."""
        bias = None if self.bias is None else self.bias[columns]
        return Head(self.weight[columns].to(dtype), bias, self.scale, self.softcap)

    def logits(self, products: Tensor, out: Tensor) -> Tensor:
        """Logits of `products` [N,V] (states @ weight.T), written to `out` [N,V], which may be `products` itself."""
        if products is not out:
            out.copy_(products)
        if self.bias is not None:
            out += self.bias
        if self.scale != 1.0:
            out *= self.scale
        if self.softcap is not None:
            out.div_(self.softcap).tanh_().mul_(self.softcap)
        return out

    @property
    def straight(self) -> bool:
        """Whether logits grow as products do."""
        return self.scale == 1.0 and self.softcap is None

    def slope(self, logits: Tensor) -> Tensor | float:
        """d logits / d products, of `logits` in any shape."""
        if self.softcap is None:
            return self.scale
        return (logits / self.softcap).square_().neg_().add_(1.0).mul_(self.scale)
