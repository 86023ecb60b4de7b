"""From family defaults, presets and what the user typed to the spec of a stage.

The more specific wins: stage default < family < preset < the user's own. A bare `--set key` belongs to the stages that
the command is about; `--set STAGE.key` to that stage wherever it is built.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from adpa_cli import methods, stages
from adpa_cli.coerce import coerce
from adpa_cli.errors import UsageError
from adpa_cli.families import Family, stage_settings
from adpa_cli.spec import Dataclass, Runtime, TrainSpec, make, tracker_names

PACKAGES = {
    "tensorboard": "tensorboard", "wandb": "wandb", "trackio": "trackio", "mlflow": "mlflow", "aim": "aim",
    "comet_ml": "comet-ml", "clearml": "clearml", "dvclive": "dvclive", "swanlab": "swanlab",
}  # fmt: skip
"""What to install, by the name that accelerate has for a tracker, which is also that of the module."""
TRACKERS_FOLDER = ".trackers"
"""In the store, beside the artifacts: what a tracker writes is no part of any."""
NONE = "none"


def named(text: str) -> list[str]:
    """The trackers of `a,b`, or of `none`. Raises UsageError for an unknown one, and for one that is not installed."""
    names = tracker_names(text)
    for name in names:
        if name not in PACKAGES:
            raise UsageError(f"--runtime trackers={text}: no tracker is called {name}", f"known: {', '.join(PACKAGES)}")
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        packages = " ".join(PACKAGES[name] for name in missing)
        raise UsageError(f"--runtime trackers={text}: {', '.join(missing)} is not installed", f"pip install {packages}")
    return names


S = TypeVar("S", bound=Dataclass)
DERIVED = {"method", "method_version", "params", "template", "end", "parts", "split", "suite", "smoke", "judged_tokens"}
"""Fields that a plan fills in itself; nobody sets them by hand."""
REHEARSAL = {"limit": 64, "max_steps": 4, "batch_size": 16}
"""The most that a stage does under `--smoke`: four steps that see every one of its rows once."""


@dataclass(frozen=True)
class Given:
    """What the user typed: `own` for the stages the command is about, `by_stage` for named ones, and the seeds."""

    own: Mapping[str, Any] = field(default_factory=dict)
    by_stage: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    seed: int | None = None
    seed_all: int | None = None
    limit: int | None = None
    skip_bad_rows: bool = False
    smoke: bool = False


def parse_sets(items: Sequence[str]) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
    """`key=value` and `stage.key=value` items, as (own, by stage). Raises UsageError for anything else."""
    own: dict[str, str] = {}
    by_stage: dict[str, dict[str, str]] = {}
    for item in items:
        name, equals, value = item.partition("=")
        if not equals or not name or not value:
            raise UsageError(f"--set {item}", "write --set KEY=VALUE or --set STAGE.KEY=VALUE, e.g. --set gamma=2")
        stage, dot, key = name.rpartition(".")
        if dot and stage not in stages.names():
            raise UsageError(f"--set {item}: no stage is called {stage!r}", f"stages: {', '.join(stages.names())}")
        (by_stage.setdefault(stage, {}) if dot else own)[key.replace("-", "_")] = value
    return own, by_stage


def parse_runtime(items: Sequence[str]) -> dict[str, str]:
    """`key=value` items of `--runtime`. Raises UsageError for anything else, listing every key with its default."""
    known = ", ".join(f"{f.name}={str(f.default).lower()}" for f in knobs())
    found: dict[str, str] = {}
    for item in items:
        name, _, value = item.partition("=")
        key = name.replace("-", "_")
        if not value or key not in {f.name for f in knobs()}:
            what = "no such key" if value else "write KEY=VALUE"
            guess = difflib.get_close_matches(key, [f.name for f in knobs()], n=1) if value else []
            raise UsageError(
                f"--runtime {item}: {what}", f"{f'did you mean {guess[0]}? ' if guess else ''}keys: {known}"
            )
        found[key] = value
    if found.get("liger") == "on" and coerce(bool, found.get("compile", False), "compile"):
        raise UsageError(
            "--runtime liger=on and compile=true exclude each other", "--runtime liger=auto, or without compile=true"
        )
    return found


def knobs() -> list[dataclasses.Field[Any]]:
    """The fields of `Runtime` that `--runtime` sets."""
    return [f for f in dataclasses.fields(Runtime) if f.metadata.get("knob")]


def settable(stage: str, method: str = "") -> dict[str, Any]:
    """Every key of a stage (and of its method) with its default."""
    declared = stages.every()[stage]
    found = _defaults(declared.spec)
    sources: Mapping[str, str] = {}
    if method:
        read = methods.load(method)
        sources = read.sources if declared.any_method else {}
        found.update({**_defaults(read.params), "preset": "paper", **sources})
    return {name: v for name, v in found.items() if name not in DERIVED and (name != "states" or name in sources)}


def _defaults(cls: Any) -> dict[str, Any]:
    return {f.name: f.default for f in dataclasses.fields(cls) if f.default is not dataclasses.MISSING}


def check_own(given: Given, stage: str, of_methods: Sequence[str]) -> None:
    """Every bare key must be known to the command's own stage with one of its methods. Raises UsageError listing all.

    Keys with a stage are checked too where the command does not build that stage: a pipeline gives one set of options
    to all its commands, and a slip must show in the first.
    """
    known: dict[str, Any] = {}
    for method in of_methods:
        known.update(settable(stage, method))
    for key in given.own:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            elsewhere = [name for name in stages.names() if key in settable(name)]
            guess = f"did you mean {close[0]}? " if close else ""
            guess += f"of another stage: --set {elsewhere[0]}.{key}=…; " if elsewhere else ""
            listed = ", ".join(f"{name}={value}" for name, value in known.items())
            raise UsageError(f"--set {key}: no such setting here", f"{guess}settings: {listed}")
    for other, named in given.by_stage.items():
        known = {key: value for method in methods_of(other) for key, value in settable(other, method).items()}
        for key in named:
            if key not in known:
                listed = ", ".join(f"{name}={value}" for name, value in known.items())
                raise UsageError(f"--set {other}.{key}: no such setting", f"settings: {listed}")


def user_settings(given: Given, stage: str, method: str, own: bool, seeded: bool) -> dict[str, Any]:
    """What the user said about one stage; `own` when the command is about it, `seeded` when `--seed` moves it."""
    known = settable(stage, method)
    named = given.by_stage.get(stage, {})
    values: dict[str, Any] = {}
    if given.skip_bad_rows:
        values["skip_bad_rows"] = True
    if given.smoke:
        values["smoke"] = True
    for seed, acts in ((given.seed_all, True), (given.seed, seeded)):
        if seed is not None and acts and "seed" in known:
            values["seed"] = seed
    return {**values, **{k: v for k, v in {**(given.own if own else {}), **named}.items() if k in known}}


def methods_of(stage: str) -> tuple[str, ...]:
    """The methods that a stage may train with; "" for a stage that trains nothing."""
    return stages.every()[stage].methods()


def train_spec(
    stage: str, method: str, family: Family, keys: Sequence[str], user: Mapping[str, Any], template: tuple[str, str]
) -> TrainSpec:
    """The spec of a training stage with the typed parameters of its method."""
    read = methods.load(method)
    defaults = {**settable(stage, method), **_own_defaults(stage_settings(family, *keys), stage, method)}
    preset = user.get("preset", defaults.get("preset", "paper"))
    if preset not in ("paper", *read.presets):
        raise UsageError(f"{method} has no preset {preset!r}", f"presets: {', '.join(('paper', *read.presets))}")
    merged = {**defaults, **read.presets.get(preset, {}), **user}
    merged = {name: value for name, value in merged.items() if name not in ("preset", "kd_teacher")}
    names = {f.name for f in dataclasses.fields(read.params)}
    params = _params(method, merged)
    rest = {name: value for name, value in merged.items() if name not in names}
    fixed = {"method": method, "method_version": read.version, "params": _hashed(params)}
    return rehearsed(make(TrainSpec, {**rest, **fixed, "template": template[0], "end": template[1]}))


def _params(method: str, values: Mapping[str, Any]) -> Any:
    """The parameters of a method among some values. UsageError that lists them all where one is out of range."""
    cls = methods.load(method).params
    own = _defaults(cls)
    try:
        return make(cls, {name: value for name, value in values.items() if name in own})
    except UsageError as error:
        listed = ", ".join(f"{name}={value}" for name, value in own.items())
        raise UsageError(error.message, f"{error.hint}\nparameters of {method}: {listed}") from None


def _hashed(params: Any) -> dict[str, Any]:
    """The parameters of a method that mean something: no later one at its default, and none without effect."""
    idle: set[str] = params.without_effect() if hasattr(params, "without_effect") else set()
    later = {
        f.name for f in dataclasses.fields(params) if f.metadata.get("later") and f.default == getattr(params, f.name)
    }
    return {name: value for name, value in dataclasses.asdict(params).items() if name not in idle | later}


def needs_of(method: str, user: Mapping[str, Any]) -> tuple[methods.Need, ...]:
    """What a method reads under the parameters that the user gave."""
    return methods.load(method).needs_for(_params(method, user))


def kd_teacher(method: str, user: Mapping[str, Any]) -> str:
    """Which teacher a method learns from: "aligned", "reference" or "sft-chosen". UsageError for another word."""
    chosen = {name: user[name] for name in ("kd_teacher",) if name in user and name in methods.load(method).sources}
    return make(methods.Sources, chosen).kd_teacher


def rehearsed(spec: S) -> S:
    """A spec that is marked `smoke`, cut down to the size of a rehearsal; any other as it is."""
    if not getattr(spec, "smoke", False):
        return spec
    most = {name: size for name, size in REHEARSAL.items() if hasattr(spec, name)}
    return dataclasses.replace(spec, **{name: min(getattr(spec, name) or size, size) for name, size in most.items()})


def _own_defaults(settings: Mapping[str, Any], stage: str, method: str) -> dict[str, Any]:
    known = settable(stage, method)
    return {name: value for name, value in settings.items() if name in known}


def plain_spec(
    cls: type[S], stage: str, family: Family, keys: Sequence[str], user: Mapping[str, Any], fixed: Mapping[str, Any]
) -> S:
    """The spec of a stage without a method."""
    return rehearsed(make(cls, {**_own_defaults(stage_settings(family, *keys), stage, ""), **user, **fixed}))
