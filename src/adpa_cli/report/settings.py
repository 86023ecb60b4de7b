"""The settings of an artifact: as they are shown, and those that are not the defaults of its family."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from adpa_cli import methods
from adpa_cli.data.chat import DEFAULT_TEMPLATES
from adpa_cli.errors import UsageError
from adpa_cli.families import Family, family_of_base, stage_settings
from adpa_cli.lab import TEMPLATE
from adpa_cli.report import text
from adpa_cli.report.lineage import base_name
from adpa_cli.spec import TrainSpec
from adpa_cli.stages import every
from adpa_cli.stages.eval import EVAL
from adpa_cli.store.manifest import Manifest

Artifacts = Mapping[str, Manifest]


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
    usual = TEMPLATE if family.template == "tiny" else DEFAULT_TEMPLATES[family.template].text
    return [*items, "template"] if manifest.spec.get("template", usual) != usual else items


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
    return {key: value for key, value in {**plain, **stage_settings(family, *keys)}.items() if key in plain}


def _method(spec: Mapping[str, Any]) -> methods.Method | None:
    """The method of a training; None for no training, or one by a method that only another version has."""
    try:
        return methods.load(str(spec["method"])) if spec.get("method") else None
    except UsageError:
        return None


def _teacher(manifest: Manifest, artifacts: Artifacts) -> str:
    """The name of the model whose signal it was trained on; empty without one."""
    caches = [artifacts[parent] for role, parent in manifest.parents() if role == "cache" and parent in artifacts]
    return base_name(caches[0], artifacts, ("aligned", "model")) if caches else ""
