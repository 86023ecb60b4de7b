"""What a name on the command line means: an alias by the role asked for, an artifact, a folder, a hub id, a data set.

Everything here reads JSON and hashes files; nothing loads a model.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import Any

from adpa_cli import stages
from adpa_cli.data.sources import HUB_ID, Source, located, parse_source, source_files, split_name
from adpa_cli.errors import NotFound, UsageError
from adpa_cli.families import DATA_ALIASES, Alias, ReadyPair, aliases, ready_pairs
from adpa_cli.hub import External, HubFile, stand_in
from adpa_cli.hub import repository as hub
from adpa_cli.hub.externals import BUILTIN, BUILTIN_DATA
from adpa_cli.hub.repository import Access, Closed
from adpa_cli.stages import Artifact
from adpa_cli.store.identity import canonical, file_digest, model_digest, model_files
from adpa_cli.store.store import Store


@dataclass(frozen=True)
class Names:
    """Resolves names against one store; `refresh` asks the hub again what a pinned name means now.

    With `access` a hub name that is closed to us is noted there, and something stands in for it until the plan is
    refused; without, its error is raised at once.
    """

    store: Store
    refresh: bool = False
    access: Access | None = None

    def model(self, text: str, option: str, made_by: Sequence[str] = ()) -> Alias | ReadyPair | Artifact | External:
        """What a model option means; an artifact is `made_by` one of some stages, any that makes models unless said.

        Raises UsageError and NotFound.
        """
        if not text:
            raise UsageError(f"{option} is empty", "the command before it may have failed; give a model")
        if text.startswith((".", "/", "~")):
            return self.folder(Path(text).expanduser(), text)
        known: dict[str, Alias | ReadyPair] = {**aliases(), **ready_pairs()}
        if text in known:
            if tagged := self.store.tags().get(text):
                made = self.store.get(tagged)
                ref = made.ref if made else tagged[:12]
                raise UsageError(
                    f"{text} has two meanings: the alias {text}, and the tag of {ref}",
                    f"write {ref} for the artifact, or remove the tag: adpa tag --delete {text}",
                )
            return known[text]
        if HUB_ID.fullmatch(text) and text.split("/")[0] not in stages.names():
            return self.hub_model(text)
        return self.made(text, made_by or stages.making("model"), option)

    def made(self, text: str, made_by: Sequence[str], option: str) -> Artifact:
        """The artifact `made_by` one of some stages that `text` names."""
        if not text:
            raise UsageError(f"{option} is empty", "the command before it may have failed; give an id")
        try:
            found = self.store.resolve(text)
        except NotFound as error:
            close = difflib.get_close_matches(text, [*aliases(), *ready_pairs()], n=2, cutoff=0.5)
            hint = f"did you mean {' or '.join(close)}?" if close and "/" not in text else error.hint
            if Path(text).is_dir():
                hint = f"a folder is written with its path: ./{text}"
            raise NotFound(f"{option} {text}: {error.message}", hint) from None
        if found.stage not in made_by:
            raise UsageError(
                f"{option} {text}: {found.ref} is no {' or '.join(made_by)}", "see what there is: adpa show"
            )
        return Artifact(found)

    def folder(self, path: Path, text: str) -> External:
        """A model folder, by the content of the files that determine it."""
        digest = model_digest(path, self.store.hash_cache)
        name = path.resolve().name
        return External(f"model:{digest}", name, (str(path.resolve()),), {"name": name}, _bytes(path))

    def builtin_model(self, side: str) -> External:
        """A base model that ships with the package."""
        path = Path(str(resources.files("adpa_cli.lab") / "bases" / side))
        digest = model_digest(path, self.store.hash_cache)
        facts = {"name": f"{BUILTIN}{side}"}
        return External(f"model:{digest}", f"tiny base {side}", (str(path),), facts, _bytes(path))

    def base(self, name: str) -> External:
        """The base model that a family names: built in, or of the hub."""
        if name.startswith(BUILTIN):
            return self.builtin_model(name.removeprefix(BUILTIN))
        return self.hub_model(name)

    def hub_model(self, text: str) -> External:
        """A hub model at the commit this store has pinned, found without its weights. Raises Closed."""
        name, _, revision = text.partition("@")
        if self.access and self.access.asked.get(text):
            return stand_in("model", name)
        try:
            commit = self.store.pin(text, lambda _: hub.commit_of(name, revision or None, "model"), self.refresh)
            found = hub.model(name, commit, self.store.hash_cache)
        except Closed as why:
            self._note(text, why)
            return stand_in("model", name)
        self._note(text, None)
        return found

    def _note(self, text: str, why: Closed | None) -> None:
        """Remember what the hub says of a name; raise it when nobody collects."""
        if self.access is not None:
            self.access.asked[text] = why
        elif why is not None:
            raise why

    def data(self, texts: Sequence[str]) -> External:
        """One or several data sources as one input, by the content of their files."""
        described: list[dict[str, Any]] = []
        where: list[str] = []
        files: list[HubFile] = []
        size = 0
        for text in texts:
            if not text:
                raise UsageError("a data source is empty", "name a file, a folder (./NAME), a hub data set (org/name)")
            name, _, split = text.partition("#")
            base = DATA_ALIASES.get(name, name)
            try:
                found = self._described(f"{base}#{split}" if split else base)
            except Closed as why:
                self._note(f"data {base}", why)
                return stand_in("data", base)
            described.append(found.facts)
            where.append(found.where)
            files += found.files
            size += found.size
        hashed = [{key: entry[key] for key in ("files", "splits", "split")} for entry in described]
        digest = hashlib.sha256(canonical(hashed)).hexdigest()
        label = " + ".join(d["name"] for d in described)
        facts = {"name": label, "sources": described}
        return External(f"data:{digest}", label, tuple(where), facts, size, hub.sizes(files)[1], tuple(files))

    def _described(self, text: str) -> _Described:
        if text.startswith(BUILTIN):
            from adpa_cli.lab import world

            name = text.removeprefix(BUILTIN)
            if name not in BUILTIN_DATA:
                raise NotFound(f"no built-in data set is called {name}", f"there are {', '.join(BUILTIN_DATA)}")
            facts = {"name": name, "files": [f"{name} {world.VERSION}"], "splits": [""], "split": ""}
            return _Described(facts, text)
        source = parse_source(text)
        if source.kind == "hub":
            return self._hub_data(source)
        source = located(source)
        paths = source_files(source)
        files = [file_digest(path, self.store.hash_cache) for path in paths]
        # In a folder the names decide what is trained on and what is held out.
        folder = source.path if source.kind != "file" else None
        splits = [split_name(path.relative_to(folder)) if folder else "" for path in paths]
        shown = Path(source.text.partition("#")[0]).name
        facts = {"name": shown, "files": files, "splits": splits, "split": source.split or ""}
        return _Described(facts, _absolute(text), (), sum(path.stat().st_size for path in paths))

    def _hub_data(self, source: Source) -> _Described:
        name = source.text.partition("#")[0]
        asked = name + (f"@{source.revision}" if source.revision else "")
        commit = self.store.pin(
            f"datasets/{asked}", lambda _: hub.commit_of(name, source.revision, "dataset"), self.refresh
        )
        files = hub.data_files(name, commit, self.store.hash_cache)
        self._note(f"data {asked}", None)
        splits = [split_name(PurePosixPath(file.name)) for file in files]
        shas = [file.sha for file in files]
        facts = {"name": source.text, "files": shas, "splits": splits, "split": source.split or "", "commit": commit}
        where = str(hub.snapshot(name, "dataset", commit)) + (f"#{source.split}" if source.split else "")
        return _Described(facts, where, files, sum(file.size for file in files))

    def data_words(self, facts: Any) -> list[str]:
        """What to type for the data that an artifact was made from. Raises NotFound when they have moved."""
        where = []
        for source in facts["sources"]:
            if source.get("commit"):
                where.append(f"{source['name'].partition('#')[0]}@{source['commit']}")
            elif source["files"][0].rpartition(" ")[0] in BUILTIN_DATA:
                where.append(BUILTIN + source["name"])
            else:
                paths = [self.store.hash_cache.locate(sha) for sha in source["files"]]
                if not paths or paths[0] is None:
                    raise NotFound(
                        f"{source['name']}, which this was made from, is not where it was", "give --data FILE"
                    )
                where.append(str(paths[0]) if len(paths) == 1 else str(paths[0].parent))
            where[-1] += f"#{source['split']}" if source["split"] else ""
        return where

    def data_of(self, facts: Any, content: str) -> External:
        """The data set that an artifact was made from, found again by content. Raises NotFound when it has moved."""
        found = self.data(self.data_words(facts))
        if found.content != content:
            raise NotFound(f"{facts['name']} has changed since this was made", "give --data with the data to use")
        return found


@dataclass(frozen=True)
class _Described:
    """One data source: what a manifest keeps of it, where its rows are read, its hub files and its bytes."""

    facts: dict[str, Any]
    where: str
    files: tuple[HubFile, ...] = ()
    size: int = 0


def _bytes(folder: Path) -> int:
    return sum((folder / name).stat().st_size for name in model_files(folder))


def _absolute(text: str) -> str:
    base, mark, split = text.partition("#")
    return str(Path(base).expanduser().resolve()) + mark + split
