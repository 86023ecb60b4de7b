"""Manifests old, new and damaged; and bytes that are not what their manifest says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from adpa_cli.errors import AdpaError, Corrupt
from adpa_cli.store import manifest as manifests
from adpa_cli.store.manifest import migrate
from adpa_cli.store.store import Damage, Store, verified_at, verify
from support.store_samples import make, new_store, place, recipe


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return new_store(tmp_path)


def rewrite(store: Store, ref: str, **changes: Any) -> None:
    path = store.folder(ref) / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_manifest_is_read_as_it_was_written(store: Store) -> None:
    parents = {"model": "artifact:" + "1" * 64, "cache": ["artifact:" + "2" * 64, "data:" + "3" * 64]}
    made = make(store, "distill", parents, metrics={"loss": {"last": 1.5}}, files={"a": b"12", "b/c": b"345"})
    read = store.get(made.id)
    assert read == made
    assert made.parents() == [("cache", "2" * 64), ("model", "1" * 64)]
    assert made.size == 5
    assert made.made.keys() >= {"command", "at", "seconds", "host"}


def test_a_newer_manifest_is_refused_and_one_bad_one_does_not_hide_the_rest(store: Store) -> None:
    good, newer, torn = make(store, n=1), make(store, n=2), make(store, n=3)
    rewrite(store, newer.ref, format=99)
    (store.folder(torn.ref) / "manifest.json").write_text("{")
    with pytest.raises(AdpaError, match="made by a newer adpa"):
        store.get(newer.id)
    with pytest.raises(Corrupt, match=torn.id[:12]):
        store.get(torn.id)
    with pytest.raises(AdpaError):
        store.artifacts()
    errors: list[AdpaError] = []
    assert store.artifacts(errors.append) == [good]
    assert len(errors) == 2


@pytest.mark.parametrize(
    "changes",
    [{"id": "x"}, {"files": []}, {"made": {}}, {"files": {"a": {}}}, {"made": {"at": "noon"}}, {"format": "1"}],
)
def test_a_damaged_manifest_is_corrupt_not_a_traceback(store: Store, changes: dict[str, Any]) -> None:
    made = make(store)
    rewrite(store, made.ref, **changes)
    with pytest.raises(Corrupt):
        store.get(made.id)


def test_migrations_run_one_step_at_a_time() -> None:
    steps = {1: lambda raw: {**raw, "b": raw["a"] * 2}, 2: lambda raw: {**raw, "c": raw["b"] + 1}}
    assert migrate({"format": 1, "a": 5}, "x", 3, steps) == {"format": 3, "a": 5, "b": 10, "c": 11}
    assert migrate({"format": 2, "b": 1}, "x", 3, steps) == {"format": 3, "b": 1, "c": 2}
    assert set(manifests.MIGRATIONS) == set(range(1, manifests.FORMAT)), "every older format has its step"


def test_verify_names_each_damaged_file(store: Store) -> None:
    made = make(store, files={"a": b"aaaa", "b": b"bbbb", "c": b"cccc", "d/e": b"whole"})
    assert verify(store, made) == []
    assert verified_at(store, made.id) is not None
    folder = store.folder(made.id)
    (folder / "a").write_bytes(b"aaXa")
    (folder / "b").write_bytes(b"bb")
    (folder / "c").unlink()
    found = verify(store, made)
    assert found == [
        Damage("a", "its bytes have changed"),
        Damage("b", "it has 2 bytes instead of 4"),
        Damage("c", "missing"),
    ]
    assert verified_at(store, made.id) is None, "an artifact found damaged is no longer verified"


def test_verify_asks_for_the_damaged_rows_of_a_signal(store: Store) -> None:
    made = make(store, files={"signal-00000.adpa": b"shard", "model.safetensors": b"w"})
    folder = store.folder(made.id)
    asked: list[str] = []

    def rows(path: Path) -> list[str]:
        asked.append(path.name)
        return ["row 17 (key 5d1e)"]

    assert verify(store, made, rows) == []
    (folder / "signal-00000.adpa").write_bytes(b"shXrd")
    (folder / "model.safetensors").write_bytes(b"x")
    assert verify(store, made, rows) == [
        Damage("model.safetensors", "its bytes have changed"),
        Damage("signal-00000.adpa", "its bytes have changed", ("row 17 (key 5d1e)",)),
    ]
    assert asked == ["signal-00000.adpa"]


def test_verify_sees_a_manifest_that_was_edited(store: Store) -> None:
    made = make(store, lr=1.0)
    rewrite(store, made.ref, spec={"lr": 2.0})
    read = store.get(made.id)
    assert read is not None
    (damage,) = verify(store, read)
    assert damage.file == "manifest.json"
    assert made.id[:12] in damage.problem


def test_strangers_in_the_store_are_left_alone(store: Store) -> None:
    made = place(store, recipe())
    (store.root / "notes").mkdir()
    (store.root / "notes" / "todo.txt").touch()
    (store.root / "sft" / ".DS_Store").touch()
    (store.root / "sft" / "backup").mkdir()
    (store.root / "README.md").touch()
    assert store.artifacts() == [made]
