"""What an artifact is, in a line; what it was made from, and what was made from it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from adpa_cli.report.scores import measured_model, scores
from adpa_cli.store.manifest import Manifest


@dataclass(frozen=True)
class Link:
    """One line of a lineage. `branch` draws its place in the tree; external content has an empty `ref`."""

    depth: int
    branch: str
    role: str
    ref: str
    text: str


def what(manifest: Manifest) -> str:
    """The short text its stage wrote about an artifact, else the stage."""
    return " ".join(str(manifest.metrics.get("what") or manifest.stage).split())


def base_name(manifest: Manifest, artifacts: Mapping[str, Manifest], roles: tuple[str, ...]) -> str:
    """The name of the model from outside that an artifact goes back to; empty where the store lacks it."""
    content = next((str(manifest.inputs[role]) for role in roles if role in manifest.inputs), "")
    kind, _, digest = content.partition(":")
    if kind != "artifact":
        return str(manifest.sources.get(content, {}).get("name", ""))
    return base_name(artifacts[digest], artifacts, roles) if digest in artifacts else ""


def starts(manifest: Manifest, artifacts: Mapping[str, Manifest]) -> list[str]:
    """The models that one was trained from, nearest first, as evaluations name them, as far as the store has them."""
    content = str(manifest.inputs.get("model", ""))
    kind, _, digest = content.partition(":")
    if kind != "artifact":
        facts = manifest.sources.get(content, {})
        return [str(facts.get("name", "")), f"{facts.get('name')}@{str(facts.get('commit', ''))[:4]}", content]
    below = artifacts.get(digest)
    return [] if below is None else [below.ref, *starts(below, artifacts)]


def made_from(manifest: Manifest, artifacts: Mapping[str, Manifest]) -> list[Link]:
    """Everything an artifact rests on, nearest first, and what it read that follows from this, as far as it is kept.

    An artifact that was already shown is named again but not opened again; external content is named once.
    """
    return _links(manifest, artifacts, 0, "", {manifest.id})


def _links(
    manifest: Manifest, artifacts: Mapping[str, Manifest], depth: int, indent: str, shown: set[str]
) -> list[Link]:
    inputs = [
        (role, content)
        for role, value in sorted(manifest.inputs.items())
        for content in ([value] if isinstance(value, str) else value)
        if content not in shown
    ]
    inputs += [(role, f"artifact:{digest}") for role, digest in manifest.derived() if digest in artifacts]
    links: list[Link] = []
    for place, (role, content) in enumerate(inputs):
        kind, _, digest = content.partition(":")
        mark, deeper = ("", "") if depth == 0 else ("└ ", "  ") if place == len(inputs) - 1 else ("├ ", "│ ")
        parent = artifacts.get(digest) if kind == "artifact" else None
        if kind != "artifact":
            ref, words = "", source(manifest.sources.get(content, {}), digest)
            shown.add(content)
        elif parent is None:
            ref, words = digest[:12], "not in this store"
        else:
            ref, words = parent.ref, "see above" if digest in shown else what(parent)
        links.append(Link(depth, indent + mark, role, ref, words))
        if parent is not None and digest not in shown:
            shown.add(digest)
            links += _links(parent, artifacts, depth + 1, indent + deeper, shown)
    return links


def content_name(
    content: str, sources: Mapping[str, Mapping[str, Any]], artifact: Callable[[str], Manifest | None]
) -> str:
    """An artifact by its ref, content from outside by its source; by its digest what is not in the store."""
    kind, _, digest = content.rpartition(":")
    manifest = artifact(digest) if kind == "artifact" else None
    return manifest.ref if manifest else source(sources.get(content, {}), digest)


def source(facts: Mapping[str, Any], digest: str) -> str:
    """Where external content came from: name@commit and rows, as far as it was recorded."""
    name = str(facts.get("name") or facts.get("repository") or digest[:12])
    commit = f"@{str(facts['commit'])[:7]}" if facts.get("commit") else ""
    rows = f" {facts['rows']:,} rows" if isinstance(facts.get("rows"), int) else ""
    return f"{name}{commit}{rows}"


def used_by(manifest: Manifest, artifacts: Iterable[Manifest]) -> list[tuple[str, str]]:
    """(ref, what for) of everything that was made from an artifact or read it; of its evaluations the scores."""
    return [
        (other.ref, score_line(other) if measured_model(other) == manifest.id else what(other))
        for other in artifacts
        if any(parent == manifest.id for _, parent in (*other.parents(), *other.derived()))
    ]


def score_line(evaluation: Manifest) -> str:
    """The scores of an eval artifact in a line: reward-accuracy 68.1 ±1.7, win-rate 63.0 ±1.9 against sft/3f9c."""
    numbers = (f"{score.metric.replace('_', '-')} {score.words()}{score.opponent}" for score in scores(evaluation))
    return ", ".join(numbers) or what(evaluation)
