"""Where an artifact departs from the defaults of its family."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adpa_cli import methods
from adpa_cli.data.chat import DEFAULT_TEMPLATES
from adpa_cli.errors import AdpaError, UsageError
from adpa_cli.families import FAMILIES, Family, stage_settings
from adpa_cli.lab import TEMPLATE
from adpa_cli.report import text
from adpa_cli.report.lineage import Link, made_from, used_by
from adpa_cli.report.listing import base_name, score_record, what
from adpa_cli.report.scores import Score, by_model, scores
from adpa_cli.spec import TrainSpec
from adpa_cli.stages.cache_teacher import CaptureSpec
from adpa_cli.stages.rewards import RewardsSpec
from adpa_cli.stages.rollout import RolloutSpec
from adpa_cli.stages.start_logps import StartSpec
from adpa_cli.store.manifest import Manifest
from adpa_cli.store.store import Store
from adpa_cli.store.verify import verified_at
from adpa_cli.suites import EvalSpec

Artifacts = Mapping[str, Manifest]
_SPECS: dict[str, Any] = {
    "cache-teacher": CaptureSpec, "rollout": RolloutSpec, "rewards": RewardsSpec, "start-logps": StartSpec,
    "eval": EvalSpec,
}  # fmt: skip


def departures(manifest: Manifest, artifacts: Artifacts) -> list[str] | None:
    """`key value (default)` of every setting that is not the family's, and another teacher or template.

    None for a model of no family.
    """
    base = base_name(manifest, artifacts, ("model", "aligned"))
    family = next((f for f in FAMILIES if base in (f.student, f.teacher)), None)
    if family is None:
        return None
    defaults = _defaults(manifest, family, "student" if base == family.student else "teacher")
    spec = {**manifest.spec, **manifest.spec.get("params", {})}
    found = [
        f"{key} {text.brief(spec[key])} ({text.brief(default)})"
        for key, default in defaults.items()
        if key in spec and spec[key] != default
    ]
    taught_by = _teacher(manifest, artifacts)
    if taught_by and taught_by != family.teacher:
        found.append(f"teacher {taught_by}")
    usual = TEMPLATE if family.template == "tiny" else DEFAULT_TEMPLATES[family.template].text
    return [*found, "template"] if manifest.spec.get("template", usual) != usual else found


def _defaults(manifest: Manifest, family: Family, side: str) -> dict[str, Any]:
    """What the settings of a stage are when nobody says anything."""
    stage, method = manifest.stage, str(manifest.spec.get("method", ""))
    keys = {"sft": ("sft", f"sft.{side}"), "distill": ("distill", f"distill.{method}")}.get(stage, (stage,))
    if manifest.spec.get("split") == "test":
        keys = (*keys, "eval.rollout")
    classes = [_SPECS.get(stage, TrainSpec)]
    with contextlib.suppress(UsageError):  # made by another version, with a method that this one lacks
        classes += [methods.load(method).params] if method else []
    plain = {
        f.name: f.default for cls in classes for f in dataclasses.fields(cls) if f.default is not dataclasses.MISSING
    }
    return {key: value for key, value in {**plain, **stage_settings(family, *keys)}.items() if key in plain}


def _teacher(manifest: Manifest, artifacts: Artifacts) -> str:
    caches = manifest.inputs.get("cache", [])
    for content in [caches] if isinstance(caches, str) else caches:
        cache = artifacts.get(content.removeprefix("artifact:"))
        if cache is not None:
            return base_name(cache, artifacts, ("aligned", "model"))
    return ""


FILE_NAME = "metrics.jsonl"
_NOT_CURVES = {"step", "epoch", "lr", "seconds", "time", "at", "tokens", "of", "rows", "tokens_per_device", "padding"}
_ASIDE = "grad_norm"
"""Numbers that begin so are told in other places, and come last."""
_FIRST = ("loss", "advantage", "entropy", "length")

Curves = Mapping[str, Sequence[float | None]]


def read_curves(folder: Path) -> dict[str, list[float | None]]:
    """Every number of every step by name, None where a step has none; empty without the file.

    Lines that are no JSON object (a file cut off by a crash) are skipped.
    """
    try:
        curve_lines = (folder / FILE_NAME).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    steps = []
    for line in curve_lines:
        try:
            step = json.loads(line)
        except ValueError:
            continue
        if isinstance(step, dict):
            steps.append(text.flat(step))
    names = dict.fromkeys(
        name for step in steps for name, value in step.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    )  # fmt: skip
    return {name: [_number(step.get(name)) for step in steps] for name in names}


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def curve_lines(curves: Curves, width: int, count: int = 4) -> list[str]:
    """`name  first curve last`: the loss first, then up to `count` - 1 other numbers that change."""
    names = [name for name in curves if name not in _NOT_CURVES and name.rpartition(".")[2] not in _NOT_CURVES]
    names.sort(key=_place)
    varied = [name for name in names if name == "loss" or len(set(curves[name]) - {None}) > 1]
    items = [f"{name} {_curve(curves[name])}" for name in varied[:count]]
    return text.wrap("curves", items, width, "    ") if items else []


def _place(name: str) -> int:
    begin = name.partition("/")[0]
    return _FIRST.index(begin) if begin in _FIRST else len(_FIRST) + begin.startswith(_ASIDE)


def _curve(every: Sequence[float | None]) -> str:
    values = [value for value in every if value is not None]  # some are measured on some steps only
    tenth = max(1, len(values) // 10)
    first, last = text.mean(values[:tenth]), text.mean(values[-tenth:])
    return f"{text.number(first)} {text.sparkline(values)} {text.number(last)}"


TRAINING_SHOWN = ("final", "gradients", "entropy", "speed", "memory")
"""The metrics that are told here."""


def training_lines(metrics: Mapping[str, Any], width: int) -> list[str]:
    """Nothing for what is no training, or was trained by a version that kept less."""
    rows = (("terms", _terms(metrics)), ("speed", _speed(metrics)), ("memory", _memory(metrics)))
    return [line for label, items in rows if items for line in text.wrap(label, items, width, " · ")]


def _terms(metrics: Mapping[str, Any]) -> list[str]:
    """Each number of the last tenth of the steps; of a term also its gradient, of a part also the entropy."""
    final, gradients, entropy = (metrics.get(name, {}) for name in TRAINING_SHOWN[:3])
    items = [f"loss {text.number(final['loss'])}"] if "loss" in final else []
    for name, norm in gradients.items():
        items.append(f"{name} {text.number(final.get(name))}, ∇ {text.number(norm)}")
    rest = {name: value for name, value in final.items() if name not in ("loss", *gradients)}
    items += [f"{name} {text.number(value)}" for name, value in rest.items()]
    return items + [f"entropy/{part} {text.number(value)}" for part, value in entropy.items()]


def _speed(metrics: Mapping[str, Any]) -> list[str]:
    """Tokens a second and where the time and the work went."""
    found = metrics.get("speed", {})
    if "tokens_per_s" not in found:
        return []
    mfu = [f"{_share(found['mfu'])} of the device's peak"] if found.get("mfu") is not None else []
    return [
        f"{text.number(round(found['tokens_per_s']))} tokens/s", *mfu, f"{_share(found['wait'])} waiting for data",
        f"{_share(found['padding'])} padding", f"{text.human_time(found['seconds'])} in steps",
    ]  # fmt: skip


def _memory(metrics: Mapping[str, Any]) -> list[str]:
    """The most that a process took, beside what was expected."""
    found = metrics.get("memory", {})
    if not found.get("peak"):
        return []
    expected = [f"{text.human_size(found['estimate'])} expected"] if found.get("estimate") else []
    return [f"{text.human_size(found['peak'])} at most ({found['device']})", *expected]


def _share(value: float) -> str:
    return f"{100 * value:.1f} %"


MOST_CHILDREN = 12
_MEASURED = ("reward", "accuracy", "margin", "nll")
_SHOWN_ELSEWHERE = {
    "what",
    "watch",
    "say",
    "scores",
    "suite",
    "data",
    "scorer",
    "selection",
    "runtime",
    *TRAINING_SHOWN,
}


@dataclass(frozen=True)
class Page:
    """One artifact with its surroundings; times in seconds since 1970."""

    manifest: Manifest
    folder: Path
    tags: tuple[str, ...]
    verified: float | None
    parents: tuple[Link, ...]
    children: tuple[tuple[str, str], ...]
    scores: tuple[Score, ...]
    curves: Curves
    departures: tuple[str, ...] | None = None
    """Settings that are not the family's; None for a model of no family."""

    @property
    def name(self) -> str:
        """What to type for it: its first tag, else its ref."""
        return self.tags[0] if self.tags else self.manifest.ref


def collect(store: Store, manifest: Manifest) -> Page:
    """Read what there is to say about an artifact; other artifacts that cannot be read are left out."""
    unreadable: list[AdpaError] = []
    artifacts = store.artifacts(unreadable.append)
    by_id = {other.id: other for other in artifacts}
    folder = store.folder(manifest.ref)
    return Page(
        manifest,
        folder,
        tuple(tag for tag, artifact in store.tags().items() if artifact == manifest.id),
        verified_at(store, manifest.id),
        tuple(made_from(manifest, by_id)),
        tuple(used_by(manifest, artifacts)),
        tuple(scores(manifest) or by_model(artifacts).get(manifest.id, ())),
        read_curves(folder),
        None if (found := departures(manifest, by_id)) is None else tuple(found),
    )


def screen(page: Page, width: int, now: float) -> str:
    """The page for a terminal."""
    manifest = page.manifest
    tags = f"  tag {' '.join(page.tags)}" if page.tags else ""
    seen = "not verified yet" if page.verified is None else f"verified {text.human_age(now - page.verified)} ago"
    state = f"repaired {manifest.repaired.get('at', '')}, {seen}" if manifest.repaired else f"complete, {seen}"
    count = len(manifest.files)
    size = f"{count} file{'s' * (count != 1)}, {text.human_size(manifest.size)}"
    lines = [text.cut(f"{manifest.ref}{tags}  {state}  {size}", width)]
    if "what" in manifest.metrics:
        lines += text.wrap("what", [what(manifest)], width)
    lines += text.wrap("made by", [str(manifest.made.get("command", "?")), _effort(manifest, now)], width, "     ")
    lines += text.wrap("method" if "method" in manifest.spec else "spec", settings(manifest.spec), width)
    if page.departures:
        lines += text.wrap("differs", ["from the family's defaults:", *page.departures], width)
    if tuned := manifest.metrics.get("runtime"):
        lines += text.wrap("runtime", [f"{key} {text.brief(value)}" for key, value in tuned.items()], width)
    lines += text.beside(_parents(page.parents), _children(page.children), width)
    lines += _scores(page.scores, manifest, width)
    lines += training_lines(manifest.metrics, width)
    lines += _metrics(manifest, width)
    lines += _points(manifest.metrics.get("selection", {}), width)
    lines += curve_lines(page.curves, width)
    watch = manifest.metrics.get("watch", [])
    for warning in [watch] if isinstance(watch, str) else watch:
        lines += text.wrap("watch", str(warning).split(), width, " ")
    following = next_commands(page)
    return "\n".join(lines + (text.wrap("next", following, width, " · ") if following else [])) + "\n"


def _effort(manifest: Manifest, now: float) -> str:
    made = manifest.made
    where = f" on {made['device'] if 'device' in made else made['host']}" if {"device", "host"} & made.keys() else ""
    return f"{text.human_time(float(made.get('seconds', 0)))}{where}, {text.human_age(now - manifest.at)} ago"


def settings(spec: Mapping[str, Any]) -> list[str]:
    """A spec as items `name value`: the method with its source first, its parameters, the rest without what is unset.

    A parameter at a default that the paper does not give says where the default comes from: [release] or [ours].
    """
    params = spec.get("params")
    origins = _origins(spec) if isinstance(params, Mapping) else {}
    items = [_method(str(spec["method"]))] if "method" in spec else []
    for key, value in text.flat(params if isinstance(params, Mapping) else {}).items():
        default, origin = origins.get(key, (None, "paper"))
        items.append(f"{key} {text.brief(value)}" + (f" [{origin}]" if origin != "paper" and value == default else ""))
    rest = text.flat({key: value for key, value in spec.items() if key not in ("method", "method_version", "params")})
    return items + [f"{key} {text.cut(text.brief(value), 60)}" for key, value in rest.items() if value is not None]


def _method(name: str) -> str:
    try:
        return f"{name} ({methods.load(name).source})"
    except UsageError:
        return name


def _origins(spec: Mapping[str, Any]) -> dict[str, tuple[Any, str]]:
    try:
        params = methods.load(str(spec.get("method"))).params
    except UsageError:  # made by another version, with a method that this one lacks
        return {}
    return {
        field.name: (field.default, str(field.metadata.get("origin", "paper"))) for field in dataclasses.fields(params)
    }


def _parents(links: Collection[Link]) -> list[str]:
    lines = [f"  {link.branch}{link.ref}{'  ' if link.ref else ''}{link.text}  ({link.role})" for link in links]
    return ["made from", *lines] if lines else []


def _children(children: Sequence[tuple[str, str]]) -> list[str]:
    lines = [f"  {ref}  {purpose}" for ref, purpose in children[:MOST_CHILDREN]]
    if len(children) > MOST_CHILDREN:
        lines.append(f"  … {len(children) - MOST_CHILDREN} more")
    return ["used by", *lines] if lines else []


def _scores(found: Collection[Score], manifest: Manifest, width: int) -> list[str]:
    if not found:
        return []
    rows = [
        (score.label, score.text, f"against {score.against}" if score.against else "",
         "" if score.ref == manifest.ref else score.ref)
        for score in found
    ]  # fmt: skip
    head = ("scores", "", "", "")
    return [line for line in text.table(head, [(f"  {row[0]}", *row[1:]) for row in rows], width, right=(1,)) if line]


def _metrics(manifest: Manifest, width: int) -> list[str]:
    rest = {key: value for key, value in manifest.metrics.items() if key not in _SHOWN_ELSEWHERE}
    items = [f"{key} {text.cut(text.brief(value), 60)}" for key, value in text.flat(rest).items() if value != []]
    return text.wrap("metrics", items, width) if items else []


def _points(selection: Mapping[str, Any], width: int) -> list[str]:
    """Whose weights were selected, and what was measured at each point of the training."""
    if not selection:
        return []
    items = [f"step {selection['step']} ({selection['rule']})"]
    for point in selection["points"]:
        numbers = [f"{name} {text.number(value)}" for name, value in point.items() if name in _MEASURED]
        items.append(" ".join([f"{point['step']}:", *numbers]) if numbers else f"step-{point['step']:06d}")
    return text.wrap("selected", items, width, " · ")


def next_commands(page: Page) -> list[str]:
    """What one does with such an artifact."""
    name, stage = page.name, page.manifest.stage
    if stage == "reward-model":
        return [
            f"adpa eval MODEL --reward-model {name}",
            f"adpa distill --method NAME --student MODEL --select best --reward-model {name}",
            f"adpa show {name} --recipe > again.toml",
        ]
    if any(file.endswith(".safetensors") and "/" not in file for file in page.manifest.files):
        return [
            f"adpa chat {name}",
            f"adpa eval {name}",
            f"vllm serve $(adpa path {name})",
            f"adpa export {name} DIR --to hf",
            f"adpa show {name} --recipe > again.toml",
        ]
    if stage == "rollout":
        return [f"adpa show {name} --row 1", f"adpa cache-teacher --teacher MODEL --rollouts {name}"]
    if stage == "cache-teacher":
        return [f"adpa show {name} --row 1", f"adpa distill --method NAME --student MODEL --cache {name}"]
    return [f"adpa show {ref}" for ref in (link.ref for link in page.parents if link.role == "model" and link.ref)][:1]


def tsv(page: Page) -> str:
    """The page as uncut lines of name and value, values as JSON unless they are text."""
    flat = text.flat(record(page))
    plain = {
        key: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) for key, value in flat.items()
    }
    return text.tsv(plain.items())


def record(page: Page) -> dict[str, Any]:
    """The page as JSON: the manifest and what surrounds it."""
    return {
        **dataclasses.asdict(page.manifest),
        "ref": page.manifest.ref,
        "path": str(page.folder),
        "tags": list(page.tags),
        "verified": page.verified,
        "made_from": [
            {"role": link.role, "ref": link.ref, "what": link.text, "depth": link.depth} for link in page.parents
        ],
        "used_by": [{"ref": ref, "what": purpose} for ref, purpose in page.children],
        "scores": [score_record(score) for score in page.scores],
        "differs": None if page.departures is None else list(page.departures),
    }
