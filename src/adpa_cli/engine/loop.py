"""The one training loop: it turns any method's terms into gradients, and is the only place that divides.

Weights that are known before the forward pass (rows and tokens of the *global* batch) make the result independent of
micro-batches, accumulation and the number of processes, up to rounding.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor

from adpa_cli.engine import checkpoints
from adpa_cli.engine.batch import SignalOf, collate, views
from adpa_cli.engine.schedule import Example, learning_rate, micro_batches, step_rows, whole_steps
from adpa_cli.engine.score import label_logps
from adpa_cli.engine.student import Student
from adpa_cli.errors import AdpaError, Stopped
from adpa_cli.methods import Method, Part
from adpa_cli.spec import Runtime, TrainSpec
from adpa_cli.store.disk import write_atomic
from adpa_cli.tensors.reduce import reduce

METRICS = "metrics.jsonl"


@dataclass(frozen=True)
class Run:
    """What a training stage hands to the loop."""

    spec: TrainSpec
    method: Method
    params: Any
    examples: Sequence[Example]
    end_id: int
    signal_of: SignalOf
    work: Path
    runtime: Runtime = Runtime()
    progress: Callable[[int, int, Mapping[str, float]], None] = lambda step, of, numbers: None
    stop: Callable[[], str | None] = lambda: None
    """The name of the signal that asks the run to stop, if one came."""
    start_of: dict[tuple[str, str], Any] = field(default_factory=dict)
    """Label log-probs of the start model by (example id, part), filled by `score_start` when the method needs them."""


def make_accelerator() -> Accelerator:
    """One process on the GPU or CPU at hand, or a rank of several (gloo on CPU, nccl on GPU)."""
    # Both would otherwise be read from the environment, and change results under the same id.
    accelerator = Accelerator(cpu=not torch.cuda.is_available(), mixed_precision="no", gradient_accumulation_steps=1)
    kinds = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
    if accelerator.distributed_type not in kinds:
        raise AdpaError(
            f"training under {accelerator.distributed_type.value} is not offered",
            "launch plain processes: --gpus N",
        )
    return accelerator


def train(student: Student, run: Run, accelerator: Accelerator) -> dict[str, float]:
    """Train `student` in place to the last step; returns the means of each number over the last tenth of the steps.

    Resumes from the last resume point in `run.work`. Raises Stopped after saving when `run.stop` names a signal, and
    AdpaError when the loss is not finite.
    """
    spec = run.spec
    steps = whole_steps(len(run.examples), spec.epochs, spec.batch_size, spec.max_steps)
    optimizer: Any = torch.optim.AdamW(
        [p for p in student.parameters() if p.requires_grad],
        lr=spec.lr, betas=(spec.adam_beta1, spec.adam_beta2), weight_decay=spec.weight_decay, fused=True,
    )  # fmt: skip
    module, optimizer = accelerator.prepare(student, optimizer)
    done = checkpoints.load_resume(run.work, student, optimizer)
    log = _Log(run.work / METRICS, done, accelerator.is_main_process)
    every = run.runtime.checkpoint_steps or max(1, math.ceil(len(run.examples) / spec.batch_size / 2))
    for step in range(done, steps):
        rate = learning_rate(step, steps, spec.lr, spec.warmup_ratio)
        for group in optimizer.param_groups:
            group["lr"] = rate
        rows = step_rows(len(run.examples), spec.epochs, spec.batch_size, spec.seed, step)
        numbers, signal = _step(module, optimizer, run, accelerator, [run.examples[i] for i in rows])
        log.add({"step": step + 1, **numbers, "lr": rate})
        run.progress(step + 1, steps, numbers)
        last = step + 1 == steps
        if signal or (not last and (step + 1) % every == 0):
            if accelerator.is_main_process:
                log.flush()
                checkpoints.save_resume(run.work, step + 1, student, optimizer)
            accelerator.wait_for_everyone()
        if signal and not last:
            raise Stopped(signal, f"stopped by {signal} after step {step + 1} of {steps}; the work is saved")
    log.flush()
    return log.summary(steps)


def _step(
    module: Any, optimizer: Any, run: Run, accelerator: Accelerator, examples: list[Example]
) -> tuple[dict[str, float], str | None]:
    """One optimizer step over the global batch `examples`; returns its numbers and the signal to stop at, if any."""
    needs = run.method.needs_for(run.params)
    tokens = {need.part: sum(e.parts[need.part].tokens for e in examples) for need in needs}
    stats = any(need.stats for need in needs)
    batches = micro_batches(
        [e.length for e in examples], len(needs), run.runtime.tokens_per_device, accelerator.num_processes
    )[accelerator.process_index]
    sums: dict[str, Tensor] = {}
    for i, positions in enumerate(batches):
        final = i == len(batches) - 1
        # Wrappers and accelerate's optimizer must both know that only the last micro-batch synchronises.
        accelerator.gradient_state._set_sync_gradients(final)
        chosen = [examples[p] for p in positions or [0]]
        batch = collate(chosen, needs, run.end_id, run.signal_of, run.start_of).to(accelerator.device)
        with nullcontext() if final else accelerator.no_sync(module):
            seen = views(batch, *module(batch.input_ids, batch.rows, batch.columns, batch.ids, stats))
            weight = 1.0 if positions else 0.0
            loss = weight * _loss(run, seen, batch.parts, len(examples), tokens, weight, sums)
            accelerator.backward(loss * accelerator.num_processes)
    norm = accelerator.clip_grad_norm_(module.parameters(), run.spec.clip)
    numbers, signal = _agree(accelerator, sums, run.stop())
    if not math.isfinite(numbers["loss"]) or not math.isfinite(float(norm)):
        raise AdpaError(
            f"the loss or its gradient is not finite ({numbers['loss']}, {float(norm)})",
            "lower the learning rate (--lr), or look at the data: adpa data SOURCE",
        )
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return {**numbers, "grad_norm": float(norm)}, signal


def _loss(
    run: Run, seen: Any, parts: Any, rows: int, tokens: Mapping[Part, int], weight: float, sums: dict[str, Tensor]
) -> Tensor:
    """The micro-batch's share of the loss; adds its share of every term to `sums`."""
    total: Tensor | None = None
    for term in run.method.terms(seen, run.params):
        share = reduce(
            term.values, parts[term.part].mask, term.reduction, batch_rows=rows, batch_tokens=tokens[term.part]
        )
        part = term.weight * share
        total = part if total is None else total + part
        for name, value in ((term.name, share), ("loss", part)):
            sums[name] = sums.get(name, 0.0) + weight * value.detach()
    if total is None:
        raise AdpaError(f"the method {run.method.name} returned no terms")
    return total


def _agree(
    accelerator: Accelerator, sums: Mapping[str, Tensor], signal: str | None
) -> tuple[dict[str, float], str | None]:
    """Sum the numbers over all processes, and let a signal that reached one of them stop all at the same step."""
    names = sorted(sums)
    codes = sorted(Stopped.CODES)
    flags = [float(code == signal) for code in codes]
    packed = torch.stack(
        [*(sums[n].double() for n in names), *torch.tensor(flags, dtype=torch.float64).to(sums[names[0]].device)]
    )
    packed = accelerator.reduce(packed, reduction="sum")
    values = [float(v) for v in packed]
    asked = [code for code, flag in zip(codes, values[len(names) :], strict=True) if flag]
    return dict(zip(names, values, strict=False)), asked[0] if asked else None


class _Log:
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

    def summary(self, steps: int) -> dict[str, float]:
        """Mean of each number over the last tenth of the steps."""
        tail = [row for row in self.rows if row["step"] > steps - max(1, steps // 10)]
        return (
            {name: sum(row[name] for row in tail) / len(tail) for name in tail[0] if name not in ("step", "lr")}
            if tail
            else {}
        )


def score_start(student: Student, run: Run, accelerator: Accelerator) -> None:
    """Fill `run.start_of`: label log-probs of every answer the method compares with its start model.

    Every process scores everything it may meet; the numbers are those of the untrained `student`.
    """
    parts = [need.part for need in run.method.needs_for(run.params) if need.start]
    if parts:
        run.start_of.update(
            label_logps(student, run.examples, parts, run.runtime.tokens_per_device, accelerator.device)
        )
