"""The two sweeps over tiles of the vocabulary that `head.py` is made of, and what they do with one tile.

`Kernels` is the interface of the work on a tile. `Plain` does it with tensor operations on any device; on a GPU with
Triton `fused.py` does it.

N positions, H hidden size, V vocabulary, J chosen ids per position.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Protocol

import torch
from torch import Tensor

from adpa_cli.tensors.output import Head
from adpa_cli.tensors.sums import NEVER, Sums, finite
from adpa_cli.tensors.tiles import Buffer, Kept, Tile, row_slices, spans

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


class Kernels(Protocol):
    """What is done with one tile of products [n,C]: hidden states times the weight of C tokens.

    `ids` [n,J] are chosen, of any token. `spare` is memory for products that are not kept.
    """

    spare: Buffer

    def absorb(self, products: Tensor, head: Head, ids: Tensor, tile: Tile, chosen: Tensor, sums: Sums) -> None:
        """Write the logits of chosen ids that lie in the tile to `chosen` [n,J], and take the others into `sums`.

        Products at chosen ids may be overwritten.
        """

    def gradient(
        self, products: Tensor, head: Head, ids: Tensor, tile: Tile, values: Tensor, shift: Tensor, push: Tensor
    ) -> Tensor:
        """Gradient [n,C] of the products, in memory of the kernels: exp(logit - shift) * push * slope, with `shift` and
        `push` [n], but `values` [n,J] at chosen ids."""
        ...


@dataclass(frozen=True)
class Sweep:
    """What both sweeps go over: `states` [N,H] in the dtype of products, the head, chosen `ids` [N,J], most rows and
    columns of a tile, and the products that are kept."""

    states: Tensor
    head: Head
    ids: Tensor
    shape: tuple[int, int]
    kept: Kept

    def rows(self) -> list[slice]:
        """The rows of tiles."""
        return row_slices(len(self.states), self.shape[0], self.kept.rows)

    def columns(self, again: bool = False) -> Iterator[tuple[slice, Head]]:
        """Columns of tiles, and the head of each, its weight in the dtype of products; `again`: in the second sweep."""
        one = len(self.rows()) == 1
        for columns in spans(len(self.head.weight), self.shape[1]):
            part = self.head.part(columns)
            place = self.kept.weight_inside(columns, part.weight) if one else None
            if place is None:
                place = part.weight.to(self.states.dtype)
            elif not again:
                place.copy_(part.weight)
            yield columns, replace(part, weight=place)

    def kernels(self, separate: bool = False) -> Kernels:
        """What works on one tile, with memory for the largest; with `separate` products outlive `absorb`."""
        cells = max(rows.stop - rows.start for rows in self.rows()) * min(self.shape[1], len(self.head.weight))
        dtype, device = self.states.dtype, self.states.device
        if device.type == "cuda" and dtype != torch.float64 and find_spec("triton"):
            from adpa_cli.tensors import fused

            if fused.works(device):
                return fused.Fused(cells, dtype, device)
        return Plain(cells, dtype, device, separate)

    def gather(self, stats: bool, mean: Tensor | None) -> tuple[Tensor, Sums]:
        """The first sweep: logits [N,J] of the chosen ids, sums over the other tokens.

        `mean` [N,H] of zeros, if there is one, becomes the mean of d logit / d state over the others by their softmax.
        """
        chosen = self.states.new_zeros(self.ids.shape, dtype=torch.promote_types(self.states.dtype, torch.float32))
        sums = Sums.start(chosen.new_zeros(len(chosen)), stats)
        kernels = self.kernels(separate=mean is not None)
        for columns, head in self.columns():
            for rows in self.rows():
                tile, ids, now = Tile(rows, columns), self.ids[rows], sums.of(rows)
                products = self.kept.make(tile, self.states)
                products = kernels.spare.of(tile) if products is None else products
                torch.mm(self.states[rows], head.weight.T, out=products)
                before = now.top if mean is None else now.top.clone()
                kernels.absorb(products, head, ids, tile, chosen[rows], now)
                if mean is not None:
                    shift = finite(now.top)
                    none, one = torch.zeros_like(chosen[rows]), torch.ones_like(shift)
                    powers = kernels.gradient(products, head, ids, tile, none, shift, one)
                    add_product(powers, head.weight, mean[rows].mul_((before - shift).exp_()[:, None]))
        if mean is not None:
            mean /= sums.total.masked_fill(sums.total == 0, 1.0)[:, None]
        return chosen, sums

    def pull(self, values: Tensor, shift: Tensor, push: Tensor, need: tuple[bool, bool, bool]) -> Gradients:
        """The second sweep: gradients of states, weight and bias where needed, from those of the products: `values`
        [N,J] at chosen ids, else exp(logit - shift) * push * slope, with `shift` and `push` [N]."""
        weight, bias = self.head.weight, self.head.bias
        of_states = torch.zeros_like(self.states, dtype=values.dtype) if need[0] else None
        of_weight = torch.empty_like(weight) if need[1] and self.kept.gradient is None else self.kept.gradient
        of_bias = torch.zeros_like(bias, dtype=values.dtype) if bias is not None and need[2] else None
        kernels, rows_of_tiles = self.kernels(), self.rows()
        for columns, head in self.columns(again=True):
            total = None if of_weight is None else of_weight[columns]
            if total is not None and total.dtype != values.dtype and len(rows_of_tiles) > 1:
                total = torch.empty_like(total, dtype=values.dtype)
            for rows in rows_of_tiles:
                tile, states = Tile(rows, columns), self.states[rows]
                products = self.kept.find(tile)
                if products is None:
                    products = torch.mm(states, head.weight.T, out=kernels.spare.of(tile))
                grad = kernels.gradient(products, head, self.ids[rows], tile, values[rows], shift[rows], push[rows])
                if of_states is not None:
                    add_product(grad, head.weight, of_states[rows])
                if of_bias is not None:
                    of_bias[columns] += grad.sum(0, dtype=of_bias.dtype)
                if total is not None and rows.start == 0:
                    put_product(grad.T, states, total)
                elif total is not None:
                    add_product(grad.T, states, total)
            if of_weight is not None and total is not None and total.dtype != of_weight.dtype:
                of_weight[columns] = total
        return of_states, of_weight, of_bias


def put_product(left: Tensor, right: Tensor, out: Tensor) -> None:
    """out = left @ right; a GPU sums in float32 anyway and need not round to the dtype of the operands."""
    if out.dtype == left.dtype:
        torch.mm(left, right, out=out)
    elif out.device.type == "cuda":
        torch.mm(left, right, out_dtype=out.dtype, out=out)
    else:
        out.copy_(left @ right)


def add_product(left: Tensor, right: Tensor, total: Tensor) -> None:
    """total += left @ right, likewise."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    elif total.device.type == "cuda":
        torch.addmm(total, left, right, out_dtype=total.dtype, out=total)
    else:
        total += left @ right


class Plain:
    """Tensor operations in place, with memory for one tile of at most `cells`, or for two with `separate`."""

    def __init__(self, cells: int, dtype: torch.dtype, device: torch.device, separate: bool) -> None:
        wide = torch.promote_types(dtype, torch.float32)
        self.spare = Buffer(cells, dtype, device)
        self.work = Buffer(cells, wide, device) if separate or dtype != wide else self.spare

    def absorb(self, products: Tensor, head: Head, ids: Tensor, tile: Tile, chosen: Tensor, sums: Sums) -> None:
        """`Kernels.absorb`."""
        row, place, column = _chosen_in(tile, ids)
        work = self.work.of(tile)
        logits = self._logits(products, head, work)
        chosen[row, place] = logits[row, column]
        logits[row, column] = NEVER
        top = torch.maximum(sums.top, logits.amax(1))
        shift = finite(top)
        powers = torch.sub(logits, shift[:, None], out=work)
        shrink = (sums.top - shift).exp_()
        if sums.spread is not None and sums.squares is not None:
            powers = work.exp()
            work[row, column] = 0.0
            moved = torch.where(sums.top == NEVER, 0.0, sums.top - shift) * sums.total
            sums.spread.add_(moved).mul_(shrink).add_(work.mul_(powers).sum(1))
            sums.squares.mul_(shrink).mul_(shrink).add_(torch.linalg.vector_norm(powers, dim=1).square_())
        else:
            powers.exp_()
        sums.total.mul_(shrink).add_(powers.sum(1))
        sums.top.copy_(top)

    def gradient(
        self, products: Tensor, head: Head, ids: Tensor, tile: Tile, values: Tensor, shift: Tensor, push: Tensor
    ) -> Tensor:
        """`Kernels.gradient`."""
        work = self.work.of(tile)
        logits = self._logits(products, head, work)
        slope = head.slope(logits)
        torch.sub(logits, shift[:, None], out=work).exp_().mul_(push[:, None])
        if not head.straight:
            work.mul_(slope)
        row, place, column = _chosen_in(tile, ids)
        work[row, column] = values[row, place]
        return work if work.dtype == products.dtype else self.spare.of(tile).copy_(work)

    @staticmethod
    def _logits(products: Tensor, head: Head, work: Tensor) -> Tensor:
        """In `work`, or the products themselves where they are the logits."""
        alike = head.straight and head.bias is None and products.dtype == work.dtype
        return products if alike else head.logits(products, work)


def _chosen_in(tile: Tile, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Row, place among the ids and column of each chosen id that lies in a tile."""
    columns = ids - tile.columns.start
    row, place = ((columns >= 0) & (columns < tile.shape[1])).nonzero(as_tuple=True)
    return row, place, columns[row, place]
