"""The one training loop: it turns any method's terms into gradients, and is the only place that divides.

Weights that are known before the forward pass (rows and tokens of the *global* batch) make the result independent of
micro-batches, accumulation and the number of processes, up to rounding.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from adpa_cli.engine import checkpoints
from adpa_cli.engine.batch import SignalOf, collate, views
from adpa_cli.engine.memory import ROOM, fitting, refused_when_full
from adpa_cli.engine.processes import agree, all_fit, sum_gradients
from adpa_cli.engine.schedule import Example, Feed, Fixed, half_epoch, learning_rate, micro_batches, steps_of
from adpa_cli.engine.steplog import METRICS, Budget, StepLog
from adpa_cli.engine.student import Student
from adpa_cli.errors import AdpaError, Stopped
from adpa_cli.methods import Method, Part
from adpa_cli.spec import Runtime, TrainSpec
from adpa_cli.tensors.reduce import reduce

BESIDE = "what a step needs beside its rows (a gradient and two moments for each trained weight)"


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
    stage: str = ""
    progress: Callable[[int, int, Mapping[str, float]], None] = lambda step, of, numbers: None
    note: Callable[[str], None] = lambda text: None
    stop: Callable[[], str | None] = lambda: None
    """The name of the signal that asks the run to stop, if one came."""
    points: frozenset[int] = frozenset()
    """Steps after which `at_point` is called, in every process; a resume point follows."""
    at_point: Callable[[int], None] = lambda step: None
    start_of: Mapping[tuple[str, str], Any] = field(default_factory=dict)
    """Label log-probs [T] of (example id, part) under the start model, when the method needs them."""
    reward_of: Mapping[tuple[str, str], float] = field(default_factory=dict)
    """What a reward model gave to (example id, part), when the method needs it."""
    feed: Feed | None = None
    """Where the rows of a step come from, if not from `examples` alone."""
    critic_lr: float = 0.0
    """Peak learning rate of the student's critic."""


def train(student: Student, run: Run, accelerator: Accelerator) -> dict[str, float]:
    """Train `student` in place to the last step that is asked for; the means of each number over the last tenth.

    Resumes from the last resume point in `run.work`. Raises Stopped after saving when `run.stop` names a signal, and
    AdpaError when the loss is not finite or a row does not fit in memory, UsageError when the step does not exist.
    """
    spec = run.spec
    steps = steps_of(len(run.examples), spec)
    end = spec.last_step(steps)
    feed = run.feed or Fixed(run.examples, spec)
    peaks = (spec.lr, run.critic_lr)
    optimizer: Any = torch.optim.AdamW(
        [{"params": [p for p in model.parameters() if p.requires_grad], "lr": peak}
         for model, peak in zip((student.model, student.critic), peaks, strict=True) if model is not None],
        lr=spec.lr, betas=(spec.adam_beta1, spec.adam_beta2), weight_decay=spec.weight_decay, fused=True,
    )  # fmt: skip
    optimizer = accelerator.prepare(optimizer)
    student.to(accelerator.device)
    done = checkpoints.load_resume(run.work, student, optimizer)
    log = StepLog(run.work / METRICS, done, accelerator.is_main_process)
    budget = log.budget(run.runtime.tokens_per_device)
    every = run.runtime.checkpoint_steps or half_epoch(len(run.examples), spec.batch_size)
    for step in range(done, end):
        rate = learning_rate(step, steps, spec.lr, spec.warmup_ratio)
        for group, peak in zip(optimizer.param_groups, peaks, strict=False):
            group["lr"] = learning_rate(step, steps, peak, spec.warmup_ratio)
        examples, about = feed.at(step)
        numbers, signal = _step(student, optimizer, run, accelerator, examples, budget)
        numbers |= about
        log.add({"step": step + 1, **numbers, "lr": rate, **budget.record()})
        run.progress(step + 1, end, numbers)
        last = step + 1 == end
        if step + 1 in run.points:
            run.at_point(step + 1)
        if signal or (not last and ((step + 1) % every == 0 or step + 1 in run.points)):
            if accelerator.is_main_process:
                log.flush()
                checkpoints.save_resume(run.work, step + 1, student, optimizer)
            accelerator.wait_for_everyone()
        if signal and not last:
            by = Stopped.words(signal)
            raise Stopped(signal, f"stopped by {by} after step {step + 1} of {end}; the work is saved")
    log.flush()
    return log.summary(end)


def _step(
    student: Student, optimizer: Any, run: Run, accelerator: Accelerator, examples: list[Example], budget: Budget
) -> tuple[dict[str, float], str | None]:
    """One optimizer step over the global batch `examples`; returns its numbers and the signal to stop at, if any.

    Where it does not fit in the memory of a process, all of them do it over with half of the tokens at a time.
    """
    before = budget.tokens
    parts = len(run.method.needs_for(run.params))
    while True:
        dealt = micro_batches([e.length for e in examples], parts, budget.tokens, accelerator.num_processes)
        mine = dealt[accelerator.process_index]
        sums = fitting(functools.partial(_gradients, student, run, accelerator, examples, mine))
        if all_fit(accelerator, sums is not None) and sums is not None:
            break
        optimizer.zero_grad(set_to_none=True)
        budget.tokens = _less(dealt, examples, parts, run)
    if budget.tokens < before:
        run.note(f"out of memory: going on with --tokens-per-device {budget.tokens}")
    with refused_when_full(BESIDE, f"use {ROOM}"):
        sum_gradients(student, accelerator)
    norms = [float(accelerator.clip_grad_norm_(group["params"], run.spec.clip)) for group in optimizer.param_groups]
    numbers, signal = agree(accelerator, sums, run.stop())
    if not all(map(math.isfinite, (numbers["loss"], *norms))):
        raise AdpaError(
            f"the loss or its gradient is not finite ({numbers['loss']}, {', '.join(map(str, norms))})",
            "lower the learning rate (--lr), or look at the data: adpa data SOURCE",
        )
    with refused_when_full(BESIDE, f"use {ROOM}"):
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return {**numbers, **dict(zip(("grad_norm", "critic_grad_norm"), norms, strict=False))}, signal


def _gradients(
    student: Student, run: Run, accelerator: Accelerator, examples: list[Example], batches: list[list[int]]
) -> dict[str, Tensor]:
    """Add this process's share of the gradients to the parameters; the sums of its numbers.

    No process waits for another in here, so that each may run out of memory on its own.
    """
    needs = run.method.needs_for(run.params)
    tokens = {need.part: sum(e.parts[need.part].tokens for e in examples) for need in needs}
    stats = any(need.stats for need in needs)
    sums: dict[str, Tensor] = {}
    for positions in batches:
        chosen = [examples[p] for p in positions or [0]]
        known = run.feed.experience if run.feed else None
        found = collate(chosen, needs, run.end_id, run.signal_of, run.start_of, known, run.reward_of)
        batch = found.to(accelerator.device)
        seen = views(batch, *student(batch.pieces, batch.ids, stats, batch.drawn))
        weight = 1.0 if positions else 0.0
        loss = weight * _loss(run, seen, batch.parts, len(examples), tokens, weight, sums)
        accelerator.backward(loss)
    return sums


def _less(dealt: list[list[list[int]]], examples: Sequence[Example], parts: int, run: Run) -> int:
    """Half of the largest micro-batch that can be cut; AdpaError when each is a single row already."""
    longest = max(example.length for example in examples)
    sizes = [
        max(examples[i].length for i in batch) * len(batch) * parts
        for batches in dealt for batch in batches if len(batch) > 1
    ]  # fmt: skip
    if not sizes:
        key = f"{run.stage}.max_length" if run.stage else "max_length"
        raise AdpaError(
            f"one row of {parts} × {longest:,} tokens does not fit in memory, with the weights and their optimizer",
            f"--set {key}={max(1, longest // 2)}, or {ROOM}",
        )
    return max(1, max(sizes) // 2)


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
