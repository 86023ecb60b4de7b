"""What the engine's passes take in memory and leave on disk, from sizes alone. Bytes; pure functions, no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from adpa_cli.errors import AdpaError
from adpa_cli.sizes import (
    DRAW_TOKENS,
    GPU_LOGIT_CELLS,
    GPU_TILE_CELLS,
    GPU_TILE_ROWS,
    KEPT_LOGITS_BYTES,
    LOGIT_CELLS,
    LOGITS_PER_KEPT_BYTE,
    PREFILL_TOKENS,
    SPARE_COLUMNS,
    TILE_CELLS,
    TILE_COLUMNS,
    TILE_ROWS,
    Disk,
    Memory,
    ModelSize,
    Row,
    Rows,
    Where,
    forward_flops,
    longest_examples,
    room_of,
    totals,
)
from adpa_cli.spec import ALL_LINEAR, Runtime

SECOND_MODEL = 50_000_000  # of loading another model after the first
PEFT = 55_000_000  # of importing peft
LORA_RETAINED = 2.0
"""What a CPU's allocator keeps besides of what low-rank matrices make and free between tensors of the same size."""
QUANTISED: Mapping[str, float] = {"nf4": 0.5625, "int8": 1.002}
"""Bytes of a quantised weight, with the scales of its block or row."""
COMING: Mapping[str, float] = {"cpu": 25e9, "disk": 2e9}
"""Bytes a second that come from where layers wait: over PCIe 4, from an NVMe disk that shares its time."""

TILES, TILES_OF_DRAWS = 2.3, 5.0
"""Whole rows of logits that are alive at once, for a top k and for ids that are drawn from the softmax."""
ROW_BYTES = 150  # of a row in the arrays that number and find it


@dataclass(frozen=True)
class Held:
    """How a stage has the frozen models that it reads: what their products compute in, how the weights of these are
    stored, and where the layers wait that do not compute."""

    dtype: str
    quantise: str | None = None
    offload: str = "none"
    parts: int = 1
    """How many processes share its layers out."""

    @classmethod
    def by(cls, spec: Any, runtime: Runtime, where: Where) -> Held:
        """As a stage of inference has them."""
        parts = where.processes if runtime.shard == "all" else 1
        return cls(spec.dtype, getattr(spec, "quantise", None), runtime.offload, parts)


def training_memory(model: ModelSize, rows: Rows, spec: Any, runtime: Runtime, ids: int, where: Where) -> Memory:
    """Weights, gradients, two moments; activations and head of the largest micro-batch. `ids` are read per position."""
    micro = largest_micro_batch(rows, runtime.tokens_per_device, spec.batch_size)
    answers = micro * answer_share(rows)
    work = activations(model, micro, spec, runtime.recompute) + head_training(model, answers, ids, spec, where.kind)
    if spec.lora and where.kind == "cpu":
        work *= LORA_RETAINED
    weights = trained(model, spec, where, is_shared_out(spec, runtime, where.processes))
    return where.total(weights, work, row_bytes(rows) + _library(spec), loading(model, spec))


def _library(spec: Any) -> int:
    """What a training imports besides."""
    return PEFT if spec.lora else 0


def online_memory(models: Sequence[ModelSize], rows: Rows, spec: Any, runtime: Runtime, where: Where) -> Memory:
    """A student and its critic with gradients and moments; beside them the most of a step, of drawing answers, and of
    one of the models that read them in turn."""
    student = models[0]
    micro = largest_micro_batch(rows, runtime.tokens_per_device, spec.batch_size)
    answers = micro * answer_share(rows)
    weights = 2 * trained(student, spec, where) - (trained_beside(student, spec, where) if spec.lora else 0)
    step = activations(student, micro, spec, runtime.recompute) * (1 + 1 / len(rows))
    step += head_training(student, answers, 1, spec, where.kind)
    new = spec.params["max_new_tokens"]
    own = Held(spec.dtype, spec.quantise)
    drawing = block_of_answers(student, rows["rollout"], own, DRAW_TOKENS, new, spec.max_length, where)
    taught = spec.teachers_dtype or spec.dtype
    reading = max(
        frozen(m, Held(taught), where) + passing(m, micro, Held(taught), where) + tiles(m, answers, where)
        for m in models
    )
    left = SECOND_MODEL if where.kind == "cpu" else 0
    rest = row_bytes(rows) + _library(spec)
    return where.total(weights + left, max(step, drawing, reading), rest, loading(student, spec))


def check_shared_out(spec: Any, runtime: Runtime, draws: bool = False) -> None:
    """Raise AdpaError where weights are to be shared out that every process must have whole."""
    if runtime.shard == "all" and (why := _why_whole(spec, draws)):
        raise AdpaError(f"--runtime shard=all: {why}", "--runtime shard=none")


def is_shared_out(spec: Any, runtime: Runtime, count: int, draws: bool = False) -> bool:
    """Whether the weights of a training are shared out among `count` processes: where they may be, unless told
    otherwise. `draws` tells that the student draws answers meanwhile."""
    return count > 1 and runtime.shard != "none" and not _why_whole(spec, draws)


def _why_whole(spec: Any, draws: bool) -> str:
    """Why every process of a training must have all weights; "" where it need not."""
    if spec.weights == "bfloat16":
        return "weights=bfloat16 rounds each weight by its place in the whole"
    if spec.quantise:
        return f"torch does not share out weights that are stored as {spec.quantise}"
    return "the student draws answers while it trains, for which it must be whole" if draws else ""


def trained(model: ModelSize, spec: Any, where: Where, shared: bool = False) -> float:
    """Weights, gradients and two moments, copies of weights for products, and what processes sum gradients in; all that
    of low-rank matrices only, beside frozen weights, where a training has such.

    Where weights are `shared` out, a process has its part of all these; besides the embedding and the head, two layers
    and, until the end of a step, the gradients whole.
    """
    size = weight_bytes(spec)
    copies = 2 if spec.dtype != spec.weights else 0
    own = trained_part(model, spec)
    if shared:
        each = 4.0 * size / where.processes + size + copies
        group = model.head * (1 if model.tied else 2) + 2 * model.body // max(1, model.layers)
        beside = trained_beside(model, spec, where) / where.processes if spec.lora else 0.0
        return own.parameters * each + size * group + beside
    each = 4.0 * size + copies + (size if where.processes > 1 else 0)
    return own.parameters * each + (trained_beside(model, spec, where) if spec.lora else 0.0)


def trained_beside(model: ModelSize, spec: Any, where: Where) -> float:
    """The frozen weights that low-rank matrices are trained beside; a critic has the same ones."""
    return frozen(replace(model, adapter=0), Held(spec.dtype, spec.quantise), where)


def trained_part(model: ModelSize, spec: Any) -> ModelSize:
    """What of a model a training changes and saves: all of it, or the low-rank matrices beside it."""
    if not spec.lora:
        return model
    own = low_rank(model, spec.lora, spec.lora_targets)
    return replace(model, parameters=own, tensors=2 * model.layers * len(_targets(model, spec.lora_targets)))


def low_rank(model: ModelSize, rank: int, targets: str = ALL_LINEAR) -> int:
    """Parameters of low-rank matrices beside the layers with certain ends of names: a rank for every input and output
    of a layer."""
    return rank * sum(_targets(model, targets).values())


def _targets(model: ModelSize, targets: str) -> Mapping[str, int]:
    """Those of the `linear_layers` that get low-rank matrices."""
    ends = {target.strip().rpartition(".")[2] for target in targets.split(",")}
    return {name: n for name, n in linear_layers(model).items() if targets == ALL_LINEAR or name in ends}


def linear_layers(model: ModelSize) -> Mapping[str, int]:
    """Inputs and outputs of the linear layers of a body by name; where nobody has seen its tensors, as in a Llama."""
    if model.linear:
        return dict(model.linear)
    attention = {"q_proj": model.width, "k_proj": model.keys, "v_proj": model.keys, "o_proj": model.width}
    widths = {**attention, **dict.fromkeys(("gate_proj", "up_proj", "down_proj"), model.inner)}
    return {name: model.layers * (model.hidden + width) for name, width in widths.items()}


def loading(model: ModelSize, spec: Any) -> float:
    """What a training has of a model in the memory of the host, where float32 weights are loaded first."""
    return float(model.stored * model.head if spec.lora else 4 * model.parameters)


def weight_bytes(spec: Any) -> int:
    """Bytes of a weight that is trained."""
    return 2 if spec.weights == "bfloat16" else 4


def largest_micro_batch(rows: Rows, tokens: int, batch_size: int) -> float:
    """Padded tokens of the fullest micro-batch: whole examples within `tokens`, or the longest example alone."""
    parts = len(rows)
    lengths = longest_examples(rows, batch_size)
    if not lengths:
        return 0.0
    batch = sum(lengths) * parts  # the longest step there can be
    return float(max(lengths[-1] * parts, min(float(tokens), batch)))


def answer_share(rows: Rows) -> float:
    """Answer tokens among all tokens."""
    every = [totals(part) for part in rows.values()]
    return sum(part.answer for part in every) / max(1.0, sum(part.whole for part in every))


def activations(model: ModelSize, tokens: float, spec: Any, recompute: bool = False) -> float:
    """What the backward pass needs of `tokens`: per layer 6.75 or 8.5 hidden states, keys and values, 4 inner widths.

    Under autocast the inputs of products are kept in two bytes; the norms in four, and the residual too where weights
    are. With `recompute` only the residual is kept, and all of one layer at a time.
    """
    wide, narrow = (4.0, 4.0) if spec.dtype == "float32" else (2.0, 3.4 if spec.weights == "float32" else 2.4)
    states = 6.75 if narrow == 3.4 else 8.5  # the products behind a norm share one rounded copy of its output
    of_layer = narrow * (states * model.hidden + 2 * model.keys) + wide * 4 * model.inner
    if spec.lora:
        of_layer = _beside_frozen(model, spec)
    layers = model.layers * of_layer
    if recompute:
        layers = model.layers * weight_bytes(spec) * model.hidden + of_layer
    return tokens * (layers + 12 * model.hidden)


def _beside_frozen(model: ModelSize, spec: Any) -> float:
    """What the backward pass needs of a token in one layer, each of whose seven products has low-rank matrices.

    Every first matrix keeps an input of its own, so that this is no less than what a training of all weights keeps.
    """
    wide = 4.0 if spec.dtype == "float32" else 2.0
    rank: int = spec.lora
    return 24 * model.hidden + wide * (2 * model.keys + 4 * model.inner + 7 * rank)


def head_training(model: ModelSize, positions: float, ids: int, spec: Any, kind: str) -> float:
    """A tile of logits, those kept beside the gradient, hidden states, chosen ids, and a second gradient when tied.

    A frozen head has no gradient: of it only the mean of its rows is kept at each position.
    """
    chosen = positions * (12 * model.hidden + 24 * ids)
    tile = head_tile(model, positions, kind)
    if spec.lora:
        return tile + chosen + 4 * positions * model.hidden
    tied = weight_bytes(spec) * model.head if model.tied else 0
    return tile + kept_logits(model, positions) + chosen + tied


def kept_logits(model: ModelSize, positions: float) -> float:
    """Of float32: none while the gradient of the head has room for them, else what fits the head's budget."""
    budget = max(float(KEPT_LOGITS_BYTES), positions * model.vocabulary / LOGITS_PER_KEPT_BYTE)
    return 0.0 if positions <= model.hidden else min(4 * positions * model.vocabulary, budget)


def head_tile(model: ModelSize, positions: float, kind: str) -> float:
    """Its products and what is made of them; on a card also its part of the head and of the gradient, in two bytes."""
    if kind == "cpu":
        rows = min(positions, float(TILE_ROWS))
        return 8 * min(rows * model.vocabulary, max(float(TILE_CELLS), rows * TILE_COLUMNS))
    rows = min(max(positions, 1.0), float(GPU_TILE_ROWS))
    columns = min(float(model.vocabulary), GPU_TILE_CELLS / rows)
    return 4 * rows * columns + (6 * columns * model.hidden if positions > model.hidden else 0)


def tiles(model: ModelSize, positions: float, where: Where, alive: float = TILES) -> float:
    """Whole rows of logits, and what is made of them, in a model that is read."""
    cells = LOGIT_CELLS if where.kind == "cpu" else GPU_LOGIT_CELLS
    return 4 * alive * min(positions * model.vocabulary, cells)


def scoring_memory(
    model: ModelSize, rows: Rows, held: Held, block_tokens: int, ids: int, where: Where, alive: float = TILES
) -> Memory:
    """One model over blocks of given answers, without gradient: one layer's widths, the mask, the head in tiles."""
    longest = max((totals(part).longest for part in rows.values()), default=0.0)
    every = sum(totals(part).whole for part in rows.values())
    block = max(longest, min(float(block_tokens), every))
    answers = block * answer_share(rows)
    work = passing(model, block, held, where) + 5 * block * longest + tiles(model, answers, where, alive)
    work += answers * (8 * model.hidden + 24 * ids)
    return where.total(frozen(model, held, where), work, row_bytes(rows), beside(model, held))


def passing(model: ModelSize, tokens: float, held: Held, where: Where) -> float:
    """The widest moment of one layer: feed-forward, residual and states, in the dtype of the products."""
    return tokens * (product_bytes(held.dtype, where) * 3 * model.inner + 4 * 4 * model.hidden)


def product_bytes(dtype: str, where: Where) -> int:
    """Bytes of a number that products read and write: a CPU makes those of float16 around float32 ones."""
    return 4 if dtype in ("float32", "tf32") or (dtype == "float16" and where.kind == "cpu") else 2


def frozen(model: ModelSize, held: Held, where: Where) -> float:
    """The weights of products as they are held, the head in float32, an embedding that is no head as it is stored, an
    adapter, and the largest weight as products read it, through float32 where it is of eight bits."""
    layers, wide = products(model, held), product_bytes(held.dtype, where)
    if waits(model, held, where):
        layers /= max(1, model.layers)
    if held.parts > 1:  # the layer that computes and the next one are whole
        layers = layers / held.parts + 2 * layers / max(1, model.layers)
    is_exact = held.dtype == "float32" and not stored_in(model, held)
    embedding = 0 if model.tied else (4 if is_exact else model.stored) * model.head
    copies = 4 if wide == 4 and held.dtype != "float32" else 0
    if quantise := stored_in(model, held):
        copies += (4 if held.dtype == "float32" else 2) + (4 if quantise == "int8" else 0)
    held_here = layers + 4 * model.head + embedding + 4 * model.adapter + copies * model.hidden * model.inner
    return max(held_here, 4.0 * model.parameters if model.is_fused and where.kind == "cpu" else 0.0)


def stored_in(model: ModelSize, held: Held) -> str | None:
    """How the weights of products are quantised: as a stage says, or as an adapter was trained."""
    return held.quantise or model.quantise


def products(model: ModelSize, held: Held) -> float:
    """Bytes of the weights of a body, of which not all are quantised."""
    whole = 4.0 if held.dtype == "float32" else 2.0
    each = QUANTISED.get(stored_in(model, held) or "", whole)
    return each * (model.body - model.unpacked) + whole * model.unpacked


def beside(model: ModelSize, held: Held) -> float:
    """What a frozen model takes in the memory beside a card: layers that wait there, and the largest tensor while it is
    read, or all of them where they cannot be read one by one."""
    largest = 2 * model.hidden * model.inner
    rounded = 2 ** math.ceil(math.log2(max(1, largest))) / max(1, largest)  # as memory is pinned that a card reads
    waiting = products(model, held) * rounded if held.offload == "cpu" else 0.0
    return waiting + (4 * model.parameters if model.is_fused else model.stored * model.head)


def waits(model: ModelSize, held: Held, where: Where) -> bool:
    """Whether the layers of a model are on the device one at a time. None wait on a disk that are read all at once."""
    return held.offload == "cpu" != where.kind or (held.offload == "disk" and not model.is_fused)


def waiting_disk(models: Sequence[ModelSize], held: Held) -> int:
    """What layers take on the disk that wait there, of one model after the other."""
    return int(max((products(m, held) for m in models), default=0)) if held.offload == "disk" else 0


def waiting_seconds(models: Sequence[ModelSize], held: Held, where: Where, passes: float) -> float:
    """How long layers that wait elsewhere take to come to the device, `passes` times each."""
    moved = sum(products(model, held) for model in models if waits(model, held, where))
    return passes * moved / COMING[held.offload] if moved else 0.0


def layer_passes(rows: Rows, block_tokens: int, is_drawn: bool) -> float:
    """How often a model passes over its layers: once for each block, or for each token of the answers of a block."""
    parts, count = [totals(part) for part in rows.values()], sum(map(len, rows.values()))
    blocks = max(1.0, sum(part.whole for part in parts) / block_tokens)
    return blocks * sum(part.answer for part in parts) / count if is_drawn and count else blocks


def generating_memory(
    model: ModelSize, rows: Sequence[Row], held: Held, block_tokens: int, new: int, longest: int, where: Where
) -> Memory:
    """Drawing answers in blocks, with all weights that are not quantised as products read them token by token."""
    work = block_of_answers(model, rows, held, block_tokens, new, longest, where)
    if product_bytes(held.dtype, where) == 4 and not stored_in(model, held) and held.parts == 1:
        held = replace(held, dtype="float32")
    return where.total(frozen(model, held, where), work, row_bytes({"rollout": rows}), beside(model, held))


def block_of_answers(
    model: ModelSize, rows: Sequence[Row], held: Held, block_tokens: int, new: int, longest: int, where: Where
) -> float:
    """The rows answered at once: keys and values of all layers, with spare columns and one layer copied into new ones;
    the prompts that are read at once; the scores of the rows."""
    room, widest = room_of(rows, new, longest)
    block = max(widest, min(float(block_tokens), room))
    count = block / max(1.0, room / max(1, len(rows)))
    prompts = count * totals(rows).prompt / max(1, len(rows))
    read = min(block, prompts, max(float(PREFILL_TOKENS), totals(rows).longest_prompt))
    token = 2 * model.layers * model.keys * (4 if held.dtype in ("float32", "tf32") else 3)
    cache = token * (block + count * SPARE_COLUMNS)
    scores = count * model.vocabulary * 40
    return cache * (1 + 1 / max(1, model.layers)) + max(token * read + passing(model, read, held, where), scores)


def row_bytes(rows: Rows) -> float:
    """What a process keeps of the rows themselves, which are in files that it maps."""
    return float(ROW_BYTES * sum(map(len, rows.values())))


LOG_LINE = 210  # bytes of metrics.jsonl for one step
ANSWER_HEAD = 300  # bytes of a signal for each answer: key, offset, checksum, and what compression loses at a start
TOKENIZER_PACKED = 0.3  # of tokenizer.json, by zstandard
TOKEN_JSON = 1.9  # bytes of a token id in a block of a rollout, besides its digits
TOKEN_TEXT = 4.0
TOKEN_PARQUET = 1.7
PARQUET = 6_000  # bytes of a file without rows
LOGP_PARQUET, KEY_PARQUET = 3.5, 24  # bytes of a float32, and of the name of an answer
ROW_JSON = 75
SCORE_LINE = 36  # bytes of scores.json for one figure of one row


def training_disk(
    model: ModelSize, steps: int, every: int, points: int = 0, keep_all: bool = False, critic: bool = False
) -> Disk:
    """A checkpoint, and with `keep_all` one for each of the `points` that are looked at.

    Meanwhile resume points of weights and two moments, the new one beside the old, a critic's with them; and the best
    point beside a better.
    """
    resume = 12 * model.parameters * (2 if critic else 1)
    saved = (steps - 1) // every
    last = model.checkpoint + LOG_LINE * steps
    beside = points * model.checkpoint if keep_all else 0
    best = 0 if keep_all else min(points, 2) * model.checkpoint
    fullest = max(min(saved, 2) * resume + best, min(saved, 1) * resume + last + min(best, model.checkpoint))
    return Disk(last + beside, fullest - last)


def signal_bytes_per_token(vocabulary: int, k: int, step: float, pair_step: float | None) -> float:
    """Of one answer token: its ids by their entropy, and per value the bits that its step leaves to store.

    Fitted to 92 and 141 bytes at V = 128,256, k = 50, steps of 1/32 and 1/128 (docs/benchmarks.md).
    """
    k = min(k, vocabulary)
    ids = IDS_OF_ENTROPY * log2_subsets(vocabulary, k) / 8
    pair = 0.0 if pair_step is None else _value_bytes(pair_step, PAIR_BITS)
    return ids + k * (_value_bytes(step, VALUE_BITS) + pair)


IDS_OF_ENTROPY = 0.55
VALUE_BITS, PAIR_BITS = 2.4, 0.85


def _value_bytes(step: float, bits: float) -> float:
    return 3.6 if step == 0 else max(0.25, (bits + math.log2(1 / step)) / 8)


def log2_subsets(of: int, k: int) -> float:
    """log2 of the number of sets of k out of `of`."""
    return (math.lgamma(of + 1) - math.lgamma(k + 1) - math.lgamma(of - k + 1)) / math.log(2)


def signal_disk(rows: Sequence[Row], per_token: float, k: int, pair: bool, tokenizer: int) -> Disk:
    """A signal and its tokenizer; meanwhile every finished block in float32."""
    tokens = totals(rows).answer
    keeps = per_token * tokens + ANSWER_HEAD * len(rows) + TOKENIZER_PACKED * tokenizer
    spooled = (13 * k + 24 if pair else 8 * k + 12) * tokens + ROW_JSON * len(rows)
    return Disk(int(keeps), int(spooled))


def rollout_disk(rows: Sequence[Row], vocabulary: int) -> Disk:
    """Answers in Parquet; meanwhile blocks of JSON."""
    tokens, answers = totals(rows).whole, totals(rows).answer
    of_token = TOKEN_JSON + math.log10(vocabulary)
    blocks = of_token * tokens + TOKEN_TEXT * answers + ROW_JSON * len(rows)
    return Disk(int(PARQUET + TOKEN_PARQUET * tokens), int(blocks))


def start_logps_disk(rows: Sequence[Row]) -> Disk:
    """A float32 for every answer token and the key of every answer in Parquet; meanwhile the same in blocks."""
    size = PARQUET + LOGP_PARQUET * totals(rows).answer + KEY_PARQUET * len(rows)
    return Disk(int(size), int(size))


def scores_disk(rows: int, figures: int) -> Disk:
    """The numbers of every row, twice while they are put together."""
    return Disk(SCORE_LINE * rows * figures, SCORE_LINE * rows * figures)


def scoring_in_turn(
    models: Sequence[ModelSize], rows: Rows, held: Held, block_tokens: int, ids: int, where: Where, alive: float = TILES
) -> Memory:
    """Of several models over the same blocks of given answers, loaded one after the other: that of the largest; on a
    CPU the room of those before is rarely given back."""
    each = [scoring_memory(model, rows, held, block_tokens, ids, where, alive) for model in models]
    left = int(sum(SECOND_MODEL + frozen(m, held, where) for m in models[1:])) if where.kind == "cpu" else 0
    return Memory(max(m.device for m in each) + where.processes * left, max(m.host for m in each))


def requests_memory(model: ModelSize, tokens: float, held: Held, where: Where) -> Memory:
    """One model over batches of so many tokens, with the logits of all of them and their log-probs."""
    work = passing(model, tokens, held, where) + 12 * tokens * model.vocabulary
    return where.total(frozen(model, held, where), work, 0.0, beside(model, held))


REACHED: Mapping[str, float] = {"training": 0.35, "scoring": 0.35, "generating": 0.1}
"""Share of a product's speed that each kind of work reached with models of 12 M parameters on a CPU."""
SMALL = 150_000
"""Parameters of a model that reaches half of it: what is no product takes as long there (measured with `tiny`)."""


def reached(kind: str, parameters: int) -> float:
    """The share of a product's speed that a kind of work reaches with a model of so many parameters."""
    return REACHED[kind] * parameters / (parameters + SMALL)


def training_flops(model: ModelSize, rows: Rows, passes: float, is_frozen: bool = False) -> float:
    """Operations of a forward and a backward pass over all parts, `passes` times; frozen weights have no gradient."""
    return (2 if is_frozen else 3) * passes * sum(forward_flops(model, part) for part in rows.values())


def online_flops(models: Sequence[ModelSize], rows: Sequence[Row], passes: float, drawn: float) -> float:
    """What the answers `rows` cost that are drawn in training, beside the student's own steps.

    The critic trains on them `passes` times. `drawn` times they are generated, which is slower than training by as much
    as is known of both, and read by the student, the critic, the start model and the two teachers.
    """
    student, *teachers = models
    slower = REACHED["training"] / REACHED["generating"]
    once = forward_flops(student, rows)
    taught = sum(forward_flops(teacher, rows) for teacher in teachers)
    return once * (3 * passes + (slower + 3) * drawn) + taught * drawn
