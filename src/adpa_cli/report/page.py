"""`adpa show REF`: one artifact, what it is made from and what came of it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adpa_cli import methods
from adpa_cli.errors import AdpaError, UsageError
from adpa_cli.report import curves, text, training
from adpa_cli.report.departures import departures
from adpa_cli.report.lineage import Link, made_from, used_by
from adpa_cli.report.listing import score_record, what
from adpa_cli.report.scores import Score, by_model, scores
from adpa_cli.store.manifest import Manifest
from adpa_cli.store.store import Store
from adpa_cli.store.verify import verified_at

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
    *training.SHOWN,
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
    curves: curves.Curves
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
        curves.read(folder),
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
    lines += training.lines(manifest.metrics, width)
    lines += _metrics(manifest, width)
    lines += _points(manifest.metrics.get("selection", {}), width)
    lines += curves.lines(page.curves, width)
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
