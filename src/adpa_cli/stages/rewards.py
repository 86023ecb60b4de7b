"""The `rewards` stage: what a reward model gives to the chosen and to the rejected answer of every pair."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from adpa_cli.disk import write_json
from adpa_cli.spec import Dtype, make
from adpa_cli.stages import Job, Monitor, stop_if_asked

PARTS = ("chosen", "rejected")
TABLE = "rewards.json"
OPTION = "--set rewards.block_tokens="


def compute(job: Job, monitor: Monitor, rank: int = 0, processes: int = 1) -> None:
    """Leave one file per part in the work folder; those that are there are kept. Run by one process only."""
    from adpa_cli.engine.rewards.reward_model import rewards_of
    from adpa_cli.hub.externals import pairs_of

    spec = make(RewardsSpec, job.spec)
    pairs = pairs_of(job.one("data").where, "train", spec.limit, spec.skip_bad_rows).items
    for n, part in enumerate(PARTS, 1):
        path = job.folder / f"_{part}.json"
        if not path.exists():
            dialogues = [(pair.prompt, getattr(pair, part)) for pair in pairs]
            values = rewards_of(job.one("reward_model"), dialogues, spec, spec.block_tokens, OPTION)
            write_json(path, {pair.id: value for pair, value in zip(pairs, values, strict=True)})
        monitor.progress(n, len(PARTS), {})
        if n < len(PARTS):
            stop_if_asked(monitor, n, len(PARTS))


def finish(job: Job) -> dict[str, Any]:
    """One table, and how the rewards lie: a scale for β to be judged by."""
    found = {part: json.loads((job.folder / f"_{part}.json").read_text(encoding="utf-8")) for part in PARTS}
    write_json(job.folder / TABLE, found)
    margins = np.array([found["chosen"][pair] - found["rejected"][pair] for pair in found["chosen"]])
    return {
        "pairs": len(margins), "accuracy": float(np.mean((margins > 0) + 0.5 * (margins == 0))),
        "margin": float(margins.mean()), "margin_rms": float(np.sqrt(np.mean(margins**2))),
    }  # fmt: skip


def read_rewards(folder: Path) -> dict[tuple[str, str], float]:
    """The rewards of a `rewards` artifact by (pair id, part)."""
    table = json.loads((folder / TABLE).read_text(encoding="utf-8"))
    return {(pair, part): value for part, values in table.items() for pair, value in values.items()}


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
