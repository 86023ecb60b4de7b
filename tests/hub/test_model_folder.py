"""What a model folder says of itself."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adpa_cli.errors import AdpaError, DataError
from adpa_cli.hub.model_folder import ModelFolder
from adpa_cli.lab import BASES


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(BASES / "student", tmp_path / "m"))


def change(path: Path, **fields: Any) -> None:
    """Other fields in a JSON file; None takes one away."""
    values = {**json.loads(path.read_text()), **fields}
    path.write_text(json.dumps({name: value for name, value in values.items() if value is not None}))


def test_a_folder_is_read_once_and_anew_when_it_changes(folder: Path) -> None:
    first = ModelFolder.of(folder)
    assert ModelFolder.of(folder) is first
    assert (first.context, first.vocabulary, first.token_ids) == (256, 238, 238)
    assert first.template == ""
    state = (folder / "config.json").stat()
    change(folder / "config.json", max_position_embeddings=128)
    os.utime(folder / "config.json", ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    assert ModelFolder.of(folder).context == 128
    assert ModelFolder.of(folder).template == "{{ messages }}"


def test_sizes_are_those_of_the_weights(folder: Path) -> None:
    from safetensors import safe_open

    size = ModelFolder.of(folder).size
    with safe_open(folder / "model.safetensors", "np") as weights:
        shapes = {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118  it is no mapping
    assert ModelFolder.of(folder).shapes == shapes
    assert (size.hidden, size.layers, size.inner, size.keys, size.width, size.tied) == (48, 2, 96, 48, 48, True)
    assert size.tokenizer == (folder / "tokenizer.json").stat().st_size < size.beside
    (folder / "model.safetensors").unlink()
    assert ModelFolder.of(folder).size.parameters == 0


def test_what_a_folder_does_not_say_is_named(folder: Path) -> None:
    change(folder / "config.json", hidden_size=None)
    with pytest.raises(AdpaError, match=r"m/config\.json does not state 'hidden_size'"):
        _ = ModelFolder.of(folder).size
    change(folder / "tokenizer_config.json", eos_token=None)
    with pytest.raises(DataError, match="has no end token"):
        _ = ModelFolder.of(folder).end_token
    (folder / "special_tokens_map.json").write_text(json.dumps({"eos_token": {"content": "<end>"}}))
    assert ModelFolder.of(folder).end_token == "<end>"
    assert ModelFolder.of(folder).token("bos_token") == "<|bos|>"


def test_a_model_of_several_parts_says_so_of_the_one_that_reads_text(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    outer = {"model_type": "any", "text_config": config, "dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(outer))
    inside = ModelFolder.of(folder)
    assert (inside.vocabulary, inside.context, inside.size.hidden) == (238, 256, 48)


@pytest.mark.parametrize(
    ("generation", "config", "stops"),
    [
        ({"eos_token_id": 3}, {"eos_token_id": 0}, (3,)),
        ({"eos_token_id": [3, 2, 3]}, {}, (3, 2)),
        ({}, {"eos_token_id": [2, 3]}, (2, 3)),
        ({"eos_token_id": None}, {"eos_token_id": None}, ()),
        ({"eos_token_id": [3, 238, -1, 200]}, {}, (3,)),  # ids that the model lacks, and ordinary text
        ({"eos_token_id": True}, {}, ()),
    ],
)
def test_where_generation_stops(folder: Path, generation: Any, config: Any, stops: tuple[int, ...]) -> None:
    (folder / "generation_config.json").write_text(json.dumps(generation))
    raw = {**json.loads((folder / "config.json").read_text()), **config}
    (folder / "config.json").write_text(json.dumps(raw))
    assert ModelFolder.of(folder).stop_ids == stops


def test_rows_are_counted_in_the_weights_where_they_are_here(folder: Path) -> None:
    change(folder / "config.json", vocab_size=500)
    assert ModelFolder.of(folder).rows == 238
    (folder / "model.safetensors").unlink()
    assert ModelFolder.of(folder).rows == 500


def test_files_that_hold_no_object_are_named(folder: Path) -> None:
    (folder / "config.json").write_text("[1]")
    with pytest.raises(DataError, match=r"config\.json is not a JSON object"):
        _ = ModelFolder.of(folder).config
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')
    with pytest.raises(DataError, match=r"tokenizer\.json is not a tokenizer"):
        _ = ModelFolder.of(folder).token_ids


def by_uses(folder: Path) -> None:
    named = [{"name": "rag", "template": "R"}, {"name": "default", "template": "D"}]
    change(folder / "tokenizer_config.json", chat_template=named)


def by_uses_as_an_object(folder: Path) -> None:
    change(folder / "tokenizer_config.json", chat_template={"default": "D", "rag": "R"})


def in_files_by_use(folder: Path) -> None:
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "rag.jinja").write_text("R")
    (folder / "chat_template.jinja").write_text("D")


def in_a_file_of_json(folder: Path) -> None:
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": "D"}))


@pytest.mark.parametrize("make", [by_uses, by_uses_as_an_object, in_files_by_use, in_a_file_of_json])
def test_of_several_chat_templates_the_default_is_read(folder: Path, make: Callable[[Path], None]) -> None:
    make(folder)
    assert ModelFolder.of(folder).template == "D"
