"""Numbers from `eval` artifacts, each with what it may be compared with."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from adpa_cli.report.text import number
from adpa_cli.store.manifest import Manifest

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
