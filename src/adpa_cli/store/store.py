"""The directory that holds every artifact. It is the only record: no database, nothing to fall out of step.

A user names an artifact by a tag, by its id or the beginning of one, or as the latest of a stage. A name of the hub is
pinned to the commit that it meant when it was used first.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import re
import shlex
import stat
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from adpa_cli.disk import explained, make_folder, sha256_file, write_atomic
from adpa_cli.errors import AdpaError, Corrupt, NotFound, UsageError
from adpa_cli.families import reserved_words
from adpa_cli.machine import expanded
from adpa_cli.store import build as builds
from adpa_cli.store import manifest as manifests
from adpa_cli.store.identity import STAGE_NAME, HashCache, Recipe
from adpa_cli.store.lock import PARTIAL, collecting, locked
from adpa_cli.store.manifest import Manifest
from adpa_cli.store.parts import Part

DIGITS = re.compile(r"[0-9a-f]{4,64}")
"""An id, or enough of its beginning."""
TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")
PINS_FILE = "pins.json"
FOLDER = "adpa-store"
MARKER = "adpa.json"
FORMAT = 1


def check_tag(name: str, reserved: Collection[str] = ()) -> None:
    """Raise UsageError for a name that could be taken for an id, a path or one of `reserved` (aliases, words)."""
    if not TAG.fullmatch(name):
        raise UsageError(f"{name!r} cannot be a tag", "use up to 64 letters, digits and . _ + -, for example my-model")
    if DIGITS.fullmatch(name.lower()):
        raise UsageError(
            f"{name} looks like an id, which has only the digits 0-9 and the letters a-f",
            f"use another letter somewhere, for example run-{name}",
        )
    if name in reserved:
        raise UsageError(f"{name} is a built-in name", f"use another one, for example my-{name}")


def pinned_commit(root: Path, lock: Path, name: str, lookup: Callable[[str], str], refresh: bool) -> str:
    """The commit of `name` in the store at `root`, asked of `lookup` when it is not known or is to be refreshed."""
    path = root / PINS_FILE
    if not refresh and (known := read_pins(path).get(name)):
        return known
    commit = lookup(name)
    with explained(root, f"{name} is not pinned"), locked(lock, f"pin {name}", what=PINS_FILE):
        pins = read_pins(path)
        commit = commit if refresh else pins.get(name, commit)
        write_atomic(path, json.dumps({**pins, name: commit}, indent=1, sort_keys=True).encode() + b"\n")
    return commit


def read_pins(path: Path) -> dict[str, str]:
    """Commit by name; empty when nothing is pinned yet. Raises Corrupt."""
    try:
        return {str(name): str(commit) for name, commit in json.loads(path.read_bytes()).items()}
    except FileNotFoundError:
        return {}
    except (ValueError, AttributeError) as error:
        raise Corrupt(
            f"{path} is damaged: {error}", "delete it; names are then pinned to what they mean today"
        ) from error


def resolve(store: Store, text: str) -> Manifest:
    """The artifact that `text` means; rehearsals, whose `made` says `smoke`, are never the latest.

    Raises UsageError naming all meanings when there are several, NotFound with what comes close when there is none.
    """
    begun = _beginning_with(store, text)
    tagged = store.tags().get(text)
    if tagged is not None:
        return _of_tag(store, text, tagged, begun)
    if len(begun) > 1:
        both = ", ".join(sorted(manifest.ref for manifest in begun))
        raise UsageError(
            f"{text} is ambiguous: it could be any of {both}", "type more digits, or put the stage before them"
        )
    stage, _, latest = text.partition("@")
    if latest == "latest":
        newest_first = (manifest for manifest in store.artifacts() if manifest.stage == stage)
        begun = [manifest for manifest in newest_first if not manifest.made.get("smoke")]
    if not begun:
        raise _unknown(store, text)
    return begun[0]


@dataclass(frozen=True)
class Unfinished:
    """Work that was begun and not committed: how far it is, what stopped it, and the command that goes on.

    `at` is when it last saved, in seconds since 1970; `holder` names the process that is at it now, or is empty.
    """

    ref: str
    recipe: Recipe
    command: str
    progress: Mapping[str, Any]
    stopped: str
    at: float
    holder: str


@dataclass(frozen=True)
class Store:
    """One store at `root`; `created` says that this command made it."""

    root: Path
    created: bool = False
    pinned: Mapping[str, str] = field(default_factory=dict, compare=False)
    unsaved_pins: dict[str, str] = field(default_factory=dict, compare=False)
    """Commits that hub names must have here, by name: what a recipe says of them."""

    @classmethod
    def find(cls, start: Path | None = None, create: bool = False) -> Store:
        """The store at `start` (`--store DIR`), else at $ADPA_STORE, else in the working directory or one above it.

        Without one, `create` makes it (at the explicit place, else ./adpa-store) and otherwise NotFound is raised.
        Raises AdpaError for a store that a newer adpa made.
        """
        if start is None and os.environ.get("ADPA_STORE"):
            start = Path(os.environ["ADPA_STORE"])
        if start is not None:
            places = [expanded(start).absolute()]
            asked = f"{start} is not a store"
        else:
            here = Path.cwd()
            places = [folder / FOLDER for folder in (here, *here.parents)]
            asked = f"there is no store ({FOLDER}) in {here} or in a folder above it"
        for place in places:
            if os.path.isfile(place / MARKER):  # pathlib raises for a folder above that others may not look into
                return cls(_supported(place))
        if not create:
            raise NotFound(
                asked,
                "name a store with --store DIR or $ADPA_STORE; the first command that builds something creates one",
            )
        return cls._create(places[0])

    @classmethod
    def find_or_empty(cls, start: Path | None = None) -> Store:
        """The store that `find` would find, else an empty one at the place where it would be created, not created.

        Raises UsageError for a place where nothing can be made.
        """
        try:
            store = cls.find(start)
        except NotFound:
            given = start or os.environ.get("ADPA_STORE")
            store = cls(expanded(given).absolute() if given else Path.cwd() / FOLDER)
        _check_place(store.root)
        return store

    @classmethod
    def _create(cls, root: Path) -> Store:
        _check_place(root)
        if root.exists() and (not root.is_dir() or any(root.iterdir())):
            raise UsageError(
                f"{root} is not a store, and it holds other files", f"give an empty folder: --store {root / FOLDER}"
            )
        with explained(root, "the store is not created"):
            make_folder(root)
            write_atomic(root / MARKER, json.dumps({"format": FORMAT}).encode() + b"\n")
        return cls(root, created=True)

    @property
    def is_usual(self) -> bool:
        """Whether a command without --store finds this one from the working directory."""
        with contextlib.suppress(AdpaError):
            return Store.find().root == self.root
        return False

    @cached_property
    def hash_cache(self) -> HashCache:
        """Remembered digests of models and data from outside; may be deleted at any time."""
        return HashCache(self.root / ".hashes.json", beside=self.root / MARKER)

    def folders(self, only: str = "") -> Iterator[Path]:
        """The folder of every complete artifact, or of those of one stage."""
        for stage in self._stages(only):
            for name in os.listdir(self.root / stage):
                if self._is_complete(stage, name):
                    yield self.root.joinpath(stage, name)

    def _stages(self, only: str = "") -> list[str]:
        """The stages that have a folder, or the one that is asked for if it has one."""
        known = sorted(os.listdir(self.root)) if not only and self.root.is_dir() else [only]  # see `find_or_empty`
        return [s for s in known if STAGE_NAME.fullmatch(s) and s != "tags" and (self.root / s).is_dir()]

    def _is_complete(self, stage: str, name: str) -> bool:
        return len(name) == 12 and os.path.exists(f"{self.root}/{stage}/{name}/{manifests.FILE_NAME}")

    def _find(self, id_or_ref: str) -> Path | None:
        stage, _, hex_part = id_or_ref.removeprefix("artifact:").rpartition("/")
        name = hex_part[:12]
        found = (self.root.joinpath(each, name) for each in self._stages(stage) if self._is_complete(each, name))
        return next(found, None)

    def folder(self, id_or_ref: str) -> Path:
        """Where an artifact's files are, by full id or `stage/12hex`. Raises NotFound."""
        folder = self._find(id_or_ref)
        if folder is None:
            raise NotFound(f"{id_or_ref} is not in {self.root}", "see what is: adpa show")
        return folder

    def get(self, id_or_ref: str) -> Manifest | None:
        """The manifest of a complete artifact, or None."""
        folder = self._find(id_or_ref)
        return manifests.read(folder) if folder else None

    def artifacts(self, on_error: Callable[[AdpaError], None] | None = None) -> list[Manifest]:
        """Every complete artifact, newest first.

        A damaged or too new manifest is raised, or passed to `on_error` and left out.
        """
        manifests_here = []
        for folder in self.folders():
            try:
                manifests_here.append(manifests.read(folder))
            except AdpaError as error:
                if on_error is None:
                    raise
                on_error(error)
        return sorted(manifests_here, key=lambda manifest: (-manifest.at, manifest.ref))

    def resolve(self, text: str) -> Manifest:
        """The artifact a user means: see `adpa_cli.store.store`."""
        return resolve(self, text)

    def tag(self, name: str, id_or_ref: str, reserved: Collection[str] = ()) -> None:
        """Give an artifact a name, moving the name if it is in use.

        Raises UsageError for a name that `check_tag` refuses.
        """
        check_tag(name, reserved)
        with explained(self.root, f"{name} is not set"), collecting(self.root, f"adpa tag {name}"):
            manifest = self.get(id_or_ref)
            if manifest is None:
                raise NotFound(f"{id_or_ref} is not in {self.root}", "see what is: adpa show")
            write_atomic(self.root / "tags" / name, manifest.id.encode() + b"\n")

    def untag(self, name: str) -> None:
        """Remove a name; what it named stays. Raises NotFound."""
        if name not in self.tags():
            raise NotFound(f"there is no tag called {name}", f"tags: {', '.join(sorted(self.tags())) or 'none'}")
        (self.root / "tags" / name).unlink()

    def tags(self) -> dict[str, str]:
        """Full id by tag, sorted by tag."""
        with contextlib.suppress(FileNotFoundError):
            paths = sorted(path for path in (self.root / "tags").iterdir() if TAG.fullmatch(path.name))
            return {path.name: path.read_text(encoding="utf-8").strip() for path in paths}
        return {}

    def pin(self, name: str, lookup: Callable[[str], str], refresh: bool = False) -> str:
        """The commit that a hub name stands for in this store: `lookup(name)` the first time and on `refresh`.

        Raises UsageError when it is not the one that must be.
        """
        meant = self.pinned.get(name)
        look = (lambda _: meant) if meant is not None else lookup
        if not self.root.exists():
            return self.unsaved_pins.setdefault(name, look(name))  # kept once the store is created
        commit = pinned_commit(self.root, self.root / PARTIAL / "pins.lock", name, look, refresh)
        if meant not in (None, commit):
            raise UsageError(
                f"{name} is at commit {meant[:8]} in the recipe but at {commit[:8]} in {self.root}",
                "use another store: --store DIR\n or: --refresh, which changes the commit in this one",
            )
        return commit

    def keep_pins(self, created: Store) -> None:
        """Pin in a store that was created what hub names meant while this one, not there yet, was planned with.

        Raises AdpaError where another command has pinned one otherwise meanwhile.
        """
        for name, commit in self.unsaved_pins.items():
            if created.pin(name, self.unsaved_pins.__getitem__) != commit:
                raise AdpaError(f"{name} was pinned to another commit meanwhile", "repeat the command")

    def unfinished(self) -> list[Unfinished]:
        """Work begun and not committed, most recently saved first."""
        works = []
        named = "" if self.is_usual else f" --store {shlex.quote(str(self.root))}"
        for folder in (self.root / PARTIAL).glob("*/"):
            state = builds.read_state(folder)
            if state is not None:
                recipe, command = Recipe(**state["recipe"]), state["command"] + named
                at_work = builds.at_work(folder)
                works.append(
                    Unfinished(recipe.ref, recipe, command, state["progress"], state["stopped"], state["at"], at_work)
                )
        return sorted(works, key=lambda work: -work.at)

    def build(
        self,
        recipe: Recipe,
        *,
        command: str,
        environment: Mapping[str, Any] | None = None,
        wait: bool = True,
        announce: Callable[[str], None] | None = None,
        again: str = "",
        part: Part | None = None,
    ) -> contextlib.AbstractContextManager[builds.Work]:
        """Open the work on a recipe, alone or a part of it, or its finished artifact as `work.hit`: see
        `adpa_cli.store.build`."""
        return builds.build(
            self.root, recipe, command=command, environment=environment, wait=wait, announce=announce, again=again,
            part=part,
        )  # fmt: skip


def _of_tag(store: Store, tag: str, tagged: str, begun: list[Manifest]) -> Manifest:
    manifest = store.get(tagged)
    if begun:
        both = [f"the tag of {manifest.ref if manifest else tagged[:12]}", *(f"the id {other.ref}" for other in begun)]
        raise UsageError(
            f"{tag} is ambiguous: it could be {' or '.join(both)}", f"remove the tag: adpa tag --delete {tag}"
        )
    if manifest is None:
        raise NotFound(
            f"the tag {tag} names {tagged[:12]}, which no longer exists",
            f"adpa tag {tag} REF moves it to another artifact",
        )
    return manifest


def _beginning_with(store: Store, text: str) -> list[Manifest]:
    """The artifacts whose id begins with `text`, which may have the stage before it; 4 digits at least."""
    stage, _, digits = text.removeprefix("artifact:").rpartition("/")
    digits = digits.lower()
    if not DIGITS.fullmatch(digits):
        return []
    folders = [folder for folder in store.folders(stage) if folder.name.startswith(digits[:12])]
    return [manifest for manifest in map(manifests.read, folders) if manifest.id.startswith(digits)]


def _unknown(store: Store, text: str) -> NotFound:
    for work in store.unfinished():
        if len(text) >= 4 and (work.ref.startswith(text) or work.recipe.id.startswith(text)):
            return NotFound(f"{work.ref} is unfinished", f"{work.command}")
    stage, _, latest = text.partition("@")
    if latest == "latest" and STAGE_NAME.fullmatch(stage):
        return NotFound(
            f"{text}: no {stage} is finished in {store.root} (rehearsals do not count)",
            "adpa show --all lists what there is",
        )
    if text in reserved_words():
        return NotFound(
            f"{text} is an alias of a model, and no artifact in {store.root} has this name",
            "adpa models explains the aliases, adpa show lists the artifacts",
        )
    refs = [f"{folder.parent.name}/{folder.name}" for folder in store.folders()]
    names = [*store.tags(), *refs, *(ref.split("/")[1] for ref in refs)]
    named = {name.lower(): name for name in names}
    close = [named[word] for word in difflib.get_close_matches(text.lower(), named, n=3, cutoff=0.75)]
    if any(ref.startswith(f"{stage.lower()}/") for ref in refs):
        close = [f"{stage.lower()}@latest"]
    meant = f"did you mean {' or '.join(close)}? " if close else ""
    is_short, is_id = (re.fullmatch(pattern, text) for pattern in ("[0-9a-f]{1,3}", "(.+/)?[0-9a-f]{12,64}"))
    short = "an id needs 4 digits or more; " if is_short else ""
    other = f"if it is in another store, add --store DIR (adpa show {text} --recipe prints there how to make it); "
    return NotFound(
        f"there is no tag or id {text} in {store.root}",
        f"{meant}{short}{other if is_id else ''}adpa show lists what there is",
    )


def _check_place(root: Path) -> None:
    """Raise UsageError where no store can be: below a file, where others may not look, by a name that is no text."""
    for path in (root, *root.parents):
        try:
            is_folder = stat.S_ISDIR(os.stat(path).st_mode)
        except PermissionError as error:
            raise UsageError(f"{root} cannot be a store: {error.strerror}", "give a folder: --store DIR") from error
        except OSError:
            continue
        if not is_folder:
            raise UsageError(f"{root} cannot be a store: {path} is a file", "give a folder: --store DIR")
        break
    try:
        str(root).encode()
    except UnicodeEncodeError as error:
        name = "a folder in its path has a name that is not UTF-8 text"
        raise UsageError(
            f"{root} cannot be a store: {name}", "rename it, or give another folder: --store DIR"
        ) from error


def _supported(root: Path) -> Path:
    try:
        version = int(json.loads((root / MARKER).read_bytes())["format"])
    except (ValueError, KeyError, TypeError) as error:
        raise Corrupt(f"{root / MARKER} is damaged: {error}", f'restore it: {{"format": {FORMAT}}}') from error
    if version > FORMAT:
        raise AdpaError(
            f"{root} was made by a newer version of adpa (store format {version}; this version reads up to {FORMAT})",
            "upgrade adpa, in the folder of its source: git pull && pip install .",
        )
    return root


SIGNAL_SUFFIX = ".adpa"


@dataclass(frozen=True)
class Damage:
    """One damaged file, what is wrong with it, and for a signal the names of its damaged rows."""

    file: str
    problem: str
    rows: tuple[str, ...] = ()


def verify(store: Store, manifest: Manifest, rows: Callable[[Path], list[str]] | None = None) -> list[Damage]:
    """Rehash every file of an artifact; an empty list means that it is whole.

    `rows` names the damaged rows of a damaged signal shard (the signal's own checksums know them). That an artifact was
    found whole, and when, is remembered for `verified_at`.
    """
    folder = store.folder(manifest.ref)
    checks = [_check(folder, name, manifest, rows) for name in sorted(manifest.files)]
    damages = [damage for damage in checks if damage is not None]
    recipe = Recipe(manifest.stage, manifest.version, manifest.spec, manifest.inputs)
    if recipe.id != manifest.id:
        damages.append(
            Damage(
                manifests.FILE_NAME,
                f"its settings or inputs were changed: they hash to {recipe.id[:12]}, not {manifest.id[:12]}",
            )
        )
    mark = _mark(store, manifest.id)
    with contextlib.suppress(OSError):  # a store that is mounted read-only can be verified, not marked
        if damages:
            mark.unlink(missing_ok=True)
        else:
            write_atomic(mark, f"{time.time()}\n".encode())
    return damages


def verified_at(store: Store, artifact_id: str) -> float | None:
    """When an artifact was last found whole, in seconds since 1970, or None."""
    try:
        return float(_mark(store, artifact_id).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _mark(store: Store, artifact_id: str) -> Path:
    return store.root / ".verified" / artifact_id


def _check(folder: Path, name: str, manifest: Manifest, rows: Callable[[Path], list[str]] | None) -> Damage | None:
    path, expected = folder / name, manifest.files[name]
    if not path.is_file():
        return Damage(name, "missing")
    size = path.stat().st_size
    if size != expected["bytes"]:
        problem = f"it has {size:,} bytes instead of {expected['bytes']:,}"
    elif sha256_file(path) != expected["sha256"]:
        problem = "its bytes have changed"
    else:
        return None
    named = tuple(rows(path)) if rows is not None and name.endswith(SIGNAL_SUFFIX) else ()
    return Damage(name, problem, named)
