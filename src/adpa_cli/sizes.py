"""Sizes that everything else is estimated from: of a model, of rows, on disk and in memory. Bytes; no torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

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


Rows = dict[str, list[Row]]
"""Rows by part: "chosen", "rejected", "rollout"; row n of every part belongs to one example."""


def packed_rows(rows: Iterable[Row], longest: int) -> list[Row]:
    """The rows that some dialogues fill when they are laid end to end, all of their tokens trained."""
    tokens = sum(row.prompt + row.answer for row in rows)
    full, rest = divmod(tokens, longest)
    return [Row(0, longest)] * int(full) + ([Row(0, rest)] if rest else [])


def spread(count: int, most: int) -> list[int]:
    """At most `most` of `count` numbers, evenly spread: a sample of as many things."""
    size = min(count, most)
    return [number * count // size for number in range(size)]


def size_words(count: int) -> str:
    """Bytes for people: 16.1 GB, 24.0 MB."""
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def forward_flops(model: ModelSize, rows: Iterable[Row]) -> float:
    """Operations of one pass over rows: 2 a token and parameter of the body, 2 an answer token and parameter of the
    head, attention 4 layers width length a token. Chowdhery et al. 2022 (PaLM), appendix B; a step of training takes 3.
    """
    tokens = answers = squares = 0.0
    for row in rows:
        whole = row.prompt + row.answer
        tokens, answers, squares = tokens + whole, answers + row.answer, squares + whole * whole
    return 2 * model.body * tokens + 2 * model.head * answers + 4 * model.layers * model.width * squares
