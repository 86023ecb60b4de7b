"""The directory that holds every artifact. It is the only record: no database, nothing to fall out of step."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from adpa_cli.errors import AdpaError, Corrupt, NotFound, UsageError
from adpa_cli.store import build as builds
from adpa_cli.store import manifest as manifests
from adpa_cli.store import pins
from adpa_cli.store.disk import explained, make_folder, write_atomic
from adpa_cli.store.identity import STAGE_NAME, HashCache, Recipe
from adpa_cli.store.lock import holder
from adpa_cli.store.manifest import Manifest
from adpa_cli.store.meaning import meaning
from adpa_cli.store.reserve import collecting
from adpa_cli.store.tags import TAG, check_tag

FOLDER = "adpa-store"
MARKER = "adpa.json"
FORMAT = 1


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
            places = [start.expanduser().absolute()]
            asked = f"{start} is no store"
        else:
            here = Path.cwd()
            places = [folder / FOLDER for folder in (here, *here.parents)]
            asked = f"no {FOLDER} in {here} or above it"
        for place in places:
            if (place / MARKER).is_file():
                return cls(_supported(place))
        if not create:
            raise NotFound(asked, "name one with --store DIR or $ADPA_STORE; the first adpa sft or distill creates one")
        return cls._create(places[0])

    @classmethod
    def find_or_empty(cls, start: Path | None = None) -> Store:
        """The store that `find` would find, else an empty one at the place where it would be created, not created."""
        try:
            return cls.find(start)
        except NotFound:
            given = start or os.environ.get("ADPA_STORE")
            return cls(_free_place(Path(given).expanduser().absolute() if given else Path.cwd() / FOLDER))

    @classmethod
    def _create(cls, root: Path) -> Store:
        if root.exists() and (not root.is_dir() or any(root.iterdir())):
            raise UsageError(
                f"{root} holds other things and is no store", f"give an empty folder: --store {root / FOLDER}"
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
        known = sorted(os.listdir(self.root)) if self.root.is_dir() else []  # see `find_or_empty`
        for stage in [only] if only else known:
            if STAGE_NAME.fullmatch(stage) and stage != "tags" and (self.root / stage).is_dir():
                for name in os.listdir(self.root / stage):
                    if len(name) == 12 and os.path.exists(f"{self.root}/{stage}/{name}/{manifests.FILE_NAME}"):
                        yield self.root.joinpath(stage, name)

    def _find(self, id_or_ref: str) -> Path | None:
        stage, _, hex_part = id_or_ref.removeprefix("artifact:").rpartition("/")
        matches = (folder for folder in self.folders(stage) if folder.name == hex_part[:12])
        return next(matches, None)

    def folder(self, id_or_ref: str) -> Path:
        """Where an artifact's files are, by full id or `stage/12hex`. Raises NotFound."""
        found = self._find(id_or_ref)
        if found is None:
            raise NotFound(f"{id_or_ref} is not in {self.root}", "see what is: adpa show")
        return found

    def get(self, id_or_ref: str) -> Manifest | None:
        """The manifest of a complete artifact, or None."""
        folder = self._find(id_or_ref)
        return manifests.read(folder) if folder else None

    def artifacts(self, on_error: Callable[[AdpaError], None] | None = None) -> list[Manifest]:
        """Every complete artifact, newest first.

        A damaged or too new manifest is raised, or passed to `on_error` and left out.
        """
        found = []
        for folder in self.folders():
            try:
                found.append(manifests.read(folder))
            except AdpaError as error:
                if on_error is None:
                    raise
                on_error(error)
        return sorted(found, key=lambda manifest: (-manifest.at, manifest.ref))

    def resolve(self, text: str) -> Manifest:
        """The artifact a user means: see `adpa_cli.store.meaning`."""
        return meaning(self, text)

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
            raise NotFound(f"there is no tag {name}", f"tags: {', '.join(sorted(self.tags())) or 'none'}")
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
            return look(name)  # an empty store that is only planned with keeps nothing
        found = pins.pin(self.root, self.root / builds.PARTIAL / "pins.lock", name, look, refresh)
        if meant not in (None, found):
            raise UsageError(
                f"{name} is {meant[:8]} in the recipe, and {found[:8]} in {self.root}",
                "make it in a store of its own: --store DIR; --refresh moves the name in this one",
            )
        return found

    def unfinished(self) -> list[Unfinished]:
        """Work begun and not committed, most recently saved first."""
        found = []
        named = "" if self.is_usual else f" --store {shlex.quote(str(self.root))}"
        for folder in (self.root / builds.PARTIAL).glob("*/"):
            state = builds.read_state(folder)
            if state is not None:
                recipe, command = Recipe(**state["recipe"]), state["command"] + named
                at_work = holder(folder.with_name(f"{folder.name}.lock")) or ""
                found.append(
                    Unfinished(recipe.ref, recipe, command, state["progress"], state["stopped"], state["at"], at_work)
                )
        return sorted(found, key=lambda work: -work.at)

    def build(
        self,
        recipe: Recipe,
        *,
        command: str,
        environment: Mapping[str, Any] | None = None,
        wait: bool = True,
        announce: Callable[[str], None] | None = None,
        again: str = "",
    ) -> contextlib.AbstractContextManager[builds.Work]:
        """Open the work on a recipe, alone, or its finished artifact as `work.hit`: see `adpa_cli.store.build`."""
        return builds.build(
            self.root, recipe, command=command, environment=environment, wait=wait, announce=announce, again=again
        )


def _free_place(root: Path) -> Path:
    """The same path. Raises UsageError where no folder can be made, because something in its path is a file."""
    existing = next(path for path in (root, *root.parents) if path.exists())
    if not existing.is_dir():
        raise UsageError(f"{root} cannot be a store: {existing} is a file", "give a folder: --store DIR")
    return root


def _supported(root: Path) -> Path:
    try:
        version = int(json.loads((root / MARKER).read_bytes())["format"])
    except (ValueError, KeyError, TypeError) as error:
        raise Corrupt(f"{root / MARKER} is damaged: {error}", f'restore it: {{"format": {FORMAT}}}') from error
    if version > FORMAT:
        raise AdpaError(
            f"{root} was made by a newer adpa (store format {version}; this one reads up to {FORMAT})",
            "upgrade: pip install -U adpa-cli",
        )
    return root
