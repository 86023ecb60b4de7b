"""What an artifact was made from, and what was made from it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from adpa_cli.report.listing import what
from adpa_cli.report.scores import measured, scores
from adpa_cli.store.manifest import Manifest


@dataclass(frozen=True)
class Link:
    """One line of a lineage. `branch` draws its place in the tree; external content has an empty `ref`."""

    depth: int
    branch: str
    role: str
    ref: str
    text: str


def made_from(manifest: Manifest, artifacts: Mapping[str, Manifest]) -> list[Link]:
    """Everything an artifact rests on, nearest first, and what it read that follows from this, as far as it is kept.

    An artifact that was already shown is named again but not opened again; external content is named once.
    """
    return _open(manifest, artifacts, 0, "", {manifest.id})


def _open(manifest: Manifest, artifacts: Mapping[str, Manifest], depth: int, indent: str, seen: set[str]) -> list[Link]:
    flat = [
        (role, content)
        for role, value in sorted(manifest.inputs.items())
        for content in ([value] if isinstance(value, str) else value)
        if content not in seen
    ]
    flat += [(role, f"artifact:{digest}") for role, digest in manifest.derived() if digest in artifacts]
    links: list[Link] = []
    for place, (role, content) in enumerate(flat):
        kind, _, digest = content.partition(":")
        last = place == len(flat) - 1
        branch = indent + ("" if depth == 0 else "└ " if last else "├ ")
        parent = artifacts.get(digest)
        if kind != "artifact":
            links.append(Link(depth, branch, role, "", source(manifest.sources.get(content, {}), digest)))
            seen.add(content)
        elif parent is None:
            links.append(Link(depth, branch, role, digest[:12], "not in this store"))
        elif digest in seen:
            links.append(Link(depth, branch, role, parent.ref, "see above"))
        else:
            seen.add(digest)
            links.append(Link(depth, branch, role, parent.ref, what(parent)))
            deeper = indent + ("" if depth == 0 else "  " if last else "│ ")
            links += _open(parent, artifacts, depth + 1, deeper, seen)
    return links


def source(facts: Mapping[str, Any], digest: str) -> str:
    """Where external content came from: name@commit and rows, as far as it was recorded."""
    name = str(facts.get("name") or facts.get("repository") or digest[:12])
    commit = f"@{str(facts['commit'])[:7]}" if facts.get("commit") else ""
    rows = f" {facts['rows']:,} rows" if isinstance(facts.get("rows"), int) else ""
    return f"{name}{commit}{rows}"


def used_by(manifest: Manifest, artifacts: Iterable[Manifest]) -> list[tuple[str, str]]:
    """(ref, what for) of everything that was made from an artifact or read it; evaluations say what they found."""
    found = []
    for other in artifacts:
        if any(parent == manifest.id for _, parent in (*other.parents(), *other.derived())):
            found.append((other.ref, findings(other) if measured(other) == manifest.id else what(other)))
    return found


def findings(evaluation: Manifest) -> str:
    """The scores of an eval artifact in a line: reward-accuracy 68.1 ±1.7, win-rate 63.0 ±1.9 against sft/3f9c."""
    return ", ".join(
        f"{score.metric.replace('_', '-')} {score.text}{' against ' + score.against if score.against else ''}"
        for score in scores(evaluation)
    ) or what(evaluation)
