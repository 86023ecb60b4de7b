"""The `cache-teacher` stage: signal of one teacher, or of the aligned/reference pair, on given answers.

One teacher is in memory at a time: first all blocks of the aligned teacher, then all of the reference. A block is
written, and a shard that has all of its blocks compressed, while the teacher works on the next block.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from adpa_cli.coerce import auto_target
from adpa_cli.spec import CaptureSpec, make
from adpa_cli.stages import spool
from adpa_cli.stages.job import Job, Monitor, stop_if_asked, vocabulary, write_json

MOST_SHARED = 7 / 8
"""Prompts that answers share are computed once where that leaves at most this part of the tokens."""


@dataclass(frozen=True)
class Plan:
    """The blocks of a capture; with `shared` the answers to one prompt follow one another in a block."""

    blocks: list[Any]
    shared: bool

    def shards(self) -> list[range]:
        """Blocks by shard."""
        return spool.shards_of([sum(len(item.answer) for item in block.items) for block in self.blocks])


def compute(job: Job, monitor: Monitor, rank: int = 0, processes: int = 1) -> None:
    """Leave one spooled block per block of answers in the work folder; blocks that are there are kept."""
    spec = make(CaptureSpec, job.spec)
    plan = plan_of(job, spec)
    roles = _roles(job)
    wanted = plan.blocks[rank::processes]
    for n, role in enumerate(roles):
        todo = [b for b in wanted if not any(_path(job, r, b.index).exists() for r in {role, roles[-1]})]
        done, of = n * len(wanted) + len(wanted) - len(todo), len(roles) * len(wanted)
        # What else a header says is known when all blocks are there.
        early = role == roles[-1] and processes == 1 and auto_target(spec.precision) is None and spec.support == "topk"
        _pass(job, spec, role, replace(plan, blocks=todo), monitor, done, of, plan.shards() if early else [])


def _pass(
    job: Job, spec: CaptureSpec, role: str, plan: Plan, monitor: Monitor, done: int, of: int, shards: Sequence[range]
) -> None:
    """One teacher over the blocks of a plan, and those of the `shards` whose last block is among them."""
    from adpa_cli.engine.capture import ALL_KNOWN, Known
    from adpa_cli.engine.heads import check_head
    from adpa_cli.engine.memory import block_that_fits
    from adpa_cli.engine.models import load
    from adpa_cli.engine.prompts import can_share
    from adpa_cli.stages.device import device

    if not plan.blocks:
        return
    teacher = job.one(role)
    model = load(teacher.path, device=device())
    check_head(model)
    known = ALL_KNOWN if spec.student_vocab is None else Known(spec.student_vocab)
    share = plan.shared and can_share(model, spec.max_length)
    write_json(job.folder / f"_prompts-{role}.json", share)
    settings: dict[str, Any] = {"teacher": teacher.label, "known": known, "dtype": spec.dtype, "share": share}
    lasts = {shard[-1]: number for number, shard in enumerate(shards)}
    with spool.behind() as writer:
        for n, block in enumerate(plan.blocks, 1):
            longest = max(len(item.prompt) + len(item.answer) for item in block.items)
            with block_that_fits(job.stage, len(block.items), longest):
                rows = _rows(job, spec, role, block, model, plan.shared and not share, settings)
            writer.do(_keep, job, role, block, rows)
            if block.index in lasts:
                number = lasts[block.index]
                paths = [_path(job, role, index) for index in shards[number]]
                writer.do(_encode, job, spec, number, paths)
            monitor.progress(done + n, of, {})
            if n < len(plan.blocks):
                stop_if_asked(monitor, done + n, of)


def _rows(
    job: Job, spec: CaptureSpec, role: str, block: Any, model: Any, halves: bool, settings: dict[str, Any]
) -> list[Any]:
    """What one teacher says about the answers of a block.

    In `halves` it is computed in two: a block that was cut for shared prompts is too large for a teacher that cannot
    share them.
    """
    from adpa_cli.engine.capture import aligned_pass, reference_pass
    from adpa_cli.engine.prompts import Answer
    from adpa_cli.signal import load_block

    answers = [Answer(item.key.example_id, item.prompt, item.answer) for item in block.items]
    middle = (len(answers) + 1) // 2
    parts = [slice(0, middle), slice(middle, None)] if halves else [slice(None)]
    if role == "aligned":
        draws = [_draws(spec, block.items[part]) for part in parts]
        return [
            row for part, drawn in zip(parts, draws, strict=True)
            for row in aligned_pass(model, answers[part], spec.top_k, draws=drawn, **settings)
        ]  # fmt: skip
    rows = [row for _, row in load_block(_path(job, "aligned", block.index))]
    return [row for part in parts for row in reference_pass(model, answers[part], rows[part], **settings)]


def _draws(spec: CaptureSpec, items: Sequence[Any]) -> Any:
    """How ids are drawn for some answers, each by a key of its own; None where they are a top k."""
    from adpa_cli.engine.draws import Draws
    from adpa_cli.engine.sampling import row_key

    if spec.support == "topk":
        return None
    keys = [row_key(spec.seed, f"signal/{i.key.example_id}/{i.key.part}/{i.key.tokens}") for i in items]
    return Draws(spec.samples, keys)


def recompute(job: Job, plan: Plan, indices: Sequence[int], monitor: Monitor) -> dict[tuple[str, str], Any]:
    """What the teachers say of the answers in some blocks, by (example id, part), each block whole and in its shape."""
    from adpa_cli.signal import load_block

    spec, roles = make(CaptureSpec, job.spec), _roles(job)
    todo = replace(plan, blocks=[block for block in plan.blocks if block.index in indices])
    for n, role in enumerate(roles):
        _pass(job, spec, role, todo, monitor, n * len(todo.blocks), len(roles) * len(todo.blocks), [])
    blocks = (load_block(_path(job, roles[-1], block.index)) for block in todo.blocks)
    return {(key.example_id, key.part): rows for block in blocks for key, rows in block}


def _keep(job: Job, role: str, block: Any, rows: Sequence[Any]) -> None:
    """Write one finished block; the reference's holds the aligned one's too."""
    from adpa_cli.signal import save_block

    save_block(_path(job, role, block.index), [(i.key, r) for i, r in zip(block.items, rows, strict=True)])
    if role == "reference":
        _path(job, "aligned", block.index).unlink()


def _encode(job: Job, spec: CaptureSpec, number: int, paths: Sequence[Path]) -> None:
    from adpa_cli.signal import load_block

    spool.write(job.folder, number, signal_of(job, spec, load_block(paths[0])[0][1]), paths)


def finish(job: Job) -> dict[str, Any]:
    """Encode the shards that are not there yet, and keep the tokenizer beside them."""
    import zstandard

    from adpa_cli.signal import load_block
    from adpa_cli.stages.capture_facts import Facts, fitting

    spec = make(CaptureSpec, job.spec)
    role = _roles(job)[-1]
    paths = sorted(job.folder.glob(f"_{role}-*.block"))
    facts, tokens = Facts(), list[int]()
    for path in paths:
        before = facts.tokens
        facts.add(load_block(path))
        tokens.append(facts.tokens - before)
    signal = signal_of(job, spec, load_block(paths[0])[0][1])
    if signal.draws:
        signal = replace(signal, k=facts.most_ids)
    chosen: dict[str, Any] = {}
    target = auto_target(spec.precision)
    if target is not None:
        signal, chosen = fitting(signal, paths, target)
    for number, shard in enumerate(spool.shards_of(tokens)):
        spool.write(job.folder, number, signal, [paths[index] for index in shard])
    tokenizer = job.one("aligned").path / "tokenizer.json"
    if tokenizer.exists():
        packed = zstandard.ZstdCompressor(level=19).compress(tokenizer.read_bytes())
        (job.folder / "tokenizer.json.zst").write_bytes(packed)
    size = sum(path.stat().st_size for path in job.folder.glob("signal-*.adpa"))
    found = facts.metrics(signal)
    found["say"] += chosen.pop("say", [])
    return {**found, **chosen, **_sharing(job), "bytes_per_token": size / facts.tokens}


def signal_of(job: Job, spec: CaptureSpec, rows: Any) -> Any:
    """What the shards say of themselves; `rows` are any of theirs."""
    from adpa_cli.signal import SignalSpec

    step = spec.precision if auto_target(spec.precision) is None else 0.0
    return SignalSpec(
        k=int(rows.ids.shape[1]), vocab_size=vocabulary(job.one("aligned").path), step=float(step),
        difference_step=spec.pair_precision or 0.0, teachers={role: job.one(role).content for role in _roles(job)},
        dtype=spec.dtype, draws=spec.samples if spec.support == "sampled" else 0,
    )  # fmt: skip


def _sharing(job: Job) -> dict[str, Any]:
    """Whether each teacher computed the prompts that answers share once."""
    files = {role: job.folder / f"_prompts-{role}.json" for role in _roles(job)}
    return {"shared_prompts": {role: json.loads(path.read_text()) for role, path in files.items() if path.exists()}}


def _roles(job: Job) -> list[str]:
    return [role for role in ("aligned", "reference") if role in job.inputs]


def _path(job: Job, role: str, index: int) -> Path:
    return spool.block_path(job.folder, role, index)


def answers_of(job: Job, spec: CaptureSpec) -> list[Any]:
    """The answers to capture, each once."""
    from adpa_cli.stages import examples as ex

    if "rollouts" in job.inputs:
        rollouts = ex.read_rollouts(job.one("rollouts").path)
        return list(ex.rollout_answers(rollouts[: spec.limit]))
    folder = job.one("aligned").path
    return [a for part in spec.parts for a in ex.answers_for(spec, job.one("data"), "train", part, folder)]


def plan_of(job: Job, spec: CaptureSpec) -> Plan:
    """The answers in blocks: of single rows, or of the answers to one prompt where the sizes make that worth it."""
    from adpa_cli.engine.blocks import Block, cut_blocks

    answers = answers_of(job, spec)
    cut = functools.partial(cut_blocks, id_of=lambda group: _name(group[0]), tokens=spec.block_tokens)
    groups = _by_prompt(answers) if spec.prompts == "auto" else []
    shared = bool(groups) and sum(map(_length, groups)) <= MOST_SHARED * sum(_length([a]) for a in answers)
    blocks = cut(groups if shared else [[answer] for answer in answers], _length)
    return Plan([Block(b.index, tuple(answer for group in b.items for answer in group)) for b in blocks], shared)


def _by_prompt(answers: Sequence[Any]) -> list[list[Any]]:
    """The answers of each example that have one prompt, together; it may have been cut in different ways."""
    groups: dict[Any, list[Any]] = {}
    for answer in answers:
        groups.setdefault((answer.key.example_id, answer.prompt), []).append(answer)
    return list(groups.values())


def _length(group: Sequence[Any]) -> int:
    """Tokens of a row with one prompt and some answers to it."""
    return len(group[0].prompt) + sum(len(answer.answer) for answer in group)


def _name(answer: Any) -> str:
    return f"{answer.key.example_id}/{answer.key.part}"
