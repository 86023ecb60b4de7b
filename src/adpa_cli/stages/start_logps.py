"""The `start-logps` stage: log-probs of given answers under the model that trainings start from, scored once for all.

One Parquet file holds a row for every answer: _logps_table.py says what is in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adpa_cli.disk import numbered
from adpa_cli.engine.costs import start_logps_disk
from adpa_cli.errors import AdpaError
from adpa_cli.sizes import Disk, Rows
from adpa_cli.spec import Quantise, Runtime, TrainingDtype, Truncation, make, quantise, truncation
from adpa_cli.stages import Job, Lengths, Load, Monitor, Node, Stage, _sharing, stored_words, with_progress

if TYPE_CHECKING:
    from adpa_cli.stages._logps_table import KeyedLogps, Logps


@dataclass(frozen=True)
class StartSpec:
    """One `start-logps` stage: the log-probs of given answers under the model that trainings start from.

    What has no default is as in those trainings. Only rounding hangs on the rest, so their ids need not tell of it.
    """

    parts: tuple[str, ...]
    template: str
    end: str
    dtype: TrainingDtype
    max_length: int
    limit: int | None
    skip_bad_rows: bool
    smoke: bool
    block_tokens: int = 16384
    truncation: Truncation = truncation()
    quantise: Quantise | None = quantise()
    merged: bool = field(default=False, metadata={"neutral": False})
    """Whether the adapter of the model is merged into its base, as a training of all weights has it."""


def compute(job: Job, monitor: Monitor, rank: int = 0, processes: int = 1) -> None:
    """Leave one `_block-NNNNNN.parquet` per finished block in the work folder; blocks that are there are kept."""
    from adpa_cli.engine.device import device
    from adpa_cli.engine.layout.micro_batches import longest_first
    from adpa_cli.engine.models import load_checked
    from adpa_cli.engine.training.student import Student
    from adpa_cli.stages._logps_table import write

    spec = make(StartSpec, job.spec)
    own = job.own(longest_first(_blocks(job, spec)), rank, processes)
    todo = [block for block in own if not _path(job, block.index).exists()]
    if not _sharing.is_any_left(job, todo, processes):
        return
    folder, stored = job.one("model").path, spec.quantise
    with _sharing.together(job, monitor, processes) as told:
        model = load_checked(folder, dtype=spec.dtype, train=spec.merged, device=device(), quantise=stored)
        student = Student(model, spec.dtype)
        for block in with_progress(todo, told, len(own) - len(todo)):
            scored = _scored(job, spec, student, block.items, device())
            _check(scored, job.one("model").label, job.hints["training"])
            named = (key for answers in block.items.parts.values() for key in answers.answer_keys())
            keys = {(key.example_id, key.part): key for key in named}
            write(_path(job, block.index), [(keys[name], logps) for name, logps in scored.items()])


def _blocks(job: Job, spec: StartSpec) -> list[Any]:
    """The examples in blocks: the answers to one prompt together.

    A block has at most `block_tokens`, padded to its longest answer.
    """
    from adpa_cli.engine.layout.examples import Examples, answers_for
    from adpa_cli.engine.layout.micro_batches import mapped_blocks

    both = answers_for(spec, job.one("data"), "train", job.one("model").path)
    examples = Examples({part: both.of(part) for part in spec.parts}, both.of(spec.parts[0]).ids)
    lengths = examples.lengths.max(0) * len(spec.parts)
    return mapped_blocks(examples, lengths, [examples.ids], spec.block_tokens)[0]


def _scored(
    job: Job, spec: StartSpec, student: Any, examples: Sequence[Any], device: str
) -> Mapping[tuple[str, str], Logps]:
    """One block whole, in one batch; AdpaError where it does not fit in memory."""
    from adpa_cli.engine.device import ROOM, refused_when_full
    from adpa_cli.engine.scoring import label_logps

    parts: Any = spec.parts
    longest, count = max(example.length for example in examples), len(parts)
    size = longest * count * len(examples)
    hint = f"--set {job.stage}.block_tokens={size // 2}"
    if len(examples) == 1:
        hint = f"--set {job.hints['training']}.max_length={max(1, longest // 2)}, or {ROOM}"
    with refused_when_full(f"{job.stage}: a block of {len(examples):,} × {count} rows of {longest:,} tokens", hint):
        return label_logps(student, examples, parts, size, device)


def _check(scored: Mapping[tuple[str, str], Logps], model: str, training: str) -> None:
    import numpy as np

    for (example_id, part), logps in scored.items():
        if not np.isfinite(logps).all():
            raise AdpaError(
                f"the log-probs of example {example_id} ({part}) under {model} are not finite",
                f"check the weights of the model, or compute in float32: --set {training}.dtype=float32 "
                f"--set {training}.weights=float32",
            )


def missing(job: Job) -> int:
    """How many blocks are not there yet."""
    return sum(not _path(job, block.index).exists() for block in _blocks(job, make(StartSpec, job.spec)))


def finish(job: Job) -> dict[str, Any]:
    """One table of all blocks, and how likely the answers are to the model."""
    from adpa_cli.stages._logps_table import TABLE, read, write

    sums: dict[str, tuple[int, float]] = {}
    answers = 0

    def scored() -> Iterator[KeyedLogps]:
        nonlocal answers
        for path in numbered(job.folder, "_block-*.parquet"):
            for key, logps in read(path):
                tokens, total = sums.get(key.part, (0, 0.0))
                sums[key.part] = tokens + len(logps), total + float(logps.sum(dtype="float64"))
                answers += 1
                yield key, logps

    write(job.folder / TABLE, scored())
    means = {part: total / tokens for part, (tokens, total) in sorted(sums.items())}
    return {
        "answers": answers, "tokens": sum(tokens for tokens, _ in sums.values()), "mean_logp": means,
        "say": [f"mean log-prob of a token: {', '.join(f'{part} {mean:.3g}' for part, mean in means.items())}"],
    }  # fmt: skip


def _path(job: Job, index: int) -> Path:
    return job.folder / f"_block-{index:06d}.parquet"


def rows(node: Node, lengths: Lengths) -> Rows:
    """The answers that are scored."""
    pairs = lengths.pairs("train")
    return {part: pairs[part] for part in node.spec.parts}


def disk(node: Node, load: Load) -> Disk:
    """Of a number for each answer token."""
    return start_logps_disk(load.flat)


def what(node: Node) -> str:
    """Which answers are scored, and under whom."""
    return f"log-probs of {'+'.join(node.spec.parts)}, under {node.label_of('model')}{stored_words(node.spec)}"


def check(spec: StartSpec, runtime: Runtime) -> None:
    """Raise AdpaError for what models cannot be when processes share them out."""
    _sharing.check(spec, runtime)
    if spec.merged and _sharing.is_shared_out(runtime, runtime.processes):
        raise AdpaError("--runtime shard=all cannot share out a model whose adapter is merged", "--runtime shard=none")


START_LOGPS = Stage(
    "start-logps", 7, 1, StartSpec, "scoring", "start log-probs", compute, finish, rows, disk,
    what=what, missing=missing, check=check, shares=lambda spec: not spec.merged,
)  # fmt: skip
STAGES = (START_LOGPS,)
