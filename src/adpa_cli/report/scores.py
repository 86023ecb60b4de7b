"""Numbers from `eval` artifacts, each with what it may be compared with."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adpa_cli.data.examples import win
from adpa_cli.report.text import number
from adpa_cli.store.manifest import Manifest
from adpa_cli.store.store import Store

WIN = "win_rate"
_PREFERRED = ("reward_accuracy", "mean_reward")
_SHARES = ("accuracy", "rate", "share")


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

    @property
    def kind(self) -> tuple[str, str, str, str, str]:
        return self.metric, self.suite, self.data, self.scorer, self.against

    @property
    def is_share(self) -> bool:
        """Whether the value is a share of 1, shown in percent."""
        return self.metric.rpartition("_")[2] in _SHARES

    @property
    def text(self) -> str:
        """68.1 ±1.7: percent for shares, half the width of the interval behind it."""
        if self.low is None or self.high is None:
            return f"{100 * self.value:.1f}" if self.is_share else f"{self.value:.2f}"
        half = (self.high - self.low) / 2
        if self.is_share:
            return f"{100 * self.value:.1f} ±{100 * half:.1f}"
        return f"{self.value:.2f} ±{half:.2f}"

    @property
    def label(self) -> str:
        """What was measured: reward-accuracy on dpo-mix-7k#test (n=750)."""
        where = f" on {self.data}" if self.data else ""
        by = f" by {self.scorer}" if self.scorer else ""
        count = f" (n={number(self.n)})" if self.n is not None else ""
        return f"{self.metric.replace('_', '-')}{where}{by}{count}"


def scores(manifest: Manifest) -> list[Score]:
    """The numbers of one eval artifact, the most telling first; empty for other artifacts."""
    metrics = manifest.metrics
    if manifest.stage != "eval" or not isinstance(metrics.get("scores"), dict):
        return []
    suite, data, scorer = (str(metrics.get(key) or "") for key in ("suite", "data", "scorer"))
    found = [
        Score(
            name, float(entry["value"]), entry.get("low"), entry.get("high"), entry.get("n"),
            suite, data, scorer, str(entry.get("against") or ""), manifest.ref, manifest.at,
        )
        for name, entry in metrics["scores"].items()
        if isinstance(entry, dict) and isinstance(entry.get("value"), int | float)
    ]  # fmt: skip
    order = {name: place for place, name in enumerate(_PREFERRED)}
    return sorted(found, key=lambda score: (order.get(score.metric, len(order)), score.metric == WIN, score.metric))


def measured(manifest: Manifest) -> str | None:
    """The id of the model that an eval artifact measured, when that is an artifact."""
    model = manifest.inputs.get("model")
    if manifest.stage != "eval" or not isinstance(model, str) or not model.startswith("artifact:"):
        return None
    return model.removeprefix("artifact:")


def by_model(artifacts: Iterable[Manifest]) -> dict[str, list[Score]]:
    """All scores by the id of the model, newest first."""
    found: dict[str, list[Score]] = {}
    for manifest in sorted(artifacts, key=lambda item: -item.at):
        model = measured(manifest)
        if model is not None:
            found.setdefault(model, []).extend(scores(manifest))
    return found


RESAMPLES = 2000
Table = Mapping[str, float]


def differences(store: Store, columns: Sequence[Sequence[Score]]) -> dict[str, list[str | None]]:
    """Row name -> for each model its difference to the first one that was measured alike (None for that one).

    Scores are compared only within one suite, data set, scorer and opponent. Shares are in percent points.
    """
    newest = [_newest(found) for found in columns]
    rows: dict[str, list[str | None]] = {}
    for kind in dict.fromkeys(kind for found in newest for kind in found):
        places = [place for place, found in enumerate(newest) if kind in found]
        first = newest[places[0]][kind]
        base = values(store.folder(first.ref), first.metric)
        prompts = _read(store.folder(first.ref)).get("prompts", {})
        row: list[str | None] = [None] * len(columns)
        for place in places[1:]:
            other = newest[place][kind]
            row[place] = _words(paired(values(store.folder(other.ref), other.metric), base, prompts), first.is_share)
        if any(row):
            against = f" against {first.against}" if first.against else ""
            suite = f" [{first.suite}]" if first.suite else ""
            rows[f"more than column {places[0] + 1}: {first.label}{against}{suite}"] = row
    return rows


def _newest(found: Sequence[Score]) -> dict[Any, Score]:
    kinds: dict[Any, Score] = {}
    for score in found:
        kinds.setdefault(score.kind, score)
    return kinds


def values(folder: Path, metric: str) -> dict[str, float]:
    """What each row added to a metric of the evaluation in `folder`; empty where that was not kept."""
    read = _read(folder)
    if metric == "reward_accuracy":
        return {row: win(margin) for row, margin in read.get("margins", {}).items()}
    ours: Table = read.get("rewards", {})
    if metric == "mean_reward":
        return dict(ours)
    theirs: Table = read.get("against", {})
    return {row: win(ours[row] - theirs[row]) for row in ours.keys() & theirs.keys()}


def _read(folder: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads((folder / "scores.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return found


def paired(ours: Table, theirs: Table, prompts: Mapping[str, str] | None = None) -> tuple[float, float, float] | None:
    """Mean of ours - theirs over the rows that both have, with its 95 % percentile interval; None without such rows.

    Rows of one prompt, which `prompts` names by row, are drawn together; a row without one is its own prompt.
    """
    import numpy as np

    rows = sorted(ours.keys() & theirs.keys())
    if not rows:
        return None
    found = np.array([ours[row] - theirs[row] for row in rows])
    asked = [(prompts or {}).get(row, row) for row in rows]
    places = {prompt: place for place, prompt in enumerate(dict.fromkeys(asked))}
    groups = np.array([places[prompt] for prompt in asked])
    sums, counts = np.bincount(groups, found), np.bincount(groups)
    picks = np.random.Generator(np.random.PCG64(0)).integers(0, len(sums), (RESAMPLES, len(sums)))
    low, high = np.percentile(sums[picks].sum(1) / counts[picks].sum(1), [2.5, 97.5])
    return float(found.mean()), float(low), float(high)


def _words(found: tuple[float, float, float] | None, share: bool) -> str | None:
    if found is None:
        return None
    mean, low, high = (100 * number for number in found) if share else found
    digits = 1 if share else 2
    return f"{mean:+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f})"
