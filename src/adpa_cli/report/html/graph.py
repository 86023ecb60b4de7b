"""Where models come from, as a drawn graph from left to right; each node leads to its command below."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from adpa_cli.report import text
from adpa_cli.report.lineage import source, what
from adpa_cli.store.manifest import Manifest

WIDTH, HEIGHT, ACROSS, DOWN = 196, 46, 56, 14
"""Pixels of a node, and between two of them."""
LETTERS = 29
MOST = 40
"""Nodes that are drawn one by one; of more, those of one kind with the same origins are one."""


@dataclass(frozen=True)
class Node:
    """One artifact, several of one kind, or what came from outside."""

    key: str
    title: str
    text: str
    parents: tuple[str, ...]
    members: tuple[Manifest, ...] = ()


@dataclass(frozen=True)
class Placed:
    """A node with its corner in pixels."""

    node: Node
    x: int
    y: int


@dataclass(frozen=True)
class Graph:
    """The nodes, the paths of the edges, and the size of the whole in pixels."""

    nodes: Sequence[Placed]
    edges: Sequence[str]
    width: int
    height: int
    members: Sequence[Manifest]
    """Every artifact, those that others rest on first."""


def graph(chosen: Sequence[Manifest], artifacts: Mapping[str, Manifest]) -> Graph:
    """The lineage of some artifacts, as far as the store has it."""
    members = _ancestors(chosen, artifacts)
    nodes = _nodes(members, artifacts)
    if len(nodes) > MOST:
        nodes = _merged(nodes)
    layers: dict[str, int] = {}
    for node in nodes:  # parents come before what rests on them
        layers[node.key] = 1 + max((layers[p] for p in node.parents if p in layers), default=-1)
    for node in nodes:  # what comes from outside stands right before what reads it first
        if not node.members:
            layers[node.key] = min((layers[o.key] for o in nodes if node.key in o.parents), default=1) - 1
    placed = _placed(nodes, layers)
    places = {each.node.key: each for each in placed}
    edges = [
        _path(places[parent], each)
        for each in placed
        for parent in dict.fromkeys(each.node.parents)
        if parent in places
    ]
    width = max((each.x for each in placed), default=0) + WIDTH + 2
    return Graph(placed, edges, width, max((each.y for each in placed), default=0) + HEIGHT + 2, members)


def _ancestors(chosen: Sequence[Manifest], artifacts: Mapping[str, Manifest]) -> list[Manifest]:
    """The chosen ones and all that they rest on, each once, parents first."""
    found: dict[str, Manifest] = {}

    def visit(manifest: Manifest) -> None:
        if manifest.id in found:
            return
        for _, parent in (*manifest.parents(), *manifest.derived()):
            if parent in artifacts:
                visit(artifacts[parent])
        found[manifest.id] = manifest

    for manifest in chosen:
        visit(manifest)
    return list(found.values())


def _nodes(members: Sequence[Manifest], artifacts: Mapping[str, Manifest]) -> list[Node]:
    outside: dict[str, Node] = {}
    nodes = []
    for manifest in members:
        parents = [parent for _, parent in (*manifest.parents(), *manifest.derived()) if parent in artifacts]
        for value in manifest.inputs.values():
            for content in [value] if isinstance(value, str) else value:
                kind, _, digest = content.partition(":")
                if kind != "artifact":
                    parents.append(content)
                    name = source(manifest.sources.get(content, {}), digest)
                    outside.setdefault(content, Node(content, kind, name, ()))
        nodes.append(Node(manifest.id, manifest.ref, what(manifest), tuple(parents), (manifest,)))
    return [*outside.values(), *nodes]


def _merged(nodes: Sequence[Node]) -> list[Node]:
    """The nodes with those of one stage, method and origin as one."""
    key_of: dict[str, str] = {}
    groups: dict[str, list[Node]] = {}
    for node in nodes:
        parents = sorted({key_of[parent] for parent in node.parents if parent in key_of})
        kind = [(m.stage, m.spec.get("method"), m.made.get("role")) for m in node.members] or node.key
        key = key_of[node.key] = f"{kind} {parents}"
        groups.setdefault(key, []).append(node)
    merged = []
    for key, group in groups.items():
        first = group[0]
        origins = tuple(dict.fromkeys(key_of[p] for node in group for p in node.parents if p in key_of))
        if len(group) == 1:
            merged.append(Node(key, first.title, first.text, origins, first.members))
            continue
        stage = first.members[0].stage if first.members else first.title
        method = str(first.members[0].spec.get("method") or "") if first.members else ""
        members = tuple(member for node in group for member in node.members)
        merged.append(Node(key, f"{len(group)} × {stage}", method or first.text, origins, members))
    return merged


def _placed(nodes: Sequence[Node], layers: Mapping[str, int]) -> list[Placed]:
    """Columns by layer; in each, nodes stand at the mean height of their parents as far as there is room."""
    ys: dict[str, float] = {}
    placed = []
    for layer in range(max(layers.values(), default=-1) + 1):
        own = [node for node in nodes if layers[node.key] == layer]

        def height(node: Node) -> float:
            known = [ys[parent] for parent in node.parents if parent in ys]
            return sum(known) / len(known) if known else float("inf")

        y = 1.0
        for node in sorted(own, key=height):
            wanted = height(node)
            y = max(y, wanted) if wanted != float("inf") and len(own) <= 3 else y
            ys[node.key] = y
            placed.append(Placed(node, 1 + layer * (WIDTH + ACROSS), round(y)))
            y += HEIGHT + DOWN
    return placed


def _path(start: Placed, end: Placed) -> str:
    """A curve from the right side of one node to the left side of another."""
    x, y, to_x, to_y = start.x + WIDTH, start.y + HEIGHT // 2, end.x, end.y + HEIGHT // 2
    middle = (to_x - x) // 2
    return f"M{x} {y}C{x + middle} {y} {to_x - middle} {to_y} {to_x} {to_y}"


def words(node: Node) -> tuple[str, str]:
    """The two lines in a node."""
    return text.cut(node.title, LETTERS - 2), text.cut(node.text, LETTERS + 3)


def numbers(found: Graph) -> list[list[Any]]:
    """Every artifact with what it is, from what and by which command, head first."""
    rows: list[list[Any]] = [["id", "what", "inputs", "command", "seconds", "at"]]
    for m in found.members:
        inputs = " ".join(f"{role}={digest[:12]}" for role, digest in m.parents())
        rows.append([m.ref, what(m), inputs, m.made.get("command", ""), m.made.get("seconds"), m.made["at"]])
    return rows
