"""The `start-logps` stage: log-probs of given answers under the model that trainings start from, scored once for all.

One Parquet file holds a row for every answer: the `example_id`, the `part` and the hash of the `tokens` by which a
signal names it too, and the `logps` of its tokens, the end token included: float32, in nats, under the full softmax.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adpa_cli.disk import numbered, write_atomic
from adpa_cli.engine.costs import start_logps_disk
from adpa_cli.errors import AdpaError, Corrupt, DataError
from adpa_cli.hub import Located
from adpa_cli.sizes import Disk, Rows
from adpa_cli.spec import Quantise, TrainingDtype, Truncation, make, quantise, truncation
from adpa_cli.stages import Job, Lengths, Load, Monitor, Node, Stage, with_progress

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from adpa_cli.signal.rows import AnswerKey

    Logps = NDArray[np.float32]
    KeyedLogps = tuple[AnswerKey, Logps]

TABLE = "logps.parquet"
NAMES = ("example_id", "part", "tokens")
MEANING = "nats, under the full softmax, of every token of the answer, its end token included"


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


def compute(job: Job, monitor: Monitor, rank: int = 0, processes: int = 1) -> None:
    """Leave one `_block-NNNNNN.parquet` per finished block in the work folder; blocks that are there are kept."""
    from adpa_cli.engine.device import device
    from adpa_cli.engine.layout.micro_batches import longest_first
    from adpa_cli.engine.models import load_checked
    from adpa_cli.engine.training.student import Student

    spec = make(StartSpec, job.spec)
    keys, blocks = _blocks(job, spec)
    own = longest_first(blocks)[rank::processes]
    todo = [block for block in own if not _path(job, block.index).exists()]
    if not todo:
        return
    model = load_checked(job.one("model").path, dtype=spec.dtype, device=device())
    student = Student(model, spec.dtype)
    for block in with_progress(todo, monitor, len(own) - len(todo)):
        scored = _scored(job, spec, student, block.items, device())
        _check(scored, job.one("model").label, job.hints["training"])
        _write(_path(job, block.index), [(keys[key], logps) for key, logps in scored.items()])


def _blocks(job: Job, spec: StartSpec) -> tuple[dict[tuple[str, str], AnswerKey], Sequence[Any]]:
    """The key of every answer by example id and part, and the examples in blocks: the answers to one prompt together.

    A block has at most `block_tokens`, padded to its longest answer.
    """
    from adpa_cli.engine.layout.examples import Example, answers_for
    from adpa_cli.engine.layout.micro_batches import cut_blocks

    folder = job.one("model").path
    both = answers_for(spec, job.one("data"), "train", folder)
    answers = [both.of(part) for part in spec.parts]
    examples = [
        Example(row[0].key.example_id, {answer.key.part: answer.sequence() for answer in row})
        for row in zip(*answers, strict=True)
    ]
    keys = {(answer.key.example_id, answer.key.part): answer.key for part in answers for answer in part}
    return keys, cut_blocks(examples, lambda e: e.length * len(spec.parts), lambda e: e.id, spec.block_tokens)


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


def finish(job: Job) -> dict[str, Any]:
    """One table of all blocks, and how likely the answers are to the model."""
    import numpy as np

    rows = [row for path in numbered(job.folder, "_block-*.parquet") for row in _read(path)]
    _write(job.folder / TABLE, rows)
    parts: dict[str, list[Logps]] = {}
    for key, logps in rows:
        parts.setdefault(key.part, []).append(logps)
    means = {part: float(np.concatenate(logps).mean(dtype=np.float64)) for part, logps in sorted(parts.items())}
    return {
        "answers": len(rows), "tokens": sum(len(logps) for _, logps in rows), "mean_logp": means,
        "say": [f"mean log-prob of a token: {', '.join(f'{part} {mean:.3g}' for part, mean in means.items())}"],
    }  # fmt: skip


class StartLogps:
    """The rows of a finished artifact by answer. Raises Corrupt when its table cannot be read."""

    def __init__(self, source: Located) -> None:
        import pyarrow as pa

        self._label = source.label
        self._again = f"move the folder {source.path} away and repeat the command: it is made again"
        try:
            rows = _read(source.path / TABLE)
        except (OSError, ValueError, KeyError, pa.ArrowException) as error:
            problem = str(error).partition("\n")[0]
            raise Corrupt(f"{source.label}: {TABLE} cannot be read: {problem}", self._again) from error
        self._rows: dict[str, dict[str, KeyedLogps]] = {}
        for key, logps in rows:
            self._rows.setdefault(key.example_id, {})[key.part] = (key, logps)

    def of(self, key: AnswerKey) -> Logps:
        """[T] of one answer. Raises DataError naming what differs: the example, its part or its tokens."""
        parts = self._rows.get(key.example_id)
        if parts is None:
            raise DataError(
                f"{self._label}: field example_id: {key.example_id!r} is not among its {len(self._rows)} examples",
                self._again,
            )
        if key.part not in parts:
            raise DataError(
                f"{self._label}: example {key.example_id!r}, field part: {key.part!r} was not scored, "
                f"only {', '.join(sorted(parts))}",
                self._again,
            )
        scored, logps = parts[key.part]
        if scored.tokens != key.tokens:
            raise DataError(
                f"{self._label}: example {key.example_id!r} ({key.part}), field tokens: the log-probs are of tokens "
                f"{scored.tokens}, the data now give {key.tokens}",
                self._again,
            )
        return logps


def _path(job: Job, index: int) -> Path:
    return job.folder / f"_block-{index:06d}.parquet"


def _write(path: Path, rows: Sequence[KeyedLogps]) -> None:
    """Rows as one Parquet file with checksums, whole or not at all; equal rows give equal bytes."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    flat = np.concatenate([logps for _, logps in rows])
    ends = np.cumsum([0, *(len(logps) for _, logps in rows)], dtype=np.int64)
    text = {name: pa.array([getattr(key, name) for key, _ in rows]) for name in NAMES}
    logps = pa.LargeListArray.from_arrays(pa.array(ends), pa.array(flat))
    table = pa.table({**text, "logps": logps}, metadata={"logps": MEANING})
    out = io.BytesIO()
    pq.write_table(table, out, compression="zstd", use_dictionary=["part"], write_page_checksum=True)
    write_atomic(path, out.getvalue())


def _read(path: Path) -> list[KeyedLogps]:
    import pyarrow.parquet as pq

    from adpa_cli.signal.rows import AnswerKey

    table = pq.read_table(path, page_checksum_verification=True).combine_chunks()
    logps = table.column("logps").combine_chunks()
    flat, ends = logps.values.to_numpy(), logps.offsets.to_numpy()
    keys = zip(*(table.column(name).to_pylist() for name in NAMES), strict=True)
    return [(AnswerKey(*key), flat[a:b]) for key, a, b in zip(keys, ends, ends[1:], strict=False)]


def rows(node: Node, lengths: Lengths) -> Rows:
    """The answers that are scored."""
    pairs = lengths.pairs("train")
    return {part: pairs[part] for part in node.spec.parts}


def disk(node: Node, load: Load) -> Disk:
    """Of a number for each answer token."""
    return start_logps_disk(load.flat)


START_LOGPS = Stage(
    "start-logps", 7, 1, StartSpec, "scoring", "start log-probs", compute, finish, rows, disk,
    what=lambda node: f"log-probs of {'+'.join(node.spec.parts)}, under {node.label_of('model')}",
)  # fmt: skip
STAGES = (START_LOGPS,)
