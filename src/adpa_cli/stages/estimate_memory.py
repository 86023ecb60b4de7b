"""What a stage needs in memory: on the device that computes, and of the machine beside it. Bytes; pure functions.

The numbers of floats that a layer keeps were counted on a Llama (saved tensors of a forward pass), the rest follows
from how the stages work: float32 weights (in training bfloat16 on demand), AdamW, a head in tiles (`tensors/head.py`),
blocks computed whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from adpa_cli.spec import Runtime
from adpa_cli.stages.model_size import ModelSize
from adpa_cli.stages.row_lengths import Row, Rows

SECOND_MODEL = 50_000_000  # of loading another model after the first
PYTHON = 390_000_000  # resident: Python, torch, transformers, accelerate, pyarrow
CUDA = 600_000_000  # context and kernels on a card
KEEP_BYTES, LOGITS_PER_KEPT_BYTE = 64 * 2**20, 2  # these three lines as in tensors/tiles.py
CELLS, COLUMNS, ROWS = 2**21, 2048, 4096
GPU_CELLS, GPU_ROWS = 2**26, 8192
TILE_CELLS = 2**23  # as in tensors/output.py
DRAWN_TOGETHER = 32768  # as in engine/memory.py
READ_TOGETHER, SPARE_COLUMNS = 4096, 32  # as in engine/refill.py and engine/slots.py
TILES = 4  # of whole rows of logits alive at once
ROW_IN_PYTHON, TOKEN_IN_PYTHON = 3000, 45  # bytes of a row, and of each of its tokens, in the lists that keep them
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

    def total(self, weights: float, work: float, rows: float) -> Memory:
        """`weights` and `work` of one process, and the rows that each holds in Python."""
        held = weights + RETAINED[self.kind] * work
        if self.kind == "cpu":
            return Memory(int(self.processes * (PYTHON + held + rows)))
        return Memory(int(CUDA + held), int(self.processes * (PYTHON + CUDA + rows) + weights))


def training(model: ModelSize, rows: Rows, spec: Any, runtime: Runtime, ids: int, where: Where) -> Memory:
    """Weights, gradients, two moments; activations and head of the largest micro-batch. `ids` are read per position."""
    micro = largest_micro_batch(rows, runtime.tokens_per_device, spec.batch_size)
    answers = micro * answer_share(rows)
    work = activations(model, micro, spec, runtime.recompute) + head_training(model, answers, ids, spec, where.kind)
    return where.total(trained(model, spec, where), work, row_bytes(rows))


def online(models: Sequence[ModelSize], rows: Rows, spec: Any, runtime: Runtime, where: Where) -> Memory:
    """A student and its critic with gradients and moments; beside them the most of a step, of drawing answers, and of
    one of the models that read them in turn."""
    student = models[0]
    micro = largest_micro_batch(rows, runtime.tokens_per_device, spec.batch_size)
    answers = micro * answer_share(rows)
    weights = trained(student, spec, where) * 2
    step = activations(student, micro, spec, runtime.recompute) * (1 + 1 / len(rows))
    step += head_training(student, answers, 1, spec, where.kind)
    new = spec.params["max_new_tokens"]
    drawing = block_of_answers(student, rows["rollout"], spec.dtype, DRAWN_TOGETHER, new, spec.max_length)
    reading = max(frozen(m, spec.dtype) + passing(m, micro, spec.dtype) + tiles(m, answers) for m in models)
    left = SECOND_MODEL if where.kind == "cpu" else 0
    return where.total(weights + left, max(step, drawing, reading), row_bytes(rows))


def trained(model: ModelSize, spec: Any, where: Where) -> float:
    """Weights, gradients and two moments, copies of weights for products, and what processes sum gradients in."""
    size = weight_bytes(spec)
    copies = 2 if spec.dtype != spec.weights else 0
    return model.parameters * (4.0 * size + copies + (size if where.processes > 1 else 0))


def weight_bytes(spec: Any) -> int:
    """Bytes of a weight that is trained."""
    return 2 if spec.weights == "bfloat16" else 4


def largest_micro_batch(rows: Rows, tokens: int, batch_size: int) -> float:
    """Padded tokens of the fullest micro-batch: whole examples within `tokens`, or the longest example alone."""
    parts = len(rows)
    lengths = sorted(max(row.whole for row in example) for example in zip(*rows.values(), strict=True))
    if not lengths:
        return 0.0
    batch = sum(lengths[-batch_size:]) * parts  # the longest step there can be
    return float(max(lengths[-1] * parts, min(float(tokens), batch)))


def answer_share(rows: Rows) -> float:
    """Answer tokens among all tokens."""
    every = [row for part in rows.values() for row in part]
    return sum(row.answer for row in every) / max(1.0, sum(row.whole for row in every))


def activations(model: ModelSize, tokens: float, spec: Any, recompute: bool = False) -> float:
    """What the backward pass needs of `tokens`: per layer 6.75 or 8.5 hidden states, keys and values, 4 inner widths.

    Under autocast the inputs of products are kept in two bytes; the norms in four, and the residual too where weights
    are. With `recompute` only the residual is kept, and all of one layer at a time.
    """
    wide, narrow = (4.0, 4.0) if spec.dtype == "float32" else (2.0, 3.4 if spec.weights == "float32" else 2.4)
    states = 6.75 if narrow == 3.4 else 8.5  # the products behind a norm share one rounded copy of its output
    of_layer = narrow * (states * model.hidden + 2 * model.keys) + wide * 4 * model.inner
    layers = model.layers * of_layer
    if recompute:
        layers = model.layers * weight_bytes(spec) * model.hidden + of_layer
    return tokens * (layers + 12 * model.hidden)


def head_training(model: ModelSize, positions: float, ids: int, spec: Any, kind: str) -> float:
    """A tile of logits, those kept beside the gradient, hidden states, chosen ids, and a second gradient when tied."""
    tied = weight_bytes(spec) * model.head if model.tied else 0
    chosen = positions * (12 * model.hidden + 24 * ids)
    return head_tile(model, positions, kind) + kept_logits(model, positions) + chosen + tied


def kept_logits(model: ModelSize, positions: float) -> float:
    """Of float32: none while the gradient of the head has room for them, else what fits the head's budget."""
    budget = max(float(KEEP_BYTES), positions * model.vocabulary / LOGITS_PER_KEPT_BYTE)
    return 0.0 if positions <= model.hidden else min(4 * positions * model.vocabulary, budget)


def head_tile(model: ModelSize, positions: float, kind: str) -> float:
    """Its products and what is made of them; on a card also its part of the head and of the gradient, in two bytes."""
    if kind == "cpu":
        rows = min(positions, float(ROWS))
        return 8 * min(rows * model.vocabulary, max(float(CELLS), rows * COLUMNS))
    rows = min(max(positions, 1.0), float(GPU_ROWS))
    columns = min(float(model.vocabulary), GPU_CELLS / rows)
    return 4 * rows * columns + (6 * columns * model.hidden if positions > model.hidden else 0)


def tiles(model: ModelSize, positions: float) -> float:
    """Whole rows of logits, and what is made of them, in a model that is read."""
    return 4 * TILES * min(positions * model.vocabulary, TILE_CELLS)


def scoring(model: ModelSize, rows: Rows, dtype: str, block_tokens: int, ids: int, where: Where) -> Memory:
    """One model over blocks of given answers, without gradient: one layer's widths, the mask, the head in tiles."""
    longest = max((row.whole for part in rows.values() for row in part), default=0.0)
    every = sum(row.whole for part in rows.values() for row in part)
    block = max(longest, min(float(block_tokens), every))
    answers = block * answer_share(rows)
    work = passing(model, block, dtype) + 5 * block * longest + tiles(model, answers)
    work += answers * (8 * model.hidden + 24 * ids)
    return where.total(frozen(model, dtype), work, row_bytes(rows))


def one_after_the_other(models: Sequence[ModelSize], each: Sequence[Memory], where: Where) -> Memory:
    """Several models in turn: the largest; on a CPU the room of those before is rarely given back."""
    left = sum(SECOND_MODEL + 4 * model.parameters for model in models[1:]) if where.kind == "cpu" else 0
    return Memory(max(m.device for m in each) + where.processes * left, max(m.host for m in each))


def passing(model: ModelSize, tokens: float, dtype: str) -> float:
    """The widest moment of one layer: feed-forward, residual and states, in the dtype of the products."""
    wide = 4 if dtype == "float32" else 2
    return tokens * (wide * 3 * model.inner + 4 * 4 * model.hidden)


def frozen(model: ModelSize, dtype: str) -> float:
    """Float32 weights, and one layer's in the dtype of the products."""
    return 4 * model.parameters + (0 if dtype == "float32" else 2 * model.body / max(1, model.layers) + 2 * model.head)


def generating(
    model: ModelSize, rows: Sequence[Row], dtype: str, block_tokens: int, new: int, longest: int, where: Where
) -> Memory:
    """Drawing answers in blocks, with all weights in the dtype of the products beside the float32 ones."""
    work = block_of_answers(model, rows, dtype, block_tokens, new, longest)
    weights = model.parameters * (4.0 if dtype == "float32" else 6.0)
    return where.total(weights, work, row_bytes({"rollout": list(rows)}))


def block_of_answers(
    model: ModelSize, rows: Sequence[Row], dtype: str, block_tokens: int, new: int, longest: int
) -> float:
    """The rows answered at once: keys and values of all layers, with spare columns and one layer copied into new ones;
    the prompts that are read at once; the scores of the rows."""
    room = [min(row.prompt + new, float(longest)) for row in rows]
    widest = max(room, default=0.0)
    block = max(widest, min(float(block_tokens), sum(room)))
    count = block / max(1.0, sum(room) / max(1, len(room)))
    prompts = count * sum(row.prompt for row in rows) / max(1, len(rows))
    read = min(block, prompts, max([READ_TOGETHER, *(row.prompt for row in rows)]))
    token = 2 * model.layers * model.keys * (4 if dtype == "float32" else 3)
    cache = token * (block + count * SPARE_COLUMNS)
    scores = count * model.vocabulary * 40
    return cache * (1 + 1 / max(1, model.layers)) + max(token * read + passing(model, read, dtype), scores)


def row_bytes(rows: Rows) -> float:
    """What the rows themselves take in Python."""
    return sum(ROW_IN_PYTHON + TOKEN_IN_PYTHON * row.whole for part in rows.values() for row in part)
