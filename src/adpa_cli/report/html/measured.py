"""What a report compares: its models, what sets them apart, their scores, and by how much these differ."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from adpa_cli.errors import UsageError
from adpa_cli.report import text
from adpa_cli.report.curves import Curve, curves_of
from adpa_cli.report.differences import Difference, Rows, corrected, paired, rows_of
from adpa_cli.report.evaluation import LEVEL
from adpa_cli.report.lineage import what
from adpa_cli.report.scores import (
    ACCURACY,
    DIGITS,
    REWARD,
    SEEDS,
    TOO_FEW,
    WIN,
    Column,
    Score,
    by_model,
    differing,
    distinct_names,
    measured_model,
    scaled,
    title,
)
from adpa_cli.stages import product_of
from adpa_cli.store.manifest import Manifest
from adpa_cli.store.store import Store

FIRST = (ACCURACY, REWARD, WIN)
"""Metrics that stand before others."""
NOT_MORE_IS_BETTER = ("bias", "baseline", "perplexity", "bits_per_byte", "nll")
"""How the names of numbers end that are no merit of a model."""
MOST_COMPARED = 12
"""Kinds of scores whose differences are tested."""
FEW = 8
"""Models up to which differences have exact intervals and tests; for more they are those of a normal distribution."""
UNSAID = ("tag", "keep", "no-eval")
"""Values of a command that change no weights."""
LETTERS, MOST_KEYS = 60, 6
"""Of a name that is made of settings, and settings with columns of their own."""
START = "start"


@dataclass(frozen=True)
class Model:
    """One line of a report. `role` is empty for what was asked for; `settings` are those that differ between lines."""

    manifest: Manifest
    name: str
    settings: Mapping[str, str] = field(default_factory=dict)
    scores: Mapping[Column, Score] = field(default_factory=dict)
    role: str = ""
    tags: tuple[str, ...] = ()

    @property
    def ref(self) -> str:
        """What its artifact is called."""
        return self.manifest.ref


@dataclass(frozen=True)
class Compared:
    """The models of a report with what the store has about them."""

    store: Store
    artifacts: Mapping[str, Manifest]
    models: Sequence[Model]
    columns: Mapping[Column, str]
    """The kinds of scores with their names, in the order of the table."""
    keys: Sequence[str]
    """The settings that differ."""
    curves: Mapping[str, Mapping[str, Curve]]
    """Those of each model by its ref."""
    merits: Sequence[Column]
    """The kinds of scores of which more is better: these are compared and drawn."""

    @property
    def asked(self) -> list[Model]:
        """The models that were asked for."""
        return [model for model in self.models if not model.role]

    @property
    def base(self) -> Model:
        """The line that others are compared with: the common start where it was measured, else the first."""
        return next((model for model in self.models if model.role == START), self.models[0])

    @property
    def table_keys(self) -> Sequence[str]:
        """The settings that have columns of their own: those of models that go by tags, for other names tell them."""
        return self.keys if any(model.tags for model in self.asked) and len(self.keys) <= MOST_KEYS else ()

    @property
    def is_approximate(self) -> bool:
        """Whether intervals and tests of differences are those of a normal distribution."""
        return len(self.models) > FEW

    def folder(self, ref: str) -> Path:
        """Where the files of one of its artifacts are, which are there: nothing is looked for."""
        return self.store.root / ref

    def evaluations(self, model: Model) -> list[Manifest]:
        """The evaluations of a model, newest first."""
        own = [other for other in self.artifacts.values() if measured_model(other) == model.manifest.id]
        return sorted(own, key=lambda other: -other.at)


def compared(store: Store, asked: Sequence[Manifest]) -> Compared:
    """Read what there is to compare of the models that were asked for, or that the evaluations among them measured.

    The model that students start from and their aligned teacher come along where they were measured. Raises UsageError
    for artifacts that are neither.
    """
    artifacts = {manifest.id: manifest for manifest in store.artifacts(lambda error: None)}
    chosen = _models(asked, artifacts)
    scored = by_model(artifacts.values())
    around = _around(chosen, artifacts, scored)
    tags: dict[str, list[str]] = {}
    for tag, artifact in store.tags().items():
        tags.setdefault(artifact, []).append(tag)
    settings = [_settings(manifest) for manifest in chosen]
    keys = sorted((key for key in differing(settings) if key not in UNSAID), key=lambda key: key != "method")
    names = _names(chosen, settings, keys, tags)
    models = [
        Model(m, name, {k: s[k] for k in keys if k in s}, {}, "", tuple(tags.get(m.id, ())))
        for m, name, s in zip(chosen, names, settings, strict=True)
    ]
    roles = [role for role, _ in around]
    models += [Model(m, role if roles.count(role) == 1 else f"{role} {m.ref}", role=role) for role, m in around]
    opponents = {m.ref: "its start" if m.role == START and roles.count(START) > 1 else m.name for m in models}
    models = [replace(m, scores=_scores(scored.get(m.manifest.id, ()), opponents)) for m in models]
    curves = {manifest.ref: curves_of(store, manifest, artifacts.values()) for manifest in chosen}
    merits = {kind for m in models for kind, score in m.scores.items() if _is_merit(score)}
    columns = _columns(models, merits)
    return Compared(store, artifacts, models, columns, keys, curves, [kind for kind in columns if kind in merits])


def _models(asked: Sequence[Manifest], artifacts: Mapping[str, Manifest]) -> list[Manifest]:
    """The models among what was asked for, and those that the evaluations among it measured; each once."""
    found: dict[str, Manifest] = {}
    for manifest in asked:
        model = artifacts.get(measured_model(manifest) or "") or manifest
        if product_of(model.stage) not in ("model", "reward model"):
            raise UsageError(f"{manifest.ref} is no model: a report is of models and of their evaluations",
                             f"adpa show {manifest.ref}")  # fmt: skip
        found.setdefault(model.id, model)
    return list(found.values())


def _around(
    chosen: Sequence[Manifest], artifacts: Mapping[str, Manifest], scored: Mapping[str, Sequence[Score]]
) -> list[tuple[str, Manifest]]:
    """(role, model) of what the chosen ones start from, at last, and of their aligned teachers, where measured."""
    found: dict[str, tuple[str, Manifest]] = {}
    for manifest in chosen:
        for role, other in _roots(manifest, artifacts):
            if other.id in scored and all(other.id != one.id for one in chosen):
                found.setdefault(other.id, (role, other))
    return list(found.values())


def _roots(manifest: Manifest, artifacts: Mapping[str, Manifest]) -> list[tuple[str, Manifest]]:
    parents = [(role, artifacts[digest]) for role, digest in manifest.parents() if digest in artifacts]
    start = next((parent for role, parent in parents if role == "model"), None)
    found: list[tuple[str, Manifest]] = []
    if start is not None:
        below = _roots(start, artifacts)
        found += below if any(role == START for role, _ in below) else [(START, start), *below]
    for _, cache in parents:
        found += [
            ("aligned teacher", artifacts[d]) for role, d in cache.parents() if role == "aligned" and d in artifacts
        ]
    return found


def _settings(manifest: Manifest) -> dict[str, str]:
    """What was typed to make a model; of one that does not tell, its spec."""
    typed = manifest.made.get("request", {}).get("values") or {
        **{key: value for key, value in manifest.spec.items() if key not in ("params", "template", "method_version")},
        **manifest.spec.get("params", {}),
    }
    return {key.removeprefix("params."): text.number(value) for key, value in text.flat(typed).items()}


def _names(
    chosen: Sequence[Manifest], settings: Sequence[Mapping[str, str]], keys: Sequence[str],
    tags: Mapping[str, Sequence[str]],
) -> list[str]:  # fmt: skip
    """A name for each model that no other has: its tag, else the settings that set it apart, else what it is."""
    names = []
    for manifest, own in zip(chosen, settings, strict=True):
        said = setting_words({key: own[key] for key in keys if key in own})
        names.append(next(iter(tags.get(manifest.id, ())), "") or text.cut(said, LETTERS) or what(manifest))
    return [
        f"{name} ({manifest.id[:4]})" if names.count(name) > 1 else name
        for name, manifest in zip(names, chosen, strict=True)
    ]


def setting_words(settings: Mapping[str, str]) -> str:
    """Settings in one line; a method goes without its key."""
    return " ".join(value if key == "method" else f"{key}={value}" for key, value in settings.items())


def _scores(scores: Sequence[Score], opponents: Mapping[str, str]) -> dict[Column, Score]:
    """The newest score of each kind, with opponents by their names."""
    found: dict[Column, Score] = {}
    for score in scores:
        alike = score.beside(opponents[score.against]) if score.against in opponents else score
        found.setdefault(alike.kind, alike)
    return found


def _is_merit(score: Score) -> bool:
    """Whether more of a score is better: it is no property of the answers alone, as their length is."""
    return not score.more.get("of") and not score.metric.partition(",")[0].endswith(NOT_MORE_IS_BETTER)


def _columns(models: Sequence[Model], merits: Set[Column]) -> dict[Column, str]:
    first = {kind: score for model in reversed(models) for kind, score in model.scores.items()}
    names = distinct_names({kind: title(s.metric).lower() + s.opponent for kind, s in first.items()}, first)
    ranked = sorted(
        first, key=lambda kind: (_rank(first[kind].metric), kind not in merits, -sum(kind in m.scores for m in models))
    )
    return {kind: names[kind] for kind in ranked}


def _rank(metric: str) -> int:
    return FIRST.index(metric) if metric in FIRST else len(FIRST)


@dataclass(frozen=True)
class Cell:
    """One number of the table: value and interval in words, whether it is the best of its column, and how much more it
    is than that of the base."""

    words: str
    bounds: str
    is_best: bool
    more: str
    mark: str


def table(found: Compared) -> list[tuple[Model, list[Cell | None]]]:
    """The cells of every model, in the order of the columns."""
    apart = _differences(found)
    best: dict[Column, float] = {}
    for kind in found.merits:
        values = [m.scores[kind].value for m in found.asked if kind in m.scores]
        if len(values) > 1:
            best[kind] = max(values)
    return [
        (model, [_cell(model, kind, best, apart.get((model.ref, kind))) for kind in found.columns])
        for model in found.models
    ]


def _cell(
    model: Model, kind: Column, best: Mapping[Column, float], apart: tuple[Difference, float] | None
) -> Cell | None:
    score = model.scores.get(kind)
    if score is None:
        return None
    scale, digits = scaled(score.is_share, DIGITS)
    bounds = more = mark = ""
    if score.low is not None and score.high is not None:
        bounds = f"{scale * score.low:.{digits}f} to {scale * score.high:.{digits}f}{' %' if score.is_share else ''}"
        bounds += f", n={text.number(score.n)}" if score.n is not None else ""
    if apart is not None:
        difference, p = apart
        more = difference.words(score.is_share, DIGITS)[0].replace("-", "−")
        mark = "" if p >= LEVEL else "▲" if difference.value > 0 else "▼"
    is_best = not model.role and score.value == best.get(kind)
    words, few, _ = score.words(DIGITS).partition(f" {TOO_FEW}")
    return Cell(words.replace("-", "−"), f"too few to tell, n={score.n}" if few else bounds, is_best, more, mark)


def _differences(found: Compared) -> dict[tuple[str, Column], tuple[Difference, float]]:
    """By how much every line differs from the base, with the p of all of them corrected together (Holm)."""
    base = found.base
    others = [model for model in found.models if model is not base]
    compare = normal if found.is_approximate else paired
    kinds = [kind for kind in found.merits if kind in base.scores][:MOST_COMPARED]
    rows = {kind: rows_of(found.folder(base.scores[kind].ref), kind[0]) for kind in kinds}
    made: dict[tuple[str, Column], Difference] = {}
    for model in others:
        for kind in kinds:
            if kind in model.scores:
                own = rows_of(found.folder(model.scores[kind].ref), kind[0])
                if difference := compare(own, rows[kind]):
                    made[model.ref, kind] = difference
    return corrected(made)


def normal(ours: Rows, theirs: Rows) -> Difference | None:
    """Ours - theirs over the rows that both have, as `paired`, with the interval and p of a normal distribution."""
    shared = sorted(ours.numbers.keys() & theirs.numbers.keys())
    if not shared:
        return None
    by_prompt: dict[str, list[float]] = {}
    for row in shared:
        by_prompt.setdefault(theirs.prompts.get(row, row), []).append(ours.numbers[row] - theirs.numbers[row])
    sums = np.array([sum(each) for each in by_prompt.values()])
    counts = np.array([len(each) for each in by_prompt.values()])
    mean = float(sums.sum() / counts.sum())
    spread = float(np.sqrt(np.square(sums - mean * counts).sum()) / counts.sum())
    p = math.erfc(abs(mean) / spread / math.sqrt(2)) if spread else float(mean == 0)
    return Difference(mean, mean - 1.96 * spread, mean + 1.96 * spread, p, len(shared))


def over_seeds(found: Compared) -> list[tuple[str, int, list[str]]]:
    """(settings, number of seeds, mean ± standard deviation by column) of the lines that differ in a seed only."""
    groups: dict[str, list[Model]] = {}
    for model in found.asked:
        kept = {key: value for key, value in model.settings.items() if key not in SEEDS}
        groups.setdefault(setting_words(kept) or "all", []).append(model)
    return [
        (name, len(members), [_spread(members, kind) for kind in found.columns])
        for name, members in groups.items() if len(members) > 1 and any(k in m.settings for m in members for k in SEEDS)
    ]  # fmt: skip


def _spread(members: Sequence[Model], kind: Column) -> str:
    scores = [model.scores[kind] for model in members if kind in model.scores]
    if len(scores) < 2:
        return "–"
    scale, digits = scaled(scores[0].is_share, DIGITS)
    values = scale * np.array([score.value for score in scores])
    return f"{values.mean():.{digits}f} ± {values.std(ddof=1):.{digits}f}"


def numbers(found: Compared) -> list[list[Any]]:
    """Every score of every line as a table, head first."""
    rows: list[list[Any]] = [["model", "id", *found.keys, "metric", "value", "low", "high", "n", "evaluation"]]
    for model in found.models:
        settings = [model.settings.get(key, "") for key in found.keys]
        for kind, name in found.columns.items():
            if score := model.scores.get(kind):
                numbers = [score.value, score.low, score.high, score.n]
                rows.append([model.name, model.ref, *settings, name, *numbers, score.ref])
    return rows
