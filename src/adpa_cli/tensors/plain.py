"""What is done with one tile of products (`sweeps.Kernels`), on any device, in float32 or float64."""

from __future__ import annotations

import torch
from torch import Tensor

from adpa_cli.tensors.output import Head
from adpa_cli.tensors.sums import NEVER, Sums, finite
from adpa_cli.tensors.tiles import Buffer, Tile


class Plain:
    """Tensor operations in place, with memory for one tile of at most `cells`, or for two with `apart`."""

    def __init__(self, cells: int, dtype: torch.dtype, device: torch.device, apart: bool) -> None:
        wide = torch.promote_types(dtype, torch.float32)
        self.spare = Buffer(cells, dtype, device)
        self.work = Buffer(cells, wide, device) if apart or dtype != wide else self.spare

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
