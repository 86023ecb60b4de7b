"""The rewards of an artifact by pair and part, as they were written."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from adpa_cli.stages.rewards import PARTS, Rewards
from adpa_cli.suites import REWARDS_FILE


@pytest.mark.parametrize("count", [0, 1, 200])
def test_rewards_are_those_that_were_written(tmp_path: Path, count: int) -> None:
    draw = np.random.default_rng(0)
    pairs = [f"{int(number):016x}" for number in draw.integers(0, 1 << 64, count, dtype=np.uint64)]
    table = {part: dict(zip(pairs, draw.normal(size=count).tolist(), strict=True)) for part in PARTS}
    (tmp_path / REWARDS_FILE).write_text(json.dumps(table))
    found = Rewards(tmp_path)
    assert dict(found) == {(pair, part): value for part, values in table.items() for pair, value in values.items()}
    assert len(found) == 2 * count
    for name in (("f" * 16, "chosen"), ("0" * 16, "rejected"), (pairs[0] if pairs else "1", "rollout")):
        assert name not in found
