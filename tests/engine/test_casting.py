"""Weights in another dtype: what is rounded how, in one file or several, and what a dtype cannot hold."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from adpa_cli.engine.casting import Rounding, cast_weights
from adpa_cli.engine.models import load
from adpa_cli.errors import AdpaError
from adpa_cli.tensors.rounding import stochastic
from support.model_folders import write_model
from support.tiny_models import tiny_llama

LAYERS = "model.layers."


def tensors(folder: Path) -> dict[str, Tensor]:
    return {name: value for path in sorted(folder.glob("*.safetensors")) for name, value in load_file(path).items()}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_only_matrices_of_layers_are_rounded_at_random(tmp_path: Path, dtype: str) -> None:
    model = tiny_llama()
    model.save_pretrained(tmp_path)
    before, wanted = tensors(tmp_path), getattr(torch, dtype)
    assert cast_weights(tmp_path, dtype, "stochastic") > 0
    after = tensors(tmp_path)
    assert after.keys() == before.keys()
    at_random = {name for name, value in before.items() if name.startswith(LAYERS) and value.dim() == 2}
    assert len(at_random) == 14
    for name, values in before.items():
        expected = stochastic(values, wanted, name.removeprefix("model.")) if name in at_random else values.to(wanted)
        assert torch.equal(after[name], expected), name
        step = values.abs().clamp(min=2.0**-14) * 2.0 ** (-7 if dtype == "bfloat16" else -10)
        assert bool(((after[name].float() - values).abs() <= step).all())
    assert not all(torch.equal(after[name], before[name].to(wanted)) for name in at_random)
    assert AutoModelForCausalLM.from_pretrained(tmp_path).dtype == wanted


def test_float16_at_random_is_what_inference_in_float16_holds(tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path)
    held = {name: value for name, value in load(tmp_path, dtype="float16").state_dict().items() if LAYERS in name}
    cast_weights(tmp_path, "float16", "stochastic")
    written = tensors(tmp_path)
    assert all(torch.equal(written[name], value) for name, value in held.items() if value.dim() == 2)


def test_equal_weights_give_equal_bytes_and_what_the_dtype_has_stays(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_model(tmp_path / name)
        cast_weights(tmp_path / name, "bfloat16", "stochastic")
    once = contents(tmp_path / "one")
    assert once == contents(tmp_path / "two")
    assert cast_weights(tmp_path / "one", "bfloat16", "stochastic") == 0
    assert contents(tmp_path / "one") == once
    assert cast_weights(tmp_path / "one", "float32") == 0
    wide, narrow = tensors(tmp_path / "one"), tensors(tmp_path / "two")
    assert all(torch.equal(wide[name], narrow[name].float()) for name in narrow)


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_a_model_in_several_files_is_the_same_as_in_one(tmp_path: Path, rounding: Rounding) -> None:
    model = tiny_llama()
    model.save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "parts", max_shard_size="8KB")
    index = tmp_path / "parts" / "model.safetensors.index.json"
    files = json.loads(index.read_text())["weight_map"]
    assert len(set(files.values())) > 2
    for name in ("whole", "parts"):
        cast_weights(tmp_path / name, "bfloat16", rounding)
    whole, parts = tensors(tmp_path / "whole"), tensors(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    said = json.loads(index.read_text())
    assert said["metadata"]["total_size"] == sum(2 * value.numel() for value in whole.values())
    assert said["weight_map"] == files
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "parts").state_dict()
    assert all(torch.equal(loaded[name], whole[name]) for name in whole)


def test_numbers_without_a_point_and_of_any_shape_stay_whole(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    odd = {
        "flags": torch.tensor([True, False, True]), "count": torch.tensor(7), "scale": torch.tensor(0.1),
        "double": torch.linspace(0, 1, 5, dtype=torch.float64), "empty": torch.zeros(0, 3),
        "layers.0.w": torch.linspace(-1, 1, 15).view(3, 5),
    }  # fmt: skip
    save_file(odd, path)
    (tmp_path / "config.json").write_text("{}")
    cast_weights(tmp_path, "float16")
    after = load_file(path)
    assert {name: tuple(value.shape) for name, value in after.items()} == {n: tuple(v.shape) for n, v in odd.items()}
    for name, values in odd.items():
        assert torch.equal(after[name], values.half() if values.is_floating_point() else values), name
    assert {item.name for item in tmp_path.iterdir()} == {"model.safetensors", "config.json"}


def test_weights_beyond_the_range_are_refused_by_name(tmp_path: Path) -> None:
    model = tiny_llama()
    name = "model.layers.1.mlp.up_proj.weight"
    with torch.no_grad():
        model.get_parameter(name)[3, 2] = -70000.0
    model.save_pretrained(tmp_path)
    before = contents(tmp_path)
    for rounding in ("nearest", "stochastic"):
        with pytest.raises(AdpaError) as refused:
            cast_weights(tmp_path, "float16", rounding)
        assert name in refused.value.message
        assert "70000" in refused.value.message
        assert "65504" in refused.value.message
        assert "--dtype bfloat16" in refused.value.hint
        assert contents(tmp_path) == before
    cast_weights(tmp_path, "bfloat16")
