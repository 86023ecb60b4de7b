"""Selecting by a reward model: greedy answers to held-out prompts, and what it gives to them (paper, section 4.1)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from accelerate import Accelerator

from adpa_cli.engine.blocks import cut_blocks
from adpa_cli.engine.generate import generate_fitting
from adpa_cli.engine.memory import DRAW_TOKENS, POOL
from adpa_cli.engine.points import Record, summed
from adpa_cli.engine.sampling import Sampling
from adpa_cli.engine.student import Student


@dataclass(frozen=True)
class Judge:
    """`prompts` are the ids of held-out prompts by name, `rewards` judges the ids of an answer to each of some."""

    prompts: Mapping[str, Sequence[int]]
    rewards: Callable[[Mapping[str, Sequence[int]]], Sequence[float]]
    end_id: int
    pad_id: int
    max_new_tokens: int
    max_length: int

    def score(self, student: Student, accelerator: Accelerator) -> Record:
        """The mean reward of the student's greedy answers; each process does its share of the blocks."""
        sampling = Sampling(0.0, 1.0, self.max_new_tokens)
        blocks = cut_blocks(self.prompts, self._length, str, POOL * DRAW_TOKENS)
        answers: dict[str, Sequence[int]] = {}
        for block in blocks[accelerator.process_index :: accelerator.num_processes]:
            asked = [self.prompts[name] for name in block.items]
            made = generate_fitting(
                student.model, asked, block.items, self.end_id, self.pad_id, sampling, self.max_length, student.dtype,
                DRAW_TOKENS,
            )  # fmt: skip
            answers.update({name: answer.ids for name, answer in zip(block.items, made, strict=True)})
        total, count = summed(accelerator, sum(self.rewards(answers)) if answers else 0.0, len(answers))
        return {"reward": total / count, "prompts": int(count)}

    def _length(self, name: str) -> int:
        return min(len(self.prompts[name]) + self.max_new_tokens, self.max_length)
