"""What can be read off an input's history: its family, its template, its reference teacher, its data."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from adpa_cli.errors import NotFound, UsageError
from adpa_cli.families import FAMILIES, GENERIC, Family, aliases
from adpa_cli.stages import hub
from adpa_cli.stages.graph import Artifact, External, Input, Made, Node
from adpa_cli.stages.templates import folder_template
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
        return folder_template(Path(item.where[0])) if item.is_open else UNKNOWN
    return str(item.values["template"]), str(item.values["end"])


def reference_of(teacher: Input, store: Store) -> Input | None:
    """The model that an aligned teacher was aligned from, when its lineage tells."""
    if isinstance(teacher, External) or teacher.stage != "dpo-teacher":
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
    own, other = (_vocabulary(folder_of(item, store)) for item in (student, teacher))
    return own if own is not None and other is not None and other > own else None


def _is_open(item: Input, store: Store) -> bool:
    """Whether the model at the bottom of some trainings could be looked at."""
    while isinstance(item, Node) and store.get(item.label) is None:
        below = item.inputs["model"]
        item = below[0] if isinstance(below, tuple) else below
    return not isinstance(item, External) or item.is_open


@functools.lru_cache(maxsize=8)
def _vocabulary(folder: Path) -> int | None:
    """One more than the greatest id of a fast tokenizer; None for a tokenizer in another format."""
    path = folder / "tokenizer.json"
    if not path.exists():
        return None
    raw = json.loads(path.read_bytes())
    vocabulary = raw["model"].get("vocab", {})
    ids = list(vocabulary.values()) if isinstance(vocabulary, dict) else list(range(len(vocabulary)))
    return 1 + max([*ids, *(entry["id"] for entry in raw.get("added_tokens") or ())], default=-1)
