"""Evaluation suites: one file here is one suite, found by listing the folder, and ends with its `SUITE`.

Every suite measures reward accuracy (Gao et al. 2025, section 4.5): how often the mean log-prob of the chosen answer
exceeds that of the rejected one. What a suite says here is whether, and by what, it judges a model's own answers too.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adpa_cli.errors import UsageError
from adpa_cli.hub import Located
from adpa_cli.spec import Dtype, Truncation, truncation

if TYPE_CHECKING:
    from adpa_cli.engine.layout.examples import Rollout


@dataclass(frozen=True)
class EvalSpec:
    """One `eval` stage: the numbers of one model on one data set under one scorer."""

    template: str
    end: str
    suite: str = "accuracy"
    bootstrap: int = 2000
    seed: int = 0
    dtype: Dtype = "bfloat16"
    max_length: int = 2048
    block_tokens: int = 16384
    limit: int | None = None
    skip_bad_rows: bool = field(default=False, metadata={"neutral": False})
    smoke: bool = field(default=False, metadata={"neutral": False})
    truncation: Truncation = truncation()

    def __post_init__(self) -> None:
        if self.suite not in every():
            raise UsageError(f"suite={self.suite}", f"suite is one of {', '.join(every())}")


Rewards = Callable[[Mapping[str, Located], EvalSpec, "Sequence[Rollout]"], dict[str, float]]
"""(scorers by role, spec, answers) -> the reward of each answer by the hash of its prompt."""


@dataclass(frozen=True)
class Suite:
    """`rewards` judges answers, None where none are; `scorers` are the roles of the models that it judges by.

    `with_teachers`: whether a distillation that ends with it measures the teachers beside the students.
    """

    name: str
    place: int
    """Where it stands in lists of all suites."""
    rewards: Rewards | None = None
    scorers: tuple[str, ...] = ()
    with_teachers: bool = False


@functools.cache
def every() -> dict[str, Suite]:
    """All suites by name, in their order."""
    files = [importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)]
    suites: list[Suite] = [file.SUITE for file in files]
    return {suite.name: suite for suite in sorted(suites, key=lambda suite: suite.place)}


def judged_by(*scorers: str) -> Suite:
    """The suite that judges by models of these roles."""
    return next(suite for suite in every().values() if suite.scorers == scorers)


def answer_logps(folder: Path, spec: EvalSpec, examples: Sequence[Any], parts: Any) -> Any:
    """Log-probs of the answers in some examples under the model in a folder; AdpaError where a block does not fit."""
    from adpa_cli.engine.device import device, refused_when_full
    from adpa_cli.engine.models import load_checked
    from adpa_cli.engine.scoring import label_logps
    from adpa_cli.engine.training.student import Student

    model = load_checked(folder, device=device())
    longest = max((example.length for example in examples), default=1)
    size = min(spec.block_tokens, longest * len(examples) * len(parts))
    with refused_when_full(f"eval: a block of {size:,} tokens", f"--set eval.block_tokens={max(1, size // 2)}"):
        return label_logps(Student(model, spec.dtype), examples, parts, spec.block_tokens, device())
