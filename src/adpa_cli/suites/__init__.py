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
from typing import TYPE_CHECKING, Literal

from adpa_cli.errors import NotFinite, UsageError
from adpa_cli.hub import Located
from adpa_cli.spec import Dtype, Quantise, Truncation, noise_answers, quantise, truncation

if TYPE_CHECKING:
    from adpa_cli.engine.layout.examples import Example, Rollouts
    from adpa_cli.engine.scoring import LabelLogps
    from adpa_cli.methods import Part


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
    noise_answers: int = noise_answers()
    """Pairs that are computed in float32 too."""
    quantise: Quantise | None = quantise()
    measure_on: Literal["all", "validation", "report"] = field(default="all", metadata={"neutral": "all"})
    """The held-out prompts that it is measured on: all, the half by which checkpoints and settings are selected, or the
    half that is left to report on."""

    def without_effect(self) -> set[str]:
        """Float32 is what others are held to."""
        return {"noise_answers"} if self.dtype == "float32" else set()

    def __post_init__(self) -> None:
        if self.suite not in every():
            raise UsageError(f"suite={self.suite} is no suite", f"suite is one of {', '.join(every())}")


Rewards = Callable[[Mapping[str, Located], EvalSpec, "Rollouts"], dict[str, float]]
"""(scorers by role, spec, answers) -> the reward of each answer by the hash of its prompt."""
Logps = Callable[[Path, "Sequence[Example]", "Sequence[Part]"], "LabelLogps"]
"""(folder of a model, examples, parts) -> log-probs of these answers under it, computed as the stage says."""
Margins = Callable[[Mapping[str, Located], "Sequence[Example]", Logps], dict[str, float]]
"""(`model` and scorers by role, pairs, how answers are scored) -> margins by the ids of pairs: > 0 is right."""


def mean_logp_margins(inputs: Mapping[str, Located], examples: Sequence[Example], logps: Logps) -> dict[str, float]:
    """The mean log-prob of the chosen answer less that of the rejected one, in nats, by the id of the pair."""
    from adpa_cli.engine.scoring import pair_margins

    return pair_margins(logps(inputs["model"].path, examples, ("chosen", "rejected")), examples)


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
    margins: Margins = mean_logp_margins
    """Measures pairs."""
    score: str = "reward_accuracy"
    """What the share of pairs with a margin above 0 is called."""
    remark: str = ""
    """What people are told who measure by it."""


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


def answer_logps(
    folder: Path, spec: EvalSpec, examples: Sequence[Example], parts: Sequence[Part], is_exact: bool = False
) -> LabelLogps:
    """Log-probs of the answers in some examples under the model in a folder; AdpaError where a block does not fit.

    Where `is_exact` they are computed in float32 with one layer of the model in memory at a time.
    """
    from adpa_cli.engine.device import device, refused_when_full
    from adpa_cli.engine.layerwise import load_layerwise
    from adpa_cli.engine.models import load_checked
    from adpa_cli.engine.overflow import overflow_named
    from adpa_cli.engine.scoring import label_logps
    from adpa_cli.engine.training.student import Student

    load = load_layerwise if is_exact else functools.partial(load_checked, dtype=spec.dtype)
    student = Student(load(folder, device=device(), quantise=spec.quantise), "float32" if is_exact else spec.dtype)
    longest = max((example.length for example in examples), default=1)
    tokens = spec.block_tokens // 2 if is_exact else spec.block_tokens
    size = min(tokens, longest * len(examples) * len(parts))
    fits = refused_when_full(f"eval: a block of {size:,} tokens", f"--set eval.block_tokens={max(1, size // 2)}")
    with fits, overflow_named(student.model, spec.dtype, "eval"):
        first = sorted(examples, key=lambda example: example.length)[-1:] if spec.dtype == "float16" else []
        for some in (first, examples):  # what overflows shows at once
            logps = label_logps(student, some, parts, tokens, device())
            _check_finite(logps, some)
    return logps


def _check_finite(logps: LabelLogps, examples: Sequence[Example]) -> None:
    """Raise NotFinite with the tokens of an answer whose log-probs are no numbers."""
    import numpy as np

    sequences = {example.id: example.parts for example in examples}
    for (name, part), values in logps.items():
        if not np.isfinite(values).all():
            message = f"the log-probs of pair {name} ({part}) are not finite"
            raise NotFinite(message, sequences[name][part].ids.tolist())


def logps_under(spec: EvalSpec, is_exact: bool = False) -> Logps:
    """How answers are scored as a stage says, or in float32."""
    return lambda folder, examples, parts: answer_logps(folder, spec, examples, parts, is_exact)


def implicit_rewards(
    model: Path, reference: Path, examples: Sequence[Example], parts: Sequence[Part], logps: Logps
) -> dict[tuple[str, str], float]:
    """The `log_ratios` of answers under two models in folders, which are in memory one after the other."""
    from adpa_cli.engine.scoring import log_ratios

    return log_ratios(*(logps(folder, examples, parts) for folder in (model, reference)))
