"""The `rewards` stage: what a reward model gives to the chosen and to the rejected answer of every pair."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adpa_cli.disk import write_json
from adpa_cli.engine.costs import scores_disk
from adpa_cli.sizes import Disk, Rows
from adpa_cli.spec import Dtype, make
from adpa_cli.stages import Job, Lengths, Load, Monitor, Node, Stage, with_progress

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


def compute(job: Job, monitor: Monitor, rank: int = 0, processes: int = 1) -> None:
    """Leave one file per part in the work folder; those that are there are kept. Run by one process only."""
    from adpa_cli.engine.rewards.reward_model import reward_scores
    from adpa_cli.hub.externals import pairs_of

    spec = make(RewardsSpec, job.spec)
    pairs = pairs_of(job.one("data").where, "train", spec.limit, spec.skip_bad_rows).items
    for part in with_progress(PARTS, monitor):
        path = job.folder / f"_{part}.json"
        if not path.exists():
            dialogues = [(pair.prompt, getattr(pair, part)) for pair in pairs]
            values = reward_scores(
                job.one("reward_model"), dialogues, spec, spec.block_tokens, f"--set {job.stage}.block_tokens="
            )
            write_json(path, {pair.id: value for pair, value in zip(pairs, values, strict=True)})


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
    }  # fmt: skip


def read_rewards(folder: Path) -> dict[tuple[str, str], float]:
    """The rewards of a `rewards` artifact by (pair id, part)."""
    table = json.loads((folder / TABLE).read_text(encoding="utf-8"))
    return {(pair, part): value for part, values in table.items() for pair, value in values.items()}


def rows(node: Node, lengths: Lengths) -> Rows:
    """Both answers of every pair."""
    return lengths.pairs("train")


def disk(node: Node, load: Load) -> Disk:
    """Of a number for each answer."""
    return scores_disk(load.count, len(load.rows))


REWARDS = Stage(
    "rewards", 6, 1, RewardsSpec, "scoring", "rewards", compute, finish, rows, disk, one_process=True,
    what=lambda node: f"of pairs, by {node.label_of('reward_model')}", follows=("limit", "max_length"),
)  # fmt: skip
STAGES = (REWARDS,)
