"""What products see of a change of weights: worked by hand, against float64, and read from folders as saved."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from adpa_cli.engine import update as updates
from adpa_cli.engine.update import NEAREST, Weights, folder_pairs, measured_update, nearest, share_off_grid
from adpa_cli.tensors.rounding import stochastic
from support.tiny_models import tiny_llama

LAYER = "model.layers.0.mlp.up_proj.weight"


def of_one(before: list[float], after: list[float]) -> dict[str, object]:
    return measured_update([(LAYER, torch.tensor([before]), torch.tensor([after]))])


def test_a_change_worked_by_hand() -> None:
    """Near 1 numbers of bfloat16 lie 1/128 apart, those of float16 1/1024: a change of 1/1024 is lost in the first,
    one of 1/64 kept, and one of 3/256 becomes two of the steps that are 1/128 (a tie goes to the even one)."""
    small, kept, tie = 1 / 1024, 1 / 64, 3 / 256
    found = of_one([1.0, 1.0, 1.0, 1.0], [1.0 + small, 1.0 + kept, 1.0 + tie, 1.0])
    square = small**2 + kept**2 + tie**2
    assert found["rms"] == pytest.approx(math.sqrt(square / 4), rel=1e-12)
    assert found["seen"]["bfloat16"] == pytest.approx((kept**2 + tie * 2 / 128) / square, rel=1e-12)
    assert found["seen"]["float16"] == 1.0
    assert found["differ"] == {"bfloat16": 0.5, "float16": 0.75}


def test_nothing_changed_and_nothing_there() -> None:
    still = of_one([1.0, 2.0], [1.0, 2.0])
    assert still == {"rms": 0.0, "seen": dict.fromkeys(NEAREST, 1.0), "differ": dict.fromkeys(NEAREST, 0.0)}
    assert measured_update([]) == {}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_against_float64_over_several_tensors_and_chunks(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(updates, "_CHUNK", 7)
    torch.manual_seed(0)
    pairs = []
    for name, shape in ((LAYER, (5, 9)), ("model.layers.1.experts", (2, 3, 4))):
        before = torch.randn(shape).to(dtype)
        pairs.append((name, before, before.float() + 2e-3 * torch.randn(shape)))
    found = measured_update(pairs)
    old, new = (np.concatenate([pair[n].double().numpy().ravel() for pair in pairs]) for n in (1, 2))
    moved = new - old
    assert found["rms"] == pytest.approx(np.sqrt((moved**2).mean() / (old**2).mean()), rel=1e-12)
    for way, kind in (("bfloat16", torch.bfloat16), ("float16", torch.float16)):
        left, right = (torch.from_numpy(x).to(kind).double().numpy() for x in (old, new))
        assert found["seen"][way] == pytest.approx((right - left) @ moved / (moved @ moved), rel=1e-9)
        assert found["differ"][way] == np.mean(left != right)


def test_beyond_the_range_of_a_dtype_is_its_greatest_number() -> None:
    found = of_one([60000.0, 1.0], [70000.0, 1.0])
    assert found["seen"]["float16"] == pytest.approx((65504 - 60000) / 10000, rel=1e-6)
    assert nearest(torch.float16)("", torch.tensor([-1e9])).item() == -65504


def test_another_way_of_rounding_is_given_the_name_and_sees_all_on_average() -> None:
    """A change far below a step of bfloat16, which nearest loses and rounding at random keeps in the mean."""
    torch.manual_seed(0)
    before = torch.randn(256, 512).bfloat16().float()
    after = before * (1 + 1e-4)
    names: list[str] = []

    def at_random(name: str, values: Tensor) -> Tensor:
        names.append(name)
        return stochastic(values, torch.bfloat16, name)

    found = measured_update([(LAYER, before, after)], {**NEAREST, "at random": at_random})
    assert names == [LAYER, LAYER]
    assert found["seen"]["bfloat16"] == 0.0
    assert found["differ"]["bfloat16"] == 0.0
    assert found["seen"]["at random"] == pytest.approx(1.0, abs=0.15)


def test_weights_of_products_are_the_matrices_in_layers() -> None:
    shapes = {
        "model.embed_tokens.weight": (8, 4), "lm_head.weight": (8, 4), "transformer.wpe.weight": (8, 4),
        "model.layers.0.norm.weight": (4,), "transformer.h.1.attn.c_attn.weight": (4, 12),
        "model.layers.10.mlp.experts.3.w1.weight": (4, 4), "model.layers.2.mlp.experts.gate_up_proj": (2, 4, 8),
        "transformer.h.1.attn.bias": (1, 1, 8, 8), "score.weight": (1, 4),
    }  # fmt: skip
    assert Weights(shapes, lambda name, rows: torch.zeros(1)).of_products == {
        "h.1.attn.c_attn.weight": "transformer.h.1.attn.c_attn.weight",
        "layers.10.mlp.experts.3.w1.weight": "model.layers.10.mlp.experts.3.w1.weight",
        "layers.2.mlp.experts.gate_up_proj": "model.layers.2.mlp.experts.gate_up_proj",
    }


def saved(folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    tiny_llama().to(dtype).save_pretrained(folder)
    return folder


def changed(folder: Path, target: Path, by: float, prefix: str = "") -> Path:
    """A copy whose weights are all larger by a part, in float32, under other names."""
    saved(target)
    weights = load_file(folder / "model.safetensors")
    save_file(
        {prefix + name: w.float() * (1 + by) for name, w in weights.items()}, target / "model.safetensors",
        {"format": "pt"},
    )  # fmt: skip
    return target


def test_an_update_below_the_step_of_bfloat16_and_one_above_it(tmp_path: Path) -> None:
    base = saved(tmp_path / "base", torch.bfloat16)
    below = measured_update(folder_pairs(base, changed(base, tmp_path / "below", 1e-4)))
    assert below["rms"] == pytest.approx(1e-4, rel=1e-3)
    assert below["seen"]["bfloat16"] == below["differ"]["bfloat16"] == 0.0
    above = measured_update(folder_pairs(base, changed(base, tmp_path / "above", 0.1)))
    assert above["seen"]["bfloat16"] == pytest.approx(1.0, abs=0.02)
    assert above["differ"]["bfloat16"] == 1.0


def test_folders_match_whatever_stands_before_the_layers_and_in_several_files(tmp_path: Path) -> None:
    base = saved(tmp_path / "base")
    other = changed(base, tmp_path / "other", 0.25, prefix="text.")
    weights = load_file(other / "model.safetensors")
    (other / "model.safetensors").unlink()
    for n, (name, weight) in enumerate(weights.items()):
        save_file({name: weight}, other / f"model-{n:05d}.safetensors")
    pairs = list(folder_pairs(base, other))
    assert {name for name, _, _ in pairs} == {f"text.{n}" for n in weights_of_layers(base)}
    assert all(torch.equal(after, before * 1.25) for _, before, after in pairs)
    one = next(name for name in weights if name.endswith("up_proj.weight"))
    save_file({one: torch.zeros(3, 3)}, other / f"model-{list(weights).index(one):05d}.safetensors")
    assert one not in {name for name, _, _ in folder_pairs(base, other)}, "another shape"


def weights_of_layers(folder: Path) -> set[str]:
    return {n for n, w in load_file(folder / "model.safetensors").items() if ".layers." in n and w.dim() == 2}


def test_a_model_in_memory_beside_its_folder_and_a_sample_of_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = saved(tmp_path / "base")
    model = tiny_llama()
    with torch.no_grad():
        for weight in model.parameters():
            weight *= 1.5
    before, after = updates.folder_weights(base), updates.model_weights(model)
    whole = list(updates.pairs(before, after))
    assert {name for name, _, _ in whole} == weights_of_layers(base)
    assert measured_update(whole)["rms"] == pytest.approx(0.5)
    monkeypatch.setattr(updates, "SAMPLED_TENSORS", 4)
    monkeypatch.setattr(updates, "SAMPLED_WEIGHTS", 64)
    part = list(updates.pairs(before, after, sample=True))
    assert [len(new) for _, _, new in part] == [4] * 4, "four rows of sixteen weights"
    assert measured_update(part)["rms"] == pytest.approx(0.5)


def test_the_share_of_weights_between_numbers_of_a_dtype(tmp_path: Path) -> None:
    coarse = saved(tmp_path / "coarse", torch.bfloat16)
    assert share_off_grid(coarse, "bfloat16") == 0.0
    half = saved(tmp_path / "half", torch.float16)
    assert share_off_grid(half, "float16") == 0.0
    assert share_off_grid(half, "bfloat16") == pytest.approx(7 / 8, abs=0.02), "three bits are lost"
