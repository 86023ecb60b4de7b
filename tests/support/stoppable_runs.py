"""Trainings that are asked to stop after a step, for the tests of resuming."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from adpa_cli.engine.training.loop import Run
from adpa_cli.spec import Runtime
from support.tiny_models import tiny_llama
from support.train_samples import examples, make_run, signal_source, start_of

ROWS = examples(9)
SIGNAL = signal_source(ROWS, tiny_llama(1), tiny_llama(2))
START = start_of(tiny_llama(0), ROWS)


class StopAt:
    """Asks to stop once `step` steps are done; counts what the loop reports."""

    def __init__(self, step: int | None) -> None:
        self.at, self.seen = step, [0]

    def progress(self, step: int, of: int, numbers: Any) -> None:
        self.seen.append(step)

    def stop(self) -> str | None:
        return "SIGTERM" if self.at is not None and self.seen[-1] >= self.at - 1 else None


def stoppable_run(work: Path, at: int | None, **settings: Any) -> tuple[Run, StopAt]:
    stop = StopAt(at)
    given = {"epochs": 4.0, "batch_size": 3, "lr": 3e-3, "runtime": Runtime(tokens_per_device=60, checkpoint_steps=5)}
    heard = {"progress": stop.progress, "stop": stop.stop, "start_of": START}
    return make_run("dpo", ROWS, SIGNAL, work, **{**given, **settings}, **heard), stop
