"""Rewards, advantages and clipped losses of proximal policy optimisation over generated answers.

Pure functions over [B,T] float32 tensors, one row per answer, nats per token; `mask` [B,T] bool marks the generated
tokens, the end token included, in one stretch. Values outside it are ignored, and results there are 0.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def rewards(
    policy: Tensor,
    start: Tensor,
    aligned: Tensor,
    reference: Tensor,
    mask: Tensor,
    *,
    beta: float,
    per_token: bool,
    clip: float | None = None,
) -> Tensor:
    """What every generated token earns; Gao et al. 2025, Eq. 29 (`per_token`), else Eqs. 26-27.

    All [B,T]: log-probs of the tokens under the policy that drew them, the frozen start model and the two teachers.
    The teachers' log-ratio, times `beta` and bounded to ± `clip`, is paid at each token, or its sum at the last token;
    the distance to the start model always costs `beta` per nat where it arises.
    """
    earned = beta * (aligned - reference)
    if clip is not None:
        earned = earned.clamp(-clip, clip)
    earned = earned.masked_fill(~mask, 0.0)
    if not per_token:
        last = mask & ~F.pad(mask[:, 1:], (0, 1))
        earned = last.float() * earned.sum(1, keepdim=True)
    return earned - (beta * (policy - start)).masked_fill(~mask, 0.0)


def advantages(rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimates and the returns the critic is to predict, [B,T]; Schulman et al. 2016, Eq. 16.

    `values` [B,T] is the critic before each token; nothing is worth anything after the last one.
    """
    values = values.masked_fill(~mask, 0.0)
    estimates = torch.zeros_like(rewards)
    following = torch.zeros_like(rewards[:, 0])
    for t in range(rewards.shape[1] - 1, -1, -1):
        after = values[:, t + 1] if t + 1 < rewards.shape[1] else torch.zeros_like(following)
        surprise = rewards[:, t] + gamma * after - values[:, t]
        following = torch.where(mask[:, t], surprise + gamma * lam * following, 0.0)
        estimates[:, t] = following
    return estimates, (estimates + values).masked_fill(~mask, 0.0)


def whitened(values: Tensor, mask: Tensor) -> Tensor:
    """`values` [B,T] shifted and scaled to mean 0 and standard deviation 1 over all marked positions."""
    kept = values[mask]
    if kept.numel() < 2:
        return torch.zeros_like(values)
    scaled = (values - kept.mean()) * torch.rsqrt(kept.var() + 1e-8)
    return scaled.masked_fill(~mask, 0.0)


def actor_loss(logps: Tensor, old_logps: Tensor, advantages: Tensor, clip: float) -> Tensor:
    """-min(ρ A, clip(ρ, 1 ± clip) A) with ρ = π/π_old, [B,T]; Schulman et al. 2017, Eq. 7."""
    ratio = (logps - old_logps).exp()
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)


def critic_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip: float) -> Tensor:
    """Half the greater squared error: of the value, or of the value held within ± `clip` of the old one, [B,T]."""
    held = old_values + (values - old_values).clamp(-clip, clip)
    return 0.5 * torch.maximum((values - returns).square(), (held - returns).square())
