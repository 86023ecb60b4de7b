"""The licences of all that a model was made from, what they ask of it, and how its card and a NOTICE file say so.

A licence is what adpa's list of models, the hub, or a README.md says. What none of them says is called unknown.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adpa_cli.errors import UsageError
from adpa_cli.families import published
from adpa_cli.hub.licences import TERMS, Terms, licence_in
from adpa_cli.hub.repository import licence_of, title
from adpa_cli.hub.upload import OPTION
from adpa_cli.planning.lineage import Trained, model_in_folder
from adpa_cli.report.adapter import facts_of
from adpa_cli.report.closure import BUILTIN, is_builtin
from adpa_cli.store.manifest import Manifest
from adpa_cli.store.store import Store

OWN = "apache-2.0"
"""Of the data that come with adpa."""
UNKNOWN = "unknown"
ROLES: Mapping[str, str] = {
    "aligned": "teacher", "reference": "teacher", "reward_model": "reward model", "data": "data",
}  # fmt: skip
"""What an input of a stage is to the model that comes of it, where it is not what the stage's own product is."""
BASE = "base model"


@dataclass(frozen=True)
class Parent:
    """A model or data set from outside that a model was made from; `licence` is "" where nobody says."""

    role: str
    name: str
    licence: str
    page: str = ""

    @property
    def terms(self) -> Terms | None:
        """What its licence asks of derived models, where that is known here."""
        return TERMS.get(self.licence)


def parents(model: Trained, store: Store, ask: bool) -> list[Parent]:
    """All that a model was made from that came from outside, its base first; with `ask` the hub is asked for licences
    that are not known here."""
    if model.manifest is not None:
        return list(dict.fromkeys(_of_artifact(model.manifest, store, ask)))
    own = _parent(BASE, "model", {"name": _name_of(model)}, model.folder, store, ask)
    adapter = facts_of(model.folder)
    beside = [_parent(BASE, "model", {"name": adapter.base}, None, store, ask)] if adapter else []
    return [own, *beside]


def _name_of(model: Trained) -> str:
    """The name on the hub of a model that was fetched from there, else that of its folder."""
    return title(model.folder.absolute())


def _of_artifact(manifest: Manifest, store: Store, ask: bool) -> Iterator[Parent]:
    """Level by level, so that a model counts as the nearest that it is."""
    level, seen = [(manifest, BASE)], {manifest.id}
    while level:
        below: list[tuple[Manifest, str]] = []
        for one, label in level:
            inputs = [(role, content) for role, value in one.inputs.items() for content in _listed(value)]
            for role, content in sorted(inputs, key=lambda item: item[0] != "model"):
                kind, _, digest = content.partition(":")
                named = ROLES.get(role, label)
                if kind != "artifact":
                    yield from _external(named, content, one.sources.get(content, {}), store, ask)
                elif digest not in seen and (parent := store.get(digest)) is not None:
                    seen.add(digest)
                    below.append((parent, named))
        level = below


def _listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def _external(role: str, content: str, facts: Mapping[str, Any], store: Store, ask: bool) -> Iterator[Parent]:
    kind = content.partition(":")[0]
    for part in facts.get("sources") or [facts]:
        here = None
        if kind == "model" and not part.get("commit") and (found := model_in_folder(content, facts, store)):
            here = Path(found.where[0])
        yield _parent(role, kind, part, here, store, ask)
        if part.get("base"):
            yield _parent(role, kind, part["base"], None, store, ask)


def _parent(role: str, kind: str, facts: Mapping[str, Any], here: Path | None, store: Store, ask: bool) -> Parent:
    """A model or a source of data by its facts; `here` is its folder, where there is one."""
    name = str(facts.get("name", "")).partition("#")[0] or "a model without a name"
    known = {model.name: model.licence for model in published().values()}
    if kind == "model" and name in known:
        return Parent(role, name.replace(BUILTIN, "the tiny "), known[name], _page(name, kind))
    if kind == "data" and is_builtin(facts):
        return Parent(role, name, OWN)
    is_of_hub = name.count("/") == 1
    licence = licence_in(here) if here is not None else ""
    if not licence and is_of_hub:
        commit, of = str(facts.get("commit") or "main"), "model" if kind == "model" else "dataset"
        licence = licence_of(name, commit, "model" if of == "model" else "dataset", store.hash_cache, ask)
    return Parent(role, name, licence, _page(name, kind) if is_of_hub else "")


def _page(name: str, kind: str) -> str:
    if name.startswith(BUILTIN):
        return ""
    return f"https://huggingface.co/{'datasets/' if kind == 'data' else ''}{name}"


def bound(every: Sequence[Parent]) -> dict[str, Terms]:
    """The licences among some that ask something of derived models, by their names on the hub."""
    return {one.licence: one.terms for one in every if one.terms is not None}


def check_name(every: Sequence[Parent], name: str) -> None:
    """Raise UsageError for a name on the hub that a licence of a parent does not allow."""
    owner, _, own = name.partition("/")
    for one in every:
        if one.terms is not None and not one.terms.takes(own):
            raise UsageError(
                f"the {one.terms.title} of {one.name} ({one.role}) asks that the name of a model made with it begins "
                f"with {one.terms.beginning}; got {own}",
                f"{OPTION} {owner}/{one.terms.beginning}-{own}     (the licence: {one.terms.page})",
            )


def notice(every: Sequence[Parent], label: str) -> str:
    """The text of a NOTICE file; "" where no licence asks for one."""
    terms = bound(every)
    if not terms:
        return ""
    names = ", ".join(dict.fromkeys(one.name for one in every if one.terms is not None))
    changed = f"The files of this model ({label}) are not those of {names}: they were made by training with adpa."
    return "\n".join([*(each.notice for each in terms.values()), "", changed]) + "\n"


def front_matter(every: Sequence[Parent], left: str) -> list[str]:
    """The licence for the front matter of a card: the one that derived models must have, else what is `left` to do."""
    ids = list(bound(every))
    if len(ids) == 1:
        return [f"license: {ids[0]}"]
    return [f"# license: {left}" + (f"; {' and '.join(ids)} both apply" if ids else "")]


def banner(every: Sequence[Parent]) -> list[str]:
    """The words that licences ask to be shown."""
    words = dict.fromkeys(each.shown for each in bound(every).values() if each.shown)
    return [line for word in words for line in (f"**{word}**", "")]


def section(every: Sequence[Parent], left: str) -> list[str]:
    """The section of a card on licences, as lines of Markdown."""
    lines = ["## Licence", ""]
    terms = bound(every)
    for each in terms.values():
        lines += [f"The [{each.title}]({each.page}) applies to this model. {each.limit}".rstrip(), ""]
    if not terms:
        lines += [f"Not stated yet: {left}.", ""]
    if every:
        lines += ["| made from | as | licence |", "|---|---|---|", *map(_row, every), ""]
    if unknown := [one for one in every if not one.licence]:
        names = ", ".join(one.name for one in unknown)
        lines += [f"Nothing states the licence of {names}: ask those who made it before you pass this model on.", ""]
    return [*lines, *(["The file NOTICE belongs to this model; keep it in copies.", ""] if terms else [])]


def _row(one: Parent) -> str:
    name = f"[{one.name}]({one.page})" if one.page else one.name
    return f"| {name} | {one.role} | {one.licence or UNKNOWN} |"


def summary(every: Sequence[Parent]) -> list[str]:
    """The licences in lines for a terminal, before a model is uploaded."""
    return [f"  {one.licence or UNKNOWN:<14} {one.name} ({one.role})" for one in every]
