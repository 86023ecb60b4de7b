"""Weights in two bytes: what is held, that it is unbiased, and that it does not hang on how it was read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, GPT2Config, GPT2LMHeadModel, MixtralConfig, MixtralForCausalLM
from transformers.pytorch_utils import Conv1D

from adpa_cli.engine.frozen import Skeleton, expanded, held, held_places, hold
from adpa_cli.engine.models import body_and_head, hidden_states, load, load_checked, skeleton_of
from adpa_cli.errors import AdpaError
from adpa_cli.spec import Dtype
from support.model_folders import byte_level, write_vision_language
from support.tiny_models import VOCABULARY, tiny_llama
from support.wild_models import KINDS, wild_folder

HELD: list[Dtype] = ["bfloat16", "float16", "tf32"]
IDS = torch.tensor([[5, 9, 7, 30, 11, 8]])


def mixtral() -> Any:
    torch.manual_seed(0)
    return MixtralForCausalLM(
        MixtralConfig(
            vocab_size=VOCABULARY, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2, max_position_embeddings=64,
        )
    ).eval()  # fmt: skip


def gpt2() -> Any:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_positions=64, n_embd=16, n_layer=2, n_head=4)).eval()


MODELS = {"llama": tiny_llama, "llama tied": lambda: tiny_llama(tie_word_embeddings=True), "gpt2": gpt2, "moe": mixtral}


@pytest.fixture(params=MODELS)
def folder(request: Any, tmp_path: Path) -> Path:
    MODELS[request.param]().save_pretrained(tmp_path)
    return tmp_path


def state(model: Any) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = model.state_dict()
    return found


@pytest.mark.parametrize("dtype", HELD)
def test_products_are_held_in_two_bytes_and_nothing_else_is(folder: Path, dtype: Dtype) -> None:
    model: Any = load_checked(folder, dtype=dtype)
    body, head, _ = body_and_head(model)
    expected = torch.bfloat16 if dtype == "bfloat16" else torch.float16
    places = {id(place.tensor): place for place in held_places(body, dtype)}
    assert {place.tensor.dtype for place in places.values()} == {expected}
    routers = [m.weight for name, m in body.named_modules() if name.endswith(("gate", "router"))]
    experts = [p for name, p in body.named_parameters() if p.dim() == 3]
    assert all((id(weight) in places) == (dtype != "bfloat16") for weight in (*routers, *experts)), "as autocast does"
    others = [p for p in model.parameters() if id(p) not in places]
    assert {p.dtype for p in others} == {torch.float32}
    assert head.dtype == model.get_input_embeddings().weight.dtype == torch.float32
    linear = [m for m in body.modules() if isinstance(m, torch.nn.Linear | Conv1D)]
    assert all(id(layer.weight) in places for layer in linear)


@pytest.mark.parametrize("dtype", HELD)
def test_read_one_by_one_or_whole_the_bits_are_the_same(folder: Path, dtype: Dtype) -> None:
    model: Any = load(folder, dtype=dtype)
    whole: Any = load(folder)
    hold(body_and_head(whole)[0], dtype)
    assert {name: value.dtype for name, value in state(model).items()} == {
        name: value.dtype for name, value in state(whole).items()
    }
    assert all(torch.equal(value, state(whole)[name]) for name, value in state(model).items())
    buffers = dict(whole.named_buffers())
    assert all(torch.equal(value, buffers[name]) for name, value in model.named_buffers())


@pytest.mark.parametrize("dtype", HELD)
def test_states_are_those_of_float32_up_to_what_the_dtype_rounds(folder: Path, dtype: Dtype) -> None:
    exact = hidden_states(load(folder), IDS, None)
    found = hidden_states(load(folder, dtype=dtype), IDS, None, dtype=dtype).float()
    step = 2.0**-8 if dtype == "bfloat16" else 2.0**-11
    assert not torch.equal(found, exact)
    assert float((found - exact).abs().max()) < 12 * step * float(exact.abs().max())


@pytest.mark.parametrize("make", [tiny_llama, mixtral])
def test_what_leaves_the_range_of_float16_is_computed_in_tf32(make: Any, tmp_path: Path) -> None:
    model = make()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "up_proj" in name or "gate_proj" in name:
                weight *= 3000
    model.save_pretrained(tmp_path)
    exact = hidden_states(load(tmp_path), IDS, None)
    assert not bool(hidden_states(load(tmp_path, dtype="float16"), IDS, None, dtype="float16").isfinite().all())
    found = hidden_states(load(tmp_path, dtype="tf32"), IDS, None, dtype="tf32")
    assert float((found - exact).abs().max()) < 0.02 * float(exact.abs().max())


@pytest.mark.parametrize("kind", KINDS)
def test_models_of_many_kinds_compute_in_float16_and_tf32(kind: str, tmp_path: Path) -> None:
    folder = wild_folder(tmp_path / "m", kind)
    exact = hidden_states(load(folder), IDS, None)
    for dtype in ("float16", "tf32"):
        found = hidden_states(load_checked(folder, dtype=dtype), IDS, None, dtype=dtype).float()
        assert float((found - exact).abs().max()) < 0.02 * float(exact.abs().max())


def test_weights_that_float16_has_stay_and_others_are_unbiased(tmp_path: Path) -> None:
    model = tiny_llama().bfloat16()
    model.save_pretrained(tmp_path)
    loaded: Any = load(tmp_path, dtype="float16")
    for name, weight in model.state_dict().items():
        normal = weight.float().abs() >= 2.0**-14
        assert torch.equal(state(loaded)[name].float()[normal], weight.float()[normal]), name
    weight = torch.full((512, 512), 1 + 2.0**-12)
    assert float(held(weight, "w", "float16").double().mean()) == pytest.approx(1 + 2.0**-12, abs=2.0**-16)


def test_two_models_are_rounded_by_the_same_noise(tmp_path: Path) -> None:
    """What rounding does to both cancels: of equal weights the difference is exactly 0, names being those of a body."""
    bare = tiny_llama()
    bare.save_pretrained(tmp_path / "whole")
    bare.model.save_pretrained(tmp_path / "body")
    tensors = load_file(tmp_path / "body" / "model.safetensors")
    tensors["lm_head.weight"] = bare.lm_head.weight.detach().clone()
    save_file(tensors, tmp_path / "body" / "model.safetensors", {"format": "pt"})
    (tmp_path / "body" / "config.json").write_bytes((tmp_path / "whole" / "config.json").read_bytes())
    first, second = (load(tmp_path / name, dtype="float16") for name in ("whole", "body"))
    assert all(torch.equal(value, state(second)[name]) for name, value in state(first).items())


def test_experts_in_one_tensor_are_rounded_as_in_a_checkpoint_that_has_them_apart() -> None:
    fused = torch.randn(3, 8, 5, generator=torch.Generator().manual_seed(0))
    whole = held(fused, "layers.0.mlp.experts.gate_up_proj", "float16")
    for expert in range(3):
        for name, rows in (("gate_proj", slice(0, 4)), ("up_proj", slice(4, 8))):
            alone = held(fused[expert, rows].clone(), f"layers.0.mlp.experts.{expert}.{name}.weight", "float16")
            assert torch.equal(whole[expert, rows], alone)


def test_a_weight_out_of_range_is_refused_by_name(tmp_path: Path) -> None:
    model = tiny_llama()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = 1e6
    model.save_pretrained(tmp_path)
    with pytest.raises(AdpaError, match=r"layers.1.mlp.up_proj.weight reaches 1e\+06") as raised:
        load(tmp_path, dtype="float16")
    assert "dtype=bfloat16" in str(raised.value.hint)
    assert load(tmp_path, dtype="bfloat16") is not None


def test_expanded_weights_come_back_as_they_were(tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path)
    model: Any = load(tmp_path, dtype="float16")
    before = {name: value.clone() for name, value in state(model).items()}
    alone = hidden_states(model, IDS, None, dtype="float16")
    with expanded(model):
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        assert torch.equal(hidden_states(model, IDS, None, dtype="float16"), alone)
    assert all(torch.equal(value, before[name]) for name, value in state(model).items())


def test_a_folder_whose_tensors_are_called_otherwise_is_left_to_transformers(tmp_path: Path) -> None:
    mixtral().save_pretrained(tmp_path)
    make: Any = mixtral
    assert Skeleton.of(make, lambda model: body_and_head(model)[0], tmp_path, "float16") is None


def test_the_text_part_of_a_model_that_sees_images_is_read_one_by_one_too(tmp_path: Path) -> None:
    write_vision_language(tmp_path, byte_level())
    config = AutoConfig.from_pretrained(tmp_path)
    assert skeleton_of(tmp_path, config, "float16") is not None
    model: Any = load_checked(tmp_path, dtype="float16")
    whole: Any = load(tmp_path)
    hold(body_and_head(whole)[0], "float16")
    assert all(torch.equal(value, state(whole)[name]) for name, value in state(model).items())
    assert type(model) is type(whole)


@pytest.mark.parametrize("name", ["llama", "moe"])
def test_a_frozen_model_computes_what_a_training_does_in_bfloat16(name: str, tmp_path: Path) -> None:
    """So that the loss of DPO begins at log 2, whose reference log-probs a frozen model gives."""
    MODELS[name]().save_pretrained(tmp_path)
    trained, frozen = load(tmp_path, train=True), load(tmp_path, dtype="bfloat16")
    with torch.no_grad():
        both = [hidden_states(model, IDS, None, dtype="bfloat16") for model in (trained, frozen)]
    assert torch.equal(*both)


@pytest.mark.parametrize("tied", [False, True])
def test_an_embedding_that_is_no_head_stays_as_it_is_stored(tied: bool, tmp_path: Path) -> None:
    tiny_llama(tie_word_embeddings=tied).bfloat16().save_pretrained(tmp_path)
    model: Any = load_checked(tmp_path, dtype="float16")
    whole: Any = load(tmp_path)
    hold(body_and_head(whole)[0], "float16")
    assert model.get_input_embeddings().weight.dtype == (torch.float32 if tied else torch.bfloat16)
    assert model.get_output_embeddings().weight.dtype == torch.float32
    states = [hidden_states(each, IDS, None, dtype="float16") for each in (model, whole)]
    assert torch.equal(*states)
    assert states[0].dtype == torch.float32
