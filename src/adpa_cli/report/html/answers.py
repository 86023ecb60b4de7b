"""What models answered, side by side: sample prompts, who beats whom, and rewards against lengths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from adpa_cli.data.examples import win
from adpa_cli.errors import AdpaError
from adpa_cli.report.answer_rows import Answers
from adpa_cli.report.differences import rows_of
from adpa_cli.report.html.figures import Figure, Series, lines, points
from adpa_cli.report.html.measured import Compared, Model
from adpa_cli.report.html.sweeps import grouped
from adpa_cli.report.scores import REWARD, Score
from adpa_cli.sizes import spread
from adpa_cli.statistics import bootstrap
from adpa_cli.store.manifest import Manifest

LENGTH = "answer_tokens"
MOST_SIDES, MOST_PROMPTS, MOST_LETTERS = 4, 24, 1500
MOST_IN_MATRIX = 16
BINS = 6
Matrix = tuple[list[str], list[list[tuple[float, float] | None]]]


@dataclass(frozen=True)
class Answered:
    """One model with the evaluation that drew its answers: rewards and lengths [tokens] by the id of a prompt."""

    model: Model
    evaluation: Manifest
    rollout: Manifest
    rewards: Mapping[str, float]
    lengths: Mapping[str, float]


@dataclass(frozen=True)
class Side:
    """One model's answer to a prompt."""

    name: str
    text: str
    reward: float | None
    tokens: int
    is_cut: bool


@dataclass(frozen=True)
class Sample:
    """A prompt with the answers of some models; `place` is its place among all, `gap` how far rewards lie apart."""

    id: str
    place: int
    prompt: Sequence[Mapping[str, str]]
    sides: Sequence[Side]
    gap: float


@dataclass(frozen=True)
class AllAnswers:
    """The answers of the models of a report that were drawn and rewarded alike."""

    found: Compared

    @cached_property
    def models(self) -> list[Answered]:
        """Every model whose answers are in the store, those of the question that most models were asked."""
        drawn: dict[object, list[Answered]] = {}
        for model in self.found.models:
            for evaluation in self.found.evaluations(model):
                rollout = self.found.artifacts.get(str(evaluation.inputs.get("rollouts", "")).removeprefix("artifact:"))
                score = next((s for s in model.scores.values() if s.ref == evaluation.ref and s.metric == REWARD), None)
                if rollout is not None:
                    folder = self.found.folder(evaluation.ref)
                    rewards, lengths = (rows_of(folder, name).numbers for name in (REWARD, LENGTH))
                    drawn.setdefault(_question(score), []).append(
                        Answered(model, evaluation, rollout, rewards, lengths)
                    )
        best = max(
            drawn.values(), key=lambda each: (bool(each[0].rewards), len({a.model.ref for a in each})), default=[]
        )
        return list({answered.model.ref: answered for answered in reversed(best)}.values())[::-1]

    @cached_property
    def sides(self) -> list[Answered]:
        """The models to set side by side."""
        return self._some(self.models, MOST_SIDES)

    @staticmethod
    def _some(models: Sequence[Answered], most: int) -> list[Answered]:
        """All where there are few, else those that others are compared with, and the best; in their order."""
        around = [answered for answered in models if answered.model.role][: most // 2]
        asked = [answered for answered in models if not answered.model.role]
        ranked = sorted(asked, key=lambda each: -_mean(each.rewards))
        kept = {answered.model.ref for answered in (*around, *ranked[: most - len(around)])}
        return [answered for answered in models if answered.model.ref in kept]

    def samples(self) -> list[Sample]:
        """Prompts that all sides answered: half of them those on which rewards lie apart most, half spread evenly."""
        sides = self.sides
        if not sides:
            return []
        try:
            read = [Answers(self.found.store, answered.rollout) for answered in sides]
        except AdpaError:
            return []
        ids = [answers.ids for answers in read]
        common = [id_ for id_ in ids[0] if all(id_ in own for own in ids)]
        gaps = {id_: _gap([answered.rewards.get(id_) for answered in sides]) for id_ in common}
        apart = sorted(common, key=lambda id_: -gaps[id_])[: MOST_PROMPTS // 2]
        chosen = set(apart)
        rest = [id_ for id_ in common if id_ not in chosen]
        kept = [*apart, *(rest[place] for place in spread(len(rest), MOST_PROMPTS - len(apart)))]
        return [
            Sample(
                id_, ids[0][id_],
                [{**turn, "content": _cut(turn["content"])} for turn in read[0].record(ids[0][id_])["prompt"]],
                [_side(a, own, places[id_]) for a, own, places in zip(sides, read, ids, strict=True)], gaps[id_],
            )
            for id_ in sorted(kept, key=lambda id_: -gaps[id_])
        ]  # fmt: skip

    def matrix(self) -> Matrix | None:
        """(names, by row how often its rewards beat those of the column, and half of a 95 % interval); ties count half.

        Of many models those that others are compared with, and the best. None without two that were rewarded.
        """
        own = self._some([answered for answered in self.models if answered.rewards], MOST_IN_MATRIX)
        if len(own) < 2:
            return None
        return [each.model.name for each in own], [
            [None if one is other else _wins(one.rewards, other.rewards) for other in own] for one in own
        ]

    def figures(self) -> list[Figure]:
        """Mean reward against mean length by model, and by the length of single answers."""
        own = [answered for answered in self.models if answered.rewards and answered.lengths]
        if not own:
            return []
        groups = grouped(self.found, [each.model for each in own])
        means = []
        for each in own:
            (label, colour), mean = groups[each.model.ref], bootstrap(list(each.rewards.values()))
            bounds = [(mean["low"], mean["high"])]
            means.append(Series(label, [_mean(each.lengths)], [mean["value"]], bounds, colour, each.model.name))
        drawn = [points("reward-and-length", "Mean reward against mean length", means, "answer tokens", "mean reward",
                        "One point a model, with the 95 % interval of its reward.")]  # fmt: skip
        binned = [_binned(each, n) for n, each in enumerate(self.sides) if each.rewards and each.lengths]
        if binned:
            drawn.append(lines("reward-by-length", "Reward by the length of an answer", binned, "answer tokens",
                               "mean reward", caption=f"Answers in {BINS} parts of equal number by their length.",
                               marks=True))  # fmt: skip
        return drawn


def _question(score: Score | None) -> object:
    return None if score is None else score.kind


def _mean(values: Mapping[str, float]) -> float:
    return float(np.mean(list(values.values()))) if values else float("-inf")


def _gap(rewards: Sequence[float | None]) -> float:
    known = [reward for reward in rewards if reward is not None]
    return max(known) - min(known) if known else 0.0


def _side(answered: Answered, answers: Answers, place: int) -> Side:
    row = answers.record(place)
    return Side(
        answered.model.name, _cut(row["text"]), answered.rewards.get(row["id"]), row["answer_tokens"], bool(row["cut"])
    )


def _cut(said: str) -> str:
    return said if len(said) <= MOST_LETTERS else f"{said[:MOST_LETTERS]} … ({len(said):,} characters)"


def _wins(ours: Mapping[str, float], theirs: Mapping[str, float]) -> tuple[float, float] | None:
    common = [id_ for id_ in ours if id_ in theirs]
    if not common:
        return None
    won = np.array([win(ours[id_] - theirs[id_]) for id_ in common])
    return float(won.mean()), float(1.96 * won.std() / np.sqrt(len(won)))


def _binned(answered: Answered, colour: int) -> Series:
    """Mean reward in parts of equal number by length."""
    both = sorted(
        (answered.lengths[id_], reward) for id_, reward in answered.rewards.items() if id_ in answered.lengths
    )
    parts = [part for part in np.array_split(np.array(both), min(BINS, len(both))) if len(part)]
    ends = [bootstrap(part[:, 1]) for part in parts]
    xs: list[float] = [float(part[:, 0].mean()) for part in parts]
    bounds = [(end["low"], end["high"]) for end in ends]
    return Series(answered.model.name, xs, [end["value"] for end in ends], bounds, colour)
