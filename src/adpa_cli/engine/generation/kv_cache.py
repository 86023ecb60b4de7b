"""The key-value cache of rows that come and go while others are being answered.

Rows are aligned at their last token, so that every model that takes left-padded batches can go on with them:

    columns     start                      stop
    row 0         ·    ·    a0   a1   a2   a3 |  room for
    row 1         b0   b1   b2   b3   b4   b5 |  more tokens
    (free)                                    |

A step writes one column for all rows. A row that leaves is overwritten by the last one; the window shrinks to the
longest row left. Only when the columns are used up are they copied, to the front of a new buffer.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from adpa_cli.sizes import SPARE_COLUMNS


def supports_kv_cache(model: PreTrainedModel) -> bool:
    """Whether a model keeps nothing between tokens but keys and values, and is given positions and padding.

    State spaces, convolutions, layers that share keys and chunks of attention are not of that kind. A sliding window is
    a mask over columns and needs no cache of its own.
    """
    asked = {"attention_mask", "position_ids", "past_key_values"}
    if model._is_stateful or not asked <= set(inspect.signature(model.forward).parameters):
        return False
    config: Any = model.config.get_text_config(decoder=True)
    kinds = {type(layer) for layer in DynamicCache(config=config).layers}
    return kinds <= {DynamicLayer, DynamicSlidingWindowLayer} and not getattr(config, "attention_chunk_size", None)


class KvCache(Cache):
    """The cache of a model for at most `rows` rows, of at most `longest` tokens each."""

    def __init__(self, rows: int, longest: int) -> None:
        self.size = rows, longest
        self.windows: list[_Layer] = []
        super().__init__(layers=[])

    def add(self, new: Any) -> None:
        """Append the rows of the cache `new` [B, H, T, D], whose last column is their last token."""
        if not self.windows:
            self.windows = [_Layer(*self.size) for _ in new.layers]
            self.layers = list(self.windows)
        for layer, given in zip(self.windows, new.layers, strict=True):
            layer.add(given.keys, given.values)

    def keep(self, rows: Sequence[int], width: int) -> None:
        """Leave `rows[n]` in each place n, of which it stands there or behind, and the last `width` columns."""
        into = [place for place, row in enumerate(rows) if place != row]
        for layer in self.windows:
            layer.keep(into, [rows[place] for place in into], len(rows), width)


class _Layer(DynamicLayer):  # type: ignore[no-untyped-call]  # transformers types neither its hooks nor __init__
    """`keys` and `values` are windows on buffers that have room for more rows and columns."""

    def __init__(self, most_rows: int, longest: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # likewise
        self.most_rows, self.longest = most_rows, longest
        self.rows = self.start = self.stop = 0
        self.buffers: tuple[Tensor, ...] = ()

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append one column to all rows; all keys and values of the window."""
        if self.stop == self.buffers[0].shape[2]:
            self._copy(self.stop - self.start)
        for buffer, new in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[: self.rows, :, self.stop : self.stop + 1] = new
        self.stop += 1
        return self._show()

    def add(self, keys: Tensor, values: Tensor) -> None:
        """Append rows [B, H, T, D]."""
        count, _, width, _ = keys.shape
        if not self.buffers:
            self.buffers = tuple(torch.empty(0, x.shape[1], 0, x.shape[3], dtype=x.dtype, device=x.device)
                                 for x in (keys, values))  # fmt: skip
        if self.stop < width or not self.rows:
            self._copy(width)
        for buffer, new in zip(self.buffers, (keys, values), strict=True):
            buffer[self.rows : self.rows + count, :, self.stop - width : self.stop] = new
        self.start = min(self.start, self.stop - width)
        self.rows += count
        self._show()

    def keep(self, into: list[int], out_of: list[int], rows: int, width: int) -> None:
        for buffer in self.buffers:
            if into:
                buffer[into, :, self.start : self.stop] = buffer[out_of, :, self.start : self.stop]
        self.rows, self.start = rows, self.stop - width
        self._show()

    def _show(self) -> tuple[Tensor, Tensor]:
        self.is_initialized = True
        self.keys, self.values = (x[: self.rows, :, self.start : self.stop] for x in self.buffers)
        return self.keys, self.values

    def _copy(self, width: int) -> None:
        """Move the window to the last of the first `width` columns of new buffers."""
        columns = min(width + max(SPARE_COLUMNS, width // 4), self.longest + SPARE_COLUMNS)
        used = self.stop - self.start if self.rows else 0
        old, self.buffers = self.buffers, ()
        # Zeros, for a masked column may hold anything but a NaN, which 0 times does not take away.
        fresh = []
        for buffer in old:
            new = torch.zeros(self.most_rows, buffer.shape[1], columns, buffer.shape[3],
                              dtype=buffer.dtype, device=buffer.device)  # fmt: skip
            new[: self.rows, :, width - used : width] = buffer[: self.rows, :, self.stop - used : self.stop]
            fresh.append(new)
        self.buffers = tuple(fresh)
        self.start, self.stop = width - used, width
