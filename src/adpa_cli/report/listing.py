"""`adpa show`: what is in the store, newest first, with the numbers that may be compared."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adpa_cli.errors import AdpaError
from adpa_cli.families import CHAINS, FAMILIES
from adpa_cli.report import text
from adpa_cli.report.scores import WIN, Score, by_model, measured
from adpa_cli.store.manifest import Manifest
from adpa_cli.store.store import Store, Unfinished

HEADER = ("ID", "WHAT", "TAG", "SIZE", "AGE", "SCORE", "WIN vs start")
SHORT = 12


@dataclass(frozen=True)
class Row:
    """One artifact. `comparable` says that its score is of the kind that the head of the list names."""

    manifest: Manifest
    what: str
    tags: tuple[str, ...]
    score: Score | None
    comparable: bool
    win: Score | None
    is_start: bool
    aside: bool

    @property
    def score_text(self) -> str:
        return "" if self.score is None else self.score.text + ("" if self.comparable else " †")

    @property
    def win_text(self) -> str:
        return self.win.text if self.win else "50 (start)" if self.is_start else ""


@dataclass(frozen=True)
class Listing:
    """The whole store; `rows` are newest first, those `aside` (rehearsals, evaluations) are shown on request only."""

    root: Path
    rows: tuple[Row, ...]
    unfinished: tuple[Unfinished, ...]
    bytes: int
    free: int
    score: Score | None
    errors: tuple[AdpaError, ...]


def what(manifest: Manifest) -> str:
    """The short text its stage wrote about an artifact, else the stage."""
    return " ".join(str(manifest.metrics.get("what") or manifest.stage).split())


def title(manifest: Manifest, artifacts: Mapping[str, Manifest]) -> str:
    """A trained student by its methods and its family, `adpa+ γ 1  tiny`; anything else as its stage wrote it."""
    words, mark, _ = what(manifest).partition(" from ")
    if manifest.stage != "distill" or not mark:
        return what(manifest)
    start = artifacts.get(str(manifest.inputs.get("model")).removeprefix("artifact:"))
    before = start.spec.get("method") if start is not None and start.stage == "distill" else None
    for name, chain in CHAINS.items():
        if chain == (before, manifest.spec["method"]):
            words = words.replace(chain[-1], name, 1)
            before = None
    base = base_name(manifest, artifacts, ("model",))
    family = next((family.alias for family in FAMILIES if base == family.student), base.rpartition("/")[2])
    return f"{words}{f' after {before}' if before else ''}  {family}".rstrip()


def base_name(manifest: Manifest, artifacts: Mapping[str, Manifest], roles: tuple[str, ...]) -> str:
    """The name of the model from outside that an artifact goes back to; empty when it is not known."""
    content = next((str(manifest.inputs[role]) for role in roles if role in manifest.inputs), "")
    kind, _, digest = content.partition(":")
    if kind != "artifact":
        return str(manifest.sources.get(content, {}).get("name", ""))
    return base_name(artifacts[digest], artifacts, roles) if digest in artifacts else ""


def collect(store: Store) -> Listing:
    """Read the store. A manifest that cannot be read is kept as an error and does not hide the others."""
    errors: list[AdpaError] = []
    artifacts = store.artifacts(errors.append)
    scored = by_model(artifacts)
    real = (manifest for manifest in artifacts if not manifest.made.get("smoke"))
    newest = next((score for manifest in real for score in _plain_scores(scored, measured(manifest))), None)
    starts = {score.against for found in scored.values() for score in found if score.metric == WIN}
    names: dict[str, list[str]] = {}
    for tag, artifact in store.tags().items():
        names.setdefault(artifact, []).append(tag)
    by_id = {manifest.id: manifest for manifest in artifacts}
    rows = []
    for manifest in artifacts:
        mine = _plain_scores(scored, manifest.id)
        alike = [score for score in mine if newest is not None and score.kind == newest.kind]
        wins = [score for score in scored.get(manifest.id, []) if score.metric == WIN]
        aside = bool(manifest.made.get("smoke")) or measured(manifest) in by_id
        rows.append(
            Row(
                manifest, title(manifest, by_id), tuple(names.get(manifest.id, ())), next(iter(alike or mine), None),
                bool(alike) or newest is None, next(iter(wins), None), manifest.ref in starts, aside,
            )
        )  # fmt: skip
    total = sum(manifest.size for manifest in artifacts)
    free = shutil.disk_usage(store.root).free
    return Listing(store.root, tuple(rows), tuple(store.unfinished()), total, free, newest, tuple(errors))


def _plain_scores(scored: dict[str, list[Score]], model: str | None) -> list[Score]:
    return [score for score in scored.get(model or "", []) if score.metric != WIN]


def screen(listing: Listing, width: int, now: float, everything: bool = False, limit: int = SHORT) -> str:
    """The list for a terminal of `width` columns; without `everything` the `limit` that tell most, newest first."""
    rows = listing.rows if everything else _telling(listing.rows, limit)
    cells = [
        (
            row.manifest.ref, row.what, " ".join(row.tags) or "–", text.human_size(row.manifest.size),
            text.human_age(now - row.manifest.at), row.score_text, row.win_text,
        )
        for row in rows
    ]  # fmt: skip
    lines = _head(listing, width)
    lines += text.table(HEADER, cells, width, flexible=1, expendable=(3, 4, 2, 6, 5)) if rows else []
    if len(rows) < len(listing.rows):
        lines.append(f"… {len(listing.rows) - len(rows)} more (adpa show --all)")
    if any(row.score and not row.comparable for row in rows):
        lines += text.wrap("", ["† measured in another way;", "see adpa show ID"], width, " ")
    lines += unfinished(listing.unfinished, width, now)
    lines += [text.cut(f"unreadable: {error.message}", width) for error in listing.errors]
    return "\n".join(lines) + "\n"


def _telling(rows: Sequence[Row], limit: int) -> tuple[Row, ...]:
    """The `limit` rows to see first, in their order: named or measured ones and starts before the rest, none aside."""
    shown = [row for row in rows if not row.aside]
    ranked = sorted(shown, key=lambda row: not (row.tags or row.score or row.win or row.is_start))
    kept = {row.manifest.id for row in ranked[:limit]}
    return tuple(row for row in shown if row.manifest.id in kept)


def _head(listing: Listing, width: int) -> list[str]:
    count = len(listing.rows)
    left = (
        f"{tilde(listing.root)}   {count} artifact{'s' * (count != 1)}, {text.human_size(listing.bytes)}, "
        f"disk free {text.human_size(listing.free)}"
    )
    right = f"score: {listing.score.label}" if listing.score else ""
    space = width - text.width_of(left) - text.width_of(right)
    if not right or space >= 3:
        return [text.cut(left + " " * space * bool(right) + right, width)]
    return [text.cut(left, width), text.cut(right, width)]


def tilde(path: Path) -> str:
    """A path below the home folder starts with ~."""
    return f"~/{path.relative_to(Path.home())}" if path.is_relative_to(Path.home()) else str(path)


def unfinished(work: Sequence[Unfinished], width: int, now: float) -> list[str]:
    """What was begun, how far it is, and the command that goes on (never cut: it is there to be copied)."""
    lines = ["unfinished"] if work else []
    for item in work:
        state = "being built by " + item.holder if item.holder else "stopped " + text.human_age(now - item.at) + " ago"
        by = f" by {item.stopped}" if item.stopped and not item.holder else ""
        lines.append(text.cut(f"{item.ref}  {_progress(item.progress)}{state}{by}", width))
        if not item.holder:
            lines.append(f"  go on: {item.command}")
    return lines


def _progress(progress: Any) -> str:
    step, of = progress.get("step"), progress.get("of")
    if isinstance(step, int) and isinstance(of, int) and of > 0:
        return f"{100 * step // of} %, step {step:,} of {of:,}, "
    return f"step {step:,}, " if isinstance(step, int) else ""


def tsv(listing: Listing, everything: bool = False) -> str:
    """The same columns, uncut, without a head: bytes, ISO time, plain numbers; rehearsals only with `everything`."""
    return text.tsv(
        (
            row.manifest.ref, row.what, ",".join(row.tags), row.manifest.size, row.manifest.made["at"],
            "" if row.score is None else row.score.value, "" if row.win is None else row.win.value,
        )
        for row in listing.rows if everything or not row.manifest.made.get("smoke")
    )  # fmt: skip


def record(listing: Listing) -> dict[str, Any]:
    """The list as JSON."""
    return {
        "store": str(listing.root),
        "bytes": listing.bytes,
        "free": listing.free,
        "artifacts": [
            {
                "id": row.manifest.ref, "full_id": row.manifest.id, "what": row.what, "tags": list(row.tags),
                "bytes": row.manifest.size, "at": row.manifest.made["at"], "score": score_record(row.score),
                "win": score_record(row.win), "smoke": bool(row.manifest.made.get("smoke")),
            }
            for row in listing.rows
        ],
        "unfinished": [
            {
                "id": item.ref, "command": item.command, "progress": dict(item.progress), "stopped": item.stopped,
                "at": item.at, "holder": item.holder,
            }
            for item in listing.unfinished
        ],
        "unreadable": [error.message for error in listing.errors],
    }  # fmt: skip


def score_record(score: Score | None) -> dict[str, Any] | None:
    """A score as JSON, with the eval artifact it is from."""
    if score is None:
        return None
    names = ("metric", "value", "low", "high", "n", "suite", "data", "scorer", "against", "ref")
    return {name: getattr(score, name) for name in names}
