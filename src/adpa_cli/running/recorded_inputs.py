"""The inputs that a signal was made from, by their recorded content, so that parts of it can be computed once more."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from adpa_cli.errors import AdpaError, NotFound, UsageError
from adpa_cli.families import Alias, ReadyPair
from adpa_cli.hub import External
from adpa_cli.hub import repository as hub
from adpa_cli.hub.externals import BUILTIN
from adpa_cli.planning.lineage import locate, model_in_folder
from adpa_cli.planning.resolve_inputs import Names
from adpa_cli.stages import Artifact, Input, Job
from adpa_cli.store.manifest import Manifest

RECORDED = "recorded"
OPTIONS = {"aligned": "--teacher", "reference": "--reference"}


def recorded_job(names: Names, manifest: Manifest, models: Mapping[str, str | None], work: Path) -> Job:
    """The stage that made a signal, as a job in the folder `work`.

    A teacher is looked up in the store, in the cache of hashes and in the hub's cache, or is what `models` names for
    its role (`recorded`, or nothing, stands for the look-up). Raises UsageError for a model that is not the recorded
    one, and NotFound with the option to use for one that is nowhere.
    """
    if "imported" in manifest.spec:
        raise UsageError(
            f"{manifest.ref} was imported, so this store does not have its teacher", "import it again: adpa import FILE"
        )
    inputs = {}
    for role, value in manifest.inputs.items():
        content, item = str(value), None
        if role in OPTIONS:
            item = _teacher(names, manifest, role, content, models.get(role))
        elif content.startswith("artifact:"):
            item = _artifact(names, content, f"{manifest.ref} was made on {role}")
        else:
            item = names.data_of(manifest.sources[content], content)
        inputs[role] = (locate(item, names.store),)
    return Job(manifest.stage, manifest.ref, manifest.spec, inputs, str(work))


def _teacher(names: Names, manifest: Manifest, role: str, content: str, text: str | None) -> Input:
    """The teacher of a role, as `text` names it or as it is recorded."""
    option = OPTIONS[role]
    if text not in (None, RECORDED):
        model = one_model(names, str(text), option)
        if model.content != content:
            raise UsageError(
                f"{option} {text} is not the {role} teacher of {manifest.ref}: "
                f"it is {model.content[:22]}…, and not {content[:22]}…",
                f"leave out {option} to use the recorded one",
            )
        return model
    if content.startswith("artifact:"):
        return _artifact(names, content, f"the {role} teacher of {manifest.ref}", f"name it: {option} MODEL")
    facts = manifest.sources.get(content, {})
    local = _local_model(names, content, facts)
    if local is None:
        raise NotFound(
            f"the {role} teacher of {manifest.ref}, {facts.get('name') or content[:22]}, is not on this machine",
            f"name it: {option} MODEL (a folder, or a hub model that is downloaded)",
        )
    return local


def one_model(names: Names, text: str, option: str) -> Artifact | External:
    """The model that an option names. UsageError for an alias, which stands for several."""
    model = names.model(text, option)
    if isinstance(model, Alias | ReadyPair):
        raise UsageError(f"{option} {text} stands for several models", "name an artifact, or a folder: ./MODEL")
    return model


def _artifact(names: Names, content: str, what: str, hint: str = "") -> Artifact:
    manifest = names.store.get(content)
    if manifest is None:
        gone = f"{what}, {content.removeprefix('artifact:')[:12]}, which is not in this store"
        raise NotFound(gone, hint or "bring it back: repeat the command that made it")
    return Artifact(manifest)


def _local_model(names: Names, content: str, facts: Mapping[str, object]) -> External | None:
    """A model from outside that is on this machine, None where it is not: nothing is downloaded."""
    if model := model_in_folder(content, facts, names.store):
        return model
    name = str(facts.get("name", ""))
    try:
        model = names.base(name) if name.startswith(BUILTIN) else None
        if facts.get("commit"):
            model = hub.model(name, str(facts["commit"]), names.store.hash_cache)
    except AdpaError:
        return None
    return model if model is not None and not model.download and model.content == content else None
