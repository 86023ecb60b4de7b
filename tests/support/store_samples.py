"""Small artifacts for the tests of the store and of its screens."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from adpa_cli.store import manifest as manifests
from adpa_cli.store.identity import Recipe
from adpa_cli.store.manifest import Manifest
from adpa_cli.store.store import Store

DATA = "data:" + "d" * 64
MODEL = "model:" + "a" * 64


def recipe(stage: str = "sft", inputs: dict[str, Any] | None = None, **spec: Any) -> Recipe:
    return Recipe(stage, 1, spec or {"lr": 1e-5}, inputs if inputs is not None else {"model": MODEL, "data": DATA})


def make(
    store: Store,
    stage: str = "sft",
    inputs: dict[str, Any] | None = None,
    *,
    files: dict[str, bytes] | None = None,
    metrics: dict[str, Any] | None = None,
    sources: dict[str, Any] | None = None,
    made: dict[str, Any] | None = None,
    command: str = "adpa sft --model tiny",
    **spec: Any,
) -> Manifest:
    """Build a real artifact through the real commit."""
    with store.build(recipe(stage, inputs, **spec), command=command) as work:
        for name, content in ({"model.safetensors": b"weights"} if files is None else files).items():
            (work.dir / name).parent.mkdir(parents=True, exist_ok=True)
            (work.dir / name).write_bytes(content)
        return work.commit(metrics=metrics, sources=sources, made=made)


def place(store: Store, artifact: Recipe, at: float = 0.0, **fields: Any) -> Manifest:
    """Put a manifest where its artifact would be, without files: quick, for stores of many artifacts."""
    record: dict[str, Any] = {
        "sources": {}, "files": {}, "metrics": {}, "made": {"at": manifests.utc(at), "command": "adpa sft"}, **fields
    }  # fmt: skip
    manifest = Manifest(id=artifact.id, **artifact.to_json(), **record)
    folder = store.root / artifact.ref
    folder.mkdir(parents=True)
    (folder / manifests.FILE_NAME).write_text(json.dumps(asdict(manifest)), encoding="utf-8")
    return manifest


def new_store(folder: Path) -> Store:
    return Store.find(folder / "adpa-store", create=True)
