"""The one training loop: it turns any method's terms into gradients, and is the only place that divides.

Weights that are known before the forward pass (rows and tokens of the *global* batch) make the result independent of
micro-batches, accumulation and the number of processes, up to rounding. One thread lays out micro-batches ahead of the
loop: signal is read and decoded while the step before computes. A resume point holds weights, optimizer moments and the
step, written whole or not at all; there is no other state, for dropout is off, and the order of the data and the
learning rate are functions of the step.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from torch import Tensor

from adpa_cli.data.tables import WATCH
from adpa_cli.disk import write_atomic
from adpa_cli.engine.device import ROOM, fitting, refused_when_full
from adpa_cli.engine.layout.batch import Batch, SignalOf, collate
from adpa_cli.engine.layout.examples import Example, Examples
from adpa_cli.engine.layout.micro_batches import smaller_budget, step_batches
from adpa_cli.engine.ranks import Ranks
from adpa_cli.engine.sharding import clip, is_sharded, sum_at_end
from adpa_cli.engine.training.objective import EVERY, Objective
from adpa_cli.engine.training.optimizer import make_optimizer
from adpa_cli.engine.training.resume import load_resume, save_resume
from adpa_cli.engine.training.schedule import Feed, Fixed, half_epoch, learning_rate, steps_of
from adpa_cli.engine.training.step_report import METRICS, TOKENS, Clock, StepLog
from adpa_cli.engine.training.student import Student
from adpa_cli.errors import AdpaError, Stopped
from adpa_cli.methods import Method
from adpa_cli.spec import Runtime, TrainSpec

FEWER = "_tokens.json"
"""Where a process leaves how many tokens at a time the next start takes, after memory ran out in it alone."""
DEPTH = 3
"""Micro-batches that wait, or are being made: the loop takes one while the next is made, and one evens out lengths."""
BESIDE = "what a step needs beside its rows (a gradient and two moments for each trained weight)"
Cut = tuple[list[Example], float, bool]
Laid = tuple[Batch, float, bool]
"""A micro-batch with its weight, and whether it is the last of its step."""
Wanted = TypeVar("Wanted")
Ready = TypeVar("Ready")


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
    track: Callable[[int, Mapping[str, float]], None] = lambda step, numbers: None
    """Given the same numbers of each step as `progress`, and the learning rate."""
    look: Callable[[int], None] = lambda step: None
    """Called after each step, in every process; it may look at the weights, and changes nothing."""
    note: Callable[[str], None] = lambda text: None
    stop: Callable[[], str | None] = lambda: None
    """The name of the signal that asks the run to stop, if one came."""
    evaluation_steps: frozenset[int] = frozenset()
    """Steps after which `evaluate` is called, in every process; a resume point follows."""
    evaluate: Callable[[int], None] = lambda step: None
    start_of: Mapping[tuple[str, str], Any] = field(default_factory=dict)
    """Label log-probs [T] of (example id, part) under the start model, when the method needs them."""
    reward_of: Mapping[tuple[str, str], float] = field(default_factory=dict)
    """What a reward model gave to (example id, part), when the method needs it."""
    feed: Feed | None = None
    """Where the rows of a step come from, if not from `examples` alone."""
    critic_lr: float = 0.0
    """Peak learning rate of the student's critic."""


def train(student: Student, run: Run, ranks: Ranks) -> dict[str, float]:
    """Train `student` in place to the last step that is asked for; the means of each number over the last tenth.

    Resumes from the last resume point in `run.work`. Raises Stopped after saving when `run.stop` names a signal, and
    AdpaError when the loss is not finite or a row does not fit in memory, UsageError when the step does not exist.
    """
    spec = run.spec
    steps = steps_of(len(run.examples), spec)
    end = spec.last_step(steps)
    feed = run.feed or Fixed(run.examples, spec)
    peaks = (spec.lr, run.critic_lr)
    models = [model for model in (student.model, student.critic) if model is not None]
    optimizer = make_optimizer(models, peaks[: len(models)], spec, run.runtime.fused)
    if not is_sharded(student):
        student.to(ranks.device)
    done = load_resume(run.work, student, optimizer, ranks)
    log = StepLog(run.work / METRICS, done, ranks.is_first)
    tokens = _fewer(run.work, log.tokens(run.runtime.tokens_per_device))
    if is_sharded(student) and done < end:
        _try_longest(student, run, ranks, tokens)
    clock = Clock(student, run.work, done, ranks)
    every = run.runtime.checkpoint_steps or half_epoch(len(run.examples), spec.batch_size)
    with prefetched_batches(student, run, feed, ranks, end) as prefetch:
        for step in range(done, end):
            rate = learning_rate(step, steps, spec.lr, spec.warmup_ratio)
            for group, peak in zip(optimizer.param_groups, peaks, strict=False):
                group["lr"] = learning_rate(step, steps, peak, spec.warmup_ratio)
            examples, about = feed.at(step)
            objective = Objective(run.method, run.params, examples, measured=step % EVERY == 0)
            began, waited = time.monotonic(), prefetch.waited
            batches = functools.partial(prefetch.batches, step)
            if step == done:  # it may take minutes, and nothing else shows that it goes on
                batches = functools.partial(_watched, batches, f"computing step {step + 1}", len(examples))
            numbers, signal, tokens = _step(student, optimizer, run, ranks, objective, batches, tokens)
            pace = clock.add(objective.sequences, time.monotonic() - began, prefetch.waited - waited)
            numbers |= about
            fewer = {} if tokens == run.runtime.tokens_per_device else {TOKENS: tokens}
            log.add({"step": step + 1, **numbers, "lr": rate, **fewer})
            run.progress(step + 1, end, {**numbers, **pace})
            run.track(step + 1, {**numbers, "lr": rate, **pace})
            run.look(step + 1)
            if step + 1 in run.evaluation_steps:
                run.evaluate(step + 1)
            if signal or (step + 1 < end and ((step + 1) % every == 0 or step + 1 in run.evaluation_steps)):
                log.flush()
                save_resume(run.work, step + 1, student, optimizer, ranks)
                clock.save()
                ranks.wait()
            if signal and step + 1 < end:
                raise Stopped(signal, f"{Stopped.opening(signal)} at step {step + 1} of {end}; progress is saved")
    clock.save()
    log.flush()
    return log.summary(end)


def prefetched_batches(student: Student, run: Run, feed: Feed, ranks: Ranks, end: int) -> Prefetch[Cut, Laid]:
    """The micro-batches of this process up to step `end`, each with its weight: those of one left without rows
    repeat one and weigh nothing."""
    needs = run.method.needs_for(run.params)

    def cut(step: int, tokens: int) -> list[Cut]:
        examples, _ = feed.at(step)
        packed = student.packer is not None
        dealt = step_batches(examples, len(needs), tokens, ranks.count, packed)
        mine = dealt[ranks.rank]
        return [
            ([examples[p] for p in positions or [0]], 1.0 if positions else 0.0, n == len(mine))
            for n, positions in enumerate(mine, 1)
        ]

    def lay_out(item: Cut) -> Laid:
        examples, weight, is_last = item
        known, rewards = feed.experience, run.reward_of
        packer, in_one = student.packer, is_sharded(student)
        batch = collate(examples, needs, run.end_id, run.signal_of, run.start_of, known, rewards, packer, in_one)
        return batch.pinned() if ranks.device.type == "cuda" else batch, weight, is_last

    return Prefetch(cut, lay_out, end, feed.known)


def _step(
    student: Student,
    optimizer: Any,
    run: Run,
    ranks: Ranks,
    objective: Objective,
    batches: Callable[[int], Iterator[Laid]],
    tokens: int,
) -> tuple[dict[str, float], str | None, int]:
    """One optimizer step; returns its numbers, the signal to stop at, if any, and the tokens at a time. `batches` are
    those of this process at so many tokens at a time.

    Where it does not fit in the memory of a process, all of them do it over with half of the `tokens` at a time; one
    that has only its part of the weights cannot, and leaves that to the next start. Raises AdpaError then.
    """
    before = tokens
    while True:
        sums = fitting(functools.partial(_gradients, student, ranks, objective, batches(tokens)))
        if sums is None and is_sharded(student):
            raise _begun_again(student, run, ranks, objective, tokens)
        if (is_sharded(student) or ranks.all_fit(sums is not None)) and sums is not None:
            break
        optimizer.zero_grad(set_to_none=True)
        examples, parts, packed = objective.examples, len(objective.sequences), student.packer is not None
        dealt = step_batches(examples, parts, tokens, ranks.count, packed)
        tokens = smaller_budget(dealt, examples, parts, packed, run.stage)
    if tokens < before:
        run.note(f"A step did not fit in memory; continuing with --tokens-per-device {tokens}")
    with refused_when_full(BESIDE, f"use {ROOM}"):
        if not is_sharded(student):
            ranks.sum_gradients(student)
    norms = [clip(group["params"], run.spec.clip) for group in optimizer.param_groups]
    totals, signal = ranks.agree(sums, run.stop())
    numbers = objective.numbers(totals)
    if not all(map(math.isfinite, (numbers["loss"], *norms))):
        raise AdpaError(
            f"the loss or its gradient is not finite (loss {numbers['loss']}, norm {', '.join(map(str, norms))})",
            "use a lower learning rate (--lr), or check the data: adpa data SOURCE",
        )
    with refused_when_full(BESIDE, f"use {ROOM}"):
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return {**numbers, **dict(zip(("grad_norm", "critic_grad_norm"), norms, strict=False))}, signal, tokens


def _try_longest(student: Student, run: Run, ranks: Ranks, tokens: int) -> None:
    """Compute the gradients of the largest micro-batch there can be in all processes: what does not fit shows before
    the first step. Raises AdpaError then."""
    lengths = run.examples.lengths.max(0) if isinstance(run.examples, Examples) else [e.length for e in run.examples]
    longest = np.argsort(lengths, kind="stable")[-run.spec.batch_size :]
    examples = [run.examples[int(row)] for row in longest]
    needs = run.method.needs_for(run.params)
    cuts = step_batches(examples, len(needs), tokens, 1, student.packer is not None)[0]
    chosen = [examples[p] for p in max(cuts, key=lambda cut: sum(examples[p].size for p in cut))]
    objective = Objective(run.method, run.params, chosen, measured=True)
    batch = collate(chosen, needs, run.end_id, run.signal_of, run.start_of, {}, run.reward_of, student.packer)
    if fitting(functools.partial(_gradients, student, ranks, objective, iter([(batch, 0.0, True)]))) is None:
        raise _begun_again(student, run, ranks, objective, tokens)
    student.zero_grad(set_to_none=True)


def _begun_again(student: Student, run: Run, ranks: Ranks, objective: Objective, tokens: int) -> AdpaError:
    """What to raise where memory ran out in one process that shares its weights with others: they wait for it, so the
    run ends, and the next start takes half of the tokens at a time. AdpaError from here where nothing can be halved."""
    examples, parts, packed = objective.examples, len(objective.sequences), student.packer is not None
    dealt = step_batches(examples, parts, tokens, ranks.count, packed)
    fewer = smaller_budget(dealt, examples, parts, packed, run.stage)
    write_atomic(run.work / FEWER, json.dumps(fewer).encode())
    return AdpaError(
        f"a step did not fit in the memory of process {ranks.rank} of {ranks.count}",
        f"repeat the command: it continues from its last resume point with --tokens-per-device {fewer}",
    )


def _fewer(work: Path, tokens: int) -> int:
    """The tokens at a time, or those that an earlier start left to this one."""
    path = work / FEWER
    return min(tokens, int(json.loads(path.read_text()))) if path.exists() else tokens


def _watched(batches: Callable[[int], Iterator[Laid]], what: str, rows: int, tokens: int) -> Iterator[Laid]:
    """The micro-batches of a step of so many rows, with a word to whoever watches after each.

    A signal to stop waits for the end of the step, where all processes agree on it.
    """
    done = 0
    for laid, weight, is_last in batches(tokens):
        yield laid, weight, is_last
        done += round(weight) * max(len(part.mask) for part in laid.parts.values())
        with contextlib.suppress(Stopped):
            WATCH.get()(what, done, rows)
    with contextlib.suppress(Stopped):
        WATCH.get()(what, rows, rows)


def _gradients(student: Student, ranks: Ranks, objective: Objective, batches: Iterator[Laid]) -> dict[str, Tensor]:
    """Add this process's share of the gradients to the parameters; the sums of its numbers.

    Where each process has whole weights none waits for another in here, and each may run out of memory on its own.
    """
    sums: dict[str, Tensor] = {}
    for laid, weight, is_last in batches:
        sum_at_end(student, is_last)
        batch = laid.to(ranks.device)
        answers = student(batch.layouts, batch.ids, objective.stats, batch.drawn)
        share: Any = objective.loss(batch, answers, weight, sums)
        share.backward()
    return sums


class Prefetch(contextlib.AbstractContextManager["Prefetch[Wanted, Ready]"], Generic[Wanted, Ready]):
    """What `lay_out` makes, in a thread of its own, of the micro-batches that `cut` gives for (step, tokens at a time).

    Where `beyond` holds, those of later steps, up to but not `end`, are made before they are asked for; `cut` is called
    in the thread of the loop. Nothing else may use what `lay_out` reads while this is open. What `lay_out` raises is
    raised where its batch is taken. Used in a `with`, which ends the thread.
    """

    def __init__(
        self, cut: Callable[[int, int], Sequence[Wanted]], lay_out: Callable[[Wanted], Ready], end: int, beyond: bool
    ) -> None:
        self._cut, self._lay_out = cut, lay_out
        self._end, self._beyond = end, beyond
        self._waiting: deque[tuple[tuple[int, int, int], Future[Ready]]] = deque()
        self._coming: Iterator[tuple[tuple[int, int, int], Wanted]] = iter(())
        self._worker = ThreadPoolExecutor(1, "adpa-prefetch")
        self.waited = 0.0
        """Seconds that the loop has waited so far."""

    def batches(self, step: int, tokens: int) -> Iterator[Ready]:
        """The micro-batches of a step, in order. What was made for another step, or for another cut, is dropped."""
        if not self._waiting or self._waiting[0][0] != (step, tokens, 0):
            self._drop()
            self._coming = self._from(step, tokens)
            self._fill()
        while self._waiting and self._waiting[0][0][:2] == (step, tokens):
            _, made = self._waiting.popleft()
            self._fill()
            began = time.monotonic()
            try:
                batch = made.result()
            finally:
                self.waited += time.monotonic() - began
            yield batch

    def _from(self, step: int, tokens: int) -> Iterator[tuple[tuple[int, int, int], Wanted]]:
        for at in range(step, self._end if self._beyond else step + 1):
            for number, item in enumerate(self._cut(at, tokens)):
                yield (at, tokens, number), item

    def _fill(self) -> None:
        while len(self._waiting) < DEPTH and (coming := next(self._coming, None)) is not None:
            self._waiting.append((coming[0], self._worker.submit(self._lay_out, coming[1])))

    def _drop(self) -> None:
        for _, made in self._waiting:
            made.cancel()
        self._waiting.clear()

    def __exit__(self, *error: object) -> None:
        self._drop()
        self._worker.shutdown(wait=True)
