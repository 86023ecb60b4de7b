"""The `rewards` stage: what a reward model gives to the chosen and to the rejected answer of every pair."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adpa_cli.data.preferences import Pair
from adpa_cli.disk import write_json
from adpa_cli.engine.costs import scores_disk
from adpa_cli.sizes import Disk, Rows
from adpa_cli.spec import Dtype, Quantise, make, noise_answers, quantise
from adpa_cli.stages import Job, Lengths, Load, Monitor, Node, Stage, _noise, stored_words, with_progress

PARTS = ("chosen", "rejected")
TABLE = "rewards.json"


@dataclass(frozen=True)
class RewardsSpec:
    """One `rewards` stage: what a reward model gives to both answers of every pair."""

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

    def without_effect(self) -> set[str]:
        """Float32 is what others are held to."""
        return {"noise_answers"} if self.dtype == "float32" else set()


def compute(job: Job, monitor: Monitor, rank: int = 0, processes: int = 1) -> None:
    """Leave one file per part in the work folder; those that are there are kept. Run by one process only."""
    from adpa_cli.engine.noise import compared, first_by_hash
    from adpa_cli.engine.rewards.reward_model import reward_scores
    from adpa_cli.hub.externals import pairs_of

    spec = make(RewardsSpec, job.spec)
    pairs = pairs_of(job.one("data").where, "train", spec.limit, spec.skip_bad_rows).items

    def rewards(of: Sequence[Pair], part: str, is_exact: bool = False) -> list[float]:
        dialogues = [(pair.prompt, getattr(pair, part)) for pair in of]
        model, tokens = job.one("reward_model"), spec.block_tokens
        return reward_scores(model, dialogues, spec, tokens, job.stage, is_exact, spec.quantise)

    def noise() -> dict[str, Any]:
        sample = first_by_hash(pairs, lambda pair: pair.id, spec.noise_answers)
        both = [[rewards(sample, part, is_exact) for part in PARTS] for is_exact in (False, True)]
        return {"answers": 2 * len(sample), "margin": compared(*(_margins(*parts) for parts in both))}

    if _noise.sample_size(spec):
        _noise.judged(job, monitor, "margin", noise)
    for part in with_progress(PARTS, monitor):
        path = job.folder / f"_{part}.json"
        if not path.exists():
            write_json(path, {pair.id: value for pair, value in zip(pairs, rewards(pairs, part), strict=True)})


def _margins(chosen: Sequence[float], rejected: Sequence[float]) -> Any:
    import numpy as np

    return np.array(chosen) - np.array(rejected)


def finish(job: Job) -> dict[str, Any]:
    """One table, and how the rewards lie: a scale for β to be judged by."""
    import numpy as np

    from adpa_cli.data.examples import win

    rewards = {part: json.loads((job.folder / f"_{part}.json").read_text(encoding="utf-8")) for part in PARTS}
    write_json(job.folder / TABLE, rewards)
    margins = np.array([rewards["chosen"][pair] - rewards["rejected"][pair] for pair in rewards["chosen"]])
    return {
        "pairs": len(margins), "accuracy": float(np.mean([win(margin) for margin in margins])),
        "margin": float(margins.mean()), "margin_rms": float(np.sqrt(np.mean(margins**2))),
        **_noise.metrics(job.folder, "margin", job.spec["dtype"], job.stage),
    }  # fmt: skip


class Rewards(Mapping[tuple[str, str], float]):
    """The rewards of an artifact by (pair id, part), in 16 bytes each: by the ids as numbers, which are sorted."""

    def __init__(self, folder: Path) -> None:
        text = (folder / TABLE).read_text(encoding="utf-8")
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
    """Both answers of every pair."""
    return lengths.pairs("train")


def disk(node: Node, load: Load) -> Disk:
    """Of a number for each answer."""
    return scores_disk(load.count, len(load.rows))


REWARDS = Stage(
    "rewards", 6, 1, RewardsSpec, "scoring", "rewards", compute, finish, rows, disk, one_process=True,
    flops=lambda node, load: _noise.flops(node, load, load.count),
    what=lambda node: f"of pairs, by {node.label_of('reward_model')}{stored_words(node.spec)}",
    follows=("limit", "max_length"),
)  # fmt: skip
STAGES = (REWARDS,)
