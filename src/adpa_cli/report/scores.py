"""Numbers from `eval` artifacts, each with what it may be compared with, and the tables that makers end with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from adpa_cli.report import text
from adpa_cli.report.text import number
from adpa_cli.stages import Node, product_of
from adpa_cli.store.manifest import Manifest
from adpa_cli.store.store import Store

ACCURACY, REWARD, WIN = "reward_accuracy", "mean_reward", "win_rate"
_SHARES = ("accuracy", "rate", "share", "agreement")
SEEDS = ("seed", "seed-all")
DIGITS = 3
"""Of what is no share, behind the point."""
Column = tuple[str, str, str, str, str]
"""What was measured: (metric, suite, data, scorer, opponent). Numbers of two kinds never share a column."""


@dataclass(frozen=True)
class Score:
    """One number of one model. Two scores may be compared when their `kind` is equal.

    `low` and `high` bound the confidence interval; `against` is the ref of the model a win rate was measured against.
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

    @property
    def kind(self) -> tuple[str, str, str, str, str]:
        return self.metric, self.suite, self.measured_on, self.scorer, self.against

    @property
    def question(self) -> tuple[str, str, str, str, str]:
        """The kind, whichever prompts were asked: two scores of one question may be compared on those of both."""
        return self.metric, self.suite, self.data, self.scorer, self.against

    @property
    def measured_on(self) -> str:
        """The data, with the prompts of them where these are not all."""
        return f"{self.data} ({self.prompts})" if self.prompts else self.data

    @property
    def is_share(self) -> bool:
        """Whether the value is a share of 1, shown in percent."""
        return self.metric.rpartition("_")[2] in _SHARES

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
        """68.1 ±1.7: percent for shares, else so many digits, and behind it half the width of the interval."""
        half = None if self.low is None or self.high is None else (self.high - self.low) / 2
        return value_words(self.value, half, self.is_share, digits)

    def record(self) -> dict[str, Any]:
        """The score as JSON, with the eval artifact it is from."""
        return {key: value for key, value in asdict(self).items() if key != "at"}


def value_words(value: float, spread: float | None, is_share: bool, digits: int) -> str:
    """A number and its spread: a share in percent with one digit, anything else with so many `digits`."""
    scale, places = (100, 1) if is_share else (1, digits)
    behind = "" if spread is None else f" ±{scale * spread:.{places}f}"
    return f"{scale * value:.{places}f}{behind}"


def scores(manifest: Manifest) -> list[Score]:
    """The numbers of one eval artifact, the most telling first; empty for other artifacts."""
    metrics = manifest.metrics
    if product_of(manifest.stage) != "scores" or not isinstance(metrics.get("scores"), dict):
        return []
    suite, data, scorer = (str(metrics.get(key) or "") for key in ("suite", "data", "scorer"))
    numbers = [
        Score(
            name, float(entry["value"]), entry.get("low"), entry.get("high"), entry.get("n"),
            suite, data, scorer, str(entry.get("against") or ""), manifest.ref, manifest.at,
            str(metrics.get("prompts") or ""),
        )
        for name, entry in metrics["scores"].items()
        if isinstance(entry, dict) and isinstance(entry.get("value"), int | float)
    ]  # fmt: skip
    return sorted(numbers, key=lambda s: (s.metric != ACCURACY, s.metric != REWARD, s.metric == WIN, s.metric))


def measured_model(manifest: Manifest) -> str | None:
    """The id of the model that an eval artifact measured, when that is an artifact."""
    model = manifest.inputs.get("model")
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
    chosen: tuple[str, ...] = ()
    """The keys whose values were chosen among several, and may be others for another seed."""

    def record(self) -> dict[str, Any]:
        """The line as JSON."""
        scores = [score.record() for score in self.scores]
        return {"line": dict(self.settings), "model": self.ref, "scores": scores, "note": self.note}


def screen(lines: Sequence[Line], width: int) -> str:
    """The table for `width` columns; below it the means where cells differ in a seed only."""
    width = max(width, 60)
    columns = list(dict.fromkeys(score.kind for line in lines for score in line.scores))
    varying = differing([line.settings for line in lines if not line.name])
    tagged = any(line.tags for line in lines)
    head = ("", *map(str.upper, varying), *_titles(columns), *["TAG"] * tagged, "ID")
    rows = []
    for n, line in enumerate(lines, 1):
        settings = (line.settings.get(key, "") for key in varying)
        numbers = {score.kind: score.words(DIGITS) for score in reversed(line.scores)}
        cells = (numbers.get(column, "") for column in columns)
        tags = [" ".join(line.tags)] * tagged
        rows.append((line.name or str(n), *settings, *cells, *tags, f"{line.ref}  {line.note}".rstrip()))
    shown = text.table(head, rows, width)
    kept = [key for key in varying if key not in SEEDS]
    over_seeds = _means(lines, columns, kept)
    if over_seeds:
        shown += ["", *text.table(("over seeds", *map(str.upper, kept), *_titles(columns)), over_seeds, width)]
    asked = dict.fromkeys(score.prompts for line in lines for score in line.scores if score.prompts)
    notes = [f"held-out prompts: {words}" for words in asked]
    notes += ["± half of a 95 % interval"] if columns else []
    notes += ["over seeds: mean ± standard deviation"] if over_seeds else []
    return "\n".join([*shown, "; ".join(notes)]).rstrip("\n")


def differing(settings: Sequence[Mapping[str, str]]) -> list[str]:
    """The keys that do not have one value in all of them, in the order in which they come."""
    keys = dict.fromkeys(key for each in settings for key in each)
    return [key for key in keys if len({each.get(key) for each in settings}) > 1]


def _titles(columns: Sequence[Column]) -> list[str]:
    """The metric, with what sets it apart from other columns of that metric."""

    def title(column: Column) -> str:
        metric, suite, data, _, against = column
        alike = [other for other in columns if other[0] == metric]
        where = f" on {data or suite}" if len({other[1:4] for other in alike}) > 1 else ""
        return _title(metric) + (f" against {against}" if against else "") + where

    return [title(column) for column in columns]


def _title(metric: str) -> str:
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


def results(store: Store, evals: Sequence[Node]) -> str:
    """One row per evaluated model, in the plan's order; ± is half of the 95 % interval."""
    measured = [(node, scores(manifest)) for node in evals if (manifest := store.get(node.label))]
    if not measured:
        return "nothing was measured"
    every = [score for _, numbers in measured for score in numbers]
    metrics = [metric for metric in (REWARD, WIN, ACCURACY) if any(score.metric == metric for score in every)]
    rows = []
    for node, numbers in measured:
        cells = {score.metric: score.words(DIGITS) for score in numbers}
        model = node.inputs["model"]
        rows.append((node.about, *(cells.get(m, "") for m in metrics), "" if isinstance(model, tuple) else model.label))
    size = max(score.n or 0 for score in every)
    judged = "win rate against start in %, 50 = nothing gained" if WIN in metrics else "accuracy in %"
    table = text.table(("MODEL", *map(_title, metrics), "ID"), rows, 10**6)
    which = "; ".join(dict.fromkeys(score.prompts for score in every if score.prompts))
    asked = f"held-out prompts: {size}{f' ({which})' if which else ''}"
    return "\n".join([f"{asked}; {judged}; ± half of a 95 % interval", *table])
