"""The inputs that a signal was made from, found again by content, so that parts of it can be computed once more."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from adpa_cli.errors import AdpaError, NotFound, UsageError
from adpa_cli.families import Alias, ReadyPair
from adpa_cli.hub import External
from adpa_cli.hub import repository as hub
from adpa_cli.hub.externals import BUILTIN
from adpa_cli.planning.lineage import locate
from adpa_cli.planning.resolve_inputs import Names
from adpa_cli.stages import Artifact, Input, Job
from adpa_cli.store.manifest import Manifest

RECORDED = "recorded"
OPTIONS = {"aligned": "--teacher", "reference": "--reference"}


def recorded(names: Names, manifest: Manifest, given: Mapping[str, str | None], work: Path) -> Job:
    """The stage that made a signal, as a job in the folder `work`.

    Models are looked for in the store, in the cache of hashes and in the hub's cache, or where `given` names them by
    role (`recorded`, or nothing, stands for looking). Raises UsageError for a model that is not the recorded one, and
    NotFound naming the option for what is nowhere.
    """
    if "imported" in manifest.spec:
        raise UsageError(
            f"{manifest.ref} was imported: this store has no teacher of it", "import it again: adpa import FILE"
        )
    inputs = {}
    for role, value in manifest.inputs.items():
        content = str(value)
        if role in OPTIONS:
            found = _model(names, manifest, role, content, given.get(role))
        elif content.startswith("artifact:"):
            found = _artifact(names, content, f"{manifest.ref} was made on {role}")
        else:
            found = names.data_of(manifest.sources[content], content)
        inputs[role] = (locate(found, names.store),)
    return Job(manifest.stage, manifest.ref, manifest.spec, inputs, str(work))


def _model(names: Names, manifest: Manifest, role: str, content: str, text: str | None) -> Input:
    option = OPTIONS[role]
    if text not in (None, RECORDED):
        found = names.model(str(text), option)
        if isinstance(found, Alias | ReadyPair):
            raise UsageError(f"{option} {text} stands for several models", "name an artifact, or a folder: ./MODEL")
        if found.content != content:
            raise UsageError(
                f"{option} {text} is not the {role} teacher of {manifest.ref}: "
                f"it is {found.content[:22]}…, and not {content[:22]}…",
                f"leave {option} out to look for the recorded one",
            )
        return found
    if content.startswith("artifact:"):
        return _artifact(names, content, f"the {role} teacher of {manifest.ref}", f"name it: {option} MODEL")
    return _external(names, manifest, role, content)


def _artifact(names: Names, content: str, what: str, hint: str = "") -> Artifact:
    found = names.store.get(content)
    if found is None:
        gone = f"{what}, {content.removeprefix('artifact:')[:12]}, which is not in this store"
        raise NotFound(gone, hint or "bring it back: repeat the command that made it")
    return Artifact(found)


def _external(names: Names, manifest: Manifest, role: str, content: str) -> External:
    """A model from outside that is on this machine: nothing is downloaded."""
    facts = manifest.sources.get(content, {})
    name, option = str(facts.get("name", "")), OPTIONS[role]
    folder = names.store.hash_cache.locate(content.removeprefix("model:"))
    if folder is not None:
        return External(content, folder.name, (str(folder),), facts)
    try:
        found = names.base(name) if name.startswith(BUILTIN) else None
        if facts.get("commit"):
            found = hub.model(name, str(facts["commit"]), names.store.hash_cache)
    except AdpaError:
        found = None
    if found is None or found.download or found.content != content:
        raise NotFound(
            f"the {role} teacher of {manifest.ref}, {name or content[:22]}, is not on this machine",
            f"name it: {option} MODEL (a folder, or a hub model that is downloaded)",
        )
    return found
