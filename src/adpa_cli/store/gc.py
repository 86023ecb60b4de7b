"""What may go from a store, and why the rest stays.

Kept is what a tag, a named artifact, a finished result (of a stage that makes what people are after), a command at work
or recent work reaches through its inputs. Rehearsals are no results and are recent for a day only. What goes is renamed
out of sight first and deleted then: a kill in between leaves nothing half visible, and the next run deletes the rest.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from adpa_cli.disk import explained
from adpa_cli.errors import Busy, UsageError
from adpa_cli.store import manifest as manifests
from adpa_cli.store import parts
from adpa_cli.store.build import at_work, owner_path, read_state
from adpa_cli.store.identity import Recipe
from adpa_cli.store.lock import PARTIAL, collecting, forget_dead, locked, reservations
from adpa_cli.store.manifest import Manifest
from adpa_cli.store.store import Store

DAY = 86400.0
SMOKE_DAYS = 1.0
TRASH = "trash"


@dataclass(frozen=True)
class Keep:
    """What stays for its own sake: finished artifacts of the stages `results`, the full ids `named`, work of `days`.

    Where full ids are `unwanted`, only these go, with what was measured of them and what only they need; artifacts of
    the stages `lasting` that were made from them stand against it.
    """

    results: Collection[str]
    named: Collection[str]
    days: float
    unwanted: Collection[str] = ()
    lasting: Collection[str] = ()


@dataclass(frozen=True)
class Item:
    """One artifact, one piece of unfinished work (`ref` of what it would have become), or one leftover.

    `why` says why it stays, or why it goes; `at` is in seconds since 1970.
    """

    kind: Literal["artifact", "unfinished", "leftover"]
    ref: str
    what: str
    size: int
    at: float
    why: str
    folder: Path


@dataclass(frozen=True)
class Sweep:
    """What goes, in the order of removal (what rests on others first), and what stays, newest first."""

    removed: tuple[Item, ...]
    kept: tuple[Item, ...]


@dataclass(frozen=True)
class Attempt:
    """A private folder of unfinished work: what it was going to be, when it last saved, who is at it (or empty)."""

    recipe: Recipe | None
    folder: Path
    at: float
    holder: str

    @property
    def smoke(self) -> bool:
        return self.recipe is not None and bool(self.recipe.spec.get("smoke"))


def survey(store: Store, keep: Keep, now: float | None = None) -> Sweep:
    """Sort everything in a store into what goes and what stays.

    Raises Corrupt, or AdpaError for one of a newer adpa, where a manifest cannot be
    read: nobody could tell what that artifact needs.
    """
    now = time.time() if now is None else now
    artifacts = store.artifacts()
    attempts = list(_attempts(store.root))
    if keep.unwanted:
        return _removal(store, artifacts, attempts, keep)
    live = {attempt.folder: _alive(attempt, keep.days, now) for attempt in attempts}
    reasons = _reached(artifacts, _roots(store, artifacts, attempts, live, keep, now))
    removed: list[Item] = []
    kept: list[Item] = []
    for manifest in artifacts:
        why = reasons.get(manifest.id)
        what = str(manifest.metrics.get("what") or manifest.stage)
        gone = (
            "a rehearsal"
            if manifest.made.get("smoke")
            else f"no tag or result needs it, and it is older than {keep.days:g} days"
        )
        folder = store.root / manifest.ref
        item = Item("artifact", manifest.ref, what, _size(folder), manifest.at, why or gone, folder)
        (kept if why else removed).append(item)
    for attempt in attempts:
        ref = attempt.recipe.ref if attempt.recipe else f"{PARTIAL}/{attempt.folder.name[:12]}"
        why = live[attempt.folder]
        gone = "a rehearsal that stopped" if attempt.smoke else f"not resumed for {keep.days:g} days"
        item = Item("unfinished", ref, "unfinished", _size(attempt.folder), attempt.at, why or gone, attempt.folder)
        (kept if why else removed).append(item)
    removed += _leftovers(store.root)
    return Sweep(tuple(removed), tuple(kept))


def _removal(store: Store, artifacts: Sequence[Manifest], attempts: Sequence[Attempt], keep: Keep) -> Sweep:
    """The unwanted artifacts, with what only they need. Raises UsageError where something that stays needs one."""
    tags = {artifact: tag for tag, artifact in store.tags().items()}
    running = {content for a in attempts if a.holder and a.recipe for content in _contents(a.recipe.inputs.values())}
    why = {**{name: f"tag {tag}" for name, tag in tags.items()}, **dict.fromkeys(keep.named, "named")}
    why |= dict.fromkeys((*reservations(store.root), *running), "in use")
    children: dict[str, list[Manifest]] = {}
    for manifest in artifacts:
        for _, parent in manifest.parents():
            children.setdefault(parent, []).append(manifest)
    going = dict.fromkeys(keep.unwanted, "named by --remove")
    for one in (queue := list(going)):
        for child in children.get(one, ()):
            if child.id not in going and (child.stage in keep.lasting or child.id in why):
                needing = store.resolve(one).ref
                raise UsageError(
                    f"{needing} is needed by {child.ref}" + (f" ({why[child.id]})" if child.id in why else ""),
                    f"keep it, or remove both: adpa gc --remove {needing} --remove {child.ref}",
                )
            if child.id not in going:
                going[child.id] = "made from what is removed"
                queue.append(child.id)
    if used := next((name for name in going if why.get(name) in ("in use", "named")), ""):
        raise UsageError(f"{store.resolve(used).ref} is {why[used]}", "repeat the command without it, or later")
    for manifest in artifacts:  # newest first: what needs an artifact is looked at before it
        needed_by = children.get(manifest.id, [])
        if needed_by and manifest.id not in why and all(child.id in going for child in needed_by):
            going.setdefault(manifest.id, "nothing else needs it")
    items = []
    for manifest in artifacts:
        what, folder = str(manifest.metrics.get("what") or manifest.stage), store.root / manifest.ref
        reason = going.get(manifest.id) or why.get(manifest.id, "not named by --remove")
        items.append((Item("artifact", manifest.ref, what, _size(folder), manifest.at, reason, folder), manifest.id))
    return Sweep(
        tuple(item for item, name in items if name in going), tuple(item for item, name in items if name not in going)
    )


def collect(store: Store, chosen: Sweep, keep: Keep, command: str) -> tuple[Item, ...]:
    """Remove what was `chosen` and may still go: what somebody has tagged, used or gone on with meanwhile stays.

    Returns what was removed. Raises AdpaError where the store may not be written.
    """
    trash = store.root / PARTIAL / TRASH
    moved: list[Item] = []
    with explained(store.root, "nothing more is removed"):
        with collecting(store.root, command):
            forget_dead(store.root)
            allowed = {item.folder for item in survey(store, keep).removed}
            for item in chosen.removed:
                if item.folder in allowed and item.kind != "leftover" and _move(store.root, item, trash, command):
                    moved.append(item)
        moved += [item for item in chosen.removed if item.kind == "leftover"]
        for tag, artifact in store.tags().items() if keep.unwanted else ():
            if store.get(artifact) is None:
                store.untag(tag)
        for folder in trash.glob("*"):
            shutil.rmtree(folder, ignore_errors=True)  # another collector may be deleting it too
    return tuple(moved)


def _roots(
    store: Store,
    artifacts: Iterable[Manifest],
    attempts: Iterable[Attempt],
    live: dict[Path, str],
    keep: Keep,
    now: float,
) -> Iterator[tuple[str, str]]:
    """(full id, why it stays) of what is kept for its own sake, the strongest reasons first."""
    for tag, artifact in store.tags().items():
        yield artifact, f"tag {tag}"
    for artifact in sorted(set(keep.named)):
        yield artifact, "named"
    for manifest in artifacts:
        if manifest.stage in keep.results and not manifest.made.get("smoke"):
            yield manifest.id, "a finished result"
    for artifact, who in reservations(store.root).items():
        yield artifact, f"in use by {who}"
    for attempt in attempts:
        if live[attempt.folder] and attempt.recipe is not None:
            for content in _contents(attempt.recipe.inputs.values()):
                yield content, f"needed by {attempt.recipe.ref}, which is unfinished"
    for manifest in artifacts:
        limit = _limit(keep.days, bool(manifest.made.get("smoke")))
        if now - manifest.at < DAY * limit:
            yield manifest.id, f"made in the last {_days(limit)}"


def _limit(days: float, smoke: bool) -> float:
    return min(days, SMOKE_DAYS) if smoke else days


def _days(count: float) -> str:
    return f"{count:g} days" if count != 1 else "day"


def _contents(values: Iterable[str | list[str]]) -> list[str]:
    flat = [item for value in values for item in ([value] if isinstance(value, str) else value)]
    return [item.removeprefix("artifact:") for item in flat if item.startswith("artifact:")]


def _reached(artifacts: Iterable[Manifest], roots: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Why each artifact stays, by full id, for those that do."""
    by_id = {manifest.id: manifest for manifest in artifacts}
    reasons: dict[str, str] = {}
    deeper: list[tuple[str, str]] = []
    for artifact, why in roots:
        if artifact in by_id and artifact not in reasons:
            reasons[artifact] = why
            deeper.append((artifact, by_id[artifact].ref))
    for artifact, root in deeper:
        for _, parent in by_id[artifact].parents():
            if parent in by_id and parent not in reasons:
                reasons[parent] = f"needed by {root}"
                deeper.append((parent, root))
    return reasons


def _attempts(root: Path) -> Iterator[Attempt]:
    for folder in sorted((root / PARTIAL).glob("*/")):
        if folder.name == TRASH:
            continue
        state = read_state(folder)
        recipe = Recipe(**state["recipe"]) if state else None
        at = state["at"] if state else folder.stat().st_mtime
        yield Attempt(recipe, folder, at, at_work(folder))


def _alive(attempt: Attempt, days: float, now: float) -> str:
    """Why unfinished work stays, or nothing."""
    if attempt.holder:
        return f"being built by {attempt.holder}"
    limit = _limit(days, attempt.smoke)
    return f"can be resumed; saved in the last {_days(limit)}" if now - attempt.at < DAY * limit else ""


def _leftovers(root: Path) -> Iterator[Item]:
    """What a removal that was killed had not deleted yet."""
    for folder in sorted((root / PARTIAL / TRASH).glob("*")):
        at = folder.stat().st_mtime
        yield Item("leftover", f"{PARTIAL}/{TRASH}/{folder.name}", "", _size(folder), at, "removed before", folder)


def _move(root: Path, item: Item, trash: Path, command: str) -> bool:
    """Rename a folder out of sight, unless it is being built at this moment."""
    lock = root / PARTIAL / f"{_id(item)}.lock"
    trash.mkdir(parents=True, exist_ok=True)
    try:
        with locked(lock, command, wait=False):
            if parts.at_work(item.folder):
                return False
            (root / ".verified" / _id(item)).unlink(missing_ok=True)
            os.rename(item.folder, trash / f"{item.folder.name[:12]}-{os.urandom(4).hex()}")
            if item.kind == "unfinished":
                owner_path(item.folder).unlink(missing_ok=True)
    except (Busy, FileNotFoundError):
        return False
    return True


def _id(item: Item) -> str:
    return manifests.read(item.folder).id if item.kind == "artifact" else parts.recipe_of(item.folder)


def _size(folder: Path) -> int:
    """Bytes of all files of a folder, also of those that no manifest names."""
    total = 0
    for where, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(where, name)).st_size
    return total
