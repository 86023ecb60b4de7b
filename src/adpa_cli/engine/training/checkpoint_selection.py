"""The evaluation of a run each half epoch and at its end: held-out scores, and weights that may be wanted later.

Held-out rows are scored by preference or likelihood, or a reward model scores greedy answers to held-out prompts (Gao
et al. 2025, section 4.1). Nothing here depends on when a run was interrupted. What belongs to steps beyond a resume
point is made again, so the best weights so far are forgotten only at the next evaluation, when a resume point has
followed them.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from adpa_cli.data.examples import win
from adpa_cli.disk import sync_file, sync_folder, write_atomic
from adpa_cli.engine.generation.generate import generate_share
from adpa_cli.engine.generation.sampling import Decoding
from adpa_cli.engine.layout.examples import Example
from adpa_cli.engine.ranks import Ranks
from adpa_cli.engine.rewards.reward_model import RewardModel
from adpa_cli.engine.scoring import halving_logps, label_logps, pair_margins
from adpa_cli.engine.sharding import is_sharded
from adpa_cli.engine.training.schedule import rank
from adpa_cli.engine.training.student import Student
from adpa_cli.methods import Part

SCORES = "_points.json"
SCORE_TOKENS = 16384

Record = dict[str, Any]
"""`step`, and what was measured after it: `accuracy`, `margin` and `pairs`, or `nll` and `tokens`, or `reward` and
`prompts`, or nothing."""


@dataclass(frozen=True)
class CheckpointSelection:
    """What is done after some steps: `save` writes the weights of this moment as a Hugging Face folder; every process
    takes part in it."""

    work: Path
    student: Student
    ranks: Ranks
    save: Callable[[Path], None]
    measure: HeldOut | RewardSelection | None
    keep_all: bool

    def evaluate(self, step: int) -> dict[str, float]:
        """Score the student after `step`; keep its weights if they are the best so far, or if all are kept.

        Returns the scores, each as `held_out/NAME`.
        """
        scores = self.measure.score(self.student, self.ranks) if self.measure else {}
        self._keep({"step": step, **scores})
        return {f"held_out/{name}": value for name, value in scores.items()}

    def _keep(self, record: Record) -> None:
        """Add to what was measured so far, and keep the weights of this moment if they are wanted."""
        step = record["step"]
        # The first process alone sees its own files at once, where a disk is shared.
        before = [e for e in records(self.work) if e["step"] < step] if self.ranks.is_first else []
        if self.ranks.is_first and not self.keep_all:
            wanted = {self.folder(best(before)["step"])} if before else set()
            for old in set(self.work.glob("_step-*")) - wanted:
                shutil.rmtree(old)
        so_far = [*before, record]
        is_wanted = self.keep_all or (self.ranks.is_first and best(so_far) is record)
        if self.ranks.summed([float(is_wanted)]) != [0.0]:
            self._write(self.folder(step))
        if self.ranks.is_first:
            write_atomic(self.work / SCORES, json.dumps(so_far).encode())

    def folder(self, step: int) -> Path:
        """Where the weights of a step lie; a name with `_` in front is gone after the commit."""
        return self.work / f"{'' if self.keep_all else '_'}step-{step:06d}"

    def take_best(self) -> int:
        """Make the best step's weights those of the artifact; returns that step."""
        step = int(best(records(self.work))["step"])
        shutil.copytree(self.folder(step), self.work, dirs_exist_ok=True)
        return step

    def _write(self, folder: Path) -> None:
        fresh = folder.with_name(f"_new-{folder.name}")
        if self.ranks.is_first:
            shutil.rmtree(fresh, ignore_errors=True)
        self.save(fresh)
        if not self.ranks.is_first:
            return
        for path in (*fresh.rglob("*"), fresh):
            sync_file(path)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(fresh, folder)
        sync_folder(self.work)


def records(work: Path) -> list[Record]:
    """What was measured so far, in the order of the steps."""
    path = work / SCORES
    read: list[Record] = json.loads(path.read_text()) if path.exists() else []
    return read


def best(evaluations: Sequence[Record]) -> Record:
    """The one that ranks highest; at a tie the later step."""
    return max(evaluations, key=lambda record: (*rank(record), record["step"]))


@dataclass(frozen=True)
class HeldOut:
    """The held-out side: pairs (`chosen` and `rejected`) are scored by preference, dialogues (`chosen`) by likelihood.

    The preference is that of `adpa eval --suite accuracy`; of a reward model, that of its rewards.
    """

    examples: Sequence[Example]
    parts: tuple[Part, ...]

    def score(self, student: Student, ranks: Ranks) -> Record:
        """The scores of `student`; each process does its share of the rows."""
        mine = ranks.share(self.examples)
        if is_sharded(student):
            logps = label_logps(student, self.examples, self.parts, SCORE_TOKENS, ranks.device, ranks)
            mine = [example for example in self.examples if (example.id, self.parts[0]) in logps]
        else:
            logps = halving_logps(student, mine, self.parts, SCORE_TOKENS, ranks.device)
        if isinstance(student, RewardModel):
            logps = {key: values[-1:] for key, values in logps.items()}
        if "rejected" in self.parts:
            margins = np.array(list(pair_margins(logps, mine).values()), dtype=np.float64)
            won, margin, pairs = ranks.summed([sum(map(win, margins)), margins.sum(), len(margins)])
            return {"accuracy": won / pairs, "margin": margin / pairs, "pairs": int(pairs)}
        flat = [values.astype(np.float64) for values in logps.values()]
        nats, tokens = ranks.summed([-sum(v.sum() for v in flat), sum(map(len, flat))])
        return {"nll": nats / tokens, "tokens": int(tokens)}


@dataclass(frozen=True)
class RewardSelection:
    """`prompts` are the ids of held-out prompts by name, `rewards` are those of some answers, given as ids by name."""

    prompts: Mapping[str, Sequence[int]]
    rewards: Callable[[Mapping[str, Sequence[int]]], Sequence[float]]
    decoding: Decoding

    def score(self, student: Student, ranks: Ranks) -> Record:
        """The mean reward of the student's answers; each process does its share of the blocks."""
        generated = generate_share(student.model, self.prompts, str, self.decoding, ranks)
        answers = {name: answer.ids for name, answer in generated.items()}
        total, count = ranks.summed([sum(self.rewards(answers)) if answers else 0.0, len(answers)])
        return {"reward": total / count, "prompts": int(count)}
