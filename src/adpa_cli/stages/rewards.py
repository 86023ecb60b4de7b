"""The `rewards` stage: what a reward model gives to both answers of every pair, or a suite's reward of given answers.

The rewards of answers stand under the hash of their prompt. Evaluations share them: no answer is scored twice by one
scorer.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from adpa_cli import suites
from adpa_cli.data.preferences import Pair
from adpa_cli.disk import numbered, write_json
from adpa_cli.engine.costs import scores_disk
from adpa_cli.errors import AdpaError
from adpa_cli.sizes import Disk, Memory, Rows
from adpa_cli.spec import Dtype, Quantise, make, noise_answers, quantise
from adpa_cli.stages import (
    Job,
    Lengths,
    Load,
    Monitor,
    Node,
    Stage,
    _noise,
    _sharing,
    scoring_memory,
    stored_words,
    with_progress,
)
from adpa_cli.suites import REWARDS_FILE, ROLLOUTS

PARTS = ("chosen", "rejected")


@dataclass(frozen=True)
class RewardsSpec:
    """One `rewards` stage: what a reward model gives to both answers of every pair, or a suite to given answers."""

    template: str
    end: str
    dtype: Dtype = "bfloat16"
    max_length: int = 2048
    block_tokens: int = 16384
    limit: int | None = None
    skip_bad_rows: bool = False
    smoke: bool = False
    quantise: Quantise | None = quantise()
    noise_answers: int = noise_answers()
    """Pairs whose rewards are computed in float32 too."""

    split: Literal["train", "test", "all"] = field(default="train", metadata={"neutral": "train"})
    """The side of the data whose pairs are rewarded."""
    scorer: str = field(default="", metadata={"neutral": ""})
    """The suite that rewards given answers; "" where a reward model scores pairs."""

    def without_effect(self) -> set[str]:
        """Float32 is what others are held to. Answers are all of those that are given; only tokens have a length."""
        if not self.scorer:
            return {"noise_answers"} if self.dtype == "float32" else set()
        idle = {"limit", "skip_bad_rows", "noise_answers"}
        scorers = suites.every()[self.scorer].scorers
        if not scorers:
            return {*idle, "dtype", "max_length", "block_tokens", "quantise"}
        return {*idle, "max_length"} if "aligned" not in scorers else idle


def compute(job: Job, monitor: Monitor, rank: int = 0, processes: int = 1) -> None:
    """Leave one `_PART-NNNNNN.json` per finished block of pairs in the work folder, or one file of given answers; those
    that are there are kept."""
    from adpa_cli.engine.device import device
    from adpa_cli.engine.layout.micro_batches import longest_first
    from adpa_cli.engine.rewards.reward_model import Scorer, fitting_blocks

    spec, is_shared = make(RewardsSpec, job.spec), _sharing.is_shared_out(job.runtime, processes)
    if spec.scorer:
        if job.runtime.part[0] == 0 and (rank == 0 or is_shared):
            _score_answers(job, spec, monitor, rank, processes)
        return
    pairs = _pairs(job, spec)
    if _noise.sample_size(spec) and rank == 0:
        with _sharing.alone(job, processes):
            _noise.judged(job, monitor, "margin", lambda: _margin_noise(job, spec, pairs))
    elif _noise.sample_size(spec) and not is_shared:
        _noise.wait(job, monitor)
    with fitting_blocks(spec.block_tokens, job.stage):
        blocks = [block for part in PARTS for block in longest_first(_blocks(job, spec, pairs, part))]
        own = job.own(blocks, rank, processes)
        todo = [block for block in own if not block.path.exists()]
        if not _sharing.is_any_left(job, todo, processes):
            return
        ends = {ids[-1] for block in blocks for ids in (block.encoded[i] for i in block.rows)}
        with _sharing.together(job, monitor, processes) as told:
            scorer = Scorer(job.one("reward_model").path, ends, spec.dtype, device(), job.stage, quantise=spec.quantise)
            for block in with_progress(todo, told, len(own) - len(todo)):
                rewards = scorer.rewards(block.encoded, block.rows)
                write_json(block.path, {pairs[i].id: value for i, value in zip(block.rows, rewards, strict=True)})


@dataclass(frozen=True)
class Block:
    """Pairs, by their positions, of which one answer goes through the reward model at once."""

    path: Path
    rows: Sequence[int]
    encoded: Sequence[Sequence[int]]


def _pairs(job: Job, spec: RewardsSpec) -> Sequence[Pair]:
    from adpa_cli.hub.externals import pairs_of

    return pairs_of(job.one("data").where, spec.split, spec.limit, spec.skip_bad_rows).items


def _dialogues(pairs: Sequence[Pair], part: str) -> list[Any]:
    return [(pair.prompt, getattr(pair, part)) for pair in pairs]


def _blocks(job: Job, spec: RewardsSpec, pairs: Sequence[Pair], part: str) -> list[Block]:
    """The blocks of one answer to all pairs."""
    from adpa_cli.engine.rewards.reward_model import encoded_dialogues, reward_blocks

    encoded = encoded_dialogues(job.one("reward_model"), _dialogues(pairs, part), spec)
    blocks = enumerate(reward_blocks(encoded, spec.block_tokens))
    return [Block(job.folder / f"_{part}-{index:06d}.json", rows, encoded) for index, rows in blocks]


def missing(job: Job) -> int:
    """How many blocks are not there yet."""
    spec = make(RewardsSpec, job.spec)
    if spec.scorer:
        return int(not (job.folder / f"_{ROLLOUTS}.json").exists())
    pairs = _pairs(job, spec)
    return sum(not block.path.exists() for part in PARTS for block in _blocks(job, spec, pairs, part))


def _margin_noise(job: Job, spec: RewardsSpec, pairs: Sequence[Pair]) -> dict[str, Any]:
    """How far the margins of some pairs are from those of float32."""
    from adpa_cli.engine.noise import compared, first_by_hash
    from adpa_cli.engine.rewards.reward_model import reward_scores

    sample = first_by_hash(pairs, lambda pair: pair.id, spec.noise_answers)

    def margins(is_exact: bool) -> Any:
        model, tokens = job.one("reward_model"), spec.block_tokens
        return _margins(*(
            reward_scores(model, _dialogues(sample, part), spec, tokens, job.stage, is_exact, spec.quantise)
            for part in PARTS
        ))  # fmt: skip

    return {"answers": 2 * len(sample), "margin": compared(margins(False), margins(True))}


def _score_answers(job: Job, spec: RewardsSpec, monitor: Monitor, rank: int, processes: int) -> None:
    """Leave the rewards of the given answers in the work folder. Processes that share the models out all compute them,
    and the first one writes them."""
    path, rewards = job.folder / f"_{ROLLOUTS}.json", suites.every()[spec.scorer].rewards
    if rewards is None:
        raise AdpaError(f"the suite {spec.scorer} rewards no answers")
    if _sharing.is_any_left(job, [path] * (not path.exists()), processes):
        with _sharing.together(job, monitor, processes):
            found = rewards(job.firsts, spec)
        if rank == 0:
            write_json(path, found)
    monitor.progress(1, 1, {})


def _margins(chosen: Sequence[float], rejected: Sequence[float]) -> Any:
    import numpy as np

    return np.array(chosen) - np.array(rejected)


def finish(job: Job) -> dict[str, Any]:
    """One table, and how the rewards lie: a scale for β to be judged by."""
    import numpy as np

    from adpa_cli.data.examples import win

    spec = make(RewardsSpec, job.spec)
    if spec.scorer:
        rewards = {ROLLOUTS: json.loads((job.folder / f"_{ROLLOUTS}.json").read_text(encoding="utf-8"))}
    else:
        rewards = {part: _in_order(job, spec, part) for part in PARTS}
    write_json(job.folder / REWARDS_FILE, rewards)
    if ROLLOUTS in rewards:
        values = list(rewards[ROLLOUTS].values())
        return {"answers": len(values), "mean_reward": float(np.mean(values))}
    margins = np.array([rewards["chosen"][pair] - rewards["rejected"][pair] for pair in rewards["chosen"]])
    return {
        "pairs": len(margins), "accuracy": float(np.mean([win(margin) for margin in margins])),
        "margin": float(margins.mean()), "margin_rms": float(np.sqrt(np.mean(margins**2))),
        **_noise.metrics(job.folder, "margin", job.spec["dtype"], job.stage),
    }  # fmt: skip


def _in_order(job: Job, spec: RewardsSpec, part: str) -> dict[str, float]:
    """The reward of one answer to every pair by its id, in the order of the data."""
    made: dict[str, float] = {}
    for path in numbered(job.folder, f"_{part}-*.json"):
        made |= json.loads(path.read_text(encoding="utf-8"))
    return {pair.id: made[pair.id] for pair in _pairs(job, spec)}


class Rewards(Mapping[tuple[str, str], float]):
    """The rewards of an artifact by (pair id, part), in 16 bytes each: by the ids as numbers, which are sorted."""

    def __init__(self, folder: Path) -> None:
        text = (folder / REWARDS_FILE).read_text(encoding="utf-8")
        self._parts: dict[str, tuple[Any, Any]] = json.loads(text, object_pairs_hook=_columns)

    def __len__(self) -> int:
        return sum(len(ids) for ids, _ in self._parts.values())

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return ((f"{int(pair):016x}", part) for part, (ids, _) in self._parts.items() for pair in ids)

    def __getitem__(self, name: tuple[str, str]) -> float:
        ids, values = self._parts[name[1]]
        wanted = int(name[0], 16)
        at = int(ids.searchsorted(ids.dtype.type(wanted)))
        if at == len(ids) or int(ids[at]) != wanted:
            raise KeyError(name)
        return float(values[at])


def _columns(entries: list[tuple[str, Any]]) -> Any:
    """What becomes of an object of the table: of that of a part its ids [n] as sorted numbers and their values [n]."""
    import numpy as np

    if any(isinstance(value, tuple) for _, value in entries[:1]):
        return dict(entries)
    ids = np.array([int(pair, 16) for pair, _ in entries], dtype=np.uint64)
    order = ids.argsort()
    return ids[order], np.array([value for _, value in entries], dtype=np.float64)[order]


def rows(node: Node, lengths: Lengths) -> Rows:
    """Both answers of every pair, or every given answer."""
    return {"rollout": lengths.answers()} if node.spec.scorer else lengths.pairs(node.spec.split)


def disk(node: Node, load: Load) -> Disk:
    """Of a number for each answer."""
    return scores_disk(load.count, len(load.rows))


def memory(node: Node, load: Load) -> Memory:
    """Of the models that score, one after the other; rules need none."""
    return scoring_memory(node, load) if load.models else Memory(0, 0)


def what(node: Node) -> str:
    """Of what, and by whom."""
    if not node.spec.scorer:
        return f"of pairs, by {node.label_of('reward_model')}{stored_words(node.spec)}"
    by = " over ".join(node.label_of(role) for role in suites.every()[node.spec.scorer].scorers)
    return f"of {node.label_of(ROLLOUTS)}, by {by or node.spec.scorer}{stored_words(node.spec) if by else ''}"


REWARDS = Stage(
    "rewards", 6, 1, RewardsSpec, "scoring", "rewards", compute, finish, rows, disk, memory,
    lambda node, load: _noise.flops(node, load, load.count), what=what, missing=missing,
    split=lambda spec: str(spec.split), follows=("limit", "max_length"), check=_sharing.check,
    shares=lambda spec: not spec.scorer or bool(suites.every()[spec.scorer].scorers),
)  # fmt: skip
STAGES = (REWARDS,)
