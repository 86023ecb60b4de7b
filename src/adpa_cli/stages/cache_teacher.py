"""The `cache-teacher` stage: top-k signal of one teacher, or of the aligned/reference pair, on given answers.

One teacher is in memory at a time: first all blocks of the aligned teacher, then all of the reference.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adpa_cli.spec import CaptureSpec, make
from adpa_cli.stages.job import Job, Monitor, stop_if_asked, vocabulary

SHARD_TOKENS = 1 << 18
FEWEST_STEPS = 8  # below this the rounding of a stored difference is felt in the gradient


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
    from adpa_cli.engine.capture import Answer, Known, aligned_pass, reference_pass
    from adpa_cli.engine.memory import block_that_fits
    from adpa_cli.engine.models import check_head, load
    from adpa_cli.signal import load_block, save_block
    from adpa_cli.stages.device import device

    if not blocks:
        return
    teacher = job.one(role)
    model = load(teacher.path, device=device())
    check_head(model)
    settings: dict[str, Any] = {"teacher": teacher.label, "known": Known(spec.student_vocab), "dtype": spec.dtype}
    for n, block in enumerate(blocks, 1):
        answers = [Answer(item.key.example_id, item.prompt, item.answer) for item in block.items]
        before = _path(job, "aligned", block.index)
        with block_that_fits(job.stage, len(answers), max(len(a.prompt) + len(a.answer) for a in answers)):
            if role == "aligned":
                rows = aligned_pass(model, answers, spec.top_k, **settings)
            else:
                rows = reference_pass(model, answers, [r for _, r in load_block(before)], **settings)
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
    roles = [role for role in ("aligned", "reference") if role in job.inputs]
    paths = sorted(job.folder.glob(f"_{roles[-1]}-*.block"))
    sample = load_block(paths[0])[0][1]
    signal = SignalSpec(
        k=int(sample.ids.shape[1]), vocab_size=vocabulary(job.one("aligned").path), step=spec.precision,
        difference_step=spec.pair_precision or 0.0, teachers={role: job.one(role).content for role in roles},
        dtype=spec.dtype,
    )  # fmt: skip
    facts = _Facts()
    groups: list[list[Path]] = []
    for path in paths:
        if not groups or facts.of_shard >= SHARD_TOKENS:
            groups.append([])
            facts.of_shard = 0
        groups[-1].append(path)
        facts.add(load_block(path))
    for n, group in enumerate(groups):
        write_shard(job.folder / f"signal-{n:05d}.adpa", signal, _Spool(group))
    tokenizer = job.one("aligned").path / "tokenizer.json"
    if tokenizer.exists():
        packed = zstandard.ZstdCompressor(level=19).compress(tokenizer.read_bytes())
        (job.folder / "tokenizer.json.zst").write_bytes(packed)
    size = sum(path.stat().st_size for path in job.folder.glob("signal-*.adpa"))
    return {**facts.metrics(signal), "bytes_per_token": size / facts.tokens}


@dataclass(frozen=True)
class _Spool:
    """The answers of some spooled blocks, which may be walked several times with one block in memory."""

    paths: list[Path]

    def __iter__(self) -> Iterator[Any]:
        from adpa_cli.signal import load_block

        for path in self.paths:
            yield from load_block(path)


@dataclass
class _Facts:
    """What a capture reports about its signal, gathered block by block."""

    answers: int = 0
    tokens: int = 0
    of_shard: int = 0
    mass: float = 0.0
    outside: int = 0
    squares: float = 0.0
    pair: bool = False

    def add(self, block: list[Any]) -> None:
        """Take in the answers of one block."""
        import numpy as np

        from adpa_cli.signal import rms_advantage

        for _, rows in block:
            self.mass += float(np.exp(rows.logps).sum())
            self.outside += int((rows.ids != rows.label_ids[:, None]).all(1).sum())
            self.tokens += len(rows)
            self.of_shard += len(rows)
        self.answers += len(block)
        self.pair = block[0][1].difference is not None
        if self.pair:
            self.squares += rms_advantage(rows for _, rows in block) ** 2 * sum(len(rows) for _, rows in block)

    def metrics(self, signal: Any) -> dict[str, Any]:
        """Means per token; the size of the advantage against the step it is stored with, and a warning when coarse."""
        found: dict[str, Any] = {
            "answers": self.answers, "tokens": self.tokens, "k": signal.k, "mean_mass": self.mass / self.tokens,
            "taken_outside": self.outside / self.tokens, "step": signal.step,
        }  # fmt: skip
        if not self.pair:
            return found
        rms = (self.squares / self.tokens) ** 0.5
        found |= {"rms_advantage": rms, "say": [f"RMS of the advantage {rms:.3g} nat"]}
        if signal.difference_step:
            steps = found["rms_advantage_steps"] = rms / signal.difference_step
            found["say"] = [f"{found['say'][0]}, {steps:.3g} steps of the stored difference"]
            if steps < FEWEST_STEPS:
                found["watch"] = [
                    f"the advantage is only {steps:.2g} steps of the stored difference: rounding is felt; "
                    f"--set pair_precision={signal.difference_step / 8:g}"
                ]
        return found


def _path(job: Job, role: str, index: int) -> Path:
    return job.folder / f"_{role}-{index:06d}.block"


def _blocks(job: Job, spec: CaptureSpec) -> list[Any]:
    """The answers to capture, each once, in blocks."""
    from adpa_cli.engine.blocks import cut_blocks
    from adpa_cli.stages import examples as ex

    if "rollouts" in job.inputs:
        rollouts = ex.read_rollouts(job.one("rollouts").path)
        answers = ex.rollout_answers(rollouts[: spec.limit])
    else:
        folder = job.one("aligned").path
        answers = [a for part in spec.parts for a in ex.answers_for(spec, job.one("data"), "train", part, folder)]
    return cut_blocks(
        answers,
        lambda a: len(a.prompt) + len(a.answer),
        lambda a: f"{a.key.example_id}/{a.key.part}",
        spec.block_tokens,
    )
