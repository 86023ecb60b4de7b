"""`adpa`'s loop on the workload, one optimizer step over all rows at a time."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.pace import Pace
from training.workload import BETA, CLIP, END, LR, K, Workload, signal

from adpa_cli import methods
from adpa_cli.engine.layout.examples import Example
from adpa_cli.engine.layout.row_layout import packer_of
from adpa_cli.engine.ranks import Ranks
from adpa_cli.engine.scoring import label_logps
from adpa_cli.engine.training.loop import Run, train
from adpa_cli.engine.training.optimizer import tune
from adpa_cli.engine.training.student import Student
from adpa_cli.signal.rows import AnswerKey, SignalSpec, token_hash
from adpa_cli.signal.shard import SignalReader, write_shard
from adpa_cli.spec import Runtime, TrainSpec

PARTS = {
    "sft": ("chosen",), "dpo": ("chosen", "rejected"), "dckd": ("chosen", "rejected"), "adpa": ("chosen", "rollout"),
}  # fmt: skip
LIKE_TRL = {"sft": {"reduction": "tokmean"}, "dpo": {"beta": BETA}}


@dataclass(frozen=True)
class Ours:
    """A method over all rows; for SFT every answer is a row of its own."""

    method: str
    work: Workload

    def __call__(self, pace: Pace, steps: int) -> tuple[list[float], dict[str, Any]]:
        method = methods.load(self.method)
        params = method.params(**LIKE_TRL.get(self.method, {}))
        needs = method.needs_for(params)
        examples = self.examples()
        spec = TrainSpec(
            self.method, 1, {}, "", "", epochs=float(steps), batch_size=len(examples), dtype=self.work.dtype, lr=LR,
            warmup_ratio=0.0, clip=CLIP,
        )  # fmt: skip
        student = Student(self.work.model(self.work.student), self.work.dtype)
        runtime = Runtime(tokens_per_device=self.work.tokens_per_device, checkpoint_steps=steps)
        student.packer = packer_of(student.model, self.work.dtype, max(map(len, self.work.sequences())))
        tuned = tune(student.model, spec, runtime)
        ranks = Ranks.here()
        tokens = self.work.tokens_per_device
        started = [need.part for need in needs if need.start]
        losses: list[float] = []

        def after(step: int, of: int, numbers: Mapping[str, float]) -> None:
            losses.append(numbers["loss"])
            pace.end(student.model)
            if step < of:
                pace.begin()

        with tempfile.TemporaryDirectory() as folder:
            run = Run(
                spec=spec, method=method, params=params, examples=examples, end_id=END, work=Path(folder),
                signal_of=self.signal_in(Path(folder), examples) if any(need.signal for need in needs) else _none,
                runtime=runtime, progress=after,
                start_of=label_logps(student, examples, started, tokens, ranks.device) if started else {},
            )  # fmt: skip
            pace.begin()
            train(student, run, ranks)
        return losses, {"packed": student.packer is not None, **tuned}

    def examples(self) -> list[Example]:
        parts, rows = PARTS[self.method], self.work.sequences()
        count = len(parts)
        return [
            Example(str(i), dict(zip(parts, rows[count * i : count * (i + 1)], strict=True)))
            for i in range(len(rows) // count)
        ]

    def signal_in(self, folder: Path, examples: list[Example]) -> Any:
        """Signal on disk, as `cache-teacher` leaves it, for every answer."""
        answers = {(e.id, part): row for e in examples for part, row in e.parts.items()}
        keys = {at: AnswerKey(*at, token_hash([], row.ids)) for at, row in answers.items()}
        spec = SignalSpec(K, self.work.vocabulary, teachers={"aligned": "a", "reference": "b"})
        write_shard(
            folder / "signal-00000.adpa", spec,
            [(keys[at], signal(row.ids[row.answer], self.work)) for at, row in answers.items()],
        )  # fmt: skip
        reader = SignalReader(folder)
        return lambda example, part: reader.read(keys[example, part])


def _none(example: str, part: str) -> Any:
    raise KeyError((example, part))
