"""The optimizer of a training: AdamW, or where weights are bfloat16 one that rounds each of its results at random.

A float32 weight w takes 16 bytes (itself, gradient, two moments) and 2 of its copy in products. In bfloat16 all four
take 8, but a step is often smaller than half the distance of two neighbours, so rounding to the nearest would lose it,
and the second moment, which moves by a thousandth, would stand still. A result x between neighbours a < b is rounded to
b with probability (x - a) / (b - a): its mean is x, and small steps add up.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from adpa_cli.spec import TrainSpec

CHUNK = 2**21
"""Weights updated at a time, in some 40 bytes of float32 and noise each."""
LOW = 16
"""Bits of a float32 that a bfloat16 has not."""


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

    def __init__(
        self,
        params: Iterable[Any],
        betas: tuple[float, float],
        weight_decay: float,
        seed: int,
        lr: float = 0.0,
        eps: float = 1e-8,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
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
            noise = torch.randint(2 ** (LOW * len(old)), grad.shape, generator=source, device=grad.device)
            for tensor, values in zip(old, new, strict=True):
                tensor.copy_(values if tensor.dtype == values.dtype else rounded(values, noise % 2**LOW))
                noise >>= LOW


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


def rounded(values: Tensor, noise: Tensor) -> Tensor:
    """Float32 `values` as bfloat16, away from 0 where the bits that go, plus `noise` uniform in [0, 2^16), carry over.

    The probability is the part of the distance that the value has come, exactly; what bfloat16 has stays as it is.
    """
    bits: Tensor = (values.view(torch.int32) + noise.int()) & -(2**LOW)
    return bits.view(torch.float32).bfloat16()
