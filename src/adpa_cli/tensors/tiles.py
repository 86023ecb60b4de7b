"""Tiles of logits: how large they are, and where their products wait for the second sweep.

N positions, V vocabulary. Everything follows from the sizes, nothing from a stopwatch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from adpa_cli.sizes import (
    GPU_TILE_CELLS,
    GPU_TILE_ROWS,
    KEPT_LOGITS_BYTES,
    LOGITS_PER_KEPT_BYTE,
    TILE_CELLS,
    TILE_COLUMNS,
    TILE_ROWS,
)

GPU_ALIGNED = 256
"""Columns of a tile on a GPU are a multiple of it: matrix products of other widths are several times slower."""
WORTH = 4
"""Rows are split between kept and computed again where one in four can be kept: less saves under 1/16."""


def spans(total: int, step: int) -> Iterator[slice]:
    """Consecutive slices of at most `step` that cover `total`."""
    return (slice(start, min(start + step, total)) for start in range(0, total, step))


def tile_shape(rows: int, vocabulary: int, device: str = "cpu") -> tuple[int, int]:
    """Most rows and columns of one tile of logits on a kind of device."""
    if device == "cpu":
        return min(max(rows, 1), TILE_ROWS), min(vocabulary, max(TILE_COLUMNS, TILE_CELLS // max(rows, 1)))
    height = min(max(rows, 1), GPU_TILE_ROWS)
    return height, min(vocabulary, GPU_TILE_CELLS // height // GPU_ALIGNED * GPU_ALIGNED)


def kept_bytes(rows: int, vocabulary: int) -> int:
    """The most bytes of logits that are kept beside the gradients' own memory."""
    return max(KEPT_LOGITS_BYTES, rows * vocabulary // LOGITS_PER_KEPT_BYTE)


@dataclass(frozen=True)
class Tile:
    """Where a tile lies: `rows` of the positions, `columns` of the vocabulary."""

    rows: slice
    columns: slice

    @property
    def at(self) -> tuple[int, int]:
        """Its first row and column."""
        return self.rows.start, self.columns.start

    @property
    def shape(self) -> tuple[int, int]:
        """Its height and width."""
        return self.rows.stop - self.rows.start, self.columns.stop - self.columns.start


class Buffer:
    """Memory that every tile of a sweep uses in turn."""

    def __init__(self, cells: int, dtype: torch.dtype, device: torch.device) -> None:
        self.flat = torch.empty(cells, dtype=dtype, device=device)

    def of(self, tile: Tile) -> Tensor:
        """A contiguous tensor of the tile's shape."""
        height, width = tile.shape
        return self.flat[: height * width].view(height, width)


@dataclass
class Kept:
    """Products of tiles, from the first sweep to the second.

    The weight's `gradient` [V,H] is written in the second sweep, tile by tile. Until then its memory holds products:
    those of some columns and the first `rows` positions lie where the gradient of these columns will. Others are kept
    `beside` it while they fit `budget` bytes; what is kept nowhere is computed again.
    """

    dtype: torch.dtype
    gradient: Tensor | None = None
    rows: int = 0
    budget: int = 0
    beside: dict[tuple[int, int], Tensor] = field(default_factory=dict)

    def make(self, tile: Tile, like: Tensor) -> Tensor | None:
        """Where to write the products of a tile to keep them, on the device of `like`; None if they are not kept."""
        inside = self._inside(tile)
        height, width = tile.shape
        size = height * width * self.dtype.itemsize
        if inside is not None or size > self.budget:
            return inside
        self.budget -= size
        self.beside[tile.at] = made = like.new_empty(height, width, dtype=self.dtype)
        return made

    def find(self, tile: Tile) -> Tensor | None:
        """The products of a tile [height, width], None if they were not kept."""
        inside = self._inside(tile)
        return self.beside.get(tile.at) if inside is None else inside

    def weight_inside(self, columns: slice, weight: Tensor) -> Tensor | None:
        """Where the gradient has room for the `weight` [C,H] of some columns in the dtype of products, behind these.

        For one tile of rows only: with more the gradient of the first is written before the weight has been read last.
        """
        if self.gradient is None or weight.dtype == self.dtype:
            return None
        flat = self.gradient[columns].view(-1).view(self.dtype)[self.rows * len(weight) :]
        return flat[: weight.numel()].view_as(weight) if len(flat) >= weight.numel() else None

    def _inside(self, tile: Tile) -> Tensor | None:
        if self.gradient is None or tile.rows.start or tile.rows.stop > self.rows:
            return None
        height, width = tile.shape
        return self.gradient[tile.columns].view(-1).view(self.dtype)[: height * width].view(height, width)


def rows_inside(weight: Tensor, dtype: torch.dtype, rows: int, budget: int) -> int:
    """How many of `rows` positions keep their products in the gradient of `weight` [V,H]; 0 where splitting is not
    worth it, since all fit beside it or too few inside."""
    room = weight.shape[1] * weight.element_size() // dtype.itemsize
    all_fit_beside = rows * weight.shape[0] * dtype.itemsize <= budget
    return rows if room >= rows else 0 if all_fit_beside or room * WORTH < rows else room


def row_slices(total: int, step: int, first: int) -> list[slice]:
    """Slices that cover `total` rows, at most `step` long, and the first of them `first` if that is not 0."""
    cuts = [0, *range(min(first or step, step), total, step), total]
    return [slice(start, stop) for start, stop in pairwise(cuts)]
