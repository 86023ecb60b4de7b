"""From family defaults, presets and what the user typed to the spec of a stage, and to how it runs.

The more specific wins: stage default < family < preset < the user's own. A bare `--set key` belongs to the stages that
the command is about; `--set STAGE.key` to that stage wherever it is built. `--runtime key` moves no result.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from adpa_cli import methods, stages
from adpa_cli.coerce import coerce
from adpa_cli.data.templates import Template
from adpa_cli.errors import UsageError, hints_for
from adpa_cli.families import GENERIC, Family, stage_settings
from adpa_cli.planning.chat_templates import NO_CHOICE, TemplateChoice
from adpa_cli.spec import Dataclass, Runtime, TrainSpec, make, tracker_names
from adpa_cli.stages.cache_teacher import CACHE_TEACHER
from adpa_cli.stages.eval import EVAL
from adpa_cli.stages.rollout import ROLLOUT
from adpa_cli.stages.training import is_online

PACKAGES = {
    "tensorboard": "tensorboard", "wandb": "wandb", "trackio": "trackio", "mlflow": "mlflow", "aim": "aim",
    "comet_ml": "comet-ml", "clearml": "clearml", "dvclive": "dvclive", "swanlab": "swanlab",
}  # fmt: skip
"""What to install, by the name that accelerate has for a tracker, which is also that of the module."""
TRACKERS_FOLDER = ".trackers"
"""In the store, beside the artifacts: what a tracker writes is no part of any."""
NONE = "none"


def installed_trackers(text: str) -> list[str]:
    """The trackers of `a,b`, or of `none`. Raises UsageError for an unknown one, and for one that is not installed."""
    names = tracker_names(text)
    for name in names:
        if name not in PACKAGES:
            raise UsageError(
                f"--runtime trackers={text}: there is no tracker called {name!r}", f"use some of {', '.join(PACKAGES)}"
            )
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        packages = " ".join(PACKAGES[name] for name in missing)
        raise UsageError(f"--runtime trackers={text}: {', '.join(missing)} is not installed", f"pip install {packages}")
    return names


S = TypeVar("S", bound=Dataclass)
DERIVED = {
    "method", "method_version", "params", "template", "end", "parts", "split", "suite", "smoke", "judged_tokens",
    "merged", "scorer", "judged",
}  # fmt: skip
"""Fields that a plan fills in itself; nobody sets them by hand."""
EVAL_ROLLOUT = f"{EVAL.name}.{ROLLOUT.name}"
"""Settings, of a family or typed, of the answers that an evaluation has judged."""
REHEARSAL = {"limit": 64, "max_steps": 4, "batch_size": 16, "noise_answers": 8}
"""The most that a stage does under `--smoke`: four steps that see every one of its rows once."""


@dataclass(frozen=True)
class UserSettings:
    """What the user typed: `bare` keys for the stage the command is about, `by_stage` for named ones, and the rest."""

    bare: Mapping[str, Any] = field(default_factory=dict)
    by_stage: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    seed: int | None = None
    seed_all: int | None = None
    limit: int | None = None
    skip_bad_rows: bool = False
    smoke: bool = False
    templates: TemplateChoice = NO_CHOICE
    servers: tuple[str, ...] = field(default=(), repr=False)
    """The URLs of servers of vLLM that run, which may hold passwords: a plan asks them for their release."""

    @property
    def asks_vllm(self) -> bool:
        """Whether some rollouts are to be drawn by vLLM."""
        return any(values.get("engine") == "vllm" for values in (self.bare, *self.by_stage.values()))


def parse_sets(items: Sequence[str]) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
    """`key=value` and `stage.key=value` items, as (bare, by stage). Raises UsageError for anything else."""
    bare: dict[str, str] = {}
    by_stage: dict[str, dict[str, str]] = {}
    for item in items:
        name, equals, value = item.partition("=")
        if not equals or not name or not value:
            raise UsageError(
                f"--set takes KEY=VALUE; got {item!r}" if item else "--set is empty; it takes KEY=VALUE",
                "for example --set gamma=2 or --set sft.lr=1e-5 (--set KEY=VALUE, or STAGE.KEY=VALUE)",
            )
        stage, dot, key = name.rpartition(".")
        if dot and stage not in (*stages.names(), EVAL_ROLLOUT):
            meant = _did_you_mean(stage.lower(), stages.names())
            raise UsageError(
                f"--set {item}: there is no stage {stage!r}", f"{meant}stages: {', '.join(stages.names())}"
            )
        (by_stage.setdefault(stage, {}) if dot else bare)[key.replace("-", "_")] = value
    return bare, by_stage


def parse_runtime(items: Sequence[str]) -> dict[str, str]:
    """`key=value` items of `--runtime`. Raises UsageError for anything else, listing every key with its default."""
    keys = {f.name: str(f.default).lower() for f in knobs()}
    values: dict[str, str] = {}
    for item in items:
        name, _, value = item.partition("=")
        key = name.replace("-", "_")
        if not value or key not in keys:
            what = "there is no such key" if value else "a key and its value are needed, KEY=VALUE"
            guess = _did_you_mean(key, keys) if value else ""
            raise UsageError(f"--runtime {item}: {what}", f"{guess}keys and defaults: {_listed(keys)}")
        values[key] = value
    if values.get("liger") == "on" and coerce(bool, values.get("compile", False), "compile"):
        raise UsageError(
            "--runtime liger=on and compile=true cannot be combined",
            "leave one of them out, or use --runtime liger=auto",
        )
    return values


def _did_you_mean(key: str, keys: Iterable[str]) -> str:
    close = difflib.get_close_matches(key, list(keys), n=1)
    return f"did you mean {close[0]}? " if close else ""


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={spelled(value)}" for name, value in values.items())


def spelled(value: Any) -> str:
    """A value as it would be typed."""
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def knobs() -> list[dataclasses.Field[Any]]:
    """The fields of `Runtime` that `--runtime` sets."""
    return [f for f in dataclasses.fields(Runtime) if f.metadata.get("knob")]


def settable(stage: str, method: str = "") -> dict[str, Any]:
    """Every key of a stage (and of its method) with its default."""
    declared = stages.every()[stage]
    defaults = _defaults(declared.spec)
    sources: Mapping[str, str] = {}
    is_drawing = False
    if method:
        read = methods.load(method)
        is_drawing = any(need.online for need in read.needs_for(read.params()))
        sources = read.sources if declared.any_method else {}
        defaults |= {**_defaults(read.params), "preset": "paper", **sources}
    hidden = DERIVED if "states" in sources else {*DERIVED, "states"}
    hidden = {*hidden, *({"truncation"} if declared.reads == "dialogues" else {"packed", "train_on"})}
    hidden = hidden if is_drawing else {*hidden, "teachers_dtype"}
    return {name: default for name, default in defaults.items() if name not in hidden}


def _defaults(cls: type[Dataclass]) -> dict[str, Any]:
    return {f.name: f.default for f in dataclasses.fields(cls) if f.default is not dataclasses.MISSING}


def family_defaults(stage: str, method: str, family: Family) -> dict[str, Any]:
    """Every key of a stage (and of its method) with its default in a family."""
    defaults = settable(stage, method)
    dtype = family.dtype if method else family.inference
    keys = (stage, f"{stage}.student", f"{stage}.{method}")
    own = {"dtype": dtype, "select_on": "validation", **stage_settings(family, *keys)}
    return {**defaults, **_known(own, defaults)}


def check_keys(
    user: UserSettings, stage: str, of_methods: Sequence[str], family: Callable[[], Family] = lambda: GENERIC
) -> None:
    """Raise UsageError for a bare key that the command's stage lacks with all of its methods.

    It says what may be meant, or lists all settings with the `family`'s defaults.

    Keys with a stage are checked too where the command does not build that stage: a pipeline gives one set of options
    to all its commands, and a slip must show in the first.
    """
    settings = _typed_for(stage, of_methods)
    for key in user.bare:
        if key not in settings:
            hint = _place_of(key, stage) or _meant(key, _typed_for(stage, of_methods, family()))
            of = f" for {' and '.join(of_methods)}" if stages.every()[stage].any_method else ""
            raise UsageError(f"--set {key}: {stage} has no such setting{of}", hint)
    for name, values in user.by_stage.items():
        of = ROLLOUT.name if name == EVAL_ROLLOUT else name
        settings = _typed_for(of, methods_of(of))
        for key in values:
            if key not in settings:
                hint = _meant(key, _typed_for(of, methods_of(of), family()))
                raise UsageError(f"--set {name}.{key}: {name} has no such setting", hint)


def _place_of(key: str, stage: str) -> str:
    """Which other stage and which other methods of this one have a setting; "" if none has."""
    elsewhere = next((name for name in stages.names() if key in settable(name)), None)
    having = [method for method in methods_of(stage) if method and key in settable(stage, method)]
    found = [f"{elsewhere} has it: --set {elsewhere}.{key}=…"] if elsewhere else []
    found += [f"these methods have it: {', '.join(having)}"] if having else []
    return "; ".join(found)


def _meant(key: str, defaults: Mapping[str, Any]) -> str:
    """The setting that a misspelt one looks like with its default, or all of them."""
    for close in difflib.get_close_matches(key, list(defaults), n=1):
        return f"did you mean {close}? its default: {_listed({close: defaults[close]})}"
    return f"settings and defaults: {_listed(defaults)}"


def _typed_for(stage: str, of_methods: Sequence[str], family: Family = GENERIC) -> dict[str, Any]:
    """Every key that may be typed for a stage with its default, those of the stages that are set by it among them."""
    own = {key: value for method in of_methods for key, value in family_defaults(stage, method, family).items()}
    others = (name for name, other in stages.every().items() if other.set_by == stage)
    return {key: value for name in others for key, value in family_defaults(name, "", family).items()} | own


def user_settings(user: UserSettings, stage: str, method: str, command: str, seeded: bool) -> dict[str, Any]:
    """What the user said about one stage, where the stage that the command is about is called `command`.

    `seeded` when `--seed` moves it although the command is about another.
    """
    is_about, follows, keys = stage == command, stages.every()[stage].follows, settable(stage, method)
    is_sampled = user.by_stage.get(CACHE_TEACHER.name, {}).get("support") == "sampled"
    values: dict[str, Any] = dict(methods.load(method).sampled if is_sampled and method else {})
    values |= {name: True for name in ("skip_bad_rows", "smoke") if getattr(user, name)}
    for seed, applies in ((user.seed_all, True), (user.seed, seeded or is_about)):
        if seed is not None and applies and "seed" in keys:
            values["seed"] = seed
    above = stages.every()[stage].set_by
    bare = user.bare if is_about or above == command else {}
    values |= _known({**bare, **user.by_stage.get(above, {}), **user.by_stage.get(stage, {})}, keys)
    if user.limit is not None and (is_about or "limit" in follows):
        values.setdefault("limit", user.limit)
    if "max_length" in user.bare and "max_length" in follows:
        values.setdefault("max_length", user.bare["max_length"])
    return values


def methods_of(stage: str) -> tuple[str, ...]:
    """The methods that a stage may train with; "" for a stage that trains nothing."""
    return stages.every()[stage].methods()


def train_spec(
    stage: str, method: str, family: Family, keys: Sequence[str], user: Mapping[str, Any], template: Template
) -> TrainSpec:
    """The spec of a training stage with the typed parameters of its method; `keys` name the family's settings of it."""
    read, settings = methods.load(method), settable(stage, method)
    defaults = {**settings, "dtype": family.dtype, "select_on": "validation"}
    defaults |= _known(stage_settings(family, *keys), settings)
    merged = {**defaults, **preset_of(stage, method, user), **user}
    rest = {name: value for name, value in merged.items() if name not in ("preset", "kd_teacher")}
    for f in dataclasses.fields(read.params):
        rest.pop(f.name, None)
    fixed = {"method": method, "method_version": read.version, "params": with_effect(params_of(method, merged))}
    with hints_for(stage):
        spec = make(TrainSpec, {**rest, **fixed, "template": template.text, "end": template.end})
    if spec.dtype == "bfloat16" and spec.teachers_dtype is None and is_online(spec):
        spec = dataclasses.replace(spec, teachers_dtype=family.inference)
    return rehearsed(spec)


def preset_of(stage: str, method: str, user: Mapping[str, Any]) -> Mapping[str, Any]:
    """The values of the preset that a user chose; UsageError for a name that is none.

    A preset is for the stages that have all of its settings.
    """
    settings = settable(stage, method)
    presets = {name: own for name, own in methods.load(method).presets.items() if own.keys() <= settings.keys()}
    chosen = user.get("preset", settings["preset"])
    if chosen not in ("paper", *presets):
        raise UsageError(f"{method} has no preset called {chosen!r}", f"presets: {', '.join(('paper', *presets))}")
    return presets.get(chosen, {})


def params_of(method: str, values: Mapping[str, Any]) -> Any:
    """The parameters of a method among some values. UsageError where one is out of range."""
    cls = methods.load(method).params
    try:
        return make(cls, _known(values, _defaults(cls)))
    except UsageError as error:
        raise UsageError(error.message, f"{error.hint}; adpa methods {method} describes every parameter") from None


def with_effect(params: Any) -> dict[str, Any]:
    """The parameters of a method that mean something: no later one at its default, and none without effect."""
    idle: set[str] = params.without_effect() if hasattr(params, "without_effect") else set()
    later = {
        f.name for f in dataclasses.fields(params) if f.metadata.get("later") and f.default == getattr(params, f.name)
    }
    return {name: value for name, value in dataclasses.asdict(params).items() if name not in idle | later}


def needs_of(method: str, user: Mapping[str, Any]) -> tuple[methods.Need, ...]:
    """What a method reads under the parameters that the user gave."""
    return methods.load(method).needs_for(params_of(method, user))


def kd_teacher(method: str, user: Mapping[str, Any]) -> str:
    """Which teacher a method learns from: "aligned", "reference" or "sft-chosen". UsageError for another word."""
    is_chosen = "kd_teacher" in user and "kd_teacher" in methods.load(method).sources
    return make(methods.Sources, {"kd_teacher": user["kd_teacher"]} if is_chosen else {}).kd_teacher


def rehearsed(spec: S) -> S:
    """A spec that is marked `smoke`, cut down to the size of a rehearsal; any other as it is."""
    if not getattr(spec, "smoke", False):
        return spec
    most = {name: size for name, size in REHEARSAL.items() if hasattr(spec, name)}
    kept = {name: getattr(spec, name) for name in most}
    return dataclasses.replace(spec, **{n: size if kept[n] is None else min(kept[n], size) for n, size in most.items()})


def _known(values: Mapping[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    """Those of some values whose names are among the keys."""
    return {name: value for name, value in values.items() if name in keys}


def plain_spec(
    cls: type[S], stage: str, family: Family, user: Mapping[str, Any], keys: Sequence[str] = (), **fixed: Any
) -> S:
    """The spec of a stage without a method; `keys` name the family's settings of it, those of the stage unless said."""
    defaults = _known({"dtype": family.inference, **stage_settings(family, *(keys or (stage,)))}, settable(stage))
    return rehearsed(make(cls, {**defaults, **user, **fixed}))
