"""What a training says of its steps: their numbers, and how fast it goes.

The numbers of the steps are the same each time and stand in metrics.jsonl. The speed is kept beside them: a run that is
interrupted adds up what its pieces took, as far as that was saved. The MFU is that of Chowdhery et al. 2022 (PaLM),
appendix B: it counts the operations of the mathematics (`sizes.forward_flops`), without what is computed again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from adpa_cli.disk import write_atomic
from adpa_cli.engine.adapters import has_adapter
from adpa_cli.engine.costs import training_flops
from adpa_cli.engine.device import peak_memory
from adpa_cli.engine.layout.examples import TokenSequence
from adpa_cli.engine.lora import EXPERTS
from adpa_cli.engine.quantised import QuantisedLinear
from adpa_cli.engine.ranks import Ranks
from adpa_cli.engine.training.student import Student
from adpa_cli.methods import Part
from adpa_cli.sizes import ModelSize, Row, Rows

METRICS, SPEED = "metrics.jsonl", "_speed.json"
TOKENS = "tokens_per_device"
"""In a step's line only where they are not what was asked for."""
GRADIENT, ENTROPY, LENGTH = "grad_norm/", "entropy/", "length/"
SOMETIMES = (GRADIENT, ENTROPY)
ABOUT = ("step", "lr", "tokens", "padding", TOKENS)
TERA = 1e12
PEAKS = {
    "B200": 2250, "H200 NVL": 835, "H200": 989, "H100 NVL": 835, "H100 PCIe": 756, "H100": 989, "GH200": 989,
    "A100": 312, "A40": 149.7, "A30": 165, "A10G": 70, "A10": 125, "RTX A6000": 154.8,
    "L40S": 362, "L40": 181, "L4": 121, "RTX 6000 Ada": 364.2,
    "RTX 5090": 209.5, "RTX 4090": 165.2, "RTX 4080": 97.5, "RTX 3090": 71, "RTX 3080": 59.5,
}  # fmt: skip
"""TFLOP/s of bfloat16 products without sparsity, summed in float32, by a part of the name that a device gives itself.

From NVIDIA's data sheets and architecture papers (B200, Hopper, GA100, GA102, AD102, GB202); where those tell the
number with sparsity only, half of it.
"""

SLOWER = ("MIG", "Laptop", "Ti", "SUPER")
"""What makes another device of a name, or a part of one."""


class StepLog:
    """metrics.jsonl: one line per step, cut back to the resume point when a run goes on."""

    def __init__(self, path: Path, done: int, writes: bool) -> None:
        self.path = path
        self.writes = writes
        lines = path.read_text().splitlines() if done and path.exists() else []
        self.rows: list[dict[str, float]] = [row for row in map(json.loads, lines) if row["step"] <= done]

    def add(self, row: dict[str, float]) -> None:
        self.rows.append(row)

    def flush(self) -> None:
        """Write every line so far, whole."""
        if self.writes:
            write_atomic(self.path, "".join(json.dumps(row) + "\n" for row in self.rows).encode())

    def tokens(self, asked: int) -> int:
        """Padded tokens of a micro-batch to go on with: as many as asked for, or fewer since memory ran out.

        A run that was cut down stays so, or its bytes would depend on where it resumed.
        """
        return min(asked, int(self.rows[-1].get(TOKENS, asked))) if self.rows else asked

    def summary(self, steps: int) -> dict[str, float]:
        """Mean of each number over the last tenth of the steps, and the tokens at a time if they had to be fewer.

        What is measured on some steps only is left out: see `measured`.
        """
        tail = [row for row in self.rows if row["step"] > steps - max(1, steps // 10)]
        if not tail:
            return {}
        names = [name for name in tail[0] if name not in ABOUT and not name.startswith(SOMETIMES)]
        means = {name: sum(row[name] for row in tail) / len(tail) for name in names}
        return {**means, **{name: value for name, value in tail[-1].items() if name == TOKENS}}

    def measured(self, prefix: str) -> dict[str, float]:
        """Mean of each number with this prefix, which is left out of its name, over the steps that have it."""
        names = dict.fromkeys(name for row in self.rows for name in row if name.startswith(prefix))
        values = {name: [row[name] for row in self.rows if name in row] for name in names}
        return {name.removeprefix(prefix): sum(each) / len(each) for name, each in values.items()}


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

    def summary(self) -> dict[str, float]:
        """Tokens a second, the share of the time spent waiting, and the MFU where it is known."""
        if not self.seconds:
            return {}
        rates = {"tokens_per_s": self.tokens / self.seconds, "wait": self.waited / self.seconds}
        return rates if self.peak_flops is None else {**rates, "mfu": self.flops / self.seconds / self.peak_flops}

    @classmethod
    def load(cls, work: Path) -> Speed:
        """What a run left so far; nothing without."""
        path = work / SPEED
        return cls(**json.loads(path.read_text())) if path.exists() else cls()


class Clock:
    """Adds up the `Speed` of the steps of a student in `work`; a run that goes on after `done` steps goes on here."""

    def __init__(self, student: Student, work: Path, done: int, ranks: Ranks) -> None:
        self.work, self.ranks = work, ranks
        self.total = Speed.load(work) if done else Speed()
        device = ranks.device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        peak = peak_flops(name, student.dtype)
        # A critic does work that the mathematics of the student does not tell of.
        self.size = None if peak is None or student.critic is not None else size_of(student.model)
        self.peak = None if peak is None or self.size is None else peak * ranks.count
        self.is_frozen = has_adapter(student.model)

    def add(self, sequences: Mapping[Part, Sequence[TokenSequence]], seconds: float, waited: float) -> dict[str, float]:
        """Take in one step over the global batch, and give its rates."""
        rows: Rows = {part: [Row(len(s) - s.tokens, s.tokens) for s in own] for part, own in sequences.items()}
        flops = 0.0 if self.size is None else training_flops(self.size, rows, 1, self.is_frozen)
        step = Speed(seconds, waited, sum(len(s) for own in sequences.values() for s in own), flops, self.peak)
        self.total += step
        return step.summary()

    def save(self) -> None:
        """Keep it beside a resume point; every process takes part, to find the most memory that one of them had."""
        mine = {self.ranks.rank: peak_memory(self.ranks.device)}
        most = max(self.ranks.gathered(mine).values())
        self.total = replace(self.total, memory=max(self.total.memory, most))
        if self.ranks.is_first:
            write_atomic(self.work / SPEED, json.dumps(asdict(self.total)).encode())


def size_of(model: Any) -> ModelSize | None:
    """That of a transformers model, without a vocabulary where it predicts no tokens; None where the operations do not
    follow from it: a token does not pass through all of the model, or there is no attention."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_attention_heads", None)
    if not heads or any((getattr(config, name, None) or 1) > 1 for name in EXPERTS):
        return None
    of_head = getattr(config, "head_dim", None) or config.hidden_size // heads
    embeddings, output = model.get_input_embeddings().weight, model.get_output_embeddings()
    if output is None:
        parameters, vocabulary = parameters_of(model.base_model) - embeddings.numel(), 0
    else:
        parameters, vocabulary = parameters_of(model), len(output.weight)
    return ModelSize(
        parameters, embeddings.shape[1], config.num_hidden_layers, getattr(config, "intermediate_size", 0),
        of_head * (getattr(config, "num_key_value_heads", None) or heads), heads * of_head, vocabulary,
        tied=output is None or output.weight is embeddings,
    )  # fmt: skip


def parameters_of(model: nn.Module, trained: bool = False) -> int:
    """How many parameters a model has, however they are stored, or how many of them train."""
    stored = {id(m.weight): m.in_features * m.out_features for m in model.modules() if isinstance(m, QuantisedLinear)}
    return sum(stored.get(id(p), p.numel()) for p in model.parameters() if p.requires_grad or not trained)


def peak_flops(device: str, dtype: str) -> float | None:
    """Operations a second that a device of this name offers in bfloat16; None for others, and for other dtypes."""
    words = f" {device.replace('-', ' ')} "
    if any(f" {word} " in words for word in SLOWER):
        return None
    names = [name for name in PEAKS if f" {name} " in words]
    return PEAKS[max(names, key=len)] * TERA if names and dtype == "bfloat16" else None
