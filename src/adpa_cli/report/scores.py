"""Numbers from `eval` artifacts, each with what it may be compared with, and the tables that makers end with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from adpa_cli import suites
from adpa_cli.report import text
from adpa_cli.report.text import number
from adpa_cli.stages import product_of
from adpa_cli.store.manifest import Manifest

ACCURACY, REWARD, WIN = "reward_accuracy", "mean_reward", "win_rate"
_SHARES = ("accuracy", "rate", "share", "agreement", "baseline", "bias", "consistency")
_BETTER_UP = {
    "mean_reward", "reward_accuracy", "win_rate", "lc_win_rate", "agreement", "mean", "acc", "acc_norm", "exact_match",
}  # fmt: skip
SEEDS = ("seed", "seed-all")
PARTS = ("value", "low", "high", "n", "against")
"""What every entry of a number may have."""
LENGTH_CONTROLLED = "lc_win_rate"
NOT_OFFICIAL = "lc win rate is not AlpacaEval's LC: it has no term for the difficulty of instructions"
DIGITS = 3
"""Of what is no share, behind the point."""
FEW, TOO_FEW = 20, "(too few to tell)"
"""Rows below which an interval tells nothing, and what is said in its place."""
INTERVAL = "± half-width of the 95 % confidence interval"
Column = tuple[str, ...]
"""What was measured: the metric, and all that two numbers must share to be compared; see `Score`."""


@dataclass(frozen=True)
class Score:
    """One number of one model. Two scores may be compared when their `kind` is equal: the metric, who scored, what the
    data hold, their side, how many rows, how answers were drawn, the opponent, and which held-out prompts were asked.

    `low` and `high` bound the confidence interval; `against` is the ref of the model a win rate was measured against.
    `measured` says by content what `suite`, `data` and `scorer` say by name.
    """

    metric: str
    value: float
    low: float | None
    high: float | None
    n: int | None
    suite: str
    data: str
    scorer: str
    against: str
    ref: str
    at: float
    prompts: str = ""
    """Which of the held-out prompts it is of; "" for all of them."""

    measured: tuple[tuple[str, str], ...] = ()
    more: Mapping[str, Any] = field(default_factory=dict, compare=False)
    """What else is known of the number, such as its standard error."""

    @property
    def kind(self) -> Column:
        return *self.question, self.prompts

    @property
    def question(self) -> Column:
        """The kind, whichever prompts were asked: two scores of one question may be compared on those of both."""
        return self.metric, self.against, *(f"{key} {value}" for key, value in self.measured)

    def beside(self, against: str = "") -> Score:
        """The same number, to be compared with those whose opponents are others, which are all called `against`."""
        return replace(self, against=against, measured=_without(self.measured, "opponent"))

    @property
    def is_of_data(self) -> bool:
        """Whether it says nothing of a model, so that no two differ in it."""
        return self.more.get("of") == "data"

    @property
    def measured_on(self) -> str:
        """The data, with the prompts of them where these are not all."""
        return f"{self.data} ({self.prompts})" if self.prompts else self.data

    @property
    def is_share(self) -> bool:
        """Whether the value is a share of 1, shown in percent."""
        return self.metric.rpartition("_")[2] in _SHARES or bool(self.more.get("share"))

    @property
    def label(self) -> str:
        """What was measured: reward-accuracy on dpo-mix-7k#test (n=750)."""
        return self._named("")

    @property
    def opponent(self) -> str:
        """What stands behind the label of a win rate: against sft/3f9c."""
        return f" against {self.against}" if self.against else ""

    @property
    def full_label(self) -> str:
        """The label with opponent and suite."""
        return f"{self._named(self.opponent)}{f' [{self.suite}]' if self.suite else ''}"

    def _named(self, opponent: str) -> str:
        where = f" on {self.measured_on}" if self.data else ""
        by = f" by {self.scorer}" if self.scorer else ""
        count = f" (n={number(self.n)})" if self.n is not None else ""
        return f"{self.metric.replace('_', '-')}{opponent}{where}{by}{count}"

    def words(self, digits: int = 2) -> str:
        """68.1 ±1.7: percent for shares, else so many digits, and behind it half the width of the interval; for fewer
        than FEW rows that it cannot tell."""
        half = None if self.low is None or self.high is None else (self.high - self.low) / 2
        if half is not None and self.n is not None and self.n < FEW:
            return f"{value_words(self.value, None, self.is_share, digits)} {TOO_FEW}"
        return value_words(self.value, half, self.is_share, digits)

    @property
    def direction(self) -> int:
        """1 where more is better, -1 where less is, 0 for what is neither or not known to be."""
        last = self.metric.rpartition(".")[2].removeprefix("longer_")
        return 1 if last in _BETTER_UP or last.endswith("grade") else -1 if last.endswith("perplexity") else 0

    def record(self) -> dict[str, Any]:
        """The score as JSON, with the evaluation that it is from and what else that kept about it."""
        return {
            "metric": self.metric, "value": self.value, "low": self.low, "high": self.high, "n": self.n,
            "against": self.against or None, "data": self.data or None, "prompts": self.prompts or None,
            "suite": self.suite or None, "scorer": self.scorer or None, "evaluation": self.ref, **self.more,
        }  # fmt: skip


def best_of(scores: Iterable[Score]) -> Score | None:
    """The best of some scores of one kind; None where fewer than two are known, or nobody knows which is better."""
    known = [score for score in scores if score.direction]
    return max(known, key=lambda score: score.value * score.direction) if len(known) > 1 else None


def best_words(score: Score, best: Score | None, is_coloured: bool, digits: int = 2) -> str:
    """The words of a score, which stand out where it is as good as the `best`."""
    is_best = best is not None and score.kind == best.kind and score.value == best.value
    return text.styled(score.words(digits), text.BEST if is_best else "", is_coloured)


def scaled(is_share: bool, digits: int) -> tuple[int, int]:
    """(factor, digits behind the point) of a number that is shown: a share is in percent."""
    return (100, 1) if is_share else (1, digits)


def value_words(value: float, spread: float | None, is_share: bool, digits: int) -> str:
    """A number and its spread: a share in percent with one digit, anything else with so many `digits`."""
    scale, places = scaled(is_share, digits)
    behind = "" if spread is None else f" ±{scale * spread:.{places}f}"
    return f"{scale * value:.{places}f}{behind}"


def scores(manifest: Manifest, with_unsupported: bool = False) -> list[Score]:
    """The numbers of one eval artifact, the most telling first; those of benchmarks in the order of their tasks, with
    the mean last. Empty for other artifacts. A number that the data do not support is left out unless asked for."""
    metrics = manifest.metrics
    if product_of(manifest.stage) != "scores" or not isinstance(metrics.get("scores"), dict):
        return []
    suite, data, scorer = (str(metrics.get(key) or "") for key in ("suite", "data", "scorer"))
    measured = _measured(manifest, suite, data, scorer)
    numbers = [
        Score(
            name, float(entry["value"]), entry.get("low"), entry.get("high"), entry.get("n"),
            suite, data, "" if entry.get("of") else scorer, str(entry.get("against") or ""), manifest.ref, manifest.at,
            str(metrics.get("prompts") or ""),
            _without(measured, *["opponent"] * ("against" not in entry), *["scorer"] * ("of" in entry)),
            {key: value for key, value in entry.items() if key not in PARTS},
        )
        for name, entry in metrics["scores"].items()
        if isinstance(entry, dict) and isinstance(entry.get("value"), int | float)
        and (with_unsupported or entry.get("supported", True))
    ]  # fmt: skip
    if isinstance(tasks := manifest.spec.get("tasks"), Mapping):
        order = [*(suites.every()[suite].tasks or () if suite in suites.every() else ()), *tasks]
        return sorted(numbers, key=lambda score: _place(score.metric, order))
    return sorted(numbers, key=lambda s: (s.metric != ACCURACY, s.metric != REWARD, s.metric == WIN, s.metric))


def _place(metric: str, tasks: Sequence[str]) -> tuple[bool, int, str]:
    """Where the number of a benchmark stands: by its task (a longer name first where two fit), then by its own name."""
    places = [n for n, task in enumerate(tasks) if metric == task or metric.startswith((f"{task}.", f"{task}_"))]
    return metric.startswith("mean"), max(places, key=lambda n: len(tasks[n]), default=len(tasks)), metric


def _without(measured: tuple[tuple[str, str], ...], *keys: str) -> tuple[tuple[str, str], ...]:
    return tuple(item for item in measured if item[0] not in keys)


def _measured(manifest: Manifest, suite: str, data: str, scorer: str) -> tuple[tuple[str, str], ...]:
    """By what the figures of an artifact may be compared; of an older evaluation what its inputs and spec tell."""
    recorded = manifest.metrics.get("measured")
    if not isinstance(recorded, dict):
        given = {
            role: content for role, content in manifest.inputs.items() if role not in ("model", "rollouts", "against")
        }
        opponent = manifest.inputs.get("against")
        known = [given, manifest.spec.get("limit"), suite, data, scorer]
        recorded = {"older": known, "opponent": opponent}
    return tuple((key, json.dumps(recorded[key], sort_keys=True)) for key in sorted(recorded))


def measured_model(manifest: Manifest) -> str | None:
    """The id of the model, or the reward model, that an eval artifact measured, when that is an artifact."""
    model = manifest.inputs.get("model", manifest.inputs.get("reward_model"))
    if product_of(manifest.stage) != "scores" or not isinstance(model, str) or not model.startswith("artifact:"):
        return None
    return model.removeprefix("artifact:")


def by_model(artifacts: Iterable[Manifest]) -> dict[str, list[Score]]:
    """All scores by the id of the model, newest first."""
    measured: dict[str, list[Score]] = {}
    for manifest in sorted(artifacts, key=lambda item: -item.at):
        model = measured_model(manifest)
        if model is not None:
            measured.setdefault(model, []).extend(scores(manifest))
    return measured


def scores_of(manifest: Manifest, measured: Mapping[str, Sequence[Score]]) -> Sequence[Score]:
    """The numbers of an eval artifact, or those of a model among all that were `measured`."""
    return scores(manifest) or measured.get(manifest.id, ())


@dataclass(frozen=True)
class Line:
    """One cell of a grid, or (with a `name`, and without settings) another model that was measured with them."""

    settings: Mapping[str, str]
    ref: str
    scores: tuple[Score, ...]
    tags: tuple[str, ...] = ()
    name: str = ""
    note: str = ""
    """What is said behind its id, e.g. failed."""
    judge: str = ""
    """What is said below the table of the judge whose verdicts it has."""
    chosen: tuple[str, ...] = ()
    """The keys whose values were chosen among several, and may be others for another seed."""

    def record(self) -> dict[str, Any]:
        """The line as JSON."""
        scores = [score.record() for score in self.scores]
        about = {"name": self.name or None, "tags": list(self.tags), "note": self.note or None}
        return {"model": self.ref, "settings": dict(self.settings), **about, "scores": scores}


def screen(lines: Sequence[Line], width: int, is_coloured: bool = False) -> str:
    """The table for `width` columns; below it the means where cells differ in a seed only."""
    width = max(width, 60)
    scored = [score for line in lines for score in line.scores]
    columns = list(dict.fromkeys(score.kind for score in scored))
    titles = _titles(columns, scored)
    varying = differing([line.settings for line in lines if not line.name])
    tagged = any(line.tags for line in lines)
    head = ("", *map(str.upper, varying), *titles, *["TAG"] * tagged, "ID")
    rows = []
    best = {column: best_of(score for score in scored if score.kind == column) for column in columns}
    for n, line in enumerate(lines, 1):
        settings = (line.settings.get(key, "") for key in varying)
        numbers = {s.kind: best_words(s, best[s.kind], is_coloured, DIGITS) for s in reversed(line.scores)}
        cells = (numbers.get(column, "") for column in columns)
        tags = [" ".join(line.tags)] * tagged
        rows.append((line.name or str(n), *settings, *cells, *tags, f"{line.ref}  {line.note}".rstrip()))
    first = 1 + len(varying)
    measured = range(first, first + len(columns))
    shown = text.table(head, rows, width, expendable=measured[:0:-1])
    kept = [key for key in varying if key not in SEEDS]
    over_seeds = _means(lines, columns, kept)
    if over_seeds:
        shown += ["", *text.table(("over seeds", *map(str.upper, kept), *titles), over_seeds, width)]
    asked = dict.fromkeys(score.prompts for line in lines for score in line.scores if score.prompts)
    notes = [f"held-out prompts: {words}" for words in asked]
    notes += [INTERVAL] if columns else []
    notes += ["over seeds: mean ± standard deviation"] if over_seeds else []
    judges = dict.fromkeys(line.judge for line in lines if line.judge)
    return "\n".join([*shown, "; ".join(notes), *judges, *length_words(scored)]).rstrip("\n")


def length_words(scores: Sequence[Score]) -> list[str]:
    """What is said where a length-controlled win rate is shown."""
    return [NOT_OFFICIAL] if any(score.metric == LENGTH_CONTROLLED for score in scores) else []


def differing(settings: Sequence[Mapping[str, str]]) -> list[str]:
    """The keys that do not have one value in all of them, in the order in which they come."""
    keys = dict.fromkeys(key for each in settings for key in each)
    return [key for key in keys if len({each.get(key) for each in settings}) > 1]


def _titles(columns: Sequence[Column], scored: Sequence[Score]) -> list[str]:
    """The metric, with what sets it apart from other columns of that metric."""
    first = {score.kind: score for score in reversed(scored)}
    names = distinct_names({column: title(first[column].metric) + first[column].opponent for column in columns}, first)
    return [names[column] for column in columns]


def distinct_names(names: Mapping[Column, str], first: Mapping[Column, Score]) -> dict[Column, str]:
    """A name for each kind of numbers that no other has: with the data, who scored, the suite and at last the content.

    `first` has a number of each kind.
    """
    told = dict(names)
    suffixes: tuple[Callable[[Score], str], ...] = (
        lambda score: f" on {score.measured_on or score.suite}",
        lambda score: f" by {score.scorer}" if score.scorer else "",
        lambda score: f" [{score.suite}]" if score.suite else "",
        lambda score: f" #{hashlib.sha256(repr(score.kind).encode()).hexdigest()[:6]}",
    )
    for more in suffixes:
        alike = {name for name in told.values() if list(told.values()).count(name) > 1}
        for kind, name in told.items():
            said = more(first[kind])
            if name in alike and said.strip() not in name:
                told[kind] = name + said
    return told


def title(metric: str) -> str:
    """The head of the column of a metric."""
    return metric.replace("_", " ").upper()


def _means(lines: Sequence[Line], columns: Sequence[Column], kept: Sequence[str]) -> list[tuple[str, ...]]:
    """(name and number of seeds, settings, mean ± standard deviation …) of the lines that differ in a seed only, and in
    what was chosen for each."""
    groups: dict[tuple[str, ...], list[Line]] = {}
    for line in lines:
        if line.scores:
            key = (line.name, *(line.settings.get(name, "") for name in kept if name not in line.chosen))
            groups.setdefault(key, []).append(line)

    def values(members: Sequence[Line], key: str) -> str:
        return ", ".join(dict.fromkeys(line.settings.get(key, "") for line in members))

    return [
        (
            f"{name} {len(members)} seeds".strip(),
            *(values(members, key) for key in kept),
            *(_mean(members, column) for column in columns),
        )
        for (name, *_), members in groups.items()
        if len(members) > 1
    ]


def _mean(lines: Sequence[Line], column: Column) -> str:
    import statistics  # which brings decimals and random numbers along: the list of the store needs none

    same = [score for line in lines for score in line.scores if score.kind == column]
    values = [score.value for score in same]
    if len(values) < 2:
        return ""
    return value_words(statistics.fmean(values), statistics.stdev(values), same[0].is_share, DIGITS)
