"""The `cache-teacher` stage: top-k signal of one teacher, or of the aligned/reference pair, on given answers.

One teacher is in memory at a time: first all blocks of the aligned teacher, then all of the reference.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from adpa_cli.spec import CaptureSpec, make
from adpa_cli.stages.job import Job, Monitor, stop_if_asked

SHARD_TOKENS = 1 << 18


def compute(job: Job, monitor: Monitor, rank: int = 0, processes: int = 1) -> None:
    """Leave one spooled block per block of answers in the work folder; blocks that are there are kept."""
    spec = make(CaptureSpec, job.spec)
    blocks = _blocks(job, spec)
    roles = [role for role in ("aligned", "reference") if role in job.inputs]
    last = roles[-1]
    for role in roles:
        wanted = blocks[rank::processes]
        todo = [b for b in wanted if not _path(job, role, b.index).exists() and not _path(job, last, b.index).exists()]
        offset = roles.index(role) * len(wanted)
        _pass(job, spec, role, todo, monitor, offset + len(wanted) - len(todo), len(roles) * len(wanted))


def _pass(job: Job, spec: CaptureSpec, role: str, blocks: list[Any], monitor: Monitor, done: int, of: int) -> None:
    """One teacher over some blocks."""
    from adpa_cli.engine.capture import Answer, aligned_pass, reference_pass
    from adpa_cli.engine.models import check_head, load
    from adpa_cli.signal import load_block, save_block
    from adpa_cli.stages.device import device

    if not blocks:
        return
    teacher = job.one(role)
    model = load(teacher.path, spec.dtype, device=device())
    check_head(model)
    for n, block in enumerate(blocks, 1):
        answers = [Answer(item.key.example_id, item.prompt, item.answer) for item in block.items]
        if role == "aligned":
            rows = aligned_pass(model, answers, spec.top_k, teacher=teacher.label)
        else:
            before = _path(job, "aligned", block.index)
            rows = reference_pass(model, answers, [r for _, r in load_block(before)], teacher=teacher.label)
        save_block(_path(job, role, block.index), [(i.key, r) for i, r in zip(block.items, rows, strict=True)])
        if role == "reference":
            before.unlink()
        monitor.progress(done + n, of, {})
        if n < len(blocks):
            stop_if_asked(monitor, done + n, of)


def finish(job: Job) -> dict[str, Any]:
    """Encode the spooled blocks into shards, and keep the tokenizer beside them."""
    import zstandard

    from adpa_cli.signal import SignalSpec, load_block, write_shard

    spec = make(CaptureSpec, job.spec)
    pair = "reference" in job.inputs
    blocks = _blocks(job, spec)
    paths = [_path(job, "reference" if pair else "aligned", block.index) for block in blocks]
    sample = load_block(paths[0])[0][1]
    made_by = {role: job.one(role).content for role in ("aligned", "reference") if role in job.inputs}
    signal = SignalSpec(
        k=int(sample.ids.shape[1]), vocab_size=_vocabulary(job.one("aligned").path), step=spec.precision,
        difference_step=spec.pair_precision, teachers=made_by, dtype=spec.dtype,
    )  # fmt: skip
    shards = _shards(blocks, paths)
    for n, group in enumerate(shards):
        answers = (answer for path in group for answer in load_block(path))
        write_shard(job.folder / f"signal-{n:05d}.adpa", signal, answers)
    tokenizer = job.one("aligned").path / "tokenizer.json"
    if tokenizer.exists():
        packed = zstandard.ZstdCompressor(level=19).compress(tokenizer.read_bytes())
        (job.folder / "tokenizer.json.zst").write_bytes(packed)
    return _metrics(job, paths, signal, pair)


def _metrics(job: Job, paths: list[Path], signal: Any, pair: bool) -> dict[str, Any]:
    import numpy as np

    from adpa_cli.signal import load_block, rms_advantage

    tokens, answers, mass, outside, squares = 0, 0, 0.0, 0, 0.0
    for path in paths:
        for _, rows in load_block(path):
            answers, tokens = answers + 1, tokens + len(rows.ids)
            mass += float(np.exp(rows.logps).sum())
            outside += int((~(rows.ids == rows.label_ids[:, None]).any(1)).sum())
            squares += rms_advantage([rows]) ** 2 * len(rows.ids) if pair else 0.0
    size = sum(path.stat().st_size for path in job.folder.glob("signal-*.adpa"))
    found: dict[str, Any] = {
        "answers": answers, "tokens": tokens, "bytes_per_token": size / max(tokens, 1), "k": signal.k,
        "mean_mass": mass / max(tokens, 1), "taken_outside": outside / max(tokens, 1), "step": signal.step,
    }  # fmt: skip
    if pair:
        found["rms_advantage"] = (squares / max(tokens, 1)) ** 0.5
        if signal.difference_step:
            found["rms_advantage_steps"] = found["rms_advantage"] / signal.difference_step
    return found


def _shards(blocks: list[Any], paths: list[Path]) -> list[list[Path]]:
    """Consecutive blocks of about SHARD_TOKENS answer tokens."""
    groups: list[list[Path]] = [[]]
    room = SHARD_TOKENS
    for block, path in zip(blocks, paths, strict=True):
        size = sum(len(item.answer) for item in block.items)
        if groups[-1] and size > room:
            groups.append([])
            room = SHARD_TOKENS
        groups[-1].append(path)
        room -= size
    return groups


def _vocabulary(folder: Path) -> int:
    import json

    return int(json.loads((folder / "config.json").read_text(encoding="utf-8"))["vocab_size"])


def _path(job: Job, role: str, index: int) -> Path:
    return job.folder / f"_{role}-{index:06d}.block"


def _blocks(job: Job, spec: CaptureSpec) -> list[Any]:
    """The answers to capture, each once, in blocks."""
    from adpa_cli.engine.blocks import cut_blocks
    from adpa_cli.engine.models import load_tokenizer
    from adpa_cli.stages import examples as ex

    if "rollouts" in job.inputs:
        rollouts = ex.read_rollouts(job.one("rollouts").path)
        answers = ex.rollout_answers(rollouts[: spec.limit])
    else:
        source = job.one("data")
        encoder = ex.encoder_of(load_tokenizer(job.one("aligned").path), spec)
        pairs = ex.pairs_of(source.where, "train", spec.limit, spec.skip_bad_rows)
        answers = [
            answer
            for part in spec.parts
            for answer in ex.pair_answers(pairs.items, part, encoder, spec.max_length, source.label)
        ]
    return cut_blocks(
        answers,
        lambda a: len(a.prompt) + len(a.answer),
        lambda a: f"{a.key.example_id}/{a.key.part}",
        spec.block_tokens,
    )
