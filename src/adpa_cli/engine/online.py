"""Rows whose answers the student itself draws while it trains: a bufferful at a time, then some steps on them.

A buffer is computed whole, written, and read again by a run that goes on: nothing depends on when it was interrupted.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from numpy.typing import NDArray

from adpa_cli.engine.blocks import cut_blocks
from adpa_cli.engine.buffer import Buffer, experience, numbers
from adpa_cli.engine.checkpoints import resume_step
from adpa_cli.engine.generate import Generated, generate_fitting
from adpa_cli.engine.heads import check_head
from adpa_cli.engine.memory import DRAW_TOKENS, POOL
from adpa_cli.engine.models import body_and_head, load
from adpa_cli.engine.processes import gathered
from adpa_cli.engine.sampling import Sampling
from adpa_cli.engine.schedule import Example, TokenSequence, rows_at, steps_of
from adpa_cli.engine.score import at_answers, halving, halving_logps
from adpa_cli.engine.student import Student
from adpa_cli.errors import AdpaError
from adpa_cli.methods import given
from adpa_cli.spec import TrainSpec


@dataclass(frozen=True)
class Sources:
    """What answers are drawn for and judged by: prompt ids by example id, and a model folder by the name of its score
    ("start", "aligned", "reference")."""

    prompts: Mapping[str, Sequence[int]]
    scorers: Mapping[str, Path]
    end_id: int
    pad_id: int


@dataclass
class Online:
    """A `Feed`: `examples` with an answer of the student beside their own parts. One instance for each process."""

    student: Student
    accelerator: Accelerator
    examples: Sequence[Example]
    sources: Sources
    spec: TrainSpec
    params: Any
    work: Path
    tokens: int
    """Padded tokens that are scored together."""
    experience: dict[str, Mapping[str, NDArray[Any]]] = field(default_factory=dict)
    known: bool = False
    _number: int | None = None
    _drawn: dict[int, Example] = field(default_factory=dict)
    _about: dict[str, float] = field(default_factory=dict)

    def at(self, step: int) -> tuple[list[Example], Mapping[str, float]]:
        """The rows of a step with the answers of its buffer, which is drawn at its first step; its numbers."""
        number, own = self._place(step)
        if number != self._number:
            self._enter(number)
        return [self._drawn[row] for row in rows_at(len(self.examples), self.spec, own)], self._about

    def _place(self, step: int) -> tuple[int, int]:
        """The buffer of an optimizer step, and which of the steps of a single pass has its rows."""
        passes, size = self.params.ppo_epochs, self._size
        number, within = divmod(step, size * passes)
        return number, number * size + within % len(self._steps(number))

    @property
    def _size(self) -> int:
        """Batches of a buffer."""
        return max(1, int(self.params.rollout_batch) // self.spec.batch_size)

    def _steps(self, number: int) -> range:
        """The steps of a single pass that a buffer serves."""
        of_one_pass = -(-steps_of(len(self.examples), self.spec) // self.params.ppo_epochs)
        return range(number * self._size, min((number + 1) * self._size, of_one_pass))

    def _enter(self, number: int) -> None:
        """Draw a buffer, or read it where it is drawn already, and lay out its answers."""
        steps = (rows_at(len(self.examples), self.spec, step) for step in self._steps(number))
        rows = sorted({row for step in steps for row in step})
        path = self.work / f"_buffer-{number:06d}.safetensors"
        if path.exists():
            buffer = Buffer.load(path)
        else:
            buffer = self._make(number, [self.examples[row] for row in rows])
            if self.accelerator.is_main_process:
                buffer.save(path)
                self._forget()
        self._number, self._about = number, numbers(buffer, self.params)
        self.experience.clear()
        self._drawn.clear()
        for row, ids, known in zip(rows, buffer.ids, experience(buffer, self.params), strict=True):
            example = self.examples[row]
            self.experience[example.id] = known
            self._drawn[row] = Example(example.id, {**example.parts, "rollout": self._sequence(example.id, ids)})

    def _forget(self) -> None:
        """Remove the buffers that no run will ask for, wherever it goes on."""
        needed = self._place(resume_step(self.work))[0]
        for old in self.work.glob("_buffer-*.safetensors"):
            if int(old.stem.split("-")[1]) < needed:
                old.unlink()

    def _sequence(self, example_id: str, answer: Sequence[int] | NDArray[np.int32]) -> TokenSequence:
        prompt = self.sources.prompts[example_id]
        ids = np.array([*prompt, *answer], dtype=np.int32)
        return TokenSequence(ids, np.arange(len(ids)) >= len(prompt))

    def _make(self, number: int, examples: Sequence[Example]) -> Buffer:
        """An answer to each prompt by the student as it is now, and the scores of all; processes share the work."""
        answers = self._draw(number, [example.id for example in examples])
        share = examples[self.accelerator.process_index :: self.accelerator.num_processes]
        mine = [Example(e.id, {"rollout": self._sequence(e.id, answers[e.id].ids)}) for e in share]
        scored = gathered(self.accelerator, self._score(mine) if mine else {})
        made = [answers[example.id] for example in examples]
        names = ("drawn", "values", *self.sources.scorers)
        return Buffer(
            [np.array(answer.ids, dtype=np.int32) for answer in made], [answer.cut for answer in made],
            {name: [scored[example.id][name] for example in examples] for name in names},
        )  # fmt: skip

    def _draw(self, number: int, ids: Sequence[str]) -> dict[str, Generated]:
        """Answers by example id. The noise depends on the seed, the row and the buffer, not on who else is drawn."""
        prompts, longest = self.sources.prompts, self.spec.max_length
        p = self.params
        sampling = Sampling(p.temperature, 1.0, p.max_new_tokens, self.spec.seed)
        blocks = cut_blocks(ids, lambda i: min(len(prompts[i]) + p.max_new_tokens, longest), str, POOL * DRAW_TOKENS)
        found: dict[str, Generated] = {}
        for block in blocks[self.accelerator.process_index :: self.accelerator.num_processes]:
            made = generate_fitting(
                self.student.model, [prompts[i] for i in block.items], [f"{i} in buffer {number}" for i in block.items],
                self.sources.end_id, self.sources.pad_id, sampling, longest, self.student.dtype, DRAW_TOKENS,
            )  # fmt: skip
            found.update(zip(block.items, made, strict=True))
        return gathered(self.accelerator, found)

    def _score(self, examples: Sequence[Example]) -> dict[str, dict[str, NDArray[np.float32]]]:
        """Scores [T] of each answer by example id and name, one model after the other."""
        device = self.accelerator.device
        student = self.student
        critic = given(student.critic)
        found = {
            "drawn": halving_logps(student, examples, ("rollout",), self.tokens, device),
            "values": halving(
                functools.partial(at_answers, lambda batch: critic(batch.pieces)), examples, ("rollout",),
                self.tokens, device,
            ),
        }  # fmt: skip
        for name, folder in self.sources.scorers.items():
            model = load(folder)
            check_head(model)
            ids = body_and_head(model)[1].shape[0]
            if max(int(e.parts["rollout"].ids.max()) for e in examples) >= ids:
                raise AdpaError(
                    f"the student drew a token that {folder.name} lacks: it has {ids:,} ids",
                    "take teachers that have every id of the student",
                )
            found[name] = halving_logps(Student(model, self.spec.dtype), examples, ("rollout",), self.tokens, device)
            del model
        return {e.id: {name: scores[e.id, "rollout"] for name, scores in found.items()} for e in examples}
