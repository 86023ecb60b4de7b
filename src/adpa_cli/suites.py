from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from adpa_cli.spec import Dtype


@dataclass(frozen=True)
class EvalSpec:
    """One `eval` stage: the numbers of one model on one data set under one scorer."""

    template: str
    end: str
    suite: Literal["accuracy", "tiny", "reward-model", "implicit"] = "accuracy"
    bootstrap: int = 2000
    seed: int = 0
    dtype: Dtype = "bfloat16"
    max_length: int = 2048
    block_tokens: int = 16384
    limit: int | None = None
    skip_bad_rows: bool = field(default=False, metadata={"neutral": False})
    smoke: bool = field(default=False, metadata={"neutral": False})
