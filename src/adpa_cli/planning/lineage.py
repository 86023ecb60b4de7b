"""What can be read off an input's history: its family, its template, its reference teacher, its data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from adpa_cli.data.chat import Template
from adpa_cli.errors import AdpaError, NotFound, UsageError
from adpa_cli.families import FAMILIES, GENERIC, Alias, Family, ReadyPair, aliases
from adpa_cli.hub import External, HubFile, Kind, Located
from adpa_cli.hub import repository as hub
from adpa_cli.hub.model_folder import ModelFolder
from adpa_cli.planning.resolve_inputs import Names
from adpa_cli.sizes import ModelSize
from adpa_cli.stages import Artifact, Input, Made, Node, product_of
from adpa_cli.stages.training import DPO_TEACHER, SFT
from adpa_cli.store.manifest import Manifest
from adpa_cli.store.store import Store

UNKNOWN = ("", "")
"""Stands for the template of a model that could not be looked at; the plan is refused when it is made."""


def inputs_of(made: Made, store: Store) -> dict[str, tuple[Input | None, ...]]:
    """The inputs of a stage by role; None stands for one that is not in this store (external, or collected)."""
    if isinstance(made, Node):
        return {name: value if isinstance(value, tuple) else (value,) for name, value in made.inputs.items()}
    found: dict[str, tuple[Input | None, ...]] = {}
    for role, value in made.manifest.inputs.items():
        contents = [value] if isinstance(value, str) else value
        manifests = [store.get(c) if c.startswith("artifact:") else None for c in contents]
        found[role] = tuple(Artifact(m) if m else None for m in manifests)
    return found


def single(made: Made, role: str, store: Store) -> Input | None:
    """The one input of a role, if it is at hand."""
    return next(iter(inputs_of(made, store).get(role, ())), None)


def _names(item: Input, store: Store) -> Iterator[str]:
    """Names under which the base model of `item` is known."""
    while isinstance(item, Artifact | Node):
        if isinstance(item, Artifact):
            content = item.manifest.inputs.get("model")
            facts: Mapping[str, Any] = item.manifest.sources.get(str(content), {})
            yield str(facts.get("name", ""))
        below = single(item, "model", store)
        if below is None:
            return
        item = below
    yield str(item.facts.get("name", ""))


def family_of(item: Input, store: Store) -> Family:
    """The family whose student or teacher the model was trained from; the paper's settings for a model of none."""
    for name in _names(item, store):
        for family in FAMILIES:
            if name in (family.student, family.teacher):
                return family
    return GENERIC


def alias_of(base: Input) -> str:
    """The alias that stands for the fine-tuned form of a family's base model; "" for another model."""
    name = base.facts.get("name") if isinstance(base, External) else None
    return next((word for word, alias in aliases().items() if alias.model == name), "")


def template_of(item: Input) -> tuple[str, str] | None:
    """(chat template, end token) that a model was trained with or brings along; None for a base model."""
    if isinstance(item, External):
        return ModelFolder.of(Path(item.where[0])).template if item.is_open else UNKNOWN
    return str(item.values["template"]), str(item.values["end"])


def reference_of(teacher: Input, store: Store) -> Input | None:
    """The model that an aligned teacher was aligned from, when its lineage tells."""
    if isinstance(teacher, External) or teacher.stage != DPO_TEACHER.name:
        return None
    found = single(teacher, "model", store)
    if found is None and isinstance(teacher, Artifact):
        content = str(teacher.manifest.inputs["model"])
        facts = teacher.manifest.sources.get(content, {})
        if facts.get("commit"):
            return hub.model(str(facts["name"]), str(facts["commit"]), store.hash_cache)
        folder = store.hash_cache.locate(content.removeprefix("model:"))
        if folder is not None:
            return External(content, folder.name, (str(folder),), facts)
        raise NotFound(
            f"{teacher.label} was aligned from a model that is not in this store", "name it with --reference MODEL"
        )
    return found


def typed(item: Input) -> str:
    """How a user names an input on the command line."""
    if isinstance(item, External):
        commit = item.facts.get("commit")
        return f"{item.facts['name']}@{commit}" if commit else item.where[0]
    return item.label


def same_template(wanted: tuple[str, str], model: Input, role: str) -> None:
    """Refuse a model trained with another template than the plan's."""
    own = template_of(model)
    if own is None or own == wanted or UNKNOWN in (own, wanted):
        return
    ends = f" (it ends turns with {own[1]}, not {wanted[1]})" if own[1] != wanted[1] else ""
    raise UsageError(
        f"the {role} {model.label} was made with another chat template than the teacher{ends}",
        "give the base model's alias to --student: it is then fine-tuned with the teacher's template",
    )


def folder_of(item: Input, store: Store) -> Path:
    """A folder with the tokenizer and configuration of a model, built or not: training changes neither."""
    while isinstance(item, Node):
        if store.get(item.label) is not None:
            return store.folder(item.label)
        below = item.inputs["model"]
        if isinstance(below, tuple):
            raise UsageError(f"{item.label} has several models", "name one of them")
        item = below
    return store.folder(item.label) if isinstance(item, Artifact) else Path(item.where[0])


def smaller_vocabulary(student: Input, teacher: Input, store: Store) -> int | None:
    """How many ids the student's tokenizer has, when the teacher's has more; None when it has no more."""
    if not (_is_open(student, store) and _is_open(teacher, store)):
        return None
    own, other = (ModelFolder.of(folder_of(item, store)).token_ids for item in (student, teacher))
    return own if own is not None and other is not None and other > own else None


def _is_open(item: Input, store: Store) -> bool:
    """Whether the model at the bottom of some trainings could be looked at."""
    while isinstance(item, Node) and store.get(item.label) is None:
        below = item.inputs["model"]
        item = below[0] if isinstance(below, tuple) else below
    return not isinstance(item, External) or item.is_open


MADE_BY = {
    "student": (SFT.name, "adpa sft --model {alias}"),
    "teacher": (DPO_TEACHER.name, "adpa dpo-teacher --reference {alias}"),
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


def hub_files(nodes: Sequence[Node], kind: Kind) -> list[HubFile]:
    """What the hub has ("model" or "dataset") of the inputs of some stages, each file once."""
    items = [item for node in nodes for _, item in node.flat_inputs() if isinstance(item, External)]
    return list(dict.fromkeys(file for item in items for file in item.files if file.kind == kind))


def locate(item: Input, store: Store) -> Located:
    """Where an input is on this machine."""
    if isinstance(item, External):
        kind: Literal["data", "model"] = "data" if item.content.startswith("data:") else "model"
        return Located(kind, item.content, item.label, item.where)
    folder: Path = store.folder(item.label)
    values = dict(item.values)
    if isinstance(item, Artifact | Node) and product_of(item.stage) == "answers":
        values["by"] = _answered_by(item, store)
    return Located("artifact", item.content, item.label, (str(folder),), values)


def _answered_by(item: Artifact | Node, store: Store) -> str:
    """The reference of the model whose answers a rollout holds."""
    if isinstance(item, Node):
        model = item.inputs["model"]
        return model.label if not isinstance(model, tuple) else ""
    content = str(item.manifest.inputs["model"])
    below = store.get(content)
    return below.ref if below else content


def model_size(item: Input, store: Store) -> ModelSize:
    """The size of a model, built or not: training changes none. Raises AdpaError where its config.json says too little.

    A hub model whose weights are not here yet is as large as its files say.
    """
    folder = ModelFolder.of(folder_of(item, store))
    shape = folder.size
    if shape.parameters:
        return shape
    while isinstance(item, Node):
        below = item.inputs["model"]
        if isinstance(below, tuple):
            break
        item = below
    known = item.size if isinstance(item, External) else 0
    if not known:
        raise AdpaError(f"{item.label} has no weights to measure")
    return replace(shape, parameters=int((known - shape.beside) / folder.weight_bytes))
