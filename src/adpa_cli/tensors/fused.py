"""What is done with one tile of products (`sweeps.Kernels`), on a GPU: each is read once, each gradient written once.

A program of a kernel works on one row of the tile. Triton comes with PyTorch for CUDA and is imported nowhere else.
"""

from __future__ import annotations

import warnings
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from adpa_cli.tensors.output import Head
from adpa_cli.tensors.sums import Sums
from adpa_cli.tensors.tiles import Buffer, Tile

BLOCK = 4096
WARPS = 8


@triton.jit
def _logits(products, bias, column, inside, scale, softcap, BIAS: tl.constexpr, CAP: tl.constexpr):
    """Logits of some columns of a row, -inf for those struck out and those that are not `inside`."""
    product = tl.load(products + column, mask=inside, other=-float("inf")).to(tl.float32)
    logits = product
    if BIAS:
        logits = logits + tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)
    logits = logits * scale
    if CAP:
        capped = softcap * (2.0 * tl.sigmoid(2.0 * logits / softcap) - 1.0)
        logits = tl.where(product == -float("inf"), product, capped)
    return logits


@triton.jit
def _absorb(
    products, bias, ids, chosen, top, total, spread, squares, start, width, count, scale, softcap,
    BIAS: tl.constexpr, CAP: tl.constexpr, STATS: tl.constexpr, IDS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    products += row * width
    place = tl.arange(0, IDS)
    column = tl.load(ids + row * count + place, mask=place < count, other=-1) - start
    here = (column >= 0) & (column < width) & (place < count)
    logits = _logits(products, bias, column, here, scale, softcap, BIAS, CAP)
    tl.store(chosen + row * count + place, logits, mask=here)
    tl.debug_barrier()  # an id may repeat: all are read before one is struck out
    tl.store(products + column, -float("inf"), mask=here)
    tl.debug_barrier()
    m = tl.load(top + row)
    s = tl.load(total + row)
    u = s
    q = s
    if STATS:
        u = tl.load(spread + row)
        q = tl.load(squares + row)
    for first in range(0, width, BLOCK):
        columns = first + tl.arange(0, BLOCK)
        z = _logits(products, bias, columns, columns < width, scale, softcap, BIAS, CAP)
        higher = tl.maximum(m, tl.max(z, 0))
        shift = tl.where(higher == -float("inf"), 0.0, higher)
        e = tl.exp(z - shift)
        shrink = tl.exp(m - shift)
        if STATS:
            moved = tl.where(m == -float("inf"), 0.0, m - shift) * s
            u = (u + moved) * shrink + tl.sum(tl.where(z == -float("inf"), 0.0, e * (z - shift)), 0)
            q = q * shrink * shrink + tl.sum(e * e, 0)
        s = s * shrink + tl.sum(e, 0)
        m = higher
    tl.store(top + row, m)
    tl.store(total + row, s)
    if STATS:
        tl.store(spread + row, u)
        tl.store(squares + row, q)


@triton.jit
def _gradient(
    products, bias, ids, values, shift, push, out, start, width, count, scale, softcap,
    BIAS: tl.constexpr, CAP: tl.constexpr, IDS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    products += row * width
    out += row * width
    a = tl.load(shift + row)
    b = tl.load(push + row) * scale
    for first in range(0, width, BLOCK):
        columns = first + tl.arange(0, BLOCK)
        z = _logits(products, bias, columns, columns < width, scale, softcap, BIAS, CAP)
        grad = tl.exp(z - a) * b
        if CAP:
            grad = grad * (1.0 - (z / softcap) * (z / softcap))
        tl.store(out + columns, grad, mask=columns < width)
    tl.debug_barrier()  # chosen ids are written over what the loop left there
    place = tl.arange(0, IDS)
    column = tl.load(ids + row * count + place, mask=place < count, other=-1) - start
    here = (column >= 0) & (column < width) & (place < count)
    tl.store(out + column, tl.load(values + row * count + place, mask=here, other=0.0), mask=here)


class Fused:
    """The kernels, with memory for one tile of at most `cells`. What they are given is contiguous."""

    def __init__(self, cells: int, dtype: torch.dtype, device: torch.device) -> None:
        self.spare = Buffer(cells, dtype, device)

    def absorb(self, products: Tensor, head: Head, ids: Tensor, tile: Tile, chosen: Tensor, sums: Sums) -> None:
        """`Kernels.absorb`; products at chosen ids become -inf."""
        height, width = tile.shape
        _absorb[(height,)](
            products, head.bias, ids, chosen, sums.top, sums.total, sums.spread, sums.squares,
            tile.columns.start, width, ids.shape[1], head.scale, head.softcap or 1.0,
            BIAS=head.bias is not None, CAP=head.softcap is not None,
            STATS=sums.spread is not None, IDS=_room(ids), BLOCK=BLOCK, num_warps=WARPS,
        )  # fmt: skip

    def gradient(
        self, products: Tensor, head: Head, ids: Tensor, tile: Tile, values: Tensor, shift: Tensor, push: Tensor
    ) -> Tensor:
        """`Kernels.gradient`."""
        height, width = tile.shape
        out = self.spare.of(tile)
        _gradient[(height,)](
            products, head.bias, ids, values, shift, push, out, tile.columns.start, width, ids.shape[1], head.scale,
            head.softcap or 1.0, BIAS=head.bias is not None, CAP=head.softcap is not None,
            IDS=_room(ids),
            BLOCK=BLOCK, num_warps=WARPS,
        )  # fmt: skip
        return out


def _room(ids: Tensor) -> int:
    """Lanes for the chosen ids of a row: a power of 2."""
    return 1 << max(0, ids.shape[1] - 1).bit_length()


@cache
def works(device: torch.device) -> bool:
    """Whether Triton can build and run a kernel here: it wants a C compiler and a GPU that it knows."""
    zeros = torch.zeros(1, 16, device=device)
    try:
        Fused(16, zeros.dtype, device).gradient(
            zeros, Head(zeros), zeros[:, :0].long(), Tile(slice(0, 1), slice(0, 16)), zeros[:, :0], zeros[0], zeros[0]
        )
    except Exception as error:  # whatever keeps the kernels from running, the plain operations do the same
        warnings.warn(f"Triton cannot build its kernels, so the head is slower than it could be: {error}", stacklevel=2)
        return False
    return True
