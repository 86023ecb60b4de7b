"""`adpa show`: what is in the store, newest first, with the numbers that may be compared."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adpa_cli.errors import AdpaError
from adpa_cli.families import CHAINS, alias_of_base
from adpa_cli.machine import shown
from adpa_cli.report import text
from adpa_cli.report.lineage import base_name, starts, what
from adpa_cli.report.scores import WIN, Score, best_of, best_words, by_model, measured_model
from adpa_cli.stages import every
from adpa_cli.store.manifest import Manifest, utc
from adpa_cli.store.store import Store, Unfinished

HEADER = ("ID", "WHAT", "TAG", "SIZE", "AGE", "SCORE", "WIN vs start")
SHORT = 12


@dataclass(frozen=True)
class ListRow:
    """One artifact. `comparable` says that its score is of the kind that the head of the list names."""

    manifest: Manifest
    what: str
    tags: tuple[str, ...]
    score: Score | None
    comparable: bool
    win: Score | None
    is_start: bool
    aside: bool


@dataclass(frozen=True)
class Listing:
    """The whole store; `rows` are newest first.

    Those `aside`, which are evaluations and rehearsals without a tag, are shown on request only.
    """

    root: Path
    rows: tuple[ListRow, ...]
    unfinished: tuple[Unfinished, ...]
    bytes: int
    free: int
    score: Score | None
    errors: tuple[AdpaError, ...]


def title(manifest: Manifest, artifacts: Mapping[str, Manifest]) -> str:
    """A trained student by its methods and its family, `adpa+ γ 1  tiny`; anything else as its stage wrote it."""
    words, mark, _ = what(manifest).partition(" from ")
    if not _is_student(manifest) or not mark:
        return what(manifest)
    start = artifacts.get(str(manifest.inputs.get("model")).removeprefix("artifact:"))
    before = start.spec.get("method") if start is not None and _is_student(start) else None
    for name, chain in CHAINS.items():
        if chain == (before, manifest.spec["method"]):
            words = words.replace(chain[-1], name, 1)
            before = None
    base = base_name(manifest, artifacts, ("model",))
    family = alias_of_base(base, "student") or base.rpartition("/")[2]
    return f"{words}{f' after {before}' if before else ''}  {family}".rstrip()


def _is_student(manifest: Manifest) -> bool:
    """Whether the user chose the method that trained it."""
    return manifest.stage in every() and every()[manifest.stage].any_method


def collect(store: Store) -> Listing:
    """Read the store. A manifest that cannot be read is kept as an error and does not hide the others."""
    errors: list[AdpaError] = []
    artifacts = store.artifacts(errors.append)
    scores = by_model(artifacts)
    plain = {model: [score for score in column if score.metric != WIN] for model, column in scores.items()}
    wins = {model: [score for score in column if score.metric == WIN] for model, column in scores.items()}
    models = (measured_model(manifest) or "" for manifest in artifacts if not manifest.made.get("smoke"))
    newest = next((score for model in models for score in plain.get(model, ())), None)
    tags: dict[str, list[str]] = {}
    for tag, artifact in store.tags().items():
        tags.setdefault(artifact, []).append(tag)
    by_id = {manifest.id: manifest for manifest in artifacts}
    over_start: dict[str, Score] = {}
    for manifest in artifacts:
        own = starts(manifest, by_id)
        if win := next((win for win in wins.get(manifest.id, ()) if win.against in own), None):
            over_start[manifest.id] = win
    beaten = {win.against for win in over_start.values()}
    rows = []
    for manifest in artifacts:
        column = plain.get(manifest.id, [])
        alike = [score for score in column if newest is not None and score.kind == newest.kind]
        aside = (bool(manifest.made.get("smoke")) and manifest.id not in tags) or measured_model(manifest) in by_id
        rows.append(
            ListRow(
                manifest, title(manifest, by_id), tuple(tags.get(manifest.id, ())), next(iter(alike or column), None),
                bool(alike) or newest is None, over_start.get(manifest.id), manifest.ref in beaten,
                aside,
            )
        )  # fmt: skip
    total = sum(manifest.size for manifest in artifacts)
    free = shutil.disk_usage(store.root).free
    return Listing(store.root, tuple(rows), tuple(store.unfinished()), total, free, newest, tuple(errors))


def screen(
    listing: Listing, width: int, now: float, everything: bool = False, limit: int = SHORT, *, is_coloured: bool = False
) -> str:
    """The list for a terminal of `width` columns; without `everything` the `limit` that tell most."""
    rows = listing.rows if everything else _first_rows(listing.rows, limit)
    best = best_of(row.score for row in rows if row.comparable and row.score)
    cells = [
        (
            row.manifest.ref, row.what, " ".join(row.tags) or "–", text.human_size(row.manifest.size),
            text.human_age(now - row.manifest.at),
            best_words(row.score, best, is_coloured) + " †" * (not row.comparable) if row.score else "",
            row.win.words() if row.win else "50 (start)" * row.is_start,
        )
        for row in rows
    ]  # fmt: skip
    lines = _head(listing, width)
    lines += text.table(HEADER, cells, width, flexible=1, expendable=(3, 4, 6, 2, 5)) if rows else []
    if len(rows) < len(listing.rows):
        lines += [] if rows else ["only --smoke runs and evaluations"]
        lines.append(f"… {len(listing.rows) - len(rows)} more (adpa show --all)")
    if any(row.score and not row.comparable for row in rows):
        lines += text.wrap("", ["† not measured as the score named above;", "see: adpa show ID"], width, " ")
    lines += _unfinished(listing, width, now)
    lines += [
        text.cut(text.styled(f"unreadable: {error.message}", text.WORSE, is_coloured), width)
        for error in listing.errors
    ]
    return "\n".join(lines) + "\n"


def _first_rows(rows: Sequence[ListRow], limit: int) -> tuple[ListRow, ...]:
    """The `limit` rows to see first: named or measured ones and starts, then what they are made of, none aside."""
    shown = [row for row in rows if not row.aside]
    ranked = sorted(shown, key=lambda row: not (row.tags or row.score or row.win or row.is_start))
    return tuple(ranked[:limit])


def _head(listing: Listing, width: int) -> list[str]:
    place, count = shown(listing.root), len(listing.rows)
    sizes = f"{text.human_size(listing.bytes)}, disk free {text.human_size(listing.free)}"
    left = f"{place}   {count} artifact{'s' * (count != 1)}, {sizes}"
    right = f"score: {listing.score.label}" if listing.score else ""
    space = width - text.width_of(left) - text.width_of(right)
    if not right or space >= 3:
        return [text.cut(left + " " * space * bool(right) + right, width)]
    return [text.cut(left, width), text.cut(right, width)]


def _unfinished(listing: Listing, width: int, now: float) -> list[str]:
    """What was begun, how far it is, and the command that goes on (never cut: it is there to be copied)."""
    lines = ["unfinished"] if listing.unfinished else []
    for item in listing.unfinished:
        state = "being built by " + item.holder if item.holder else "stopped " + text.human_age(now - item.at) + " ago"
        by = f" by {item.stopped}" if item.stopped and not item.holder else ""
        lines.append(text.cut(f"{item.ref}  {_progress(item.progress)}{state}{by}", width))
        if not item.holder:
            lines.append(f"  continue with: {item.command}")
    return lines


def _progress(progress: Mapping[str, Any]) -> str:
    step, of = progress.get("step"), progress.get("of")
    if isinstance(step, int) and isinstance(of, int) and of > 0:
        return f"{100 * step // of} %, step {step:,} of {of:,}, "
    return f"step {step:,}, " if isinstance(step, int) else ""


def tsv(listing: Listing, everything: bool = False) -> str:
    """The same columns, uncut, without a head: bytes, ISO time, plain numbers; rehearsals only with `everything`.

    Two more columns say whether the work is complete, and by which command it continues where it is not.
    """
    rows = [
        (
            row.manifest.ref, row.what, ",".join(row.tags), row.manifest.size, row.manifest.made["at"],
            "" if row.score is None else row.score.value, "" if row.win is None else row.win.value, "complete", "",
        )
        for row in listing.rows if everything or not row.manifest.made.get("smoke")
    ]  # fmt: skip
    begun = [
        (
            item.ref, _progress(item.progress).rstrip(", "), "", "", utc(item.at), "", "",
            "running" if item.holder else "stopped", item.command,
        )
        for item in listing.unfinished
    ]  # fmt: skip
    return text.tsv([*rows, *begun])


def record(listing: Listing) -> dict[str, Any]:
    """The list as JSON."""
    return {
        "store": str(listing.root),
        "bytes": listing.bytes,
        "free": listing.free,
        "artifacts": [
            {
                "id": row.manifest.id, "ref": row.manifest.ref, "what": row.what, "tags": list(row.tags),
                "bytes": row.manifest.size, "at": row.manifest.made["at"], "score": row.score and row.score.record(),
                "win": row.win and row.win.record(), "smoke": bool(row.manifest.made.get("smoke")),
            }
            for row in listing.rows
        ],
        "unfinished": [
            {
                "id": item.recipe.id, "ref": item.ref, "command": item.command, "progress": dict(item.progress),
                "stopped": item.stopped or None, "at": utc(item.at), "holder": item.holder or None,
            }
            for item in listing.unfinished
        ],
        "unreadable": [error.message for error in listing.errors],
    }  # fmt: skip
