"""Ids: pinned for ever, equal for equal recipes, different for anything that matters."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from adpa_cli.errors import UsageError
from adpa_cli.store.identity import Recipe, canonical

A, D = "artifact:" + "1" * 64, "data:" + "2" * 64


def test_ids_never_change() -> None:
    sft = Recipe("sft", 1, {"lr": 1e-5, "epochs": 3, "template": "zephyr", "limit": None}, {"data": D})
    assert sft.id == "814a3fe357d63697c299aa9eef3b63a1a848e3b461b069e642d233b910229ead"
    mixed = Recipe("distill", 2, {"γ": 1.5, "keys": [1, 2.0, True], "nested": {"b": {}, "a": []}}, {"cache": [A, D]})
    assert mixed.id == "518f9d583a4aad8af7d53931949c0fa2d3a2a7874e6e58a15e191074dbf96e64"
    assert mixed.ref == f"distill/{mixed.id[:12]}"


def test_id_is_the_hash_of_the_text_written_by_hand() -> None:
    text = '{"inputs":{"x":"' + D + '"},"scheme":1,"spec":{"a":"é","b":0.1},"stage":"sft","version":3}'
    assert Recipe("sft", 3, {"b": 0.1, "a": "é"}, {"x": D}).id == hashlib.sha256(text.encode()).hexdigest()


def test_everything_in_a_recipe_changes_its_id() -> None:
    recipes = [
        Recipe("sft", 1, {"lr": 1.0}, {"data": D}),
        Recipe("sft", 1, {"lr": 1}, {"data": D}),  # coercion is the spec's job: here 1 and 1.0 are two texts
        Recipe("sft", 1, {"lr": True}, {"data": D}),
        Recipe("sft", 1, {"lr": "1.0"}, {"data": D}),
        Recipe("sft", 1, {}, {"data": D}),
        Recipe("sft", 1, {"lr": None}, {"data": D}),
        Recipe("sft", 2, {"lr": 1.0}, {"data": D}),
        Recipe("sft2", 1, {"lr": 1.0}, {"data": D}),
        Recipe("sft", 1, {"lr": 1.0}, {"data": A}),
        Recipe("sft", 1, {"lr": 1.0}, {"rows": D}),
        Recipe("sft", 1, {"lr": 1.0}, {"data": [D]}),
        Recipe("sft", 1, {"lr": 1.0}, {"data": [D, A]}),
        Recipe("sft", 1, {"lr": 1.0}, {"data": [A, D]}),
    ]
    assert len({recipe.id for recipe in recipes}) == len(recipes)


def test_order_of_keys_and_tuples_do_not_matter() -> None:
    assert canonical({"b": (1, 2), "a": {"y": 0, "x": 0}}) == b'{"a":{"x":0,"y":0},"b":[1,2]}'


def test_a_recipe_keeps_its_own_copy() -> None:
    spec = {"keys": [1]}
    recipe = Recipe("sft", 1, spec, {})
    spec["keys"].append(2)
    assert recipe.id == Recipe("sft", 1, {"keys": [1]}, {}).id
    assert recipe.spec == {"keys": [1]}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), "\ud800"])
def test_values_without_one_text_are_refused(value: object) -> None:
    with pytest.raises(UsageError):
        canonical({"deep": [{"x": value}]})


@pytest.mark.parametrize("value", [b"bytes", {1, 2}, Path("x"), 1j, object(), {1: 2}])
def test_what_json_lacks_is_refused_by_place(value: object) -> None:
    with pytest.raises(TypeError, match=r"recipe\.deep\[0\]"):
        canonical({"deep": [value]})


@pytest.mark.parametrize(
    "value", ["1" * 64, "artifact:12", "file:" + "1" * 64, "data:" + "G" * 64, ["x"], "/tmp/model"]
)
def test_inputs_are_contents_never_names(value: str) -> None:
    with pytest.raises(ValueError, match="input x is"):
        Recipe("sft", 1, {}, {"x": value})


@pytest.mark.parametrize("stage", ["", "tags", "../x", "SFT", ".partial", "a/b"])
def test_stage_names_are_plain_folder_names(stage: str) -> None:
    with pytest.raises(ValueError, match="cannot name a stage"):
        Recipe(stage, 1, {}, {})
