"""Tasks of lm-evaluation-harness: which ones some names stand for, and the data that each reads.

The harness finds its tasks by reading thousands of files, so what some names mean is remembered, for its version and
for the content of the folder that adds tasks. Data sets of the hub are pinned and fetched as any others are, and a task
is told to read the files themselves: what was fetched once needs no network.
"""

from __future__ import annotations

import difflib
import functools
import glob
import hashlib
import importlib
import importlib.metadata
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from adpa_cli.data.layouts import readme_in, split_files
from adpa_cli.errors import AdpaError, DataError, NotFound
from adpa_cli.hub import External
from adpa_cli.hub import repository as hub
from adpa_cli.hub.externals import Externals
from adpa_cli.hub.repository import Closed
from adpa_cli.store.identity import HashCache, canonical, digest_of, file_digest

INSTALL = "pip install lm_eval, which the extra eval brings"
BUILDERS = {
    ".parquet": "parquet", ".jsonl": "json", ".json": "json", ".csv": "csv", ".tsv": "csv", ".txt": "text",
    ".arrow": "arrow",
}  # fmt: skip
"""How the datasets library calls what reads a file, by the ending."""
PACKED = (".gz", ".zst", ".bz2", ".xz")
IN_TASK = ("task", "group", "tag", "task_alias", "group_alias", "aggregate_metric_list", "metadata")
"""Keys of an entry of a group that are no settings of the tasks in it."""
AVERAGES = ("aggregate_metric_list", "metadata")
"""Those of a group that say how it is averaged, and its version."""
NEAREST = 3


@dataclass(frozen=True)
class LmTasks:
    """What some names stand for: `leaves` are the tasks that are measured, each with the settings that its group or
    the command gives it, its version and its data; `groups` have the names of what is in each, and how it is averaged.
    """

    leaves: Mapping[str, Mapping[str, Any]]
    groups: Mapping[str, Mapping[str, Any]]
    with_own: bool
    """Whether the harness's own tasks are among them, and not only those of a folder."""


@dataclass(frozen=True)
class TaskData:
    """The data of some tasks as inputs, and by task what tells it to read them (`dataset_path` and so on). `unknown`
    are the tasks whose data nobody can tell, because code of their own fetches them."""

    externals: tuple[External, ...] = ()
    read: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()


def harness(module: str) -> Any:
    """A module of lm-evaluation-harness, which says little from now on. AdpaError where it is not installed."""
    logging.getLogger("lm_eval").setLevel(logging.CRITICAL)
    try:
        return importlib.import_module(f"lm_eval.{module}")
    except ImportError as error:
        raise AdpaError(f"tasks of lm-evaluation-harness need the package lm_eval: {error}", INSTALL) from error


def harness_version() -> str:
    """The version of lm-evaluation-harness. AdpaError where it is not installed."""
    try:
        return importlib.metadata.version("lm_eval")
    except importlib.metadata.PackageNotFoundError as error:
        raise AdpaError(
            "tasks of lm-evaluation-harness need the package lm_eval, which is not installed", INSTALL
        ) from error


def task_folder(path: Path, cache: HashCache) -> External:
    """A folder that adds tasks, by the content of all that it holds. NotFound where there is none."""
    if not path.is_dir():
        raise NotFound(f"--include-path {path}: no such folder", "name a folder that has *.yaml files of tasks")
    files = sorted(file for file in path.rglob("*") if file.is_file() and _is_content(file.relative_to(path)))
    shas = {file.relative_to(path).as_posix(): file_digest(file, cache) for file in files}
    size = sum(file.stat().st_size for file in files)
    return External(
        f"data:{digest_of(shas)}", path.resolve().name, (str(path.resolve()),), {"name": path.resolve().name}, size
    )


def _is_content(path: Path) -> bool:
    return not any(part.startswith(".") or part == "__pycache__" for part in path.parts)


# What names stand for.


def described(names: Mapping[str, Mapping[str, Any]], folder: External | None, cache: HashCache) -> LmTasks:
    """What some names of tasks and groups mean, each with the settings that the command gives it.

    Raises NotFound, with the nearest names, for one that means nothing.
    """
    asked = [harness_version(), dict(names), folder.content if folder else ""]
    key = f"lm-tasks/{hashlib.sha256(canonical(asked)).hexdigest()}"
    known = cache.recall(key)
    if known is None:
        known = _looked_up(names, folder)
        cache.remember(key, known)
    return LmTasks(**known)


@functools.lru_cache(maxsize=2)
def task_manager(include: str | None, content: str, with_own: bool) -> Any:
    """The index of the tasks in a folder of some `content`, and of the harness's own where asked for, which takes
    seconds."""
    return harness("tasks").TaskManager(include_path=include, include_defaults=with_own)


def _looked_up(names: Mapping[str, Mapping[str, Any]], folder: External | None) -> dict[str, Any]:
    """What `described` remembers. The harness's own tasks are read where the folder does not have all."""
    include = folder.where[0] if folder else None
    for with_own in (False, True) if include else (True,):
        index = task_manager(include, folder.content if folder else "", with_own).task_index
        found: dict[str, dict[str, Any]] = {"leaves": {}, "groups": {}}
        try:
            for name, settings in names.items():
                if name not in index:
                    raise _no_task(name, index)
                _add(name, settings, index, found)
        except NotFound:
            if with_own:
                raise
            continue
        return {**found, "with_own": with_own}
    raise AssertionError("one of the two ways returns or raises")


def _no_task(name: str, index: Mapping[str, Any]) -> NotFound:
    close = difflib.get_close_matches(name, list(index), NEAREST, 0.6)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    return NotFound(
        f"lm-evaluation-harness has no task called {name!r}",
        f"{hint}to list all tasks: lm-eval ls tasks; --include-path DIR adds more",
    )


def _add(
    name: str, settings: Mapping[str, Any], index: Mapping[str, Any], found: dict[str, dict[str, Any]]
) -> list[str]:
    """Add what a name of the index stands for to what was found; the names that it has in there."""
    entry = index[name]
    config = entry.cfg or {}
    if entry.kind.name == "TAG":
        return [child for task in sorted(entry.tags) for child in _add(task, settings, index, found)]
    if entry.kind.name == "GROUP":
        if f"{entry.yaml_path.parent}{os.sep}" in repr(config):  # how the index writes a function that it did not load
            raise NotFound(
                f"the group {name} changes its tasks by code, which is not supported", "name its tasks one by one"
            )
        return _group(name, config, settings, index, found)
    found["leaves"].setdefault(name, _leaf({**config, **settings}, settings, entry.kind.name == "PY_TASK"))
    return [name]


def _group(
    name: str,
    config: Mapping[str, Any],
    settings: Mapping[str, Any],
    index: Mapping[str, Any],
    found: dict[str, dict[str, Any]],
) -> list[str]:
    """Add a group and all that is in it; its name."""
    shared = {**{key: value for key, value in config.items() if key not in IN_TASK}, **settings}
    children: list[str] = []
    for item in config.get("task") or ():
        named = item if isinstance(item, Mapping) else {"task": item}
        inside, own = named.get("group", named.get("task")), {k: v for k, v in named.items() if k not in IN_TASK}
        if isinstance(inside, str) and inside in index:
            children += _add(inside, {**shared, **own}, index, found)
        elif "group" in named and isinstance(named.get("task"), list):
            children += _group(f"{name}::{inside}", named, shared, index, found)
        else:
            raise NotFound(
                f"the group {name} has a task without a file of its own: {inside}", "name its tasks one by one"
            )
    found["groups"][name] = {"children": children, **{key: config[key] for key in AVERAGES if config.get(key)}}
    return [name]


def _leaf(config: Mapping[str, Any], settings: Mapping[str, Any], is_code: bool) -> dict[str, Any]:
    version = (config.get("metadata") or {}).get("version")
    path = config.get("dataset_path")
    return {
        "settings": dict(settings), "version": None if version is None else str(version),
        "path": None if is_code or path is None or "custom_dataset" in config else str(path),
        "config": config.get("dataset_name"), "more": dict(config.get("dataset_kwargs") or {}),
    }  # fmt: skip


# The data of tasks.


def task_data(externals: Externals, tasks: LmTasks) -> TaskData:
    """The data that some tasks read: data sets of the hub, pinned, or files of this machine.

    Raises as the descriptions of other data do; what is closed to us is collected where `externals` has a place for it.
    """
    found: dict[str, External] = {}
    read: dict[str, Mapping[str, Any]] = {}
    unknown: list[str] = []
    of_hub: dict[tuple[str, str | None], list[str]] = {}
    for name, leaf in tasks.leaves.items():
        path, files = leaf["path"], leaf["more"].get("data_files")
        if path is None or any("://" in text for text in _texts(files)):
            unknown.append(name)
        elif path in BUILDERS.values() or os.path.isdir(os.path.expanduser(path)):
            found[name], read[name] = _local(name, leaf, externals.store.hash_cache)
        else:
            of_hub.setdefault((path, leaf["more"].get("revision")), []).append(name)
    for (repo, revision), names in of_hub.items():
        leaves = {name: tasks.leaves[name] for name in names}
        try:
            found[repo], more = _of_hub(externals, repo, revision, leaves)
            read |= more
        except Closed as why:
            externals.note(f"data {repo}", why)
    unique = {item.content: item for item in found.values()}
    return TaskData(tuple(unique.values()), read, tuple(unknown))


def _texts(files: Any) -> Iterator[str]:
    """Every pattern in what stands behind `data_files`."""
    if isinstance(files, str):
        yield files
    else:
        for item in files.values() if isinstance(files, Mapping) else files or ():
            yield from _texts(item)


def _local(name: str, leaf: Mapping[str, Any], cache: HashCache) -> tuple[External, Mapping[str, Any]]:
    """The files of this machine that a task reads, by their content; DataError where there are none."""
    path, more = leaf["path"], dict(leaf["more"])
    if path not in BUILDERS.values():
        folder = Path(path).expanduser().resolve()
        every = sorted(file for file in folder.rglob("*") if file.is_file() and _is_content(file.relative_to(folder)))
        splits: dict[str, list[str]] = {"": [str(file) for file in every]}
        told: dict[str, Any] = {"dataset_path": str(folder)}
    else:
        given = more.get("data_files")
        by_split = given if isinstance(given, Mapping) else {"train": given}
        base = os.path.expanduser(str(more.pop("data_dir", "") or ""))
        splits = {
            str(split): _matching(os.path.join(base, text) for text in _texts(of)) for split, of in by_split.items()
        }
        told = {"dataset_kwargs": {**more, "data_files": splits}}
    if lacking := [split for split, files in splits.items() if not files]:
        of = f" for the split {lacking[0]}" if lacking[0] else ""
        raise DataError(
            f"the task {name} needs files that are not on this machine{of}", "see data_files in the task's *.yaml file"
        )
    shas = {
        f"{split}/{n}": file_digest(Path(file), cache)
        for split, files in splits.items()
        for n, file in enumerate(files)
    }
    size = sum(os.path.getsize(file) for files in splits.values() for file in files)
    facts = {"name": f"data of {name}", "files": sorted(shas.values())}
    where = tuple(file for files in splits.values() for file in files)
    return External(f"data:{digest_of(shas)}", f"data of {name}", where, facts, size), told


def _matching(patterns: Iterator[str]) -> list[str]:
    return [
        os.path.abspath(path)
        for text in patterns
        for path in sorted(glob.glob(os.path.expanduser(text), recursive=True))
    ]


def _of_hub(
    externals: Externals, repo: str, revision: str | None, leaves: Mapping[str, Mapping[str, Any]]
) -> tuple[External, dict[str, Mapping[str, Any]]]:
    """A data set of the hub as far as some tasks read it, and what tells each to read its files."""
    commit, cache = externals.data_commit(repo, revision), externals.store.hash_cache
    listed = hub.listed_files(repo, commit, cache)
    folder = hub.snapshot(repo, "dataset", commit)
    splits = {
        name: _splits(repo, leaf, tuple(sorted(listed)), readme_in(folder), cache) for name, leaf in leaves.items()
    }
    wanted = sorted({file for of in splits.values() for files in of.values() for file in files})
    files = hub.hashed_files(repo, commit, listed, wanted, cache)
    shas = {file.name: file.sha for file in files}
    used = {
        f"{leaves[name]['config']}/{split}/{file}": shas[file]
        for name, of in splits.items() for split, own in of.items() for file in own
    }  # fmt: skip
    external = External(
        f"data:{digest_of(used)}", f"{repo}@{commit[:4]}", (str(folder),), {"name": repo, "commit": commit},
        *hub.sizes(files), files,
    )  # fmt: skip
    return external, {name: _reading(folder, leaves[name], of) for name, of in splits.items()}


def _splits(
    repo: str, leaf: Mapping[str, Any], listed: Sequence[str], readme: str, cache: HashCache
) -> Mapping[str, Sequence[str]]:
    """The files of each split that a task reads of a data set. DataError where nothing tells them."""
    more, config = leaf["more"], leaf["config"]
    arguments = (listed, readme, more.get("data_files"), str(more.get("data_dir") or ""))
    key = f"splits/{hashlib.sha256(canonical(list(arguments))).hexdigest()}"
    found = cache.recall(key)
    if found is None:
        try:
            found = split_files(*arguments)
        except (ValueError, TypeError, AttributeError, OSError) as error:
            raise DataError(f"{repo}: {' '.join(str(error).split())}", "the task cannot be measured here") from error
        cache.remember(key, found)
    name = str(config) if config is not None else found["default"]
    splits = found["configs"].get(name) or (found["configs"].get("default") if len(found["configs"]) == 1 else None)
    if not splits or not all(_builder(file) for files in splits.values() for file in files):
        known = ", ".join(found["configs"]) or "none"
        raise DataError(
            f"{repo} has no files that are read here in the configuration {name}", f"it has the configurations {known}"
        )
    return dict(splits)


def _reading(folder: Path, leaf: Mapping[str, Any], splits: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """What tells a task to read the files of a snapshot."""
    rest = {
        key: value for key, value in leaf["more"].items()
        if key not in ("data_files", "data_dir", "revision", "trust_remote_code")
    }  # fmt: skip
    files = {split: [str(folder / file) for file in own] for split, own in splits.items()}
    builder = _builder(next(file for own in splits.values() for file in own))
    tabs = {"sep": "\t"} if any(".tsv" in file for own in splits.values() for file in own) else {}
    return {"dataset_path": builder, "dataset_name": None, "dataset_kwargs": {**tabs, **rest, "data_files": files}}


def _builder(name: str) -> str:
    """What reads a file of the datasets library's kinds; "" for any other."""
    path = PurePosixPath(name)
    return BUILDERS.get(path.with_suffix("").suffix if path.suffix in PACKED else path.suffix, "")
