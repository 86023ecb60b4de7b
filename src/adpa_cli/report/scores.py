"""Numbers from `eval` artifacts, each with what it may be compared with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from adpa_cli.report.text import number
from adpa_cli.stages import product_of
from adpa_cli.store.manifest import Manifest

ACCURACY, REWARD, WIN = "reward_accuracy", "mean_reward", "win_rate"
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
    def label(self) -> str:
        """What was measured: reward-accuracy on dpo-mix-7k#test (n=750)."""
        where = f" on {self.data}" if self.data else ""
        by = f" by {self.scorer}" if self.scorer else ""
        count = f" (n={number(self.n)})" if self.n is not None else ""
        return f"{self.metric.replace('_', '-')}{where}{by}{count}"

    @property
    def opponent(self) -> str:
        """What stands behind the label of a win rate: against sft/3f9c."""
        return f" against {self.against}" if self.against else ""

    @property
    def full_label(self) -> str:
        """The label with opponent and suite."""
        return f"{self.label}{self.opponent}{f' [{self.suite}]' if self.suite else ''}"

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
