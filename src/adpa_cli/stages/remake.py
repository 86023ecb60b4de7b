"""From an artifact back to the recipe that makes it.

Nothing is inverted by hand: words are tried, planned, corrected by what the plan's specs differ in from the manifests,
and kept when the very id comes out. So whatever a command can say can be found again, later settings included.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from adpa_cli.errors import AdpaError, NotFound
from adpa_cli.stages.graph import Node, in_order
from adpa_cli.stages.names import Names
from adpa_cli.stages.plan import Plan
from adpa_cli.stages.remake_words import Candidates, Values, data_word
from adpa_cli.stages.settings import DERIVED, settable
from adpa_cli.store.manifest import Manifest
from adpa_cli.store.store import Store

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
