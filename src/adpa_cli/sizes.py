"""Sizes that everything else is estimated from: of a model, of rows, on disk and in memory. Bytes; no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, overload

HEADER_OF_TENSOR = 120  # bytes of a safetensors header for each tensor

KEPT_LOGITS_BYTES = 64 * 2**20
LOGITS_PER_KEPT_BYTE = 2
"""What the head keeps logits in for its backward pass: KEPT_LOGITS_BYTES or, where that is more, half a byte per logit,
1/24 of the three float32 copies that a log_softmax over the full vocabulary holds."""
TILE_CELLS, TILE_COLUMNS, TILE_ROWS = 2**21, 2048, 4096
"""Of a tile of the head on a CPU: float32 logits of 8 MiB, but never under 2,048 columns, which take longer in all."""
GPU_TILE_CELLS, GPU_TILE_ROWS = 2**26, 8192
"""On a GPU: 128 MiB of bfloat16 logits, for launching the work on smaller tiles takes longer than the work."""
LOGIT_CELLS = 2**23
"""Logits that are computed at a time where whole rows of them are read, on a CPU: 32 MiB of float32."""
GPU_LOGIT_CELLS = 8 * LOGIT_CELLS
"""A GPU needs more rows at a time to be busy: 256 MiB of float32."""
DRAW_TOKENS = 32768
"""Tokens of the prompts and answers, at their longest, that a training generates at once."""
PREFILL_TOKENS = 4096
"""Padded tokens of the prompts that go through a model at once before their answers are generated."""
SPARE_COLUMNS = 32
"""Columns that a key-value cache has to spare, or a quarter of its longest row where that is more."""


@dataclass(frozen=True)
class ModelSize:
    """A decoder: `parameters` counted once where they are tied, `beside` the bytes of the other files.

    `inner` is the width of the feed-forward layer, `keys` that of the keys of one layer, `width` the number of features
    that attention mixes, all its heads together. `vocabulary` is 0 where no tokens are predicted.
    """

    parameters: int
    hidden: int
    layers: int
    inner: int
    keys: int
    width: int
    vocabulary: int
    tied: bool = True
    tensors: int = 0
    beside: int = 0
    tokenizer: int = 0
    """Bytes of tokenizer.json, which is among them."""
    stored: int = 4
    """Bytes of a weight in the folder."""
    linear: tuple[tuple[str, int], ...] = ()
    """Of the linear layers of its body, by the end of their names, inputs and outputs summed over all of that name;
    empty where nobody has seen its tensors."""
    adapter: int = 0
    """Parameters of the low-rank matrices that it has beside these weights."""
    quantise: str | None = None
    """How the weights of its products are stored wherever it is read, since its adapter was trained beside them."""
    unpacked: int = 0
    """Weights of its body that are in no linear layer of it, such as experts that are one tensor; never quantised."""
    is_fused: bool = False
    """Whether it is loaded whole in float32, since its experts are apart in the folder and one tensor in the model."""

    @property
    def body(self) -> int:
        """Parameters that every token passes through: all but embeddings and head."""
        return max(0, self.parameters - self.head * (1 if self.tied else 2))

    @property
    def head(self) -> int:
        """Parameters of the head."""
        return self.vocabulary * self.hidden

    @property
    def checkpoint(self) -> int:
        """Bytes of the folder that training writes: float32 weights, tokenizer, configuration."""
        return 4 * self.parameters + HEADER_OF_TENSOR * self.tensors + self.beside


PYTHON = 390_000_000  # resident: Python, torch, transformers, accelerate, pyarrow
CUDA = 600_000_000  # context and kernels on a card

RETAINED = {"cpu": 1.4, "cuda": 1.15}
"""What an allocator holds of blocks in changing shapes, over what is in use."""


@dataclass(frozen=True)
class Memory:
    """`device` is what the computing device must hold; `host` is of the machine beside a card, 0 without one."""

    device: int
    host: int = 0


@dataclass(frozen=True)
class Where:
    """The kind of device, "cpu" or "cuda", and how many processes share the work; on a CPU they share the memory."""

    kind: str = "cpu"
    processes: int = 1

    def total(self, weights: float, work: float, rows: float, beside: float = 0.0) -> Memory:
        """`weights` and `work` of one process, the rows that each holds in Python, and what it has of a model in the
        memory `beside` a card."""
        held = weights + RETAINED[self.kind] * work
        if self.kind == "cpu":
            return Memory(int(self.processes * (PYTHON + held + rows)))
        return Memory(int(CUDA + held), int(self.processes * (PYTHON + CUDA + rows + beside)))


@dataclass(frozen=True)
class Disk:
    """`keeps` stays after the commit; `extra` comes on top of it at the fullest moment before."""

    keeps: int
    extra: int = 0


@dataclass(frozen=True)
class Row:
    """One sequence: the tokens before the answer, and of the answer with its end token."""

    prompt: float
    answer: float

    @property
    def whole(self) -> float:
        return self.prompt + self.answer

    def fitted(self, longest: int) -> Row:
        """What is left of it within `longest` tokens; the prompt is cut first, down to half."""
        prompt = min(self.prompt, max(longest - self.answer, longest / 2))
        return Row(prompt, min(self.answer, longest - prompt))


@dataclass(frozen=True)
class Totals:
    """Tokens of some rows, of their prompts and of their answers; the sum of the squares of their lengths; the longest
    row, and the longest prompt."""

    prompt: float = 0.0
    answer: float = 0.0
    squares: float = 0.0
    longest: float = 0.0
    longest_prompt: float = 0.0

    @property
    def whole(self) -> float:
        return self.prompt + self.answer


class RowTable(Sequence[Row]):
    """Many rows in little memory: `prompts` and `answers` [n] are arrays of their tokens."""

    def __init__(self, prompts: Any, answers: Any) -> None:
        self.prompts, self.answers = prompts, answers

    def __len__(self) -> int:
        return len(self.prompts)

    @overload
    def __getitem__(self, number: int) -> Row: ...
    @overload
    def __getitem__(self, number: slice) -> RowTable: ...
    def __getitem__(self, number: int | slice) -> Row | RowTable:
        if isinstance(number, slice):
            return RowTable(self.prompts[number], self.answers[number])
        return Row(float(self.prompts[number]), float(self.answers[number]))

    def fitted(self, longest: int) -> RowTable:
        """What is left of each within `longest` tokens, as of a `Row`; these rows where all fit."""
        if self.totals.longest <= longest:
            return self
        import numpy as np

        prompts = np.minimum(self.prompts, np.maximum(longest - self.answers, longest / 2))
        return RowTable(prompts, np.minimum(self.answers, longest - prompts))

    def packed(self, longest: int) -> RowTable:
        """The rows that they fill when they are laid end to end, all of their tokens trained."""
        import numpy as np

        full, rest = divmod(self.totals.whole, longest)
        answers = np.array([longest] * int(full) + [rest] * (rest > 0), np.float32)
        return RowTable(answers * 0, answers)

    def answered(self, tokens: float) -> RowTable:
        """The same prompts with answers of so many tokens."""
        return RowTable(self.prompts, self.answers * 0 + tokens)

    @cached_property
    def totals(self) -> Totals:
        if not len(self):
            return Totals()
        lengths = self.prompts + self.answers
        sums = (each.sum(dtype=float) for each in (self.prompts, self.answers, lengths * lengths))
        return Totals(*map(float, (*sums, lengths.max(), self.prompts.max())))


Rows = Mapping[str, Sequence[Row]]
"""Rows by part: "chosen", "rejected", "rollout"; row n of every part belongs to one example."""


def totals(rows: Sequence[Row]) -> Totals:
    """Of some rows; of a table they are reckoned once."""
    if isinstance(rows, RowTable):
        return rows.totals
    prompts, answers = [row.prompt for row in rows], [row.answer for row in rows]
    lengths = [row.whole for row in rows]
    return Totals(
        sum(prompts), sum(answers), sum(n * n for n in lengths), max(lengths, default=0.0), max(prompts, default=0.0)
    )


def joined(rows: Rows) -> Sequence[Row]:
    """The rows of all parts."""
    tables = [part for part in rows.values() if isinstance(part, RowTable)]
    if len(tables) < len(rows) or not tables:
        return [row for part in rows.values() for row in part]
    import numpy as np

    return RowTable(*(np.concatenate([getattr(t, name) for t in tables]) for name in ("prompts", "answers")))


def longest_examples(rows: Rows, count: int) -> list[float]:
    """The tokens of the longest part of the `count` longest examples, ascending."""
    tables = [part for part in rows.values() if isinstance(part, RowTable)]
    if len(tables) < len(rows) or not tables:
        return sorted(max(row.whole for row in example) for example in zip(*rows.values(), strict=True))[-count:]
    import numpy as np

    lengths = np.maximum.reduce([table.prompts + table.answers for table in tables])
    most = min(count, len(lengths))
    return [float(length) for length in np.sort(np.partition(lengths, len(lengths) - most)[-most:])] if most else []


def room_of(rows: Sequence[Row], more: int, most: int) -> tuple[float, float]:
    """Tokens of prompts with `more` beside each, `most` together at most: of all rows, and of the longest."""
    if isinstance(rows, RowTable):
        import numpy as np

        room = np.minimum(rows.prompts + more, float(most))
        return float(room.sum(dtype=float)), float(room.max(initial=0.0))
    each = [min(row.prompt + more, float(most)) for row in rows]
    return sum(each), max(each, default=0.0)


def spread(count: int, most: int) -> list[int]:
    """At most `most` of `count` numbers, evenly spread: a sample of as many things."""
    size = min(count, most)
    return [number * count // size for number in range(size)]


def size_words(count: int) -> str:
    """Bytes for people: 16.1 GB, 24.0 MB."""
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def forward_flops(model: ModelSize, rows: Sequence[Row]) -> float:
    """Operations of one pass over rows: 2 a token and parameter of the body, 2 an answer token and parameter of the
    head, attention 4 layers width length a token. Chowdhery et al. 2022 (PaLM), appendix B; a step of training takes 3.
    """
    of = totals(rows)
    tokens, answers, squares = of.whole, of.answer, of.squares
    return 2 * model.body * tokens + 2 * model.head * answers + 4 * model.layers * model.width * squares
