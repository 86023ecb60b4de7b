"""Numbers of two bytes: rounded to the nearest, or at random so that the mean of what is rounded is exact.

The noise of stochastic rounding is a function of a tensor's name and of the place in it, so that two models that are
rounded alike keep their difference, and any machine, rank or shard gets the same bits.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

GOLDEN = 0x9E3779B97F4A7C15 - 2**64  # splitmix64's increment, as a signed 64-bit integer
_MIX_1 = 0xBF58476D1CE4E5B9 - 2**64
_MIX_2 = 0x94D049BB133111EB - 2**64
NOISE_BITS = 16
_PER_WORD = 64 // NOISE_BITS
_CHUNK = 1 << 20
_DROPPED = {torch.float16: 13, torch.bfloat16: 16}
"""Bits of a float32's fraction that a number of two bytes lacks."""
_LEAST_NORMAL, _SUBNORMAL_STEP = 2.0**-14, 2.0**-24
"""Of float16: below the first its numbers lie apart by the second."""


def mixed(x: Tensor) -> Tensor:
    """The output function of splitmix64 (Steele et al. 2014), on int64 that wraps around."""
    x = (x ^ shifted(x, 30)) * _MIX_1
    x = (x ^ shifted(x, 27)) * _MIX_2
    return x ^ shifted(x, 31)


def shifted(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64: torch's is arithmetic."""
    low: Tensor = (x >> bits) & (2 ** (64 - bits) - 1)
    return low


def key_of(name: str) -> int:
    """A signed 64-bit key from a name."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little", signed=True)


def noise(name: str, start: int, count: int, device: torch.device | str) -> Tensor:
    """[count] int32, uniform in [0, 2^16): a function of `name` and of the places from `start` on."""
    first = start // _PER_WORD
    places = torch.arange(first, -(-(start + count) // _PER_WORD), device=device)
    words = mixed(places * GOLDEN + key_of(name))
    skipped = start - first * _PER_WORD
    pieces: Tensor = words.view(torch.int16)[skipped : skipped + count].int() & (2**NOISE_BITS - 1)
    return pieces


def rounded(values: Tensor, noise: Tensor, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Float32 `values` as numbers of two bytes, away from 0 where the bits that go, plus `noise` uniform in [0, 2^16),
    carry over.

    The probability is the part of the distance that the value has come, to 2^-16 of a step below the normal numbers of
    float16 and exactly elsewhere; what `dtype` has stays as it is.
    Beyond the range of float16 the result is infinite.
    """
    dropped = _DROPPED[dtype]
    bits = (values.view(torch.int32) + (noise.int() >> (NOISE_BITS - dropped))) & -(2**dropped)
    nearby = torch.where(values.isnan(), values, bits.view(torch.float32))  # some NaNs would carry over to 0
    if dtype != torch.float16:
        return nearby.to(dtype)
    steps = values.abs() / _SUBNORMAL_STEP  # exact, as is what follows, of the small values that it is used for
    small = (steps.floor() + (steps.frac() > noise / 2**NOISE_BITS)) * _SUBNORMAL_STEP
    return torch.where(values.abs() < _LEAST_NORMAL, small.copysign(values), nearby).to(dtype)


def stochastic(values: Tensor, dtype: torch.dtype, name: str, start: int = 0) -> Tensor:
    """`values` of any shape as numbers of two bytes, rounded at random without bias.

    The noise is that of `name`, the first of `values` being in place `start`. What `dtype` has stays as it is.
    """
    flat = values.reshape(-1)
    out = torch.empty(flat.shape, dtype=dtype, device=flat.device)
    for at in range(0, len(flat), _CHUNK):
        chunk, kept = flat[at : at + _CHUNK].float(), out[at : at + _CHUNK]
        if not torch.equal(kept.copy_(chunk).float(), chunk):
            kept.copy_(rounded(chunk, noise(name, start + at, len(chunk), flat.device), dtype))
    return out.view(values.shape)
