"""Rows whose answers the student itself draws while it trains: a bufferful at a time, then some steps on them.

A buffer holds answers drawn at one time, with everything that was known of them then. It is computed whole, written to
one file, and read again by a run that goes on: nothing depends on when it was interrupted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save
from torch import Tensor

from adpa_cli.disk import write_atomic
from adpa_cli.engine.generation.generate import Generated, generate_share
from adpa_cli.engine.generation.sampling import Decoding
from adpa_cli.engine.layout.examples import Example, TokenSequence
from adpa_cli.engine.models import body_and_head, load_checked
from adpa_cli.engine.ranks import Ranks
from adpa_cli.engine.scoring import LabelLogps, halving_logps
from adpa_cli.engine.training.resume import resume_step
from adpa_cli.engine.training.schedule import step_rows, steps_of
from adpa_cli.engine.training.student import Critic, Student
from adpa_cli.errors import AdpaError
from adpa_cli.methods import required
from adpa_cli.spec import Dtype, Quantise, TrainSpec
from adpa_cli.tensors.ppo import advantages, rewards, whitened

Floats = Sequence[NDArray[np.float32]]
SCORES = ("drawn", "start", "aligned", "reference", "values")
"""Log-probs under who drew the answers, the frozen start model and the two teachers; the values of the critic."""


@dataclass(frozen=True)
class RolloutBuffer:
    """`ids` of each answer, whether a limit `cut` it, and its `scores` [T] by name."""

    ids: Sequence[NDArray[np.int32]]
    cut: Sequence[bool]
    scores: Mapping[str, Floats]

    def save(self, path: Path) -> None:
        """Write it whole or not at all."""
        flat = {name: np.concatenate(self.scores[name]) for name in SCORES}
        lengths = np.array([len(answer) for answer in self.ids], dtype=np.int64)
        cut = np.array(self.cut, dtype=np.uint8)
        write_atomic(path, save({**flat, "ids": np.concatenate(self.ids), "lengths": lengths, "cut": cut}))

    @classmethod
    def load(cls, path: Path) -> RolloutBuffer:
        """What `save` wrote."""
        flat = load_file(path)
        ends = np.cumsum(flat["lengths"])[:-1]
        scores = {name: np.split(flat[name], ends) for name in SCORES}
        return cls(np.split(flat["ids"], ends), [bool(cut) for cut in flat["cut"]], scores)


def experience(buffer: RolloutBuffer, params: Any) -> list[dict[str, NDArray[np.float32]]]:
    """The fields [T] of the `Experience` of each answer, under the reward and the constants of `params`."""
    mask, scores = _padded(buffer)
    earned = _rewards(scores, mask, params)
    estimates, returns = advantages(earned, scores["values"], mask, gamma=params.discount, lam=params.gae_lambda)
    if params.whiten:
        estimates = whitened(estimates, mask)
    fields = {"logps": scores["drawn"], "values": scores["values"], "advantages": estimates, "returns": returns}
    return [
        {name: values[row, : len(answer)].numpy() for name, values in fields.items()}
        for row, answer in enumerate(buffer.ids)
    ]


def buffer_metrics(buffer: RolloutBuffer, params: Any) -> dict[str, float]:
    """What one wants to know of the answers: their mean reward and distance to the start model, both per answer, the
    mean of -log π per token (an estimate of the entropy), their mean length, and how many a limit cut."""
    mask, scores = _padded(buffer)
    paid = _rewards({**scores, "start": scores["drawn"]}, mask, params)
    distance = (scores["drawn"] - scores["start"]).masked_fill(~mask, 0.0)
    return {
        "reward": float(paid.sum(1).mean()), "kl": float(distance.sum(1).mean()),
        "entropy": -float(scores["drawn"][mask].mean()), "answer_tokens": float(mask.sum(1).float().mean()),
        "cut": sum(buffer.cut) / len(buffer.cut),
    }  # fmt: skip


def _rewards(scores: Mapping[str, Tensor], mask: Tensor, params: Any) -> Tensor:
    policy, start, aligned, reference = (scores[name] for name in SCORES[:4])
    per_token = params.reward == "token"
    return rewards(
        policy, start, aligned, reference, mask, beta=params.beta, per_token=per_token, clip=params.token_reward_clip
    )


def _padded(buffer: RolloutBuffer) -> tuple[Tensor, dict[str, Tensor]]:
    """The mask [B,T], and the scores [B,T] padded with 0."""
    lengths = torch.tensor([len(answer) for answer in buffer.ids])
    mask = torch.arange(int(lengths.max()))[None] < lengths[:, None]
    rows = {name: [torch.from_numpy(score) for score in buffer.scores[name]] for name in SCORES}
    return mask, {name: torch.nn.utils.rnn.pad_sequence(own, batch_first=True) for name, own in rows.items()}


@dataclass(frozen=True)
class Scorer:
    """A model that answers are scored by: its folder, what it computes in, how its weights are stored, and whether its
    adapter is merged into them."""

    folder: Path
    dtype: Dtype
    quantise: Quantise | None = None
    merged: bool = False


@dataclass(frozen=True)
class Sources:
    """What answers are drawn for, how, and scored by: prompt ids by example id, and models by the names of their scores
    ("start", "aligned", "reference")."""

    prompts: Mapping[str, Sequence[int]]
    scorers: Mapping[str, Scorer]
    decoding: Decoding


@dataclass
class Online:
    """A `Feed`: `examples` with an answer of the student beside their own parts. One instance for each process."""

    student: Student
    ranks: Ranks
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
        return [self._drawn[row] for row in step_rows(len(self.examples), self.spec, own)], self._about

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
        steps = (step_rows(len(self.examples), self.spec, step) for step in self._steps(number))
        rows = sorted({row for step in steps for row in step})
        path = self.work / f"_buffer-{number:06d}.safetensors"
        if path.exists():
            buffer = RolloutBuffer.load(path)
        else:
            buffer = self._make(number, [self.examples[row] for row in rows])
            if self.ranks.is_first:
                buffer.save(path)
                self._forget()
        self._number, self._about = number, buffer_metrics(buffer, self.params)
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
        return TokenSequence.of(self.sources.prompts[example_id], answer)

    def _make(self, number: int, examples: Sequence[Example]) -> RolloutBuffer:
        """An answer to each prompt by the student as it is now, and the scores of all; processes share the work."""
        answers = self._draw(number, [example.id for example in examples])
        share = self.ranks.share(examples)
        mine = [Example(e.id, {"rollout": self._sequence(e.id, answers[e.id].ids)}) for e in share]
        scored = self.ranks.gathered(self._score(mine) if mine else {})
        made = [answers[example.id] for example in examples]
        names = ("drawn", "values", *self.sources.scorers)
        return RolloutBuffer(
            [np.array(answer.ids, dtype=np.int32) for answer in made], [answer.cut for answer in made],
            {name: [scored[example.id][name] for example in examples] for name in names},
        )  # fmt: skip

    def _draw(self, number: int, ids: Sequence[str]) -> dict[str, Generated]:
        """Answers by example id. The noise depends on the seed, the row and the buffer, not on who else is drawn."""
        prompts, decoding = {i: self.sources.prompts[i] for i in ids}, self.sources.decoding
        name = f"{{}} in buffer {number}".format
        return self.ranks.gathered(generate_share(self.student.model, prompts, name, decoding, self.ranks))

    def _score(self, examples: Sequence[Example]) -> dict[str, dict[str, NDArray[np.float32]]]:
        """Scores [T] of each answer by example id and name, one model after the other."""

        def score(model: Student | Critic) -> LabelLogps:
            return halving_logps(model, examples, ("rollout",), self.tokens, self.ranks.device)

        scores = {"drawn": score(self.student), "values": score(required(self.student.critic))}
        for name, scorer in self.sources.scorers.items():
            folder, dtype = scorer.folder, scorer.dtype
            model = load_checked(folder, dtype=dtype, train=scorer.merged, quantise=scorer.quantise)
            ids = body_and_head(model)[1].shape[0]
            if max(int(e.parts["rollout"].ids.max()) for e in examples) >= ids:
                raise AdpaError(
                    f"the student generated a token that {folder.name} does not have: its vocabulary has {ids:,} ids",
                    "use teachers whose vocabulary includes the student's",
                )
            scores[name] = score(Student(model, dtype))
            if not all(np.isfinite(logps).all() for logps in scores[name].values()):
                raise AdpaError(
                    f"{folder.name} gives log-probs in {dtype} that are not finite for the student's answers",
                    "use a dtype with a wider range for the teachers: --set teachers_dtype=tf32",
                )
            del model
        return {e.id: {name: logps[e.id, "rollout"] for name, logps in scores.items()} for e in examples}
