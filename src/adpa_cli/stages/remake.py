"""From an artifact back to the recipe that makes it.

Nothing is inverted by hand: words are tried, planned, corrected by what the plan's specs differ in from the manifests,
and kept when the very id comes out. So whatever a command can say can be found again, later settings included.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adpa_cli.errors import AdpaError, NotFound
from adpa_cli.families import DATA_ALIASES, FAMILIES
from adpa_cli.stages.graph import Node, in_order
from adpa_cli.stages.names import BUILTIN, Names
from adpa_cli.stages.plan import Plan
from adpa_cli.stages.settings import DERIVED
from adpa_cli.store.manifest import Manifest
from adpa_cli.store.store import Store

ROUNDS = 8
MOST_DESCENDANTS = 6
Values = Mapping[str, Any]


@dataclass(frozen=True)
class Found:
    """The recipe that makes an artifact; `on_the_way_to` is what it makes in the end, when that is another one."""

    command: str
    values: Values
    on_the_way_to: str = ""


@dataclass(frozen=True)
class Remaker:
    """Looks for recipes in one store; `planned` plans a command with its values as a recipe would."""

    store: Store
    planned: Callable[[str, Values], Plan]

    def recipe(self, manifest: Manifest) -> Found:
        """What makes it again, by names that hold anywhere if it can be, else by ids of this store. Raises NotFound."""
        by_names, by_ids = (list(self._candidates(manifest, ids)) for ids in (False, True))
        found = self._first(manifest, by_names)
        if found is None:
            found = self._on_the_way(manifest) or self._first(manifest, by_ids)
        if found is None:
            raise NotFound(
                f"no command of this adpa makes {manifest.ref} again from what is here",
                f"it was made by: {manifest.made.get('command', '?')}",
            )
        return found

    def _first(self, manifest: Manifest, candidates: Sequence[Values]) -> Found | None:
        for values in candidates:
            fitted = self._fit(manifest, values)
            if fitted is not None:
                if manifest.stage == "distill" and self._measured(manifest):
                    fitted = {key: value for key, value in fitted.items() if key != "no-eval"}
                return Found(manifest.stage, fitted)
        return None

    def _on_the_way(self, manifest: Manifest) -> Found | None:
        """A student whose recipe, named without ids, makes this on the way."""
        for student in self._students(manifest):
            found = self._first(student, list(self._candidates(student, ids=False)))
            if found is not None:
                plan = self.planned(found.command, found.values)
                every = in_order((*plan.targets, *plan.evals), lambda node: False)
                if manifest.id in {node.recipe.id for node in every}:
                    return Found(found.command, found.values, student.ref)
        return None

    def _students(self, manifest: Manifest) -> list[Manifest]:
        """Students made from it, newest first; for answers and figures of a model also those made from that model."""
        artifacts = self.store.artifacts(lambda error: None)
        reached = {manifest.id}
        if manifest.stage in ("eval", "rollout"):
            reached |= {parent for role, parent in manifest.parents() if role == "model"}
        for other in reversed(artifacts):  # oldest first: what rests on something was made after it
            if any(parent in reached for _, parent in other.parents()):
                reached.add(other.id)
        found = [other for other in artifacts if other.id in reached - {manifest.id} and other.stage == "distill"]
        return found[:MOST_DESCENDANTS]

    def _measured(self, manifest: Manifest) -> bool:
        evaluations = [other for other in self.store.artifacts(lambda error: None) if other.stage == "eval"]
        return any(("model", manifest.id) in other.parents() for other in evaluations)

    # Correcting what was tried by what the plan says.

    def _fit(self, manifest: Manifest, values: Values) -> Values | None:
        for _ in range(ROUNDS):
            try:
                plan = self.planned(manifest.stage, values)
                target = plan.targets[0]
                if target.recipe.id == manifest.id:
                    return values
                better = self._corrected(values, target, manifest)
            except AdpaError:
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
        return {option: self.data_words(made.sources[content], content)}

    def data_words(self, facts: Mapping[str, Any], content: str) -> list[str]:
        """How to name a data set: hub names with their commit, files as they are seen from the working directory."""
        names = Names(self.store)
        names.data_of(facts, content)
        return [_data_word(text) for text in names.data_words(facts)]

    # What to try.

    def _candidates(self, manifest: Manifest, ids: bool) -> Iterator[Values]:
        """First tries, with names that mean the same anywhere, or with ids of this store."""
        makers: Mapping[str, Callable[[Manifest, bool], Iterator[Values]]] = {
            "sft": self._sft, "dpo-teacher": self._dpo_teacher, "cache-teacher": self._capture,
            "rollout": self._rollout, "distill": self._distill, "eval": self._eval,
        }  # fmt: skip
        seeds = {made.spec["seed"] for made in self._lineage(manifest) if "seed" in made.spec}
        moved = {"seed-all": next(iter(seeds))} if len(seeds) == 1 and seeds != {0} else {}
        for values in makers[manifest.stage](manifest, ids):
            # Only distill spells --seed-all; a command of one stage has --seed for it.
            if moved and manifest.stage == "distill":
                yield {**values, **moved}
            yield values

    def _lineage(self, manifest: Manifest) -> list[Manifest]:
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
        """--teacher and --reference of a capture."""
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
        for capture in captures:
            teachers += [who for who in self._teachers(capture, ids) if who not in teachers]
        signal: dict[str, Any] = {}
        if ids and captures:
            signal["cache"] = [capture.ref for capture in captures]
        if ids and (answers := self._parent(manifest, "rollouts")):
            signal["rollouts"] = [answers.ref]
        if chained and start:
            for student, who in itertools.product(self._words(start, "model", ids), teachers):
                yield {"method": "adpa+", "student": student, **who, "no-eval": True}
        for student in self._words(manifest, "model", ids):
            common = {"method": manifest.spec["method"], "student": student, "no-eval": True}
            yield from ({**common, **who} for who in teachers)
            if signal:
                yield from ({**common, **who, **signal} for who in teachers)

    def _eval(self, manifest: Manifest, ids: bool) -> Iterator[Values]:
        scorer: dict[str, Any] = {"suite": manifest.spec["suite"]}
        if "reward_model" in manifest.inputs:
            scorer["reward-model"] = next(iter(self._words(manifest, "reward_model", ids)), "")
        opponent = self._parent(manifest, "against")
        against = self._words(opponent, "model", ids) if opponent else [None]
        teachers = list(self._teachers(manifest, ids)) if "aligned" in manifest.inputs else [{}]
        for word, other, who in itertools.product(self._words(manifest, "model", ids), against, teachers):
            yield {"models": [word], **scorer, **({"against": other} if other else {}), **who}

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
        """The alias that stands for a fine-tuned student, a fine-tuned teacher or an aligned one."""
        while made.stage == "dpo-teacher":
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


def _data_word(text: str) -> str:
    if text.startswith(BUILTIN):
        return next((alias for alias, name in DATA_ALIASES.items() if name == text), text)
    return _path_word(Path(text)) if text.startswith("/") else text


def _path_word(path: Path) -> str:
    """A path from the working directory when it lies below, else whole."""
    here = Path.cwd()
    return f"./{path.relative_to(here)}" if path.is_relative_to(here) else str(path)
