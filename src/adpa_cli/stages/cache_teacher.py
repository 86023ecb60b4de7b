"""The `cache-teacher` stage: signal of one teacher, or of the aligned/reference pair, on given answers.

One teacher is in memory at a time: first some shards' blocks of the aligned teacher, then those of the reference. A
block is written, and a shard that has all of its blocks compressed, while the teacher works on the next block.
"""

from __future__ import annotations

import bisect
import functools
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from adpa_cli.coerce import Auto, auto_target
from adpa_cli.disk import write_json
from adpa_cli.engine.costs import TILES, TILES_OF_DRAWS, Held, scoring_in_turn, signal_bytes_per_token, signal_disk
from adpa_cli.sizes import Disk, Memory, Rows
from adpa_cli.spec import Dtype, Quantise, Truncation, make, noise_answers, quantise, truncation
from adpa_cli.stages import (
    Job,
    Lengths,
    Load,
    Monitor,
    Node,
    Stage,
    _noise,
    _sharing,
    stop_if_asked,
    stored_words,
    with_progress,
)
from adpa_cli.stages._precision import fitting

if TYPE_CHECKING:
    from adpa_cli.engine.layout.examples import Answers
    from adpa_cli.signal.rows import SignalSpec
    from adpa_cli.stages._signal_shards import Facts

TRUNCATION = "_truncation.json"
TURN_SHARDS = 64
"""Shards whose blocks wait for a reference at once: a teacher is loaded again for each turn."""


@dataclass(frozen=True)
class CaptureSpec:
    """One `cache-teacher` stage: top-k teacher signal on given answers."""

    parts: tuple[str, ...]
    template: str
    end: str
    top_k: int = 50
    precision: float | Auto = 1 / 32
    pair_precision: float | None = 1 / 128
    """Step of the pair's difference, 0 for exact; None where there is no reference teacher."""
    support: Literal["topk", "sampled"] = "topk"
    """Whether the ids of a token are the likeliest `top_k`, or those of `samples` draws from the teacher."""
    dtype: Dtype = "bfloat16"
    max_length: int = 2048
    block_tokens: int = 16384
    limit: int | None = None
    skip_bad_rows: bool = field(default=False, metadata={"neutral": False})
    smoke: bool = field(default=False, metadata={"neutral": False})
    student_vocab: int | None = field(default=None, metadata={"neutral": None})
    """Ids from here on are only the teacher's: they stay out of the top k, in the rest mass."""
    truncation: Truncation = truncation()
    quantise: Quantise | None = quantise()
    noise_answers: int = noise_answers()
    prompts: Literal["apart", "auto"] = field(default="apart", metadata={"neutral": "apart"})
    """Whether a prompt that several answers share may be computed once: by the sizes, or never."""
    samples: int = field(default=50, metadata={"low": 1, "high": 65536})
    seed: int = 0
    """Of the draws."""

    def without_effect(self) -> set[str]:
        """Nothing is drawn where the ids are a top k, rollouts are no pairs, and float32 is what others are held to."""
        idle = {"top_k"} if self.support == "sampled" else {"samples", "seed"}
        idle |= {"noise_answers"} if self.dtype == "float32" else set()
        return idle | ({"truncation"} if self.parts == ("rollout",) else set())


MOST_SHARED = 7 / 8
"""Prompts that answers share are computed once where that leaves at most this part of the tokens."""


@dataclass(frozen=True)
class Blocks:
    """The blocks of a capture; with `shared` the answers to one prompt follow one another in a block."""

    blocks: list[Any]
    shared: bool
    tokens: Sequence[int]
    """Of the answers of each block of the whole capture."""

    def shards(self) -> list[range]:
        """Blocks by shard."""
        from adpa_cli.signal import block_files

        return block_files.shards_of(self.tokens)

    def shard_of(self) -> Callable[[int], int]:
        """A function that gives the shard of a block."""
        starts = [shard.start for shard in self.shards()]
        return lambda index: bisect.bisect_right(starts, index) - 1


def compute(job: Job, monitor: Monitor, rank: int = 0, processes: int = 1) -> None:
    """Leave one block per block of answers in the work folder; blocks that are there are kept."""
    from adpa_cli.engine.layout.micro_batches import longest_first

    spec = make(CaptureSpec, job.spec)
    plan = plan_of(job, spec)
    is_shared = _sharing.is_shared_out(job.runtime, processes)
    if rank == 0 and "data" in job.inputs:
        _tell_truncation(job, spec, monitor)
    roles, shard_of = _roles(job), plan.shard_of()
    wanted = job.own(longest_first(plan.blocks), rank, processes)
    before = 2 * len(roles) if _noise.sample_size(spec) else 0
    of, done = before + len(roles) * len(wanted), before
    has_moved = before > 0 and not (job.folder / _noise.FILE).exists()
    if rank == 0 and before:
        with _sharing.alone(job, processes):
            _judge_noise(job, spec, monitor, of)
    elif before and not is_shared:  # else they wait for the first one where all begin to share a teacher out
        _noise.wait(job, monitor)
    for blocks in _turns(plan, wanted, len(roles)):
        for role in roles:
            todo = [block for block in blocks if not _is_there(job, shard_of, block, role)]
            done += len(blocks) - len(todo)
            if todo and has_moved and not is_shared:  # each start leaves more than it found, also if each is stopped
                stop_if_asked(monitor, done, of)
            has_moved = has_moved or bool(todo)
            if _sharing.is_any_left(job, todo, processes):
                with _sharing.together(job, monitor, processes) as told:
                    _pass(job, spec, role, replace(plan, blocks=todo), told, done, of)
            done += len(todo)


def _turns(plan: Blocks, wanted: Sequence[Any], roles: int) -> list[list[Any]]:
    """The blocks that one teacher after the other computes: of a pair those of a few shards, which bounds what waits
    on the disk. Each process has equally many turns."""
    shard_of, turns = plan.shard_of(), dict[int, list[Any]]()
    for block in plan.blocks if roles > 1 else ():
        turns.setdefault(shard_of(block.index) // TURN_SHARDS, [])
    for block in wanted:
        turns.setdefault(shard_of(block.index) // TURN_SHARDS if roles > 1 else 0, []).append(block)
    return list(turns.values())


def _is_there(job: Job, shard_of: Callable[[int], int], block: Any, role: str) -> bool:
    """Whether one teacher has done a block; the last one's is in its shard in the end."""
    from adpa_cli.signal import block_files

    paths = [_path(job, name, block.index) for name in {role, _roles(job)[-1]}]
    return any(path.exists() for path in (*paths, block_files.shard_path(job.folder, shard_of(block.index))))


def missing(job: Job) -> int:
    """How many blocks of the last teacher are not there yet."""
    plan, role = plan_of(job, make(CaptureSpec, job.spec)), _roles(job)[-1]
    shard_of = plan.shard_of()
    return sum(not _is_there(job, shard_of, block, role) for block in plan.blocks)


def _judge_noise(job: Job, spec: CaptureSpec, monitor: Monitor, of: int) -> None:
    """Compute a sample in float32 too, and refuse the work where the advantage lies below the error of fewer bits.

    It takes the first steps `of` all.
    """
    from adpa_cli.engine import noise
    from adpa_cli.engine.device import device, refused_when_full

    answers = answers_of(job, spec)
    keys = enumerate(answers.answer_keys())
    sample = [answers[n] for n, _ in noise.first_by_hash(keys, lambda key: str(key[1]), spec.noise_answers)]
    teachers = {role: noise.Teacher(job.one(role).path, job.one(role).label) for role in _roles(job)}
    how = noise.Sampled(spec.top_k, spec.student_vocab, spec.block_tokens // 2, device(), job.stage, spec.quantise)

    def measure() -> dict[str, Any]:
        with refused_when_full(f"{job.stage}: a sample in float32", f"--set {job.stage}.block_tokens={how.tokens}"):
            return noise.capture_noise(teachers, sample, spec.dtype, how, lambda step: monitor.progress(step, of, {}))

    _noise.judged(job, monitor, "advantage", measure)


def _tell_truncation(job: Job, spec: CaptureSpec, monitor: Monitor) -> None:
    """Say and keep what of the pairs did not fit."""
    from adpa_cli.engine.layout.examples import answers_for

    cut = answers_for(spec, job.one("data"), "train", job.one("aligned").path).cut
    for text in cut.words("pairs", spec.max_length):
        monitor.note(text)
    write_json(job.folder / TRUNCATION, cut.numbers())


def _pass(
    job: Job, spec: CaptureSpec, role: str, plan: Blocks, monitor: Monitor, done: int, of: int, is_kept: bool = True
) -> None:
    """One teacher over the blocks of a plan; with `is_kept` the shards are encoded whose last block is among them."""
    from adpa_cli.engine.device import block_that_fits, device
    from adpa_cli.engine.layout.shared_prompt import can_share
    from adpa_cli.engine.models import load_checked
    from adpa_cli.engine.overflow import overflow_named
    from adpa_cli.signal import block_files
    from adpa_cli.stages._signal_shards import encode_if_whole

    teacher = job.one(role)
    model = load_checked(teacher.path, dtype=spec.dtype, device=device(), quantise=spec.quantise)
    share = plan.shared and can_share(model, spec.max_length)
    write_json(job.folder / f"_prompts-{role}.json", share)
    settings: dict[str, Any] = {
        "teacher": teacher.label, "student_vocab": spec.student_vocab, "dtype": spec.dtype, "share": share,
    }  # fmt: skip
    is_last = is_kept and role == _roles(job)[-1] and _is_known(spec)
    shards, shard_of = plan.shards(), plan.shard_of()
    left = Counter(shard_of(block.index) for block in plan.blocks)
    with block_files.background_writer() as write:
        for block in with_progress(plan.blocks, monitor, done, of):
            longest = max(len(item.prompt) + len(item.answer) for item in block.items)
            fits = block_that_fits(job.stage, len(block.items), longest)
            with fits, overflow_named(model, spec.dtype, job.stage):
                rows = _rows(job, spec, role, block, model, plan.shared and not share, settings)
            write(_keep, job, role, block, rows)
            shard = shard_of(block.index)
            left[shard] -= 1
            if is_last and not left[shard]:
                signal = functools.partial(_signal, job, spec)
                write(encode_if_whole, job.folder, shard, signal, _paths(job, shards[shard]))


def _rows(
    job: Job, spec: CaptureSpec, role: str, block: Any, model: Any, halves: bool, settings: dict[str, Any]
) -> list[Any]:
    """What one teacher says about the answers of a block.

    In `halves` it is computed in two: a block that was cut for shared prompts is too large for a teacher that cannot
    share them.
    """
    from adpa_cli.engine.capture import aligned_pass, reference_pass
    from adpa_cli.signal.block_files import load_block

    answers = list(block.items)
    middle = (len(answers) + 1) // 2
    parts = [slice(0, middle), slice(middle, None)] if halves else [slice(None)]
    if role == "aligned":
        supports = [_support(spec, block.items[part]) for part in parts]
        return [
            row for part, support in zip(parts, supports, strict=True)
            for row in aligned_pass(model, answers[part], spec.top_k, support=support, **settings)
        ]  # fmt: skip
    rows = [row for _, row in load_block(_path(job, "aligned", block.index))]
    return [row for part in parts for row in reference_pass(model, answers[part], rows[part], **settings)]


def _support(spec: CaptureSpec, items: Sequence[Any]) -> Any:
    """How ids are drawn for some answers, each by a key of its own; None where they are a top k."""
    from adpa_cli.engine.capture import SampledSupport
    from adpa_cli.engine.generation.sampling import row_key

    if spec.support == "topk":
        return None
    keys = [row_key(spec.seed, f"signal/{i.key.example_id}/{i.key.part}/{i.key.tokens}") for i in items]
    return SampledSupport(spec.samples, keys)


def recompute(job: Job, plan: Blocks, indices: Sequence[int], monitor: Monitor) -> dict[tuple[str, str], Any]:
    """What the teachers say of the answers in some blocks, by (example id, part), each block whole and in its shape."""
    from adpa_cli.signal.block_files import load_block

    spec, roles = make(CaptureSpec, job.spec), _roles(job)
    todo = replace(plan, blocks=[block for block in plan.blocks if block.index in indices])
    for n, role in enumerate(roles):
        _pass(job, spec, role, todo, monitor, n * len(todo.blocks), len(roles) * len(todo.blocks), False)
    blocks = (load_block(_path(job, roles[-1], block.index)) for block in todo.blocks)
    return {(key.example_id, key.part): rows for block in blocks for key, rows in block}


def _keep(job: Job, role: str, block: Any, rows: Sequence[Any]) -> None:
    """Write one finished block; the reference's holds the aligned one's too."""
    from adpa_cli.signal.block_files import save_block

    save_block(_path(job, role, block.index), [(i.key, r) for i, r in zip(block.items, rows, strict=True)])
    if role == "reference":
        _path(job, "aligned", block.index).unlink()


def _is_known(spec: CaptureSpec) -> bool:
    """Whether all that the header of a shard says is known before the capture."""
    return auto_target(spec.precision) is None and spec.support == "topk"


def _paths(job: Job, shard: range) -> list[Path]:
    """The files of the blocks of a shard."""
    return [_path(job, _roles(job)[-1], index) for index in shard]


def finish(job: Job) -> dict[str, Any]:
    """Encode the shards that are not there yet, and keep the tokenizer beside them."""
    import zstandard

    from adpa_cli.hub.model_folder import ModelFolder
    from adpa_cli.stages._signal_shards import encode, facts_of

    spec = make(CaptureSpec, job.spec)
    shards = [_paths(job, shard) for shard in plan_of(job, spec).shards()]
    facts = facts_of(job.folder, shards)
    signal = _signal(job, spec, facts)
    chosen: dict[str, Any] = {}
    target = auto_target(spec.precision)
    if target is not None:
        signal, chosen = fitting(signal, [path for paths in shards for path in paths], target)
    for number, paths in enumerate(shards):
        encode(job.folder, number, lambda _: signal, paths)
    tokenizer = ModelFolder.of(job.one("aligned").path).texts.path / "tokenizer.json"
    if tokenizer.exists():
        packed = zstandard.ZstdCompressor(level=19).compress(tokenizer.read_bytes())
        (job.folder / "tokenizer.json.zst").write_bytes(packed)
    size = sum(path.stat().st_size for path in job.folder.glob("signal-*.adpa"))
    metrics = facts.metrics(signal, job.stage)
    metrics["say"] += chosen.pop("say", [])
    noise = _noise.metrics(job.folder, "advantage", spec.dtype, job.stage)
    metrics["say"] += noise.pop("say", [])
    stored = {role: how for role in _roles(job) if (how := _stored(job, spec, role))}
    if stored:
        ways, whose = " and ".join(dict.fromkeys(stored.values())), "teacher" + "s" * (len(stored) > 1)
        metrics |= {"stored": stored, "say": [*metrics["say"], f"weights of its {whose} stored as {ways}"]}
    if watch := [*metrics.pop("watch", []), *noise.pop("watch", [])]:
        metrics["watch"] = watch
    path = job.folder / TRUNCATION
    cut = json.loads(path.read_text()) if path.exists() else {}
    return {**metrics, **noise, **chosen, **_shared_prompts(job), **cut, "bytes_per_token": size / facts.tokens}


def _signal(job: Job, spec: CaptureSpec, facts: Facts) -> SignalSpec:
    """What the header of a shard says, by the sums over it or, where the ids were drawn, over all shards."""
    return signal_of(job, spec, facts.most_ids if spec.support == "sampled" else facts.width)


def _stored(job: Job, spec: CaptureSpec, role: str) -> str | None:
    """How the weights of a teacher are stored while it is read: as asked for, or as its adapter was trained."""
    from adpa_cli.hub.model_folder import ModelFolder

    return ModelFolder.of(job.one(role).path).quantise or spec.quantise


def signal_of(job: Job, spec: CaptureSpec, k: int) -> SignalSpec:
    """What the shards say of themselves, with `k` ids a token."""
    from adpa_cli.hub.model_folder import ModelFolder
    from adpa_cli.signal.rows import SignalSpec

    step = spec.precision if auto_target(spec.precision) is None else 0.0
    stored = _stored(job, spec, "aligned")
    return SignalSpec(
        k=k, vocab_size=ModelFolder.of(job.one("aligned").path).vocabulary, step=float(step),
        difference_step=spec.pair_precision or 0.0, teachers={role: job.one(role).content for role in _roles(job)},
        dtype=f"{spec.dtype}, weights in {stored}" if stored else spec.dtype,
        draws=spec.samples if spec.support == "sampled" else 0,
    )  # fmt: skip


def _shared_prompts(job: Job) -> dict[str, Any]:
    """Whether each teacher computed the prompts that answers share once."""
    files = {role: job.folder / f"_prompts-{role}.json" for role in _roles(job)}
    return {"shared_prompts": {role: json.loads(path.read_text()) for role, path in files.items() if path.exists()}}


def _roles(job: Job) -> list[str]:
    return [role for role in ("aligned", "reference") if role in job.inputs]


def _path(job: Job, role: str, index: int) -> Path:
    from adpa_cli.signal import block_files

    return block_files.block_path(job.folder, role, index)


def answers_of(job: Job, spec: CaptureSpec) -> Answers:
    """The answers to capture, each once."""
    from adpa_cli.engine.layout import examples as ex

    if "rollouts" in job.inputs:
        return ex.rollout_answers(ex.read_rollouts(job.one("rollouts").path)[: spec.limit])
    both = ex.answers_for(spec, job.one("data"), "train", job.one("aligned").path)
    return ex.Answers(both.chosen.table, spec.parts)


def plan_of(job: Job, spec: CaptureSpec) -> Blocks:
    """The answers in blocks: of single rows, or of the answers to one prompt where the sizes make that worth it."""
    from adpa_cli.engine.layout.micro_batches import mapped_blocks
    from adpa_cli.engine.layout.token_rows import PromptGroups

    answers = answers_of(job, spec)
    alone, groups = (PromptGroups(answers, shared) for shared in (False, spec.prompts == "auto"))
    shared = float(groups.lengths.sum()) <= MOST_SHARED * float(alone.lengths.sum())
    groups = groups if shared else alone
    blocks, numbers = mapped_blocks(groups, groups.lengths, groups.ids, spec.block_tokens)
    return Blocks(blocks, shared, [int(groups.tokens[own].sum()) for own in numbers])


def rows(node: Node, lengths: Lengths) -> Rows:
    """The answers that are captured."""
    if "rollouts" in node.inputs:
        return {"rollout": lengths.answers()[: node.spec.limit].fitted(node.spec.max_length)}
    pairs = lengths.pairs("train")
    return {part: pairs[part] for part in node.spec.parts}


def disk(node: Node, load: Load) -> Disk:
    """Of the signal, and of every finished block meanwhile."""
    spec, teacher = node.spec, load.models[0]
    pair = spec.pair_precision if "reference" in node.inputs else None
    k = min(spec.top_k if spec.support == "topk" else spec.samples, teacher.vocabulary)
    step = spec.precision if auto_target(spec.precision) is None else 1 / 32
    per_token = signal_bytes_per_token(teacher.vocabulary, k, step, pair)
    return signal_disk(load.flat, per_token, k, pair is not None, teacher.tokenizer)


def memory(node: Node, load: Load) -> Memory:
    """Of one teacher after the other over blocks of answers."""
    spec, draws = node.spec, node.spec.support == "sampled"
    ids, alive = (spec.samples, TILES_OF_DRAWS) if draws else (spec.top_k, TILES)
    held = Held.by(spec, load.runtime, load.where)
    return scoring_in_turn(load.models, load.rows, held, spec.block_tokens, 1 + ids, load.where, alive)


def what(node: Node) -> str:
    """Whose signal it is, and on which answers."""
    who = f"{node.about}+reference" if "reference" in node.inputs else node.about
    who += stored_words(node.spec)
    if "rollouts" in node.inputs:
        return f"{who}, on rollouts {node.label_of('rollouts')}"
    return f"{who}, on {'+'.join(node.spec.parts)}"


def next_commands(name: str) -> list[str]:
    return [f"adpa show {name} --row 1", f"adpa distill --method NAME --student MODEL --cache {name}"]


CACHE_TEACHER = Stage(
    "cache-teacher", 4, 1, CaptureSpec, "scoring", "signal", compute, finish, rows, disk, memory,
    lambda node, load: _noise.flops(node, load, len(load.flat)),
    what=what, next_commands=next_commands, vocabulary_of="aligned", follows=("limit", "max_length"),
    missing=missing, check=_sharing.check, shares=lambda spec: True,
)  # fmt: skip
STAGES = (CACHE_TEACHER,)
