"""Models and data sets from outside the store, described by their content, and the rows behind a data set.

Everything here reads JSON and hashes files; nothing loads a model.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

from adpa_cli.data.layouts import layout_of
from adpa_cli.data.preferences import DataSet, Dialogue, Loaded, Pair, Purpose
from adpa_cli.data.sources import Source, columns_in, columns_off, located, parse_source, source_files, with_columns
from adpa_cli.data.tables import code_digest
from adpa_cli.errors import NotFound, UsageError
from adpa_cli.families import DATA_ALIASES, FAMILIES
from adpa_cli.hub import External, HubFile, stand_in
from adpa_cli.hub import repository as hub
from adpa_cli.hub.adapter_folder import AdapterFolder
from adpa_cli.hub.model_folder import ModelFolder
from adpa_cli.hub.repository import Access, Closed
from adpa_cli.hub.usable import CHECKED, check_model
from adpa_cli.store.identity import canonical, file_digest, model_digest, model_files
from adpa_cli.store.store import Store

BUILTIN = "builtin:"
BUILTIN_DATA = ("tiny-sft", "tiny-pairs")


def pairs_of(
    where: tuple[str, ...], split: str, limit: int | None, skip_bad_rows: bool, template: str = ""
) -> Loaded[Pair]:
    """Preference pairs of one side ("train" or "test") of a data input; each file is read once in a process.

    Rows that the chat template refuses count as bad ones.
    """
    return _data_set(where, "pairs", skip_bad_rows, template).pairs(split, limit)


def prompts_of(
    where: tuple[str, ...], split: str, limit: int | None, skip_bad_rows: bool, template: str = "", ties: bool = False
) -> Loaded[Pair]:
    """The pairs of one side, with the prompts whose answers tie if these are asked for; files of prompts alone serve
    whole on either side, as pairs of empty answers."""
    return _data_set(where, "prompts", skip_bad_rows, template).prompts(split, limit, ties)


def has_pairs(data: External) -> bool:
    """Whether data hold pairs and not prompts alone; what is not sound is taken to. Of data that are not here yet only
    those of a family are known to."""
    if not data.is_here:
        return data.label in {DATA_ALIASES.get(family.data, family.data) for family in FAMILIES}
    return _data_set(data.where, "prompts", True, "").has_pairs()


def dialogues_of(
    where: tuple[str, ...], split: str, limit: int | None, skip_bad_rows: bool, template: str = ""
) -> Loaded[Dialogue]:
    """Dialogues of one side ("train" or "test") of a data input, likewise."""
    return _data_set(where, "dialogues", skip_bad_rows, template).dialogues(split, limit)


@functools.lru_cache(maxsize=8)
def _data_set(where: tuple[str, ...], purpose: Purpose, skip_bad_rows: bool, template: str) -> DataSet:
    return DataSet(open_sources(where), purpose, skip_bad_rows, template)


def open_sources(where: Sequence[str]) -> list[Source]:
    """The sources behind a data input, ready to be read; rows that are built in are made when they are."""
    opened: list[Source] = []
    for written in where:
        text, columns = columns_off(written)
        if text.startswith(BUILTIN):
            from adpa_cli.lab import world

            name = text.removeprefix(BUILTIN)
            rows_of = world.demonstrations if name == "tiny-sft" else world.preferences
            for split in world.SPLITS:
                made_by = f"{split} {code_digest(world.__file__)}"
                opened.append(
                    Source(
                        name,
                        "rows",
                        split=split,
                        rows=functools.partial(rows_of, split),
                        content=made_by,
                        columns=columns_in(columns) if columns else (),
                    )
                )
        else:
            opened.append(parse_source(written))
    return opened


@dataclass(frozen=True)
class Externals:
    """Describes what comes from outside one store; `refresh` asks the hub again what a pinned name means now.

    With `access` a hub name that is closed to us is noted there, and something stands in for it until the plan is
    refused; without, its error is raised at once.
    """

    store: Store
    refresh: bool = False
    access: Access | None = None

    def folder(self, path: Path) -> External:
        """A model folder, by the content of the files that determine it."""
        name = path.resolve().name
        return self._model(path, name, name)

    def builtin_model(self, side: str) -> External:
        """A base model that ships with the package."""
        path = Path(str(resources.files("adpa_cli.lab") / "bases" / side))
        return self._model(path, f"tiny base {side}", f"{BUILTIN}{side}")

    def _model(self, path: Path, label: str, name: str) -> External:
        adapter = AdapterFolder.of(path) if path.is_dir() else None
        if adapter is not None:
            return self._adapter(adapter, label, name)
        return self._usable(self._whole(path, label, name))

    def _whole(self, path: Path, label: str, name: str) -> External:
        digest = model_digest(path, self.store.hash_cache)
        size = sum((path / file).stat().st_size for file in model_files(path))
        return External(f"model:{digest}", label, (str(path.resolve()),), {"name": name}, size)

    def _adapter(self, adapter: AdapterFolder, label: str, name: str) -> External:
        """An adapter folder; a base of the hub is fetched like any model of it."""
        base = self._base_of(adapter)
        if not base.is_open:
            return stand_in("model", name)
        sha = adapter.digest(base.content.partition(":")[2], self.store.hash_cache)
        size = base.size + sum((adapter.path / file).stat().st_size for file in model_files(adapter.path))
        facts = {"name": name, "base": dict(base.facts)}
        where = (str(adapter.path.resolve()),)
        return self._usable(External(f"model:{sha}", label, where, facts, size, base.download, base.files))

    def _base_of(self, adapter: AdapterFolder) -> External:
        """The model that an adapter folder was trained on; what stands in for one of the hub that is closed to us."""
        if not adapter.is_of_hub:
            return self._whole(adapter.base, adapter.base.name, adapter.base.name)
        try:
            base = hub.base_model(adapter.base_name, adapter.revision, str(adapter.path), self.store.hash_cache)
        except Closed as why:
            self.note(adapter.base_name, why)
            return stand_in("model", adapter.base_name)
        self.note(adapter.base_name, None)
        return base

    def _usable(self, model: External) -> External:
        """A model that can be used; what that says of a content is found once, since vocabularies take a second."""
        key = f"usable/{CHECKED}/{model.content}"
        if self.store.hash_cache.recall(key) is None:
            folder = ModelFolder.of(Path(model.where[0]))
            check_model(folder, model.label)
            if not (folder.adapter and model.download):  # its matrices are compared with weights that are here
                self.store.hash_cache.remember(key, True)
        return model

    def base(self, name: str) -> External:
        """The base model that a family names: built in, or of the hub."""
        if name.startswith(BUILTIN):
            return self.builtin_model(name.removeprefix(BUILTIN))
        return self.hub_model(name)

    def hub_model(self, text: str) -> External:
        """A hub model at the commit this store has pinned, described without its weights. Raises Closed."""
        name, _, revision = text.partition("@")
        if self.access and self.access.asked.get(text):
            return stand_in("model", name)
        try:
            commit = self.store.pin(text, lambda _: hub.commit_of(name, revision or None, "model"), self.refresh)
            model = hub.model(name, commit, self.store.hash_cache)
        except Closed as why:
            self.note(text, why)
            return stand_in("model", name)
        self.note(text, None)
        return self._usable(model)

    def data(self, texts: Sequence[str]) -> External:
        """One or several data sources as one input, by the content of their files."""
        sources: list[_DataSource] = []
        for given in texts:
            text, columns = columns_off(given)
            if not text:
                raise UsageError(
                    "a data source is empty", "name a file, a folder (./NAME) or a hub data set (org/name)"
                )
            name, _, split = text.partition("#")
            base = DATA_ALIASES.get(name, name)
            try:
                sources.append(self._data_source(f"{base}#{split}" if split else base, columns))
            except Closed as why:
                self.note(f"data {base}", why)
                return stand_in("data", base)
        told = ("files", "splits", "split", "columns")
        hashed = [{key: source.facts[key] for key in told if key in source.facts} for source in sources]
        label = " + ".join(source.facts["name"] for source in sources)
        files = [file for source in sources for file in source.files]
        return External(
            f"data:{hashlib.sha256(canonical(hashed)).hexdigest()}",
            label,
            tuple(source.where for source in sources),
            {"name": label, "sources": [source.facts for source in sources]},
            sum(source.size for source in sources),
            hub.sizes(files)[1],
            tuple(files),
        )

    def data_of(self, facts: Any, content: str) -> External:
        """The data set that an artifact was made from, found again by content. Raises NotFound when it has moved."""
        data = self.data(self.data_words(facts))
        if data.content != content:
            raise NotFound(f"{facts['name']} has changed since this was made", "give --data with the data to use")
        return data

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
                where.append(_folder_or_file(source, [path for path in paths if path is not None]))
            where[-1] += f"#{source['split']}" if source["split"] else ""
            where[-1] = with_columns(where[-1], source.get("columns", ""))
        return where

    def _data_source(self, text: str, columns: str = "") -> _DataSource:
        """One source; where its `columns` have other names than are read, that is part of what it is."""
        if columns:
            columns = ",".join(map("=".join, columns_in(columns)))
            plain = self._data_source(text)
            return replace(plain, facts={**plain.facts, "columns": columns}, where=with_columns(plain.where, columns))
        if text.startswith(BUILTIN):
            return _builtin_data(text)
        source = parse_source(text)
        if source.kind == "hub":
            return self._hub_data(source)
        path = located(source).path or Path()
        names = [("", "")]
        if source.kind == "folder":
            names = source_files(source, layout_of(path, hub.asking(self.store.hash_cache)))
        paths = [path / name for name, _ in names]
        facts = {
            "name": Path(source.base).name,
            "files": [file_digest(file, self.store.hash_cache) for file in paths],
            "splits": [split for _, split in names],  # they decide what is trained on and what is held out
            "split": source.split or "",
            **({"names": [name for name, _ in names]} if source.kind == "folder" else {}),
        }
        where = str(path.resolve()) + (f"#{source.split}" if source.split else "")
        return _DataSource(facts, where, (), sum(file.stat().st_size for file in paths))

    def _hub_data(self, source: Source) -> _DataSource:
        commit = self.data_commit(source.base, source.revision)
        files, splits, left_out = hub.data_files(source, commit, self.store.hash_cache)
        self.note(f"data {_revised(source.base, source.revision)}", None)
        split = source.split or ""
        shas = [file.sha for file in files]
        facts = {
            "name": source.text, "files": shas, "splits": splits, "split": split, "commit": commit,
            **({"left_out": left_out} if left_out else {}),
        }  # fmt: skip
        where = str(hub.snapshot(source.base, "dataset", commit)) + (f"#{split}" if split else "")
        return _DataSource(facts, where, files, sum(file.size for file in files))

    def data_commit(self, name: str, revision: str | None) -> str:
        """The commit of a hub data set that this store has pinned. Raises Closed."""
        asked = f"datasets/{_revised(name, revision)}"
        return self.store.pin(asked, lambda _: hub.commit_of(name, revision, "dataset"), self.refresh)

    def note(self, text: str, why: Closed | None) -> None:
        """Remember what the hub says of a name; raise it when nobody collects."""
        if self.access is not None:
            self.access.asked[text] = why
        elif why is not None:
            raise why


def _revised(name: str, revision: str | None) -> str:
    return f"{name}@{revision}" if revision else name


@dataclass(frozen=True)
class _DataSource:
    """One data source: what a manifest keeps of it, where its rows are read, its hub files and its bytes."""

    facts: dict[str, Any]
    where: str
    files: tuple[HubFile, ...] = ()
    size: int = 0


def _builtin_data(text: str) -> _DataSource:
    from adpa_cli.lab import world

    name = text.removeprefix(BUILTIN)
    if name not in BUILTIN_DATA:
        raise NotFound(
            f"no built-in data set is called {name}", f"the built-in data sets are {', '.join(BUILTIN_DATA)}"
        )
    facts = {"name": name, "files": [f"{name} {world.VERSION}"], "splits": [""], "split": ""}
    return _DataSource(facts, text)


def _folder_or_file(source: Any, paths: list[Path]) -> str:
    """What to type for the files of a source that are at some paths: a file, or the folder that was given."""
    names = source.get("names")
    if names and str(paths[0]).endswith(f"/{names[0]}"):
        return str(paths[0])[: -len(names[0]) - 1]
    if not names and len(paths) == 1 and not source["splits"][0]:
        return str(paths[0])
    return os.path.commonpath([str(path.parent) for path in paths])
