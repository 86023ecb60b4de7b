"""What can be read off a model or another input without building it: history, family, template, folder and size.

An input may be a stage that is not built yet. What it says is then read off the model that it starts from, as far down
as something is built: training changes neither tokenizer nor configuration.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from adpa_cli.data.templates import Template, write_alike
from adpa_cli.data.tokenizer import FILE as TOKENIZER
from adpa_cli.data.tokenizer import Tokenizer, compare
from adpa_cli.disk import readable
from adpa_cli.errors import AdpaError, NotFound, UsageError
from adpa_cli.families import Alias, Family, ReadyPair, alias_of_base, family_of_base, generic
from adpa_cli.hub import External, HubFile, Kind, Located
from adpa_cli.hub import repository as hub
from adpa_cli.hub.adapter_folder import folder_digest
from adpa_cli.hub.model_folder import ModelFolder
from adpa_cli.planning.chat_templates import NO_CHOICE, TemplateChoice, template_in
from adpa_cli.planning.resolve_inputs import Names
from adpa_cli.sizes import ModelSize
from adpa_cli.spec import Dtype
from adpa_cli.stages import Artifact, Input, Made, Node, making, product_of
from adpa_cli.stages.training import DPO_TEACHER, SFT
from adpa_cli.store.identity import file_digest
from adpa_cli.store.manifest import Manifest
from adpa_cli.store.store import Store

UNKNOWN = Template("", "")
"""Stands for the template of a model that could not be looked at; the plan is refused when it is made."""


def single(item: Made, role: str, store: Store) -> Input | None:
    """The (first) input of a role; None where there is none, or where it is not in this store."""
    if isinstance(item, Node):
        value = item.inputs.get(role)
        return next(iter(value), None) if isinstance(value, tuple) else value
    content = item.manifest.inputs.get(role, ())
    first = content if isinstance(content, str) else next(iter(content), "")
    manifest = store.get(first) if first.startswith("artifact:") else None
    return Artifact(manifest) if manifest else None


def base_name(item: Input | Manifest, store: Store) -> str:
    """The name of the model from outside that one was first trained from; "" where the store does not know it."""
    below: Input | None = Artifact(item) if isinstance(item, Manifest) else item
    while isinstance(below, Node):
        below = single(below, "model", store)
    while isinstance(below, Artifact):
        content = str(below.manifest.inputs.get("model", ""))
        if not content.startswith("artifact:"):
            return str(below.manifest.sources.get(content, {}).get("name", ""))
        below = single(below, "model", store)
    if not isinstance(below, External):
        return ""
    training = training_of(below, store)
    return base_name(training, store) if training is not None else str(below.facts.get("name", ""))


def training_of(model: Input, store: Store) -> Made | None:
    """What trained a model, of which it may be a kept point; None for one that comes from outside."""
    return point_of(model.facts, store) if isinstance(model, External) else model


def point_of(facts: Mapping[str, Any], store: Store) -> Artifact | None:
    """The training that a model is a kept point of, by its provenance; None for another model."""
    manifest = store.get(str(facts["point_of"])) if "point_of" in facts else None
    return Artifact(manifest) if manifest else None


def family_of(model: Input, store: Store) -> Family:
    """The family whose student or teacher a model was trained from; the paper's settings for a model of none."""
    return family_of_base(base_name(model, store)) or generic(_type_of(model, store))


def _type_of(model: Input, store: Store) -> str:
    """The `model_type` of a model, built or not; "" where it cannot be read yet."""
    lowest = _lowest(model, store)
    if isinstance(lowest, External) and not lowest.is_open:
        return ""
    with suppress(AdpaError, OSError):
        return str(ModelFolder.of(folder_of(lowest, store)).config.get("model_type", ""))
    return ""


def alias_of(base: Input) -> str:
    """The alias that stands for the fine-tuned form of a family's base model; "" for another model."""
    return alias_of_base(str(base.facts.get("name"))) if isinstance(base, External) else ""


BASE_NAME = re.compile(r"(?i)[-_.](base|pt|pretrained)([-_.]|$)")
"""What names of models that were only pretrained hold; many of them bring a chat template all the same.

A folder that is called `base` and no more is what somebody starts from, whatever that is.
"""


def is_base(model: Input) -> bool:
    """Whether a model was only pretrained, as far as its name, its family or a missing chat template tell."""
    if not isinstance(model, External):
        return False
    name = str(model.facts.get("name", ""))
    if family := family_of_base(name):
        return not family.instruct
    return bool(BASE_NAME.search(name.rpartition("/")[2])) or template_of(model) is None


def missing_template(model: str, hint: str, what: str = "") -> UsageError:
    """An error about a model that has no chat template, whatever it is wanted for."""
    return UsageError(f"{model} has no chat template{f': {what}' if what else ''}", hint)


def template_of(item: Input, choice: TemplateChoice = NO_CHOICE) -> Template | None:
    """The chat template that a model was trained with or brings along, under a user's choice; None for a base model.

    Raises UsageError for something that was made with another template than the user says.
    """
    if isinstance(item, External):
        return template_in(Path(item.where[0]), choice) if item.is_open else UNKNOWN
    made = Template(str(item.values["template"]), str(item.values["end"]))
    if not choice.agrees(made):
        raise UsageError(
            f"{item.label} was made with another chat template, end token or --thinking than you ask for",
            "leave out --template, --end and --thinking, or start from its base model",
        )
    return made


def reference_of(teacher: Input, store: Store) -> Input | None:
    """The model that an aligned teacher was aligned from; None where its history does not say."""
    training = training_of(teacher, store)
    return start_of(training, store) if training is not None and training.stage == DPO_TEACHER.name else None


def start_of(model: Made, store: Store) -> Input | None:
    """The model that a training started from. Raises NotFound for one that is neither in the store nor within reach."""
    start = single(model, "model", store)
    if start is not None or isinstance(model, Node):
        return start
    content = str(model.manifest.inputs["model"])
    facts = model.manifest.sources.get(content, {})
    if facts.get("commit"):
        found = hub.model(str(facts["name"]), str(facts["commit"]), store.hash_cache)
        if found.content == content:  # of an adapter the base may be at another commit by now
            return found
    elif folder := model_in_folder(content, facts, store):
        return folder
    raise NotFound(
        f"{model.label} was trained from a model that this store does not have", "name it: --reference MODEL"
    )


def model_in_folder(content: str, facts: Mapping[str, Any], store: Store) -> External | None:
    """A recorded model from outside, in a folder of this machine that was hashed before; None where there is none."""
    folder = store.hash_cache.locate(content.removeprefix("model:"), folder_digest)
    return External(content, folder.name, (str(folder),), facts) if folder is not None else None


def reference_hint(aligned: Input, store: Store) -> str:
    """What to type where an aligned model does not say what it was aligned from; its card on the hub may."""
    named = ""
    if isinstance(aligned, External) and (commit := aligned.facts.get("commit")):
        named = hub.base_of(str(aligned.facts["name"]), str(commit), store.hash_cache)
    return f"… --reference {named}     (its card names this one; check it)" if named else "… --reference MODEL"


def command_word(item: Input) -> str:
    """How a user names an input on the command line."""
    if isinstance(item, External):
        commit = item.facts.get("commit")
        if item.facts.get("point_of"):
            return item.label
        return f"{item.facts['name']}@{commit}" if commit else item.where[0]
    return item.label


def same_template(template: Template, item: Input, role: str, choice: TemplateChoice = NO_CHOICE) -> None:
    """Raise UsageError for a model, or what one made, that has another template than the plan.

    A model without one passes, and so does one that could not be looked at.
    """
    other = template_of(item, choice if isinstance(item, External) else NO_CHOICE)
    if other is None or other == template or UNKNOWN in (other, template) or write_alike(other, template):
        return
    ends = f" (it ends turns with {other.end}, not {template.end})" if other.end != template.end else ""
    said = f"the {role} {item.label} was made with another chat template than the teacher{ends}"
    if role == "reference":
        raise UsageError(
            said, "name the model that the teacher was aligned from, or one for both: --template FILE|NAME"
        )
    is_folder = isinstance(item, External) and not item.facts.get("commit")
    base = "its base model" if is_folder else "the base model's alias"
    raise UsageError(
        said,
        f"give {base} to --student, with --sft-data DIALOGUES; it is then fine-tuned with the teacher's template",
    )


def _lowest(item: Input, store: Store) -> Input:
    """The nearest model that is built or from outside, down the models that stages start from."""
    while isinstance(item, Node) and store.get(item.label) is None:
        below = item.inputs["model"]
        if isinstance(below, tuple):
            raise UsageError(f"{item.label} has several models", "name one of them")
        item = below
    return item


def folder_of(item: Input, store: Store) -> Path:
    """A folder with the tokenizer and configuration of a model, built or not."""
    model = _lowest(item, store)
    return Path(model.where[0]) if isinstance(model, External) else store.folder(model.label)


def vocabulary_problem(student: Input, teacher: Input, store: Store) -> AdpaError | None:
    """What differs between the tokenizers of two models; None where they have one vocabulary or are not open to us."""
    models = [_lowest(item, store) for item in (student, teacher)]
    if not all(model.is_open for model in models if isinstance(model, External)):
        return None
    folders = [ModelFolder.of(folder_of(model, store)).texts.path for model in models]
    files = [folder / TOKENIZER for folder in folders]
    if all(path.is_file() for path in files):
        first, second = (file_digest(path, store.hash_cache) for path in files)
        if first == second:
            return None
    try:
        compare(Tokenizer.of(folders[1]), Tokenizer.of(folders[0]))
    except AdpaError as error:
        return error
    return None


def smaller_vocabulary(student: Input, teacher: Input, store: Store) -> int | None:
    """How many ids the student has, when the teacher has more; None when it has no more.

    The ids of a model are those of its tokenizer. Of two models with one tokenizer, whose embeddings are padded to
    different sizes, they are the rows: a teacher gives some probability to rows that nothing was ever trained for.
    """
    models = [_lowest(item, store) for item in (student, teacher)]
    if not all(model.is_open for model in models if isinstance(model, External)):
        return None
    fewer, more = (ModelFolder.of(folder_of(model, store)) for model in models)
    if fewer.token_ids is None or more.token_ids is None:
        return None
    if more.token_ids > fewer.token_ids:
        return fewer.token_ids
    rows = fewer.config.get("vocab_size"), more.config.get("vocab_size")
    return int(rows[0]) if rows[0] and rows[1] and rows[1] > rows[0] else None


def model_size(item: Input, store: Store) -> ModelSize:
    """The size of a model, built or not: training changes none. Raises AdpaError where its config.json says too little.

    A hub model whose weights are not here yet is as large as its files say.
    """
    model = _lowest(item, store)
    folder = ModelFolder.of(folder_of(model, store))
    size = folder.size
    if size.parameters:
        return size
    weights = model.size if isinstance(model, External) else 0
    if not weights:
        raise AdpaError(
            f"{model.label} has no files of weights, so its size is unknown",
            "name a model with *.safetensors files; adpa models lists some",
        )
    return replace(size, parameters=int((weights - size.beside) / folder.weight_bytes))


def hub_files(nodes: Sequence[Node], kind: Kind) -> list[HubFile]:
    """What the hub has ("model" or "dataset") of the inputs of some stages, each file once."""
    items = [item for node in nodes for _, item in node.flat_inputs() if isinstance(item, External)]
    return list(dict.fromkeys(file for item in items for file in item.files if file.kind == kind))


def locate(item: Input, store: Store) -> Located:
    """Where an input is on this machine."""
    if isinstance(item, External):
        return Located("data" if item.content.startswith("data:") else "model", item.content, item.label, item.where)
    values = dict(item.values)
    if product_of(item.stage) == "answers":
        values["by"] = _author(item, store)
    return Located("artifact", item.content, item.label, (str(readable(store.folder(item.label))),), values)


def _author(rollouts: Made, store: Store) -> str:
    """The reference of the model whose answers some rollouts are; its content where the store lacks it."""
    if isinstance(rollouts, Node):
        model = rollouts.inputs["model"]
        return "" if isinstance(model, tuple) else model.label
    content = str(rollouts.manifest.inputs["model"])
    manifest = store.get(content)
    return manifest.ref if manifest else content


MADE_BY = {
    "student": (SFT.name, "adpa sft --model {alias}", "fine-tuned"),
    "teacher": (DPO_TEACHER.name, "adpa dpo-teacher --reference {alias}", "aligned"),
}
"""By the side of a family: the stage that makes its model, the command for it, and what the model then is."""


@dataclass(frozen=True)
class Trained:
    """A model with its folder and the chat template it answers under; `manifest` when it is of the store."""

    label: str
    folder: Path
    template: Template
    manifest: Manifest | None
    dtype: Dtype = "float32"
    """What it computes in when it answers."""

    @property
    def is_judge(self) -> bool:
        """Whether it is a reward model, whose head gives one number."""
        made = self.manifest
        return product_of(made.stage) == "reward model" if made else ModelFolder.of(self.folder).is_classifier


def trained(
    names: Names,
    text: str,
    note: Callable[[str], None] = lambda text: None,
    choice: TemplateChoice = NO_CHOICE,
    answers: bool = True,
) -> Trained:
    """What `text` means to a command that never builds: an artifact, tag, folder, hub model, or an alias.

    An alias means the family's fine-tuned student, or its aligned teacher, when the store has one; that of an instruct
    model means this model. Where no `answers` are asked for, it may be a reward model, and its chat template empty.
    Raises NotFound with the command that makes it, UsageError for several of them and for a model that answers without
    a chat template.
    """
    model = names.model(text, "REF", () if answers else making("model", "reward model"))
    if isinstance(model, ReadyPair):
        model = names.hub_model(model.aligned)
    if isinstance(model, Alias):
        is_made = not model.family.instruct
        model = Artifact(_of_family(model, text, names.store)) if is_made else names.base(model.model)
    template = template_of(model, choice)
    if template is None and answers:
        what = "it is a base model, which was not trained to answer"
        raise missing_template(text, f"fine-tune it first: adpa sft --model {text} --data FILE.jsonl", what)
    if isinstance(model, External):
        hub.fetch(model.files, names.store.hash_cache, note)
        folder, manifest = Path(model.where[0]), None
    else:
        folder, manifest = readable(names.store.folder(model.label)), model.manifest
    template = template or Template("", ModelFolder.of(folder).end_token)
    return Trained(model.label, folder, template, manifest, family_of(model, names.store).inference)


def _of_family(alias: Alias, text: str, store: Store) -> Manifest:
    """The one artifact of the store that an alias means."""
    stage, command, kind = MADE_BY[alias.side]
    manifests = [
        manifest
        for manifest in store.artifacts(lambda error: None)
        if manifest.stage == stage and not manifest.made.get("smoke") and base_name(manifest, store) == alias.model
    ]
    if not manifests:
        raise NotFound(f"this store has no {kind} {text} yet", f"make it: {command.format(alias=text)}")
    if len(manifests) > 1:
        refs = ", ".join(manifest.ref for manifest in manifests)
        raise UsageError(f"{text} could mean any of {refs}", f"name one of them, for example {manifests[0].ref}")
    return manifests[0]
