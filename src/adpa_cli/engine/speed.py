"""How fast a training goes: kept apart from the numbers of its steps, which are the same each time.

A run that is interrupted adds up what its pieces took, as far as that was saved.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from accelerate import Accelerator

from adpa_cli.engine.flops import peak_flops, shape_of
from adpa_cli.engine.memory import peak_memory
from adpa_cli.engine.processes import gathered
from adpa_cli.engine.schedule import TokenSequence
from adpa_cli.engine.student import Student
from adpa_cli.methods import Part
from adpa_cli.store.disk import write_atomic

FILE = "_speed.json"


@dataclass(frozen=True)
class Speed:
    """`seconds` in steps (held-out rows, saving and drawing answers are not counted), of which `waited` were spent
    until data were there; `tokens` of all sequences; `flops` of the mathematics, and how many a second the devices
    offer, None where that is not known; `memory` is the most bytes that one process had.
    """

    seconds: float = 0.0
    waited: float = 0.0
    tokens: int = 0
    flops: float = 0.0
    peak_flops: float | None = None
    memory: int = 0

    def __add__(self, other: Speed) -> Speed:
        summed = {name: getattr(self, name) + getattr(other, name) for name in ("seconds", "waited", "tokens", "flops")}
        return Speed(**summed, peak_flops=other.peak_flops, memory=max(self.memory, other.memory))

    def told(self) -> dict[str, float]:
        """Tokens a second, the share of the time spent waiting, and the MFU where it is known."""
        if not self.seconds:
            return {}
        found = {"tokens_per_s": self.tokens / self.seconds, "wait": self.waited / self.seconds}
        return found if self.peak_flops is None else {**found, "mfu": self.flops / self.seconds / self.peak_flops}

    @classmethod
    def load(cls, work: Path) -> Speed:
        """What a run left so far; nothing without."""
        path = work / FILE
        return cls(**json.loads(path.read_text())) if path.exists() else cls()


class Clock:
    """Adds up the `Speed` of the steps of a student in `work`; a run that goes on after `done` steps goes on here."""

    def __init__(self, student: Student, work: Path, done: int, accelerator: Accelerator) -> None:
        self.work, self.accelerator = work, accelerator
        self.total = Speed.load(work) if done else Speed()
        device = accelerator.device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        peak = peak_flops(name, student.dtype)
        # A critic does work that the mathematics of the student does not tell of.
        self.shape = None if peak is None or student.critic is not None else shape_of(student.model)
        self.peak = None if peak is None or self.shape is None else peak * accelerator.num_processes

    def add(self, sequences: Mapping[Part, Sequence[TokenSequence]], seconds: float, waited: float) -> dict[str, float]:
        """Take in one step over the global batch; what is told of it."""
        every = [sequence for own in sequences.values() for sequence in own]
        flops = 0.0 if self.shape is None else self.shape.training(every)
        step = Speed(seconds, waited, sum(map(len, every)), flops, self.peak)
        self.total += step
        return step.told()

    def save(self) -> None:
        """Keep it beside a resume point; every process takes part, to find the most memory that one of them had."""
        mine = {self.accelerator.process_index: peak_memory(self.accelerator.device)}
        most = max(gathered(self.accelerator, mine).values())
        self.total = replace(self.total, memory=max(self.total.memory, most))
        if self.accelerator.is_main_process:
            write_atomic(self.work / FILE, json.dumps(asdict(self.total)).encode())
