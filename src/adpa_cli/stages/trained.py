"""The model that one wants to talk to or take away: what a name means when nothing may be built for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from adpa_cli.data.chat import Template
from adpa_cli.errors import NotFound, UsageError
from adpa_cli.families import Alias, ReadyPair
from adpa_cli.stages import hub
from adpa_cli.stages.graph import Artifact, External
from adpa_cli.stages.lineage import template_of
from adpa_cli.stages.names import Names
from adpa_cli.store.manifest import Manifest
from adpa_cli.store.store import Store

MADE_BY = {
    "student": ("sft", "adpa sft --model {alias}"),
    "teacher": ("dpo-teacher", "adpa dpo-teacher --reference {alias}"),
}


@dataclass(frozen=True)
class Trained:
    """A model with its folder and the chat template it answers under; `manifest` when it is of the store."""

    label: str
    folder: Path
    template: Template
    manifest: Manifest | None


def trained(names: Names, text: str, note: Callable[[str], None] = lambda text: None) -> Trained:
    """What `text` means to a command that never builds: an artifact, tag, folder, hub model, or an alias.

    An alias means the family's fine-tuned student, or its aligned teacher, when the store has one. Raises NotFound with
    the command that makes it, UsageError for several of them and for a model without a chat template.
    """
    found = names.model(text, "REF")
    if isinstance(found, ReadyPair):
        found = names.hub_model(found.aligned)
    if isinstance(found, Alias):
        found = Artifact(_of_family(found, text, names.store))
    template = template_of(found)
    if template is None:
        raise UsageError(
            f"{text} has no chat template: it is a base model that was not taught to answer",
            f"fine-tune it first: adpa sft --model {text}",
        )
    if isinstance(found, External):
        hub.fetch(found.files, names.store.hash_cache, note)
    manifest = found.manifest if isinstance(found, Artifact) else None
    folder = Path(found.where[0]) if isinstance(found, External) else names.store.folder(found.label)
    return Trained(found.label, folder, Template(*template), manifest)


def _of_family(alias: Alias, text: str, store: Store) -> Manifest:
    stage, command = MADE_BY[alias.side]
    made = [
        manifest
        for manifest in store.artifacts(lambda error: None)
        if manifest.stage == stage and not manifest.made.get("smoke") and base_name(manifest, store) == alias.model
    ]
    if not made:
        raise NotFound(
            f"{text}: this store has no {'fine-tuned' if alias.side == 'student' else 'aligned'} {text} yet",
            f"make it: {command.format(alias=text)}",
        )
    if len(made) > 1:
        raise UsageError(
            f"{text} could be any of {', '.join(manifest.ref for manifest in made)}", f"name one: {made[0].ref}"
        )
    return made[0]


def base_name(manifest: Manifest | None, store: Store) -> str:
    """The name of the model from outside that an artifact was first trained from, as far as the store knows it."""
    while manifest is not None:
        content = str(manifest.inputs.get("model", ""))
        if not content.startswith("artifact:"):
            return str(manifest.sources.get(content, {}).get("name", ""))
        manifest = store.get(content)
    return ""
