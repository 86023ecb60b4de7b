"""The page of an artifact: settings and where they depart from the family, scores, lineage, training, curves."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adpa_cli import stages
from adpa_cli.data.templates import TEMPLATES
from adpa_cli.errors import UsageError
from adpa_cli.families import Family, family_of_base, stage_settings
from adpa_cli.lab import TEMPLATE
from adpa_cli.report import text
from adpa_cli.report.adapter import Facts, facts_of
from adpa_cli.report.lineage import Link, base_name, made_from, used_by, what
from adpa_cli.report.scores import Score, by_model, scores_of
from adpa_cli.spec import TrainSpec
from adpa_cli.stages import every
from adpa_cli.stages._noise import sentence
from adpa_cli.stages.eval import EVAL
from adpa_cli.stages.training import DISTILL, method_of
from adpa_cli.store.manifest import Manifest, utc
from adpa_cli.store.store import Store, verified_at

if TYPE_CHECKING:
    from adpa_cli.methods import Method

Artifacts = Mapping[str, Manifest]
FILE_NAME = "metrics.jsonl"
METRICS = ("final", "gradients", "entropy", "update", "noise", "speed", "memory", "selection")
"""The metrics of a manifest that the lines of this file show."""
_ABOUT_STEPS = {"step", "epoch", "lr", "seconds", "time", "at", "tokens", "of", "rows", "tokens_per_device", "padding"}
"""Columns that say something of the steps, and not of what they learn."""
_FIRST = ("loss", "advantage", "entropy", "length")
_LAST = "grad_norm"
POINT_METRICS = ("reward", "accuracy", "margin", "nll")
"""What the points of a training may be selected by."""

Curves = Mapping[str, Sequence[float | None]]

MOST_CHILDREN = 12
_SHOWN_ELSEWHERE = {"what", "watch", "say", "scores", "suite", "data", "scorer", "measured", "runtime", *METRICS}


@dataclass(frozen=True)
class Page:
    """One artifact with its surroundings; times in seconds since 1970."""

    manifest: Manifest
    folder: Path
    tags: tuple[str, ...]
    verified: float | None
    parents: list[Link]
    children: list[tuple[str, str]]
    scores: Sequence[Score]
    curves: Curves
    non_defaults: list[str] | None = None
    """Settings that are not the family's; None for a model of no family."""
    adapter: Facts | None = None
    """What there is to say of an adapter; None for anything else."""

    @property
    def name(self) -> str:
        """What to type for it: its first tag, else its ref."""
        return self.tags[0] if self.tags else self.manifest.ref


def collect(store: Store, manifest: Manifest) -> Page:
    """Read what there is to say about an artifact; other artifacts that cannot be read are left out."""
    artifacts = store.artifacts(lambda error: None)
    by_id = {other.id: other for other in artifacts}
    folder = store.folder(manifest.ref)
    return Page(
        manifest,
        folder,
        tuple(tag for tag, artifact in store.tags().items() if artifact == manifest.id),
        verified_at(store, manifest.id),
        made_from(manifest, by_id),
        used_by(manifest, artifacts),
        scores_of(manifest, by_model(artifacts)),
        read_curves(folder),
        non_defaults(manifest, by_id),
        facts_of(folder),
    )


def screen(page: Page, width: int, now: float, is_coloured: bool = False) -> str:
    """The page for a terminal: results first, then what they were made from and by which settings."""
    manifest, metrics = page.manifest, page.manifest.metrics
    lines = [text.cut(_head(page, now), width)]
    if "what" in metrics:
        lines += text.wrap("what", [what(manifest)], width)
    lines += _scores(page, width)
    lines += curve_lines(page.curves, width)
    lines += training_lines(metrics, width)
    lines += selection_lines(metrics, width)
    watch = metrics.get("watch", [])
    problem = [page.adapter.problem] if page.adapter and page.adapter.problem else []
    for warning in [*([watch] if isinstance(watch, str) else watch), *problem]:
        label, *words = text.wrap("warning", str(warning).split(), width, " ")
        lines += [text.styled("warning", text.WARNING, is_coloured) + label.removeprefix("warning"), *words]
    lines += text.wrap("made by", [str(manifest.made.get("command", "?")), _effort(manifest, now)], width, "     ")
    lines += _lineage(page, width)
    lines += text.wrap("method" if "method" in manifest.spec else "spec", spec_items(manifest.spec), width)
    if page.adapter:
        lines += text.wrap("adapter", page.adapter.items(), width, " · ")
    if page.non_defaults:
        lines += text.wrap("differs", ["from the family's defaults:", *page.non_defaults], width)
    if tuned := metrics.get("runtime"):
        lines += text.wrap("runtime", [f"{key} {text.number(value)}" for key, value in tuned.items()], width)
    lines += _metrics(manifest, width)
    if commands := next_commands(page):
        lines += text.wrap("next", commands, width, " · ")
    return "\n".join(lines) + "\n"


def _head(page: Page, now: float) -> str:
    manifest, count = page.manifest, len(page.manifest.files)
    tags = f"  tag {' '.join(page.tags)}" if page.tags else ""
    state = f"repaired {manifest.repaired.get('at', '')}" if manifest.repaired else "complete"
    verified = "not verified yet" if page.verified is None else f"verified {text.human_age(now - page.verified)} ago"
    size = f"{count} file{'s' * (count != 1)}, {text.human_size(manifest.size)}"
    return f"{manifest.ref}{tags}  {state}, {verified}  {size}"


def _effort(manifest: Manifest, now: float) -> str:
    made = manifest.made
    where = f" on {made['device'] if 'device' in made else made['host']}" if {"device", "host"} & made.keys() else ""
    return f"{text.human_time(float(made.get('seconds', 0)))}{where}, {text.human_age(now - manifest.at)} ago"


def _lineage(page: Page, width: int) -> list[str]:
    parents = [
        f"  {link.branch}{link.ref}{'  ' if link.ref else ''}{link.text}  ({link.role})" for link in page.parents
    ]
    children = [f"  {ref}  {purpose}" for ref, purpose in page.children[:MOST_CHILDREN]]
    if len(page.children) > MOST_CHILDREN:
        children.append(f"  … {len(page.children) - MOST_CHILDREN} more")
    left, right = ["made from", *parents], ["used by", *children]
    return text.beside(left if parents else [], right if children else [], width)


def _scores(page: Page, width: int) -> list[str]:
    rows = [
        (f"  {s.label}", s.words(), s.opponent.strip(), "" if s.ref == page.manifest.ref else s.ref)
        for s in page.scores
    ]
    return [line for line in text.table(("scores", "", "", ""), rows, width, right=(1,)) if line] if rows else []


def _metrics(manifest: Manifest, width: int) -> list[str]:
    rest = {key: value for key, value in manifest.metrics.items() if key not in _SHOWN_ELSEWHERE}
    items = [f"{key} {text.cut(text.number(value), 60)}" for key, value in text.flat(rest).items() if value != []]
    return text.wrap("metrics", items, width) if items else []


def next_commands(page: Page) -> list[str]:
    """What one does with such an artifact, else a look at the model that it is about."""
    manifest = page.manifest
    stage = stages.every().get(manifest.stage)
    if stage is None and any(file.endswith(".safetensors") and "/" not in file for file in manifest.files):
        stage = DISTILL  # a later version's stage: what has weights is a model
    models = (link.ref for link in page.parents if link.role == "model" and link.ref)
    commands = stage.next_commands(page.name) if stage else []
    if page.adapter:  # which no program serves by its folder alone: adpa path says what to type
        commands = [f"adpa path {page.name}" if "$(adpa path" in command else command for command in commands]
    return commands or [f"adpa show {ref}" for ref in models][:1]


def record(page: Page) -> dict[str, Any]:
    """The page as JSON: the manifest and what surrounds it."""
    return {
        **dataclasses.asdict(page.manifest),
        "ref": page.manifest.ref,
        "path": str(page.folder),
        "tags": list(page.tags),
        "verified": None if page.verified is None else utc(page.verified),
        "made_from": [
            {"role": link.role, "ref": link.ref, "what": link.text, "depth": link.depth} for link in page.parents
        ],
        "used_by": [{"ref": ref, "what": purpose} for ref, purpose in page.children],
        "scores": [score.record() for score in page.scores],
        "differs": page.non_defaults,
        **({"adapter": page.adapter.record()} if page.adapter else {}),
    }


if TYPE_CHECKING:
    from adpa_cli.methods import Method


def spec_items(spec: Mapping[str, Any]) -> list[str]:
    """A spec as items `name value`: the method with its source first, its parameters, the rest without what is unset.

    A parameter at a default that the paper does not give says where the default comes from: [release] or [ours].
    """
    params = spec.get("params")
    method = _method(spec)
    items = [f"{spec['method']} ({method.source})" if method else str(spec["method"])] if "method" in spec else []
    fields = {field.name: field for field in dataclasses.fields(method.params)} if method else {}
    for key, value in text.flat(params if isinstance(params, Mapping) else {}).items():
        origin = fields[key].metadata.get("origin", "paper") if key in fields else "paper"
        is_default = origin != "paper" and value == fields[key].default
        items.append(f"{key} {text.number(value)}" + (f" [{origin}]" if is_default else ""))
    rest = text.flat({key: value for key, value in spec.items() if key not in ("method", "method_version", "params")})
    return items + [f"{key} {text.cut(text.number(value), 60)}" for key, value in rest.items() if value is not None]


def non_defaults(manifest: Manifest, artifacts: Artifacts) -> list[str] | None:
    """`key value (default)` of every setting that is not the family's, and another teacher or template.

    None for a model of no family.
    """
    base = base_name(manifest, artifacts, ("model", "aligned"))
    family = family_of_base(base)
    if family is None:
        return None
    defaults = _defaults(manifest, family, "student" if base == family.student else "teacher")
    spec = {**manifest.spec, **manifest.spec.get("params", {})}
    items = [
        f"{key} {text.number(spec[key])} ({text.number(default)})"
        for key, default in defaults.items()
        if key in spec and spec[key] != default
    ]
    teacher = _teacher(manifest, artifacts)
    if teacher and teacher != family.teacher:
        items.append(f"teacher {teacher}")
    usual = TEMPLATE if family.template == "tiny" else family.template and TEMPLATES[family.template].text
    return [*items, "template"] if usual and manifest.spec.get("template", usual) != usual else items


def _defaults(manifest: Manifest, family: Family, side: str) -> dict[str, Any]:
    """What the settings of a stage are when nobody says anything; of a later version's stage as of a training."""
    stage, method = manifest.stage, _method(manifest.spec)
    keys = [stage, f"{stage}.{side}", f"{stage}.{manifest.spec.get('method')}"]
    if manifest.spec.get("split") == "test":
        keys.append(f"{EVAL.name}.{stage}")
    classes = [every()[stage].spec if stage in every() else TrainSpec, *([method.params] if method else [])]
    plain = {
        f.name: f.default for cls in classes for f in dataclasses.fields(cls) if f.default is not dataclasses.MISSING
    }
    usual = {**plain, "dtype": family.dtype if issubclass(classes[0], TrainSpec) else family.inference}
    return {key: value for key, value in {**usual, **stage_settings(family, *keys)}.items() if key in plain}


def _method(spec: Mapping[str, Any]) -> Method | None:
    """The method of a training; None for no training, or one by a method that only another version has."""
    try:
        return method_of(str(spec["method"])) if spec.get("method") else None
    except UsageError:
        return None


def _teacher(manifest: Manifest, artifacts: Artifacts) -> str:
    """The name of the model whose signal it was trained on; empty without one."""
    caches = [artifacts[parent] for role, parent in manifest.parents() if role == "cache" and parent in artifacts]
    return base_name(caches[0], artifacts, ("aligned", "model")) if caches else ""


def read_curves(folder: Path) -> dict[str, list[float | None]]:
    """Every number of every step by name, None where a step has none; empty without the file.

    Lines that are no JSON object (a file cut off by a crash) are skipped.
    """
    try:
        lines = (folder / FILE_NAME).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    steps = []
    for line in lines:
        with contextlib.suppress(ValueError):
            if isinstance(step := json.loads(line), dict):
                steps.append({name: value for name, value in text.flat(step).items() if isinstance(value, int | float)})
    names = dict.fromkeys(name for step in steps for name, value in step.items() if not isinstance(value, bool))
    return {name: [float(step[name]) if name in step else None for step in steps] for name in names}


def curve_lines(curves: Curves, width: int, count: int = 4) -> list[str]:
    """`name  first curve last`: the loss first, then up to `count` - 1 other numbers that change."""
    varied = [name for name in curve_names(curves) if name == "loss" or len(set(curves[name]) - {None}) > 1]
    items = [f"{name} {_curve(curves[name])}" for name in varied[:count]]
    return text.wrap("curves", items, width, "    ") if items else []


def curve_names(curves: Curves) -> list[str]:
    """The numbers that say something of what steps learn, the most telling first."""
    names = (name for name in curves if not {name, name.rpartition(".")[2]} & _ABOUT_STEPS)
    return sorted(names, key=_order)


def _order(name: str) -> int:
    begin = name.partition("/")[0]
    return _FIRST.index(begin) if begin in _FIRST else len(_FIRST) + begin.startswith(_LAST)


def _curve(every: Sequence[float | None]) -> str:
    values = [value for value in every if value is not None]  # some are measured on some steps only
    tenth = max(1, len(values) // 10)
    first, last = text.mean(values[:tenth]), text.mean(values[-tenth:])
    return f"{text.number(first)} {text.sparkline(values)} {text.number(last)}"


def training_lines(metrics: Mapping[str, Any], width: int) -> list[str]:
    """Nothing for what is no training and has no sample in float32, or was made by a version that kept less."""
    rows = (
        ("terms", _terms(metrics)),
        ("update", _update(metrics)),
        ("noise", sentence(metrics["noise"]).split(", ") if "noise" in metrics else []),
        ("speed", _speed(metrics)),
        ("memory", _memory(metrics)),
    )
    return [line for label, items in rows if items for line in text.wrap(label, items, width, " · ")]


def _terms(metrics: Mapping[str, Any]) -> list[str]:
    """Each number of the last tenth of the steps; of a term also its gradient, of a part also the entropy."""
    final, gradients, entropy = (metrics.get(name, {}) for name in METRICS[:3])
    items = [f"loss {text.number(final['loss'])}"] if "loss" in final else []
    items += [f"{name} {text.number(final.get(name))}, ∇ {text.number(norm)}" for name, norm in gradients.items()]
    rest = {name: value for name, value in final.items() if name not in ("loss", *gradients)}
    items += [f"{name} {text.number(value)}" for name, value in rest.items()]
    return items + [f"entropy/{part} {text.number(value)}" for part, value in entropy.items()]


def _update(metrics: Mapping[str, Any]) -> list[str]:
    """How far the weights moved, how much of that the training's own products saw, and what rounding keeps of it."""
    update = metrics.get("update")
    if not update:
        return []
    seen, moved = update["seen"], text.number(100 * update["rms"])
    kept = [
        f"rounding to {dtype} keeps {_percent(seen[dtype])} ({_percent(share)} of weights differ)"
        for dtype, share in update["differ"].items()
    ]
    forward = f"the forward pass saw {_percent(seen['computed'])} of the change"
    return [f"weights moved by {moved} % (rms)", forward, *kept]


def _speed(metrics: Mapping[str, Any]) -> list[str]:
    """Tokens a second and where the time and the work went."""
    speed = metrics.get("speed", {})
    if "tokens_per_s" not in speed:
        return []
    mfu = [f"{_percent(speed['mfu'])} of the device's peak"] if speed.get("mfu") is not None else []
    return [
        f"{text.number(round(speed['tokens_per_s']))} tokens/s", *mfu, f"{_percent(speed['wait'])} waiting for data",
        f"{_percent(speed['padding'])} padding", f"{text.human_time(speed['seconds'])} in steps",
    ]  # fmt: skip


def _memory(metrics: Mapping[str, Any]) -> list[str]:
    """The most that a process took, beside what was expected."""
    memory = metrics.get("memory", {})
    if not memory.get("peak"):
        return []
    expected = [f"{text.human_size(memory['estimate'])} expected"] if memory.get("estimate") else []
    return [f"{text.human_size(memory['peak'])} at most ({memory['device']})", *expected]


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def selection_lines(metrics: Mapping[str, Any], width: int) -> list[str]:
    """Whose weights were selected, and what was measured at each point of the training."""
    selection = metrics.get("selection")
    if not selection:
        return []
    half = f" by the {selection['prompts']} half" if selection.get("prompts") == "validation" else ""
    items = [f"step {selection['step']} ({selection['rule']}{half})"]
    for point in selection["points"]:
        numbers = [f"{name} {text.number(value)}" for name, value in point.items() if name in POINT_METRICS]
        items.append(" ".join([f"{point['step']}:", *numbers]) if numbers else f"step-{point['step']:06d}")
    return text.wrap("selected", items, width, " · ")
