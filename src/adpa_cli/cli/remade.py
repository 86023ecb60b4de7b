"""`adpa show REF --recipe`: the TOML that makes an artifact again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from adpa_cli.cli.grid import option
from adpa_cli.cli.plan import plan_in
from adpa_cli.cli.recipe import Recipe, word
from adpa_cli.cli.run import keys_for, requests
from adpa_cli.spec import STAGE_VERSIONS
from adpa_cli.stages.plan import Plan
from adpa_cli.stages.remake import Found, Remaker
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
