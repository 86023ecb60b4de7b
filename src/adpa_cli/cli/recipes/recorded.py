"""The request that a build records with what it makes, and `adpa show REF --recipe`, the TOML that makes it again."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typer.exceptions import TyperException

from adpa_cli import stages
from adpa_cli.cli.commands import makers
from adpa_cli.cli.recipes.grid import Recipe, requests
from adpa_cli.cli.recipes.words import Key, keys_of, values_of, word
from adpa_cli.data.sources import columns_off, split_off
from adpa_cli.data.templates import TEMPLATES
from adpa_cli.errors import AdpaError, NotFound
from adpa_cli.families import alias_of_base, aliases, ready_pairs
from adpa_cli.hub import External
from adpa_cli.hub.adapter_folder import folder_digest
from adpa_cli.machine import expanded
from adpa_cli.planning.chat_templates import read_template
from adpa_cli.planning.lineage import base_name
from adpa_cli.planning.planner import Plan
from adpa_cli.planning.resolve_inputs import Names
from adpa_cli.stages.training import DISTILL
from adpa_cli.store.manifest import Manifest
from adpa_cli.store.store import Store

Values = Mapping[str, Any]


def recorded_request(words: Sequence[str], plan: Plan, store: Store) -> dict[str, Any]:
    """A command line as JSON that means the same in any folder: its command and its values as a recipe has them.

    Options that only say how to run are left out. What lies on this machine is named by its content: `sources` has, by
    the name that stands among the values, what a manifest keeps of it; a chat template in a file stands there itself.
    Artifacts are named by their references, for
    tags move and new ids make short ones ambiguous.
    """
    local, sources = _local(plan), dict[str, Any]()

    def resolved(key: Key, text: str) -> str:
        if key.is_template:
            return text if text in TEMPLATES else read_template(text).text
        if key.is_data or (key.is_model and text.startswith((".", "/", "~"))):
            base, split = split_off(columns_off(text)[0])
            name, facts = local.get(f"{expanded(base).resolve()}{split and '#'}{split}", (text, None))
            if facts is None:  # nothing in the plan reads it, so it may be left out where only this machine has it
                return "" if expanded(base).exists() else text
            while sources.get(name, facts) != facts:  # two files of one name
                name += "'"
            sources[name] = facts
            return name
        return _reference(text, store) if key.is_model else text

    values = _with_releases(_changed(words[0], values_of(words), resolved), plan)
    return {"command": words[0], "values": values, "sources": sources}


def _with_releases(values: Values, plan: Plan) -> dict[str, Any]:
    """The values with the release of vLLM beside each engine that it is, and without the path of an executable."""
    nodes = stages.in_order((*plan.targets, *plan.evals), lambda node: False)
    releases = sorted({str(node.values["engine_version"]) for node in nodes if node.values.get("engine") == "vllm"})
    engines = [key for key, value in values.items() if key.rpartition(".")[2] == "engine" and value == "vllm"]
    kept = {key: value for key, value in values.items() if key.rpartition(".")[2] != "vllm"}
    return {**{f"{key}_version": releases[0] for key in engines if releases}, **kept}


def _local(plan: Plan) -> dict[str, tuple[str, Mapping[str, Any]]]:
    """By the path of every local model and data source of a plan: its name, and what identifies it."""
    found: dict[str, tuple[str, Mapping[str, Any]]] = {}
    for external in _externals(plan):
        for path, facts in zip(external.where, external.facts.get("sources", ({},)), strict=False):
            is_local = not (facts or external.facts).get("commit")
            name = str((facts or external.facts)["name"])
            if is_local:
                found[columns_off(path)[0]] = (name, facts or {"model": external.content})
    return found


def _externals(plan: Plan) -> Iterator[External]:
    for node in stages.in_order((*plan.targets, *plan.evals), lambda node: False):
        yield from (item for _, item in node.reads() if isinstance(item, External))


def _reference(text: str, store: Store) -> str:
    """The reference of the artifact that a word names; a word that names none stays."""
    if text in aliases() or text in ready_pairs():
        return text
    try:
        return store.resolve(text).ref
    except AdpaError:
        return text


def _changed(command: str, values: Values, change: Callable[[Key, str], str]) -> dict[str, Any]:
    """The values of a command, those of its options that are text changed; what becomes empty is left out."""
    keys, changed = keys_of(makers()[command].function), dict(values)
    for name, value in values.items():
        if name in keys and isinstance(value, str | list):
            items = [change(keys[name], item) for item in ([value] if isinstance(value, str) else value)]
            changed[name] = items if isinstance(value, list) else items[0]
    return {name: value for name, value in changed.items() if value not in ("", [""])}


@dataclass(frozen=True)
class Again:
    """The recipe that makes an artifact, `ref`, or some `targets` with it on the way."""

    command: str
    values: Values
    pins: Mapping[str, str]
    """What the names of the hub meant that it starts from: commits by name."""
    targets: tuple[str, ...]
    ref: str

    @property
    def on_the_way_to(self) -> str:
        """What it makes in the end; empty when that is the artifact itself."""
        return "" if self.ref in self.targets else self.targets[0]


def recipe_of(store: Store, manifest: Manifest) -> Again:
    """The request that was recorded with an artifact, planned, and seen to give its very id. Raises NotFound.

    Ids in it are put back into aliases where these give the same, so that it holds in other stores too. Of an artifact
    without a recorded request the command is read.
    """
    typed, why = str(manifest.made.get("command", "")), ""
    request: dict[str, Any] = manifest.made.get("request") or _read(typed)
    command = request.get("command", "")
    found: list[Again] = []
    readings: list[Values] = []
    try:
        readings = _readings(request, store) if command else []
    except NotFound as error:
        why = f": {error.message}"
    for values in readings:
        try:
            ((_, asked),) = requests(Recipe("recipe", "", command, values))
            plan = asked.plan(store)
        except AdpaError as error:
            why = f": {error.message}"
            continue
        nodes = stages.in_order((*plan.targets, *plan.evals), lambda node: False)
        if manifest.id in {node.recipe.id for node in nodes}:
            targets = tuple(target.label for target in plan.targets)
            found.append(Again(command, values, _pins(plan, values), targets, manifest.ref))
    if found:  # the last reading is the request as it was recorded: what makes something else in the end is another one
        return next(again for again in found if again.targets == found[-1].targets)
    raise NotFound(
        f"this version of adpa has no command that makes {manifest.ref} again{why}",
        f"it was made by: {typed or '?'}",
    )


def _read(command: str) -> dict[str, Any]:
    """The request of a command line as it was typed; empty for what is no making command of this version."""
    words = shlex.split(command)
    at = next((n for n, word in enumerate(words) if word in stages.names() and word in makers()), None)
    if at is None:
        return {}
    try:
        return {"command": words[at], "values": values_of(words[at:])}
    except TyperException:  # an option of another version
        return {}


def _placed(request: Mapping[str, Any], store: Store) -> dict[str, Any]:
    """The values of a request with the paths where its sources are now. Raises NotFound for one that is gone."""
    sources = request.get("sources", {})

    def path(key: Key, text: str) -> str:
        facts = sources.get(text) if key.is_model or key.is_data else None
        if facts is None:
            return text
        if "model" not in facts:
            return _path_word(Names(store).data_words({"sources": [facts]})[0])
        folder = store.hash_cache.locate(str(facts["model"]).removeprefix("model:"), folder_digest)
        if folder is None:
            raise NotFound(f"{text}, from which this was made, is no longer there")
        return _path_word(str(folder))

    return _changed(request["command"], request["values"], path)


def _readings(request: Mapping[str, Any], store: Store) -> list[Values]:
    """What may make the same id, each once: the first that does is the recipe, for it holds in most places.

    With aliases for models and without answers and signal, which are then made again; with aliases for models; and with
    the ids that were recorded. Raises NotFound for a source that is gone.
    """
    recorded = _placed(request, store)
    aliased = _changed(request["command"], recorded, lambda key, text: _alias(text, store) if key.is_model else text)
    alone = {name: value for name, value in aliased.items() if name not in ("cache", "rollouts")}
    readings: list[Values] = [alone, aliased, recorded]
    return [values for n, values in enumerate(readings) if values not in readings[:n]]


def _alias(text: str, store: Store) -> str:
    """The alias of the family whose base model a model of the store was trained from; another word stays."""
    try:
        manifest = store.resolve(text)
    except AdpaError:
        return text
    is_model = stages.product_of(manifest.stage) in ("model", "reward model")
    return (alias_of_base(base_name(manifest, store)) if is_model else "") or text


def _path_word(text: str) -> str:
    """A path from the working directory when it lies below, else whole."""
    path = Path(text)
    is_below = text.startswith("/") and path.is_relative_to(Path.cwd())
    return f"./{path.relative_to(Path.cwd())}" if is_below else text


def _pins(plan: Plan, values: Values) -> dict[str, str]:
    """The commits of hub names behind a plan that no value has with its commit; data sets as `datasets/NAME`."""
    found: dict[str, str] = {}
    for facts in (external.facts for external in _externals(plan)):
        if facts.get("commit"):
            found[str(facts["name"])] = str(facts["commit"])
        for source in facts.get("sources", ()):
            if source.get("commit"):
                found[f"datasets/{str(source['name']).partition('#')[0]}"] = str(source["commit"])
    said = str(values)
    return {n: commit for n, commit in found.items() if f"{n.removeprefix('datasets/')}@{commit}" not in said}


def toml(again: Again, manifest: Manifest) -> str:
    """A recipe as text: options and settings first, then a table for every stage with settings of its own."""
    way = f", on the way to {again.on_the_way_to}" if again.on_the_way_to else ""
    head = [f"# makes {manifest.ref}{way}: adpa run FILE"]
    head += [f"# {_value(name)[1:-1]}: sha256 {digest}" for name, digest in _files(manifest)]
    head += [] if again.command == DISTILL.name else [f'command = "{again.command}"']
    top = [f"{key} = {_value(value)}" for key, value in again.values.items() if "." not in key]
    options = [stage for stage in stages.names() if stage in again.values]  # TOML has a value or a table of one name
    top += [f"{json.dumps(key)} = {_value(v)}" for key, v in again.values.items() if key.rpartition(".")[0] in options]
    tables = []
    for stage in (stage for stage in stages.names() if stage not in options):
        own = {key.partition(".")[2]: value for key, value in again.values.items() if key.startswith(f"{stage}.")}
        if own:
            tables += ["", f"[{stage}]", *(f"{key} = {_value(value)}" for key, value in own.items())]
    pins = [f"{json.dumps(name)} = {json.dumps(commit)}" for name, commit in again.pins.items()]
    return "\n".join([*head, *top, *tables, *(["", "[pins]", *pins] if pins else [])]) + "\n"


def record(again: Again, manifest: Manifest) -> dict[str, Any]:
    """A recipe as JSON."""
    return {
        "makes": manifest.ref, "command": again.command, "values": dict(again.values), "pins": dict(again.pins),
        "way": again.on_the_way_to,
    }  # fmt: skip


def _value(value: Any) -> str:
    if isinstance(value, list):
        return _value(value[0]) if len(value) == 1 else f"[{', '.join(map(_value, value))}]"
    return word(value) if isinstance(value, bool | int | float) else _quoted(str(value))


def _quoted(text: str) -> str:
    """A basic string of TOML; JSON leaves the delete character as it is."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _files(manifest: Manifest) -> list[tuple[str, str]]:
    """Name and digest of local data, which another machine must have."""
    sources = [source for facts in manifest.sources.values() for source in facts.get("sources", ())]
    return [
        (source["name"], digest)
        for source in sources
        if not source.get("commit")
        for digest in source["files"]
        if " " not in digest  # a set that ships with the package
    ]
