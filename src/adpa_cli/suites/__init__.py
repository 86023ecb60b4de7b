"""Evaluation suites: one file here is one suite, found by listing the folder, and ends with its `SUITE`.

Every suite measures how often the chosen answer of a held-out pair is above the rejected one: by the mean log-prob
under the model, which is reward accuracy (Gao et al. 2025, section 4.5), unless the suite has `margins` of its own.
What it says besides is whether, and by what, it judges a model's own answers too.
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
Margins = Callable[[Mapping[str, Located], EvalSpec], dict[str, float]]
"""(`model`, `data` and the scorers by role, spec) -> the margin of each held-out pair by its id: > 0 is right."""


@dataclass(frozen=True)
class Suite:
    """`rewards` judges answers, None where none are; `scorers` are the roles of the models that it judges by.

    `reference` among the scorers is the model that `aligned` was trained from; without `aligned`, the measured one.
    `with_teachers`: whether a distillation that ends with it measures the teachers beside the students.
    """

    name: str
    place: int
    """Where it stands in lists of all suites."""
    rewards: Rewards | None = None
    scorers: tuple[str, ...] = ()
    with_teachers: bool = False
    margins: Margins | None = None
    """Measures pairs; None for the mean log-prob of the chosen answer less that of the rejected one."""
    score: str = "reward_accuracy"
    """What the share of pairs with a margin above 0 is called."""


@functools.cache
def every() -> dict[str, Suite]:
    """All suites by name, in their order."""
    files = [importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)]
    suites: list[Suite] = [file.SUITE for file in files]
    return {suite.name: suite for suite in sorted(suites, key=lambda suite: suite.place)}


def judging_by(role: str) -> list[str]:
    """The names of the suites that judge by a model of this role."""
    return [suite.name for suite in every().values() if role in suite.scorers]


def judged_by(*scorers: str) -> Suite:
    """The suite that judges by models of these roles."""
    return next(suite for suite in every().values() if suite.scorers == scorers)


def answer_logps(folder: Path, spec: EvalSpec, examples: Sequence[Any], parts: Any) -> Any:
    """Log-probs of the answers in some examples under the model in a folder; AdpaError where a block does not fit."""
    from adpa_cli.engine.device import device, refused_when_full
    from adpa_cli.engine.models import load_checked
    from adpa_cli.engine.scoring import label_logps
    from adpa_cli.engine.training.student import Student

    model = load_checked(folder, dtype=spec.dtype, device=device())
    longest = max((example.length for example in examples), default=1)
    size = min(spec.block_tokens, longest * len(examples) * len(parts))
    with refused_when_full(f"eval: a block of {size:,} tokens", f"--set eval.block_tokens={max(1, size // 2)}"):
        return label_logps(Student(model, spec.dtype), examples, parts, spec.block_tokens, device())


def implicit_rewards(
    model: Path, reference: Path, spec: EvalSpec, examples: Sequence[Any], parts: Any
) -> dict[tuple[str, str], float]:
    """Sum over an answer's tokens of log π_model - log π_reference, in nats, by (example id, part).

    It is the reward that DPO fits (Rafailov et al. 2023, eq. 5), without its β. The models are folders, and are in
    memory one after the other.
    """
    import numpy as np

    ours, below = (answer_logps(folder, spec, examples, parts) for folder in (model, reference))
    return {key: float((logps - below[key]).astype(np.float64).sum()) for key, logps in ours.items()}
