"""Evaluation suites: one file here is one suite, found by listing the folder, and ends with its `SUITE`.

A suite turns inputs that are artifacts of their own, and shared, into figures: answers (`rollouts`, and those of an
opponent, `against`), what they were rewarded with (`rewards`, `against_rewards`), or a judge's replies (`judgements`).
So nothing is scored twice. Only a suite of pairs computes: the margins by which each chosen answer is preferred.
"""

from __future__ import annotations

import functools
import importlib
import json
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from adpa_cli.data.answers import Answered, answers_of
from adpa_cli.data.examples import in_half, win
from adpa_cli.errors import DataError, NotFinite, UsageError
from adpa_cli.hub import Located
from adpa_cli.spec import Dtype, Quantise, Truncation, noise_answers, quantise, truncation
from adpa_cli.statistics import bootstrap

if TYPE_CHECKING:
    from adpa_cli.engine.layout.examples import Example
    from adpa_cli.engine.scoring import LabelLogps
    from adpa_cli.methods import Part

ROLLOUTS, AGAINST = "rollouts", "against"
REWARDS, AGAINST_REWARDS, JUDGEMENTS = "rewards", "against_rewards", "judgements"
"""The roles of what an evaluation reads besides the model and the data."""
REWARDS_FILE = "rewards.json"
"""In an artifact of rewards: by `rollouts`, or by the part of pairs, the reward of each by its id."""
MARGINS = "_margins.json"
"""In the work folder of an evaluation: the margin of each pair by its id."""
GRAM = 4
"""Words of the runs whose repetition shows that answers loop."""

COMPUTING = (
    "dtype", "max_length", "block_tokens", "limit", "skip_bad_rows", "truncation", "quantise", "split",
)  # fmt: skip
"""Fields of the spec that say how pairs are read and scored."""


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

    split: Literal["test", "train", "all"] = field(default="test", metadata={"neutral": "test"})
    """The side of the data whose pairs are measured."""

    def without_effect(self) -> set[str]:
        """Float32 is what others are held to, and a suite without pairs computes nothing."""
        if every()[self.suite].margins is None:
            return {*COMPUTING, "noise_answers"}
        return {"noise_answers"} if self.dtype == "float32" else set()

    def __post_init__(self) -> None:
        if self.suite not in every():
            raise UsageError(f"there is no suite called {self.suite!r}", f"use one of {', '.join(every())}")


Inputs = Mapping[str, Located]
"""What an evaluation, or a scoring of answers, reads, by role."""
Rewards = Callable[[Inputs, Any], dict[str, float]]
"""(`rollouts` and scorers by role, spec) -> the reward of each answer by the hash of its prompt."""
Logps = Callable[[Path, "Sequence[Example]", "Sequence[Part]"], "LabelLogps"]
"""(folder of a model, examples, parts) -> log-probs of these answers under it, computed as the stage says."""
Margins = Callable[[Inputs, "Sequence[Example]", Logps], dict[str, float]]
"""(`model` and scorers by role, pairs, how answers are scored) -> margins by the ids of pairs: > 0 is right."""


@dataclass(frozen=True)
class Figures:
    """What an evaluation found.

    `scores` are its numbers by metric, each with `value`, `low`, `high` and `n`; a number without an interval has the
    first alone. One with `against` names the opponent; one that is `of` "answers" is the same whoever scores them, and
    one of "data" whoever is measured. `rows` are by metric what each pair or prompt adds to its mean, by which models
    are compared, and any other number of theirs. `prompts` names the prompt of each row where rows are pairs. `more`
    goes into the metrics, and `watch` is what people are warned of.
    """

    scores: Mapping[str, Mapping[str, Any]]
    rows: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    prompts: Mapping[str, str] = field(default_factory=dict)
    more: Mapping[str, Any] = field(default_factory=dict)
    watch: tuple[str, ...] = ()


@dataclass(frozen=True)
class Suite:
    """What an evaluation reads and which figures it makes of that.

    `reads` are roles of its inputs: rollouts (then the opponent's too, where there is one), rewards, judgements.
    `scorers` are the roles of the models that judge; `reference` among them is the model that `aligned` was trained
    from, and without `aligned` that of the measured one. `rewards` is how the stage of that name rewards answers under
    this suite. A suite with `margins` measures pairs of the data. `with_teachers`: whether a distillation that ends
    with it measures the teachers beside the students.
    """

    name: str
    place: int
    """Where it stands in lists of all suites."""
    figures: Callable[[Inputs, EvalSpec, Path], Figures]
    """(inputs by role, spec, work folder with the margins) -> what was found."""
    reads: tuple[str, ...] = ()
    scorers: tuple[str, ...] = ()
    rewards: Rewards | None = None
    margins: Margins | None = None
    with_teachers: bool = False
    judged: Literal["", "answers", "turns"] = ""
    """What a judge is asked about, where it reads judgements of models."""
    judge_margins: bool = False
    """Whether a judge is measured by it too, on pairs."""
    prompts: str = ""
    """The data whose prompts are answered unless others are named."""
    decoding: Mapping[str, Any] = field(default_factory=dict)
    """How its answers are drawn, unless a setting says otherwise."""
    tasks: Mapping[str, int] | None = None
    """The tasks of lm-evaluation-harness that it measures, with how many examples stand before each question; empty
    where the command names them, None for a suite that measures none."""
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


def of_judgements(judged: str) -> Suite:
    """The first suite whose judges are asked about that."""
    return next(suite for suite in every().values() if suite.judged == judged)


def of_pairs() -> Suite:
    """The suite that measures pairs by the measured model alone."""
    return next(suite for suite in every().values() if suite.margins is not None and not suite.scorers)


def answer_logps(
    folder: Path, spec: Any, examples: Sequence[Example], parts: Sequence[Part], is_exact: bool = False
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
    fits = refused_when_full(f"a block of {size:,} tokens", f"--set STAGE.block_tokens={max(1, size // 2)}")
    with fits, overflow_named(student.model, spec.dtype, "STAGE"):
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


def logps_under(spec: Any, is_exact: bool = False) -> Logps:
    """How answers are scored as a stage says, or in float32."""
    return lambda folder, examples, parts: answer_logps(folder, spec, examples, parts, is_exact)


def implicit_rewards(
    model: Path, reference: Path, examples: Sequence[Example], parts: Sequence[Part], logps: Logps
) -> dict[tuple[str, str], float]:
    """The `log_ratios` of answers under two models in folders, which are in memory one after the other."""
    from adpa_cli.engine.scoring import log_ratios

    return log_ratios(*(logps(folder, examples, parts) for folder in (model, reference)))


# Figures that several suites have.


def pair_figures(metric: str, margins: Mapping[str, float], inputs: Inputs, spec: EvalSpec) -> Figures:
    """How often the margins of the measured pairs prefer the chosen answer; a tie counts half."""
    from adpa_cli.hub.externals import pairs_of

    data = inputs["data"]
    items = pairs_of(data.where, spec.split, spec.limit, spec.skip_bad_rows, spec.template).items
    measured = items.of_half(spec.measure_on, data.label).records(("id", "key"))
    prompts = {f"{pair:016x}": f"{prompt:016x}" for pair, prompt in measured}
    wins = {pair: win(margins[pair]) for pair in prompts if pair in margins}
    rows = {metric: wins, "margin": {pair: margins[pair] for pair in wins}}
    kept = {pair: prompts[pair] for pair in wins}
    return Figures({metric: interval(wins, spec, kept)}, rows, kept)


def interval(numbers: Mapping[str, float], spec: EvalSpec, prompts: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The mean of some rows with its interval, those of one prompt drawn together; their order has no effect."""
    rows = sorted(numbers)
    asked = [prompts[row] for row in rows] if prompts else ()
    return bootstrap([numbers[row] for row in rows], asked, spec.bootstrap, spec.seed)


def reward_figures(inputs: Inputs, spec: EvalSpec, folder: Path) -> Figures:
    """Mean reward, how often the reward exceeds that of the opponent's answer (ties count half), and `answer_figures`.

    Raises DataError where the two answer no prompt in common.
    """
    ours = _rewards(inputs[REWARDS], spec)
    answers = answer_figures(inputs[ROLLOUTS], spec)
    scores: dict[str, Mapping[str, Any]] = {"mean_reward": interval(ours, spec)}
    rows: dict[str, Mapping[str, float]] = {"mean_reward": ours}
    watch: tuple[str, ...] = ()
    if AGAINST_REWARDS in inputs:
        theirs, against = _rewards(inputs[AGAINST_REWARDS], spec), inputs[AGAINST]
        shared, watch = common_prompts(ours, theirs, inputs[ROLLOUTS], against)
        wins = {prompt: win(ours[prompt] - theirs[prompt]) for prompt in shared}
        scores["win_rate"] = {**interval(wins, spec), "against": author_of(against)}
        rows |= {"win_rate": wins, "against": {prompt: theirs[prompt] for prompt in shared}}
    return Figures({**scores, **answers.scores}, {**rows, **answers.rows}, watch=watch)


def author_of(answers: Located) -> str:
    """Whose answers they are: the reference of a model, or the name of a file."""
    return str(answers.values.get("by") or answers.label)


def common_prompts(
    ours: Mapping[str, Any], theirs: Mapping[str, Any], answers: Located, against: Located
) -> tuple[list[str], tuple[str, ...]]:
    """(the prompts that both answer, what is said where they are not all of ours); DataError where there are none."""
    shared = sorted(ours.keys() & theirs.keys())
    if not shared:
        raise DataError(
            f"{author_of(against)} has no answer to any of the {len(ours):,} prompts that {author_of(answers)} answers",
            "compare answers to the same prompts; --data SRC names the prompts that models answer",
        )
    if len(shared) == len(ours):
        return shared, ()
    return shared, (f"{author_of(against)} answers {len(shared):,} of the {len(ours):,} prompts, and only these count",)


def read_rewards(folder: Path) -> dict[str, dict[str, float]]:
    """The table of an artifact of rewards."""
    table: dict[str, dict[str, float]] = json.loads((folder / REWARDS_FILE).read_text(encoding="utf-8"))
    return table


def _rewards(table: Located, spec: EvalSpec) -> dict[str, float]:
    """What was given to the answers that are measured, by the hash of their prompt."""
    rewards = read_rewards(table.path)[ROLLOUTS]
    kept = of_half(list(rewards), spec, table.label)
    return {prompt: rewards[prompt] for prompt in kept}


def of_half(prompts: Sequence[str], spec: EvalSpec, name: str) -> list[str]:
    """The prompts, by their hashes, that are measured. DataError where none of what `name` holds is."""
    import numpy as np

    kept = in_half(np.array([int(prompt, 16) for prompt in prompts], dtype=np.uint64), spec.measure_on)
    if not kept.any():
        raise DataError(
            f"none of the {len(prompts):,} prompts of {name} falls into the half used for {spec.measure_on}",
            "use data with more held-out prompts, or measure on all of them: --set eval.measure_on=all",
        )
    return [prompt for prompt, is_kept in zip(prompts, kept, strict=True) if is_kept]


def measured_answers(answers: Located, spec: EvalSpec) -> dict[str, Answered]:
    """The answers that are measured, by the hash of their prompt."""
    every_answer = {answer.id: answer for answer in answers_of(answers.path)}
    return {prompt: every_answer[prompt] for prompt in of_half(list(every_answer), spec, answers.label)}


def answer_figures(located: Located, spec: EvalSpec) -> Figures:
    """How long answers are, how many end at the limit, and how much of an answer repeats what it has said.

    `answer_tokens` and `cut_share` are there where the artifact tells. `repeated_share` is the mean over the answers of
    the share of runs of four words that occurred before in the same answer: 0 where an answer has none.
    """
    answers = measured_answers(located, spec)
    rows: dict[str, dict[str, float]] = {
        "answer_tokens": {name: float(a.tokens) for name, a in answers.items() if a.tokens is not None},
        "cut_share": {name: float(a.cut) for name, a in answers.items() if a.cut is not None},
        "repeated_share": {name: repeated_share(a.text) for name, a in answers.items()},
    }
    kept = {metric: numbers for metric, numbers in rows.items() if numbers}
    return Figures({metric: {**interval(numbers, spec), "of": "answers"} for metric, numbers in kept.items()}, kept)


def repeated_share(text: str) -> float:
    """The share of the runs of GRAM words of a text that occurred before in it; 0 for a shorter text."""
    words = text.split()
    grams = [tuple(words[place : place + GRAM]) for place in range(len(words) - GRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
