"""Where an artifact departs from the defaults of its family."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from typing import Any

from adpa_cli import methods
from adpa_cli.data.chat import DEFAULT_TEMPLATES
from adpa_cli.errors import UsageError
from adpa_cli.families import FAMILIES, Family, stage_settings
from adpa_cli.lab import TEMPLATE
from adpa_cli.report import text
from adpa_cli.report.listing import base_name
from adpa_cli.spec import CaptureSpec, EvalSpec, RewardsSpec, RolloutSpec, StartSpec, TrainSpec
from adpa_cli.store.manifest import Manifest

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
