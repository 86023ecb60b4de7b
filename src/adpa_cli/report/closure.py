"""All that artifacts need, as a table, as lists of files for programs that copy, and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from adpa_cli.report import text
from adpa_cli.report.lineage import what
from adpa_cli.store.closure import Closure, Outside

Listing = Literal["ids", "files", "manifests"]
BUILTIN = "builtin:"


def lines(closure: Closure, listing: Listing) -> list[str]:
    """What a program that copies reads, a line each: paths inside the store.

    `ids` are the folders of artifacts, `files` all that is in them but the manifests, and `manifests` these, with the
    tags and the small files of the store, as `Closure.last_files` orders them.
    """
    if listing == "ids":
        return [manifest.ref for manifest in closure.artifacts]
    if listing == "manifests":
        return closure.last_files
    return [name for names in closure.files.values() for name in names]


def screen(closure: Closure, width: int) -> str:
    """The artifacts with their sizes, and what comes from outside of the store."""
    tags = {artifact: tag for tag, artifact in closure.store.tags().items()}
    sizes = [closure.size(manifest) for manifest in closure.artifacts]
    rows = [
        (one.ref, what(one), tags.get(one.id, ""), text.human_size(size))
        for one, size in zip(closure.artifacts, sizes, strict=True)
    ]
    table = text.table(("ID", "WHAT", "TAG", "SIZE"), rows, width, flexible=1, right=(3,), expendable=(2,))
    count = len(sizes)
    total = f"{count} artifact{'s' * (count != 1)}, {text.human_size(sum(sizes))}"
    return "\n".join([*table, "", total, *said(closure)]) + "\n"


def said(closure: Closure) -> list[str]:
    """What is not in the store, and where it comes from, in lines; nothing where all is there or comes with adpa."""
    lost = [
        f"missing: {parent[:12]} ({role} of {ref}) is no longer in the store" for role, parent, ref in closure.missing
    ]
    found = dict.fromkeys(f"  {one.role}: {words}" for one in closure.outside for words in origins(one))
    return [*lost, *(["not in the store, and not copied with it:", *found] if found else [])]


def origins(one: Outside) -> list[str]:
    """Where each part of something from outside comes from, as a person would look for it; what comes with adpa is left
    out."""
    return [_origin(one, part) for part in one.parts if not is_builtin(part)]


def is_builtin(facts: Mapping[str, Any]) -> bool:
    """Whether a model or a source of data comes with adpa, by its facts: its files are then no digests."""
    files = [str(sha) for sha in facts.get("files", ())]
    return str(facts.get("name", "")).startswith(BUILTIN) or not all(map(_is_digest, files))


def _origin(one: Outside, facts: Mapping[str, Any]) -> str:
    name, files = str(facts.get("name") or one.content), list(facts.get("files", ()))
    if facts.get("commit"):
        kind = "data set" if one.kind == "data" else "model"
        return f"{name}@{str(facts['commit'])[:8]}, a {kind} of the Hugging Face hub"
    digest = files[0] if len(files) == 1 else one.content.rpartition(":")[2]
    count = f"{len(files)} files" if len(files) > 1 else "a file" if files else "a folder"
    return f"{name}, {count} on the machine that made it (sha256 {digest[:12]}…)"


def _is_digest(word: str) -> bool:
    return len(word) == 64 and set(word) <= set("0123456789abcdef")


def record(closure: Closure) -> dict[str, Any]:
    """The same as JSON: artifacts with bytes and files, the files that go last, what is outside and what is missing."""
    tags: dict[str, list[str]] = {}
    for tag, artifact in closure.store.tags().items():
        tags.setdefault(artifact, []).append(tag)
    artifacts: Sequence[dict[str, Any]] = [
        {
            "id": one.ref, "what": what(one), "tags": tags.get(one.id, []), "bytes": closure.size(one),
            "files": closure.files[one.ref],
        }
        for one in closure.artifacts
    ]  # fmt: skip
    return {
        "store": str(closure.store.root),
        "artifacts": artifacts,
        "last": closure.last_files,
        "bytes": sum(one["bytes"] for one in artifacts),
        "outside": [{"role": one.role, "content": one.content, **one.facts} for one in closure.outside],
        "missing": [{"role": role, "id": parent, "needed_by": ref} for role, parent, ref in closure.missing],
    }
