"""The README of an exported model: what it is, what made it, from what, and what it scored."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath

from adpa_cli import __version__
from adpa_cli.data.templates import Template
from adpa_cli.report import licences
from adpa_cli.report.adapter import Facts
from adpa_cli.report.licences import Parent
from adpa_cli.report.lineage import made_from as links_of
from adpa_cli.report.lineage import what
from adpa_cli.report.page import spec_items
from adpa_cli.report.scores import by_model
from adpa_cli.stages._noise import sentence
from adpa_cli.store.manifest import Manifest
from adpa_cli.store.store import Store

LICENCE = "choose one that the licences of the base model and of the data allow"


@dataclass(frozen=True)
class Use:
    """What an exported model is for, as the hub calls it, and how: a sentence and lines of Python."""

    task: str
    said: str
    example: Sequence[str]


def usage_of(template: Template, is_judge: bool, merged: bool) -> Use:
    """How a model with a chat template is used, a judge for its number: `merged` whole weights, or an adapter alone."""
    if is_judge:
        said = "Its one number is the reward of a dialogue as the chat template in the tokenizer writes it."
        return Use("text-classification", said, _JUDGE_EXAMPLE if merged else _ADAPTER_JUDGE_EXAMPLE)
    if not template.text:
        return Use("text-generation", "It has no chat template.", _PLAIN_EXAMPLE if merged else _ADAPTER_EXAMPLE)
    said = f"Answers end with `{template.end}`; the chat template is in the tokenizer."
    return Use("text-generation", said, _EXAMPLE if merged else _ADAPTER_EXAMPLE)


def card(
    title: str, use: Use, manifest: Manifest | None, store: Store, said: Sequence[str] = (),
    table: Sequence[Sequence[str]] = (), adapter: Facts | None = None, merged: bool = True,
    made_from: Sequence[Parent] = (),
) -> str:  # fmt: skip
    """Markdown with the front matter that the Hugging Face hub reads; the licence is left to the user, unless that of
    something that it was `made_from` leaves no choice.

    What is `said` of the weights, and a `table` below a head of what was measured of them, get a section, and so does
    an `adapter`, which is `merged` into the weights or lies there as it is.
    """
    sources = _sources(manifest, store) if manifest else []
    library = "transformers" if merged else "peft"
    lines = ["---", f"library_name: {library}", f"pipeline_tag: {use.task}", "tags:", "- adpa"]
    lines += ["- lora"] if adapter else []
    lines += [f"- {manifest.spec['method']}"] if manifest and manifest.spec.get("method") else []
    sources += [("model:", adapter.base)] if adapter and adapter.of_hub else []
    lines += _hub_names("base_model", sources, "model:") + _hub_names("datasets", sources, "data:")
    lines += [*licences.front_matter(made_from, LICENCE), "---", "", f"# {title}", "", *licences.banner(made_from)]
    if manifest is None:
        lines += [f"Exported by adpa {__version__} from a model that it did not make.", ""]
    else:
        lines += _recipe_and_scores(manifest, store)
    lines += _adapter(adapter, merged) if adapter else []
    lines += _weights(said, table)
    lines += ["## Use", "", use.said, ""]
    lines += ["```python", *use.example, "```", "", *licences.section(made_from, LICENCE)]
    return "\n".join(lines)


_EXAMPLE = (
    "from transformers import pipeline",
    "",
    'answer = pipeline("text-generation", "FOLDER")([{"role": "user", "content": "Hello"}])',
    'print(answer[0]["generated_text"][-1]["content"])',
)


_PLAIN_EXAMPLE = (
    "from transformers import pipeline",
    "",
    'print(pipeline("text-generation", "FOLDER")("Hello")[0]["generated_text"])',
)


_JUDGE_EXAMPLE = (
    "from transformers import AutoTokenizer, pipeline",
    "",
    'turns = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi."}]',
    'text = AutoTokenizer.from_pretrained("FOLDER").apply_chat_template(turns, tokenize=False)',
    'print(pipeline("text-classification", "FOLDER")(text, function_to_apply="none")[0]["score"])',
)


_ADAPTER_JUDGE_EXAMPLE = (
    "from peft import AutoPeftModelForSequenceClassification",
    "",
    'model = AutoPeftModelForSequenceClassification.from_pretrained("FOLDER", num_labels=1)  # with its base',
)


_ADAPTER_EXAMPLE = (
    "from peft import AutoPeftModelForCausalLM",
    "",
    'model = AutoPeftModelForCausalLM.from_pretrained("FOLDER")  # with the base that adapter_config.json names',
)


def _adapter(adapter: Facts, merged: bool) -> list[str]:
    """The section on an adapter: what it is, and what has become of it."""
    place = "merged into those weights, in float32" if merged else "alone: the weights of its base do not come along"
    return ["## Adapter", "", f"A LoRA adapter, {place}.", "", *(f"- {item}" for item in adapter.items()), ""]


def _recipe_and_scores(manifest: Manifest, store: Store) -> list[str]:
    by_id = {other.id: other for other in store.artifacts(lambda error: None)}
    version = manifest.made.get("versions", {}).get("adpa-cli", __version__)
    lines = [f"`{manifest.ref}`, {what(manifest)}, made by adpa {version}.", "", "## Training", ""]
    lines += ["```", without_paths(str(manifest.made.get("command", ""))), "```", ""]
    lines += [f"- {item}" for item in spec_items({k: v for k, v in manifest.spec.items() if k != "template"})]
    lines += ["", "Made from:", "", "```"]
    lines += [f"{link.branch}{link.ref or link.text}  {link.text if link.ref else ''} ({link.role})".rstrip()
              for link in links_of(manifest, by_id)]  # fmt: skip
    lines += ["```", "", f"Id of the recipe: `{manifest.id}`", ""]
    read = [by_id[parent] for role, parent in manifest.parents() if role == "cache" and parent in by_id]
    noises = [f"- `{made.ref}`: {sentence(made.metrics['noise'])}" for made in read if "noise" in made.metrics]
    lines += ["What its teachers' dtype did to the signal:", "", *noises, ""] if noises else []
    rows = dict.fromkeys(
        f"| {s.label}{s.opponent} | {s.words()} |" for s in by_model(by_id.values()).get(manifest.id, ())
    )
    return [*lines, "## Scores", "", "| what | score |", "|---|---|", *rows, ""] if rows else lines


def _weights(said: Sequence[str], table: Sequence[Sequence[str]]) -> list[str]:
    """The section on weights of fewer bits; nothing where there is nothing to say."""
    if not said:
        return []
    rows = [f"| {' | '.join(row)} |" for row in table]
    ruled = [*rows[:1], "|" + "---|" * len(table[0]), *rows[1:], ""] if rows else []
    return ["## Weights", "", *(f"- {text}" for text in said), "", *ruled]


def without_paths(command: str) -> str:
    """A command line in which absolute paths are cut down to their last part: a card is published, a disk is not."""
    words = []
    for word in shlex.split(command):
        option, mark, value = word.partition("=") if word.startswith("-") else ("", "", word)
        if value.startswith(("/", "~")):
            value = PurePath(value).name
        words.append(shlex.quote(option + mark + value))
    return " ".join(words)


def _sources(manifest: Manifest, store: Store) -> list[tuple[str, str]]:
    """(content, name) of what comes from outside, in an artifact and in what it was trained from."""
    sources: dict[tuple[str, str], None] = {}
    todo: list[Manifest | None] = [manifest]
    for one in todo:
        if one is None:
            continue
        for content, facts in one.sources.items():
            sources |= {(content, str(part.get("name", ""))): None for part in facts.get("sources") or [facts]}
        todo += [store.get(parent) for role, parent in one.parents() if role == "model"]
    return list(sources)


def _hub_names(key: str, sources: Sequence[tuple[str, str]], kind: str) -> list[str]:
    """The front matter's list of sources of one kind, by the names that the hub knows."""
    names = (name.partition("#")[0] for content, name in sources if content.startswith(kind))
    items = dict.fromkeys(f"- {name}" for name in names if name.count("/") == 1)
    return [f"{key}:", *items] if items else []
