"""Building one artifact: lock, work in private, commit by rename.

    with store.build(recipe, command="adpa sft …", environment={"torch": "2.9"}) as work:
        if work.hit is not None:
            return work.hit
        …write files into work.dir…
        return work.commit(metrics={…})

Until the rename nothing is visible. The manifest is written after every other file is on the disk, so a manifest inside
a private folder says that only the rename is missing, and the next build of the same recipe does just that.

A private folder has one writer, also where two processes hold what each takes for the lock: the one whose claim lies
beside it. Where that one is silent and nobody can tell whether it has ended, its work is copied, not entered. Several
jobs may make parts of one artifact in one folder: `adpa_cli.store.parts` says how.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from adpa_cli.disk import explained, sha256_file, share, sync_file, sync_folder, write_atomic
from adpa_cli.errors import AdpaError, Busy, Corrupt
from adpa_cli.store import claim as claims
from adpa_cli.store import manifest as manifests
from adpa_cli.store import parts
from adpa_cli.store.claim import Claim
from adpa_cli.store.identity import Recipe
from adpa_cli.store.lock import PARTIAL, POLL_SECONDS, Hold, holder, locked
from adpa_cli.store.manifest import Manifest
from adpa_cli.store.parts import Part, PartDone, recipe_of

STATE = "state.json"
LOG = "log.txt"
"""What the stage said. Kept with the artifact, but no part of it: times differ where bytes are equal."""
RESUME_PREFIX = "_"


class Work:
    """One build in progress, or the finished artifact.

    `hit` is the manifest when the artifact exists (then there is nothing to do and `dir` does not exist); else `dir` is
    the private folder. Names in it that start with `_` (resume state) or a dot are gone after the commit. `progress` is
    what the last attempt saved, empty at a fresh start.
    """

    def __init__(
        self, root: Path, recipe: Recipe, command: str, environment: Mapping[str, Any], again: str = "",
        part: Part | None = None,
    ) -> None:  # fmt: skip
        self.recipe = recipe
        self.command = command
        self.again = again or command
        self.environment = dict(environment)
        self.root = root
        self.dir = root / PARTIAL / recipe.id
        self.target = root / recipe.stage / recipe.id[:12]
        self.hit: Manifest | None = None
        self.progress: dict[str, Any] = {}
        self._seconds_before = 0.0
        self._started = time.monotonic()
        self._claim: Claim | None = None
        self._part = part
        self._entered = contextlib.ExitStack()

    @property
    def seconds(self) -> float:
        """Working time so far, earlier attempts included."""
        return self._seconds_before + time.monotonic() - self._started

    def save_state(self, progress: Mapping[str, Any], stopped: str = "") -> None:
        """Record how far the work is (JSON; `step` and `of` are shown), and what stopped it if this is the end.

        Raises AdpaError where another process has taken the work over.
        """
        self.check_owner()
        self.progress = dict(progress)
        self._write_state(stopped)

    def commit(
        self,
        metrics: Mapping[str, Any] | None = None,
        sources: Mapping[str, Mapping[str, Any]] | None = None,
        made: Mapping[str, Any] | None = None,
    ) -> Manifest:
        """Make the folder an artifact: sync its files, write the manifest, rename. Returns the manifest.

        Raises AdpaError where another process has taken the work over.
        """
        self.check_owner()
        manifests.check_sources(sources or {})
        about = {
            "command": self.command, "at": manifests.utc(time.time()), "seconds": round(self.seconds, 3),
            "host": os.uname().nodename, **self.environment, **(made or {}),
        }  # fmt: skip
        recipe = self.recipe.to_json()
        manifest = Manifest(
            id=self.recipe.id, **recipe, sources=plain(sources), files=_files(self.dir), metrics=plain(metrics),
            made=plain(about),
        )  # fmt: skip
        for folder in [path for path in self.dir.rglob("*") if path.is_dir()]:
            sync_folder(folder)
        manifests.write(self.dir, manifest)
        self.hit = self.publish()
        return self.hit

    def publish(self) -> Manifest:
        """Move a private folder that has its manifest to its place; if another process was first, theirs stays."""
        for path in self.dir.iterdir():
            if _is_private(path.name):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        sync_folder(self.dir)
        self.target.parent.mkdir(exist_ok=True)
        try:
            os.rename(self.dir, self.target)
        except OSError:
            if not (self.target / manifests.FILE_NAME).exists():
                raise
            shutil.rmtree(self.dir)
        sync_folder(self.target.parent)
        sync_folder(self.target.parent.parent)
        sync_folder(self.dir.parent)
        return manifests.read(self.target)

    def open(self, hold: Hold, announce: Callable[[str], None] | None) -> None:
        """Enter a private folder: finish a commit that was cut off, go on with earlier work, or start clean."""
        if not self._is_open(hold, announce):
            return
        state = read_state(self.dir)
        if state is None or state["environment"] != plain(self.environment):
            if state is not None and announce:
                announce(
                    f"{self.recipe.ref} starts again, because {_difference(state['environment'], self.environment)}"
                )
            shutil.rmtree(self.dir, ignore_errors=True)
            state = {"progress": {}, "seconds": 0.0}
        self.dir.mkdir(parents=True, exist_ok=True)
        self.progress, self._seconds_before = state["progress"], state["seconds"]
        parts.forget_states(self.dir)
        self._write_state("")

    def _is_open(self, hold: Hold, announce: Callable[[str], None] | None) -> bool:
        """Whether there is work to do in a private folder, which is this process's now."""
        if self.find_hit():
            return False
        self._own(hold, announce)
        if (self.dir / manifests.FILE_NAME).exists():
            self.hit = self.publish()
        return self.hit is None

    def enter(self, part: Part, hold: Hold, announce: Callable[[str], None] | None) -> None:
        """Enter a private folder beside the other parts of its work. Raises Busy where another process makes this part,
        and AdpaError where what is there was made in another environment, for its parts would not fit together."""
        what = f"{part.words} of {self.recipe.ref}"
        lock = parts.lock_of(self.dir, part)
        if self.find_hit():
            return
        self._entered.enter_context(locked(lock, self.command, wait=False, what=what))
        if not self._is_open(hold, announce):
            return
        state = read_state(self.dir)
        if state is not None and state["environment"] != plain(self.environment):
            self._disown()
            raise AdpaError(
                f"{what} does not fit what other jobs have made, because "
                f"{_difference(state['environment'], self.environment)}",
                "run all parts in the same environment; to start again, remove the unfinished work first: "
                f"adpa gc --remove {self.recipe.ref}",
            )
        self.dir.mkdir(parents=True, exist_ok=True)
        if state is None:
            self._write_state("", of_all=True)
        self._write_state("")
        self._disown()

    @contextlib.contextmanager
    def finishing(self, announce: Callable[[str], None] | None = None) -> Iterator[None]:
        """Have the folder alone, once all of its blocks are there: at once, or after the other parts have left it.

        The progress and the seconds of all parts are this work's now. `hit` is set where another process finished it
        meanwhile. Raises PartDone where one is about to.
        """
        with contextlib.ExitStack() as stack:
            if self._part is not None:
                lock, ref = lock_path(self.dir), self.recipe.ref
                try:
                    hold = stack.enter_context(locked(lock, self.command, wait=False, what=ref))
                except Busy as error:
                    done = f"{self._part.words} of {ref} is done; {error.message}"
                    raise PartDone(done) from None
                self._entered.close()
                parts.wait_until_none(self.dir, announce, ref)
                if self._is_open(hold, announce):
                    state = read_state(self.dir) or {"progress": {}, "seconds": 0.0}
                    self.progress, self._seconds_before = state["progress"], state["seconds"] - self.seconds
            yield

    def _disown(self) -> None:
        """Let other parts in."""
        if self._claim is not None:
            claims.removed(owner_path(self.dir), self._claim)
            self._claim = None

    def _own(self, hold: Hold, announce: Callable[[str], None] | None) -> None:
        """Choose the folder to work in, and make it this process's: the one that was saved last, or a copy of it.

        Raises Busy for a folder whose owner is at work, though the lock was free.
        """
        ref, folders = self.recipe.ref, attempts(self.root, self.recipe.id) or [self.dir]
        owners = {folder: claims.read(owner_path(folder)) for folder in folders}
        kernel_lock = hold.claim.kernel_lock
        states = {folder: one.state(owner_path(folder), kernel_lock) for folder, one in owners.items() if one}
        for folder, owner in owners.items():
            if owner is not None and states[folder] == "alive":
                raise _busy(ref, owner, owner_path(folder))
        self.dir, owner = folders[0], owners[folders[0]]
        if owner is not None and states[self.dir] == "silent":
            if announce:
                announce(f"{ref}: {owner.who} has stopped responding; continuing with a copy of its work")
            self.dir = _copied(folders[0], owner, folders[0].with_name(f"{self.recipe.id}.{hold.claim.token}"), ref)
        for folder, owner in owners.items():
            if owner is not None:
                claims.removed(owner_path(folder), owner)
        place = owner_path(self.dir)
        if not claims.made(place, hold.claim):
            raise _busy(ref, claims.read(place) or hold.claim, place)
        self._claim = hold.claim
        hold.beat.paths.append(place)
        for folder in folders:
            if folder != self.dir:
                shutil.rmtree(folder, ignore_errors=True)

    def check_owner(self) -> None:
        """Raise AdpaError where another process has taken this one's work over."""
        if self._claim is None:
            return
        owner = claims.read(owner_path(self.dir))
        if owner is None or owner.token != self._claim.token:
            raise AdpaError(
                f"another process took over {self.recipe.ref} while this one was suspended",
                f"nothing is lost; the same command finds what the other process makes: {self.again}",
            )

    def find_hit(self) -> bool:
        """Look whether the artifact is there by now. Raises Corrupt when its place is taken by something else."""
        manifest = self.target / manifests.FILE_NAME
        if not manifest.exists():
            is_taken = self.target.is_dir() and any(self.target.iterdir())
            if not manifest.exists():  # again: another process may commit it between the two looks
                if is_taken:
                    raise Corrupt(
                        f"{self.target} has files but no manifest, so it is not an artifact", "move that folder away"
                    )
                return False
        self.hit = manifests.read(self.target)
        if self.hit.id != self.recipe.id:
            raise Corrupt(f"{self.target} holds {self.hit.id}, not {self.recipe.id}", "move that folder away")
        return True

    def close(self) -> None:
        """Let go of the folder, and forget an attempt that failed before it made anything worth going on with."""
        self._entered.close()
        if self._claim is None or not claims.removed(owner_path(self.dir), self._claim):
            return
        if self.hit is not None:
            for folder in attempts(self.root, self.recipe.id):
                if claims.read(owner_path(folder)) is None:
                    shutil.rmtree(folder, ignore_errors=True)
        elif not self.progress and {path.name for path in self.dir.iterdir()} <= {STATE, LOG}:
            shutil.rmtree(self.dir)

    def _write_state(self, stopped: str, of_all: bool = False) -> None:
        state = {
            "format": 1, "recipe": self.recipe.to_json(), "command": self.again, "environment": self.environment,
            "progress": self.progress, "seconds": self.seconds, "stopped": stopped, "at": time.time(),
        }  # fmt: skip
        if self._part is not None and not of_all:
            parts.write_state(self.dir, self._part, plain(state))
        else:
            write_atomic(self.dir / STATE, json.dumps(plain(state), ensure_ascii=False).encode())


@contextlib.contextmanager
def build(
    root: Path,
    recipe: Recipe,
    *,
    command: str,
    environment: Mapping[str, Any] | None = None,
    wait: bool = True,
    announce: Callable[[str], None] | None = None,
    again: str = "",
    part: Part | None = None,
) -> Iterator[Work]:
    """Open the work on a recipe, alone, or a `part` of it: see the module's head. `again` is the command that goes on
    with it.

    `environment` is what equal bytes depend on besides the recipe (library versions, threads, dtype): earlier work
    under another one is thrown away. Raises Busy if another process is at it and `wait` is false, AdpaError on a full
    disk.
    """
    work = Work(root, recipe, command, environment or {}, again, part)
    if work.find_hit():
        yield work
        return
    with explained(root, f"{recipe.ref} is not made"), contextlib.ExitStack() as stack:
        try:
            if part is None:
                hold = stack.enter_context(_alone(work, wait, announce))
                work.open(hold, announce)
            else:
                _enter(work, part, wait, announce)
            yield work
        except OSError:  # its folder may have been taken away from it
            work.check_owner()
            raise
        finally:
            with contextlib.suppress(OSError):
                work.close()


@contextlib.contextmanager
def _alone(work: Work, wait: bool, announce: Callable[[str], None] | None) -> Iterator[Hold]:
    """The lock of a build, which nobody has a part in. Raises Busy where somebody has and `wait` is false."""
    ref = work.recipe.ref
    with locked(lock_path(work.dir), work.command, wait=wait, announce=announce, what=ref) as hold:
        if not wait and (busy := parts.at_work(work.dir)):
            raise Busy(f"{ref} is already being made by {busy[0]}", "leave out --no-wait to wait for it")
        parts.wait_until_none(work.dir, announce, ref)
        yield hold


def _enter(work: Work, part: Part, wait: bool, announce: Callable[[str], None] | None) -> None:
    """Begin one part of a work; waits for another process that makes this part, unless Busy is asked for."""
    ref = work.recipe.ref
    while True:
        try:
            with locked(lock_path(work.dir), work.command, wait=wait, announce=announce, what=ref) as hold:
                work.enter(part, hold, announce)
            return
        except Busy as error:
            if not wait:
                raise
            if announce:
                announce(f"Waiting: {error.message}")
                announce = None
        time.sleep(POLL_SECONDS)


def attempts(root: Path, recipe_id: str) -> list[Path]:
    """The private folders of one recipe, the one that was saved last first: as a rule there is one at most."""
    found = [folder for folder in (root / PARTIAL).glob(f"{recipe_id}*/") if recipe_of(folder) == recipe_id]
    states = {folder: read_state(folder) for folder in found}
    return sorted(found, key=lambda folder: (-(states[folder] or {"at": 0.0})["at"], folder.name))


def lock_path(folder: Path) -> Path:
    """The lock of those who make what a private folder is for."""
    return folder.with_name(f"{recipe_of(folder)}.lock")


def owner_path(folder: Path) -> Path:
    """Where the claim of the process that works in a private folder lies."""
    return folder.with_name(f"{folder.name}.owner")


def at_work(folder: Path) -> str:
    """Who works on what a private folder is for, or in it; empty when nobody does."""
    owner = claims.read(owner_path(folder))
    is_owned = owner is not None and owner.state(owner_path(folder)) == "alive"
    whole = holder(lock_path(folder)) or (owner.who if owner is not None and is_owned else "")
    return whole or ", ".join(parts.at_work(folder))


def _busy(ref: str, owner: Claim, place: Path) -> Busy:
    return Busy(f"{ref} is already being made by {owner.who}",
                f"wait until it is finished; if that process is gone: rm {shlex.quote(str(place))}")  # fmt: skip


def _copied(folder: Path, owner: Claim, target: Path, ref: str) -> Path:
    """A copy of work whose owner is silent, for nobody knows whether that one will write there again."""
    before = _stats(folder)
    with contextlib.suppress(FileNotFoundError):
        shutil.copytree(folder, target)
    if owner.state(owner_path(folder)) == "alive" or _stats(folder) != before:
        shutil.rmtree(target, ignore_errors=True)
        raise _busy(ref, owner, owner_path(folder))
    return target


def _stats(folder: Path) -> dict[str, tuple[int, int]]:
    found = {str(path): path.stat() for path in folder.rglob("*")}
    return {path: (stat.st_size, stat.st_mtime_ns) for path, stat in found.items()}


def read_state(folder: Path) -> dict[str, Any] | None:
    """What the last attempt in a private folder recorded; None when there is nothing to rely on."""
    try:
        state = json.loads((folder / STATE).read_bytes())
        shape = {"recipe": dict, "environment": dict, "progress": dict, "seconds": float, "command": str,
                 "stopped": str, "at": float}  # fmt: skip
        is_ours = state["format"] == 1 and all(isinstance(state[k], t) for k, t in shape.items())
        return parts.with_parts(state, folder) if is_ours else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def plain(value: Mapping[str, Any] | None) -> dict[str, Any]:
    """As JSON will give it back, so that what is compared and returned now equals what is read later."""
    copy: dict[str, Any] = json.loads(json.dumps(manifests.plain(value or {})))
    return copy


def _is_private(name: str) -> bool:
    # A dot file is the leftover of a write that was cut off.
    return name == STATE or name.startswith((RESUME_PREFIX, "."))


def _files(folder: Path) -> dict[str, dict[str, Any]]:
    files = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name != LOG and not _is_private(name.split("/")[0]):
            share(path)
            sync_file(path)
            files[name] = {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
    return files


def _difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    keys = sorted(key for key in {*before, *now} if before.get(key) != now.get(key))
    return ", ".join(f"{key} was {before.get(key)} and is now {now.get(key)}" for key in keys[:3])
