"""`adpa show REF --recipe`: the TOML that makes an artifact again."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from adpa_cli import methods
from adpa_cli.cli.console.make import plan_in
from adpa_cli.cli.recipes.grid import Recipe, keys_for, option, requests, word
from adpa_cli.errors import AdpaError, NotFound
from adpa_cli.families import DATA_ALIASES, FAMILIES
from adpa_cli.hub.externals import BUILTIN
from adpa_cli.planning.planner import Plan
from adpa_cli.planning.resolve_inputs import Names
from adpa_cli.planning.settings import DERIVED, settable
from adpa_cli.spec import STAGE_VERSIONS
from adpa_cli.stages import Node, in_order
from adpa_cli.store.manifest import Manifest
from adpa_cli.store.store import Store


def recipe_of(store: Store, manifest: Manifest) -> Found:
    """What makes an artifact again, planned and found to come out as the very id. Raises NotFound."""

    def planned(command: str, values: Mapping[str, Any]) -> Plan:
        ((_, request),) = requests(Recipe("recipe", "", command, values))
        return plan_in(store, request.options, request.planned)

    found = Remaker(store, planned).recipe(manifest)
    keys = keys_for(Recipe("recipe", "", found.command, {}))
    return replace(found, values={option(key, keys): value for key, value in found.values.items()})


def toml(found: Found, manifest: Manifest) -> str:
    """A recipe as text: options and settings first, then a table for every stage with settings of its own."""
    way = f", on the way to {found.on_the_way_to}" if found.on_the_way_to else ""
    head = [f"# makes {manifest.ref}{way}: adpa run FILE"]
    head += [f"# {name}: sha256 {digest}" for name, digest in _files(manifest)]
    head += [] if found.command == "distill" else [f'command = "{found.command}"']
    top = [f"{key} = {_value(value)}" for key, value in found.values.items() if "." not in key]
    options = [stage for stage in STAGE_VERSIONS if stage in found.values]  # TOML has a value or a table of one name
    top += [f"{json.dumps(key)} = {_value(v)}" for key, v in found.values.items() if key.rpartition(".")[0] in options]
    tables = []
    for stage in (stage for stage in STAGE_VERSIONS if stage not in options):
        own = {key.partition(".")[2]: value for key, value in found.values.items() if key.startswith(f"{stage}.")}
        if own:
            tables += ["", f"[{stage}]", *(f"{key} = {_value(value)}" for key, value in own.items())]
    pins = [f"{json.dumps(name)} = {json.dumps(commit)}" for name, commit in found.pins.items()]
    return "\n".join([*head, *top, *tables, *(["", "[pins]", *pins] if pins else [])]) + "\n"


def record(found: Found, manifest: Manifest) -> dict[str, Any]:
    """A recipe as JSON."""
    return {
        "makes": manifest.ref, "command": found.command, "values": dict(found.values), "pins": dict(found.pins),
        "way": found.on_the_way_to,
    }  # fmt: skip


def _value(value: Any) -> str:
    if isinstance(value, list):
        return _value(value[0]) if len(value) == 1 else f"[{', '.join(map(_value, value))}]"
    return word(value) if isinstance(value, bool | int | float) else json.dumps(str(value), ensure_ascii=False)


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


Values = Mapping[str, Any]


@dataclass(frozen=True)
class Candidates:
    """First tries in one store, the most telling first. What a plan can correct (settings, data) is left out."""

    store: Store

    def of(self, manifest: Manifest, ids: bool) -> Iterator[Values]:
        """First tries, with names that mean the same anywhere, or with ids of this store."""
        makers: Mapping[str, Callable[[Manifest, bool], Iterator[Values]]] = {
            "sft": self._sft, "dpo-teacher": self._dpo_teacher, "cache-teacher": self._capture,
            "rollout": self._rollout, "distill": self._distill, "eval": self._eval,
            "reward-model": self._reward_model,
            "rewards": lambda made, ids: iter(()), "start-logps": lambda made, ids: iter(()),  # on the way only
        }  # fmt: skip
        seeds = {made.spec["seed"] for made in self.lineage(manifest) if "seed" in made.spec}
        moved = {"seed-all": next(iter(seeds))} if len(seeds) == 1 and seeds != {0} else {}
        size = {"smoke": True} if manifest.made.get("smoke") else {}
        for tried in makers[manifest.stage](manifest, ids):
            values = {**tried, **size}
            # Only distill spells --seed-all; a command of one stage has --seed for it.
            if moved and manifest.stage == "distill":
                yield {**values, **moved}
            yield values

    def lineage(self, manifest: Manifest) -> list[Manifest]:
        """An artifact and everything below it that is still here."""
        found, open_ = {manifest.id: manifest}, [manifest]
        while open_:
            for _, parent in open_.pop().parents():
                made = self.store.get(parent)
                if made is not None and parent not in found:
                    found[parent] = made
                    open_.append(made)
        return list(found.values())

    def _sft(self, manifest: Manifest, ids: bool) -> Iterator[Values]:
        yield from ({"model": word} for word in self._words(manifest, "model", ids, base=True))

    def _dpo_teacher(self, manifest: Manifest, ids: bool) -> Iterator[Values]:
        yield from ({"reference": word} for word in self._words(manifest, "model", ids))

    def _reward_model(self, manifest: Manifest, ids: bool) -> Iterator[Values]:
        yield from ({"model": word} for word in self._words(manifest, "model", ids))

    def _rollout(self, manifest: Manifest, ids: bool) -> Iterator[Values]:
        split = {} if manifest.spec["split"] == "train" else {"split": manifest.spec["split"]}
        yield from ({"student": word, **split} for word in self._words(manifest, "model", ids))

    def _capture(self, manifest: Manifest, ids: bool) -> Iterator[Values]:
        on: dict[str, Any] = {}
        if "rollouts" in manifest.inputs:
            if not ids:
                return
            on = {"rollouts": [f"rollout/{str(manifest.inputs['rollouts']).removeprefix('artifact:')[:12]}"]}
        for who in self._teachers(manifest, ids):
            yield {**who, **on}

    def _teachers(self, capture: Manifest, ids: bool) -> Iterator[dict[str, str]]:
        """--teacher and --reference of a capture; none of one that was imported."""
        if "aligned" not in capture.inputs:
            return
        below = self._words(capture, "reference", ids) if "reference" in capture.inputs else [None]
        for teacher, reference in itertools.product(self._words(capture, "aligned", ids), below):
            yield {"teacher": teacher, **({"reference": reference} if reference else {})}

    def _distill(self, manifest: Manifest, ids: bool) -> Iterator[Values]:
        start = self._parent(manifest, "model")
        chained = (
            start and start.stage == "distill" and (start.spec["method"], manifest.spec["method"]) == ("dckd", "adpa")
        )
        captures = [m for _, p in manifest.parents() if (m := self.store.get(p)) and m.stage == "cache-teacher"]
        teachers: list[dict[str, Any]] = [{}]
        for taught in (*captures, *([manifest] if "aligned" in manifest.inputs else [])):
            teachers += [who for who in self._teachers(taught, ids) if who not in teachers]
        signal: dict[str, Any] = {}
        if ids and captures:
            signal["cache"] = [capture.ref for capture in captures]
        if ids and (answers := self._parent(manifest, "rollouts")):
            signal["rollouts"] = [answers.ref]
        if chained and start:
            for student, who in itertools.product(self._words(start, "model", ids), teachers):
                yield {"method": "adpa+", "student": student, **who, "no-eval": True}
        students, judges = self._words(manifest, "model", ids), self._judges(manifest, ids)
        for student, sources, judge in itertools.product(students, self._sources(manifest), judges):
            common = {"method": manifest.spec["method"], "student": student, "no-eval": True, **sources, **judge}
            yield from ({**common, **who} for who in teachers)
            if signal:
                yield from ({**common, **who, **signal} for who in teachers)

    def _judges(self, manifest: Manifest, ids: bool) -> list[dict[str, str]]:
        """--reward-model of a student: it selected, or gave rewards; one that was not named is made for those."""
        given = self._parent(manifest, "rewards")
        held = manifest if "reward_model" in manifest.inputs else given
        words = self._words(held, "reward_model", ids) if held else []
        return [*({} for _ in range(held is not manifest)), *({"reward-model": word} for word in words)]

    def _sources(self, manifest: Manifest) -> list[dict[str, str]]:
        """Settings that no spec tells, for they only chose the inputs: whose rollouts, and which teacher."""
        known = methods.load(str(manifest.spec["method"])).sources
        answers = self._parent(manifest, "rollouts")
        foreign = answers is not None and answers.inputs["model"] != manifest.inputs["model"]
        states = {"states": ("teacher", "student") if foreign else ("student",) if answers else ()}
        tried = {"kd_teacher": methods.KD_TEACHERS, **states}
        axes = [[(key, word) for word in words] for key, words in tried.items() if key in known and words]
        return [{key: word for key, word in one if word != known[key]} for one in itertools.product(*axes)]

    def _eval(self, manifest: Manifest, ids: bool) -> Iterator[Values]:
        scorer: dict[str, Any] = {"suite": manifest.spec["suite"]}
        if "reward_model" in manifest.inputs:
            scorer["reward-model"] = next(iter(self._words(manifest, "reward_model", ids)), "")
        opponent = self._parent(manifest, "against")
        against = self._words(opponent, "model", ids) if opponent else [None]
        teachers = list(self._teachers(manifest, ids)) if "aligned" in manifest.inputs else [{}]
        for model, other, who in itertools.product(self._words(manifest, "model", ids), against, teachers):
            yield {"models": [model], **scorer, **({"against": other} if other else {}), **who}

    def _parent(self, manifest: Manifest, role: str) -> Manifest | None:
        return self.store.get(str(manifest.inputs.get(role, "")))

    def _words(self, manifest: Manifest, role: str, ids: bool, base: bool = False) -> list[str]:
        """What to type for a model that went in; `base` where an alias means the base model itself."""
        content = str(manifest.inputs[role])
        if content.startswith("artifact:"):
            made = self.store.get(content)
            if made is None:
                return []
            alias = None if base else self._alias_of(made)
            return [alias] if alias and not ids else [made.ref] if ids else []
        facts = manifest.sources[content]
        alias = _alias(str(facts.get("name", "")))
        if base and alias:
            return [alias]
        if facts.get("commit"):
            return [f"{facts['name']}@{facts['commit']}"]
        folder = self.store.hash_cache.locate(content.removeprefix("model:"))
        return [_path_word(folder)] if folder is not None else []

    def _alias_of(self, made: Manifest) -> str | None:
        """The alias that stands for a fine-tuned student, a fine-tuned teacher, an aligned one or a reward model."""
        while made.stage in ("dpo-teacher", "reward-model"):
            below = self._parent(made, "model")
            if below is None:
                return None
            made = below
        if made.stage != "sft":
            return None
        return _alias(str(made.sources.get(str(made.inputs["model"]), {}).get("name", "")))


def _alias(name: str) -> str | None:
    for family in FAMILIES:
        if name in (family.student, family.teacher):
            return family.alias if name == family.student else family.teacher_alias
    return None


def data_word(text: str) -> str:
    if text.startswith(BUILTIN):
        return next((alias for alias, name in DATA_ALIASES.items() if name == text), text)
    return _path_word(Path(text)) if text.startswith("/") else text


def _path_word(path: Path) -> str:
    """A path from the working directory when it lies below, else whole."""
    here = Path.cwd()
    return f"./{path.relative_to(here)}" if path.is_relative_to(here) else str(path)


ROUNDS = 8
MOST_DESCENDANTS = 6


@dataclass(frozen=True)
class Found:
    """The recipe that makes an artifact; `on_the_way_to` is what it makes in the end, when that is another one."""

    command: str
    values: Values
    on_the_way_to: str = ""
    pins: Mapping[str, str] = field(default_factory=dict)
    """What the names of the hub meant that it starts from: commits by name."""


@dataclass(frozen=True)
class Remaker:
    """Looks for recipes in one store; `planned` plans a command with its values as a recipe would."""

    store: Store
    planned: Callable[[str, Values], Plan]
    reasons: list[str] = field(default_factory=list)
    """Why tries could not be planned."""

    def recipe(self, manifest: Manifest) -> Found:
        """What makes it again, by names that hold anywhere if it can be, else by ids of this store. Raises NotFound."""
        by_names, by_ids = (list(Candidates(self.store).of(manifest, ids)) for ids in (False, True))
        found = self._first(manifest, by_names)
        if found is None:
            found = self._on_the_way(manifest) or self._first(manifest, by_ids)
        if found is None:
            why = f": {self.reasons[-1]}" if self.reasons else ""
            raise NotFound(
                f"no command of this adpa makes {manifest.ref} again from what is here{why}",
                f"it was made by: {manifest.made.get('command', '?')}",
            )
        return found

    def _first(self, manifest: Manifest, candidates: Sequence[Values]) -> Found | None:
        for values in candidates:
            fitted = self._fit(manifest, values)
            if fitted is not None:
                if manifest.stage == "distill" and self._measured(manifest):
                    fitted = {key: value for key, value in fitted.items() if key != "no-eval"}
                return Found(manifest.stage, fitted, pins=self._pins(manifest, fitted))
        return None

    def _on_the_way(self, manifest: Manifest) -> Found | None:
        """A student whose recipe, named without ids, makes this on the way."""
        # Of all stages on the way this one alone has settings that leave no trace in what is made from it.
        untold = settable(manifest.stage) if manifest.stage == "start-logps" else ()
        own = {f"{manifest.stage}.{key}": _text(manifest.spec[key]) for key in untold}
        for student in self._students(manifest):
            found = self._first(student, list(Candidates(self.store).of(student, ids=False)))
            if found is None:
                continue
            for values in [found.values, {**found.values, **own}] if own else [found.values]:
                plan = self.planned(found.command, values)
                every = in_order((*plan.targets, *plan.evals), lambda node: False)
                if manifest.id in {node.recipe.id for node in every}:
                    return replace(found, values=values, on_the_way_to=student.ref)
        return None

    def _students(self, manifest: Manifest) -> list[Manifest]:
        """Students made from it, newest first; for answers and figures of a model also those made from that model.

        What is derived for a training is on the way to that training.
        """
        artifacts = self.store.artifacts(lambda error: None)
        reached = {manifest.id}
        if manifest.stage in ("eval", "rollout"):
            reached |= {parent for role, parent in manifest.parents() if role == "model"}
        for other in reversed(artifacts):  # oldest first: what rests on something was made after it
            if any(parent in reached for _, parent in (*other.parents(), *other.derived())):
                reached.add(other.id)
        later = [other for other in artifacts if other.id in reached - {manifest.id}]
        readers = [other for other in later if manifest.id in dict(other.derived()).values()]
        return (readers or [other for other in later if other.stage == "distill"])[:MOST_DESCENDANTS]

    def _measured(self, manifest: Manifest) -> bool:
        evaluations = [other for other in self.store.artifacts(lambda error: None) if other.stage == "eval"]
        return any(("model", manifest.id) in other.parents() for other in evaluations)

    def _pins(self, manifest: Manifest, values: Values) -> dict[str, str]:
        """Hub names of the lineage that no value pins by itself: those behind an alias or a family's data."""
        found: dict[str, str] = {}
        for made in Candidates(self.store).lineage(manifest):
            for facts in made.sources.values():
                found |= {str(facts["name"]): str(facts["commit"])} if facts.get("commit") else {}
                for source in facts.get("sources", ()):
                    name = f"datasets/{str(source['name']).partition('#')[0]}"
                    found |= {name: str(source["commit"])} if source.get("commit") else {}
        said = str(values)
        return {n: commit for n, commit in found.items() if f"{n.removeprefix('datasets/')}@{commit}" not in said}

    # Correcting what was tried by what the plan says.

    def _fit(self, manifest: Manifest, values: Values) -> Values | None:
        for _ in range(ROUNDS):
            try:
                plan = self.planned(manifest.stage, values)
                target = plan.targets[0]
                if target.recipe.id == manifest.id:
                    return values
                better = self._corrected(values, target, manifest)
            except AdpaError as error:
                self.reasons.append(error.message)
                return None
            if better == values:
                return None
            values = better
        return None

    def _corrected(self, values: Values, target: Node, manifest: Manifest) -> Values:
        """The command's own stage first: what it says is followed by others."""
        pairs = list(self._pairs(target, manifest))
        for own in (True, False):
            better = dict(values)
            for node, made in pairs:
                if (node.stage == manifest.stage) == own:
                    prefix = "" if own else f"{node.stage}."
                    better |= {prefix + key: value for key, value in _differences(node.values, made.spec).items()}
                    better |= self._data(node, made, own)
            if better != values:
                return better
        return values

    def _pairs(self, node: Node, manifest: Manifest) -> Iterator[tuple[Node, Manifest]]:
        """The stages of a plan beside those of the lineage, as far as both have the same shape."""
        if node.stage != manifest.stage:
            return
        yield node, manifest
        for role, value in node.inputs.items():
            contents = manifest.inputs.get(role, [])
            for item, content in zip(
                value if isinstance(value, tuple) else (value,),
                [contents] if isinstance(contents, str) else contents,
                strict=False,
            ):
                made = self.store.get(content) if content.startswith("artifact:") else None
                if isinstance(item, Node) and made is not None:
                    yield from self._pairs(item, made)

    def _data(self, node: Node, made: Manifest, own: bool) -> dict[str, Any]:
        data, content = node.inputs.get("data"), str(made.inputs.get("data", ""))
        if data is None or isinstance(data, tuple) or data.content == content or content not in made.sources:
            return {}
        option = "sft-data" if node.stage == "sft" and not own else "data"
        return {option: self.data_words(made.sources[content])}

    def data_words(self, facts: Mapping[str, Any]) -> list[str]:
        """How to name a data set: hub names with their commit, files as they are seen from the working directory."""
        return [data_word(text) for text in Names(self.store).data_words(facts)]


def _differences(planned: Mapping[str, Any], made: Mapping[str, Any]) -> dict[str, Any]:
    """What must be set so that a plan's spec becomes the manifest's."""
    before = {**planned, **planned.get("params", {})}
    after = {**made, **made.get("params", {})}
    changed = {key: value for key, value in after.items() if key not in DERIVED and before.get(key, _LACKS) != value}
    return {key: _text(value) for key, value in changed.items()}


_LACKS = object()


def _text(value: Any) -> Any:
    """A value that a recipe can hold: no null, and no list, which would be a sweep."""
    if isinstance(value, list):
        return ",".join(map(str, value))
    return "none" if value is None else value
