"""Finding the store, and what a user's words mean in it."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from adpa_cli.errors import AdpaError, Corrupt, NotFound, UsageError
from adpa_cli.store import manifest as manifests
from adpa_cli.store.identity import Recipe
from adpa_cli.store.store import Store
from support.store_samples import make, new_store, place, recipe


@pytest.fixture(autouse=True)
def no_store_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ADPA_STORE", raising=False)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return new_store(tmp_path)


def alike(digits: int) -> tuple[Recipe, Recipe]:
    """Two recipes whose ids share their first digits, found by trying."""
    seen: dict[str, Recipe] = {}
    for number in range(10**5):
        one = recipe(n=number)
        if one.id[:digits] in seen and any(letter.isdigit() for letter in one.id[:digits]):
            return seen[one.id[:digits]], one
        seen[one.id[:digits]] = one
    raise AssertionError("no collision")


def test_store_is_found_upward_as_git_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path / "a" / "b"
    deep.mkdir(parents=True)
    monkeypatch.chdir(deep)
    with pytest.raises(NotFound) as none:
        Store.find()
    assert none.value.exit_code == 3
    assert list(tmp_path.rglob("*store*")) == [], "looking creates nothing"
    monkeypatch.chdir(tmp_path)
    made = Store.find(create=True)
    assert (made.root, made.created) == (tmp_path / "adpa-store", True)
    monkeypatch.chdir(deep)
    found = Store.find(create=True)
    assert (found.root, found.created) == (tmp_path / "adpa-store", False)


def test_an_artifact_is_found_without_looking_at_others(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make(store, n=1)
    listed, stages = [], os.listdir(store.root)
    monkeypatch.setattr("os.listdir", lambda folder: listed.append(folder) or stages)
    for name in (made.ref, made.id, f"artifact:{made.id}"):
        found = store.get(name)
        assert found is not None
        assert found.id == made.id
    stage = made.ref.partition("/")[0]
    assert [store.get(name) for name in (f"{stage}/{'0' * 12}", f"other/{'0' * 12}", f"tags/{'0' * 12}")] == [None] * 3
    assert set(listed) <= {store.root}, "for the stages"


def test_environment_names_a_store_and_the_option_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("env", "option"):
        Store.find(tmp_path / name, create=True)
    monkeypatch.setenv("ADPA_STORE", str(tmp_path / "env"))
    assert Store.find().root == tmp_path / "env"
    assert Store.find(tmp_path / "option").root == tmp_path / "option"
    monkeypatch.setenv("ADPA_STORE", str(tmp_path / "none"))
    with pytest.raises(NotFound):
        Store.find()


def test_a_folder_of_other_things_does_not_become_a_store(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UsageError, match="holds other files"):
        Store.find(tmp_path, create=True)
    with pytest.raises(UsageError):
        Store.find(tmp_path / "thesis.tex", create=True)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_newer_store_is_refused_and_a_torn_marker_named(store: Store) -> None:
    marker = store.root / "adpa.json"
    assert json.loads(marker.read_text()) == {"format": 1}
    marker.write_text('{"format": 2}')
    with pytest.raises(AdpaError, match="made by a newer version of adpa"):
        Store.find(store.root)
    marker.write_text("")
    with pytest.raises(Corrupt, match=r"adpa\.json"):
        Store.find(store.root)


def test_an_artifact_has_many_names(store: Store) -> None:
    manifest = make(store)
    store.tag("best", manifest.id)
    digits = manifest.id
    names = [digits, digits[:4], digits[:12], digits[:20].upper(), manifest.ref, f"sft/{digits[:4]}", "best"]
    assert {store.resolve(name).id for name in [*names, f"artifact:{digits}", "sft@latest"]} == {digits}
    assert store.folder(manifest.ref) == store.folder(digits) == store.root / manifest.ref
    assert store.get(manifest.ref) == manifest


@pytest.mark.parametrize(
    "name", ["abc", "0" * 12, "sft/0000", "dpo/{id}", "{id}0", "best", "distill@latest", "sft@last", ""]
)
def test_what_means_nothing_is_not_found(store: Store, name: str) -> None:
    manifest = make(store)
    assert not manifest.id.startswith(("abc", "0000"))
    with pytest.raises(NotFound, match="adpa-store"):
        store.resolve(name.format(id=manifest.id))
    assert store.get("0" * 64) is None
    with pytest.raises(NotFound):
        store.folder("0" * 64)


def test_two_meanings_are_an_error_that_lists_both(store: Store) -> None:
    first, second = alike(4)
    place(store, first)
    assert store.resolve(first.id[:4]).id == first.id
    place(store, second)
    with pytest.raises(UsageError) as both:
        store.resolve(first.id[:4])
    assert first.ref in both.value.message
    assert second.ref in both.value.message
    assert store.resolve(first.id[:12]).id == first.id


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        ("tiny", "tiny is an alias of a model, and no artifact", "adpa models"),
        ("sft@latest", "no sft is finished in", "adpa show --all"),
        ("abc", "there is no tag or id abc", "an id needs 4 digits or more"),
    ],
)
def test_a_word_that_almost_means_something_is_told_what(store: Store, name: str, message: str, hint: str) -> None:
    place(store, recipe(n=1), made={"at": manifests.utc(80.0), "smoke": True})
    with pytest.raises(NotFound) as found:
        store.resolve(name)
    assert message in found.value.message
    assert hint in found.value.hint


def test_close_names_are_offered(store: Store) -> None:
    store.tag("best-run", make(store).id)
    with pytest.raises(NotFound) as wrong:
        store.resolve("best-rnu")
    assert "best-run" in wrong.value.hint


def test_unfinished_work_is_named_with_the_command_that_goes_on(store: Store) -> None:
    with store.build(recipe(), command="adpa sft --model tiny") as work:
        work.save_state({"step": 1})
    with pytest.raises(NotFound, match="unfinished") as found:
        store.resolve(recipe().id[:8])
    assert found.value.hint == f"adpa sft --model tiny --store {store.root}"


def test_latest_is_the_newest_of_its_stage(store: Store) -> None:
    for number, at in ((1, 50.0), (2, 70.0), (3, 60.0)):
        place(store, recipe(n=number), at=at)
    place(store, recipe("dpo", n=4), at=90.0)
    place(store, recipe(n=5), at=80.0, made={"at": manifests.utc(80.0), "smoke": True})
    assert store.resolve("sft@latest").spec == {"n": 2}
    assert [manifest.spec["n"] for manifest in store.artifacts()] == [4, 5, 2, 3, 1]


def test_tags_move_and_go(store: Store) -> None:
    one, two = make(store, n=1), make(store, n=2)
    store.tag("best", one.id)
    store.tag("g3", one.ref)
    store.tag("best", two.ref)
    assert store.tags() == {"best": two.id, "g3": one.id}
    store.untag("best")
    assert store.tags() == {"g3": one.id}
    with pytest.raises(NotFound):
        store.untag("best")
    with pytest.raises(NotFound):
        store.tag("none", hashlib.sha256(b"").hexdigest())


@pytest.mark.parametrize(
    "name", ["", "beef", "DEADBEEF", "a/b", "x@y", "../x", ".hidden", "-q", "a b", "tiny", "é", "a" * 65]
)
def test_names_that_mean_something_else_are_no_tags(store: Store, name: str) -> None:
    manifest = make(store)
    with pytest.raises(UsageError):
        store.tag(name, manifest.id, reserved={"tiny"})
    assert store.tags() == {}


def test_a_tag_whose_artifact_is_gone_says_so(store: Store) -> None:
    manifest = make(store)
    store.tag("best", manifest.id)
    store.folder(manifest.id).rename(store.root / ".gone")
    with pytest.raises(NotFound, match="the tag best names"):
        store.resolve("best")


def test_a_pin_holds_until_it_is_refreshed(store: Store) -> None:
    asked: list[str] = []

    def hub(name: str) -> str:
        asked.append(name)
        return f"commit-{len(asked)}"

    assert [store.pin("org/m", hub), store.pin("org/m", hub), store.pin("org/n", hub)] == ["commit-1"] * 2 + [
        "commit-2"
    ]
    assert store.pin("org/m", hub, refresh=True) == "commit-3"
    assert Store.find(store.root).pin("org/m", hub) == "commit-3"
    assert json.loads((store.root / "pins.json").read_text()) == {"org/m": "commit-3", "org/n": "commit-2"}
    (store.root / "pins.json").write_text("[")
    with pytest.raises(Corrupt, match=r"pins\.json"):
        store.pin("org/m", hub)
