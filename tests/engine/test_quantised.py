"""Weights in few bits: what is stored, what the products read of it, what is left, and what computes with it."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bitsandbytes import functional as bnb
from torch import Tensor, nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    MambaConfig,
    MambaForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
)

from adpa_cli.engine.arithmetic import computing
from adpa_cli.engine.layerwise import load_layerwise
from adpa_cli.engine.models import body_and_head, hidden_states, load, load_checked
from adpa_cli.engine.noise import Sampled, Teacher, capture_noise
from adpa_cli.engine.quantised import QuantisedLinear, library, quantise_layers
from adpa_cli.errors import AdpaError
from adpa_cli.spec import Dtype, Quantise
from support.light_update import answers, write_pair
from support.tiny_models import VOCABULARY, tiny_llama

WAYS: list[Quantise] = ["nf4", "int8"]
DTYPES: list[Dtype] = ["float32", "tf32", "float16", "bfloat16"]
IDS = torch.tensor([[5, 9, 7, 30, 11, 8]])
LEVELS = np.array([
    -1.0, -0.6961928, -0.52507305, -0.3949175, -0.28444138, -0.18477343, -0.091050036, 0.0, 0.0795803, 0.1609302,
    0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0,
])  # fmt: skip
"""Of nf4 (Dettmers et al. 2023, appendix E)."""


def wide() -> Any:
    return tiny_llama(hidden_size=256, intermediate_size=384, num_attention_heads=4, initializer_range=0.05)


def gpt2() -> Any:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(
        vocab_size=VOCABULARY, n_positions=64, n_embd=16, n_layer=2, n_head=4, bos_token_id=2, eos_token_id=3,
    )).eval()  # fmt: skip


def moe() -> Any:
    torch.manual_seed(0)
    return Qwen2MoeForCausalLM(Qwen2MoeConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=24, moe_intermediate_size=24, num_hidden_layers=2,
        shared_expert_intermediate_size=24, num_attention_heads=4, num_key_value_heads=2, num_experts=4,
        num_experts_per_tok=2, max_position_embeddings=64,
    )).eval()  # fmt: skip


MODELS = {"llama": tiny_llama, "tied": lambda: tiny_llama(tie_word_embeddings=True), "gpt2": gpt2, "moe": moe}


@pytest.fixture(params=MODELS)
def folder(request: Any, tmp_path: Path) -> Path:
    MODELS[request.param]().save_pretrained(tmp_path)
    return tmp_path


def restored(weight: Tensor, how: Quantise) -> Tensor:
    """A weight [outputs, inputs] as it is after it was stored, in numpy."""
    values = weight.double().numpy()
    if how == "int8":
        values = weight.half().double().numpy()
        scales = np.abs(values).max(1, keepdims=True)
        return torch.from_numpy(np.round(values / scales * 127) * scales / 127)
    flat = values.reshape(-1)
    runs = np.pad(flat, (0, -len(flat) % 64)).reshape(-1, 64)
    scales = np.abs(runs).max(1, keepdims=True)
    nearest = np.abs((runs / scales)[:, :, None] - LEVELS).argmin(2)
    return torch.from_numpy((LEVELS[nearest] * scales).reshape(-1)[: len(flat)].reshape(values.shape))


def stored(layer: Any, how: Quantise, read_in: torch.dtype = torch.float32) -> QuantisedLinear:
    made = QuantisedLinear(layer, how, read_in)
    made.store(layer.weight, "w")
    return made


def read(layer: QuantisedLinear) -> Tensor:
    """The weight that a layer multiplies by."""
    found: Tensor
    with torch.no_grad():
        found = plain(layer)(torch.eye(layer.in_features)).T
    return found


def plain(layer: QuantisedLinear) -> QuantisedLinear:
    """The same layer without a bias."""
    alone = copy.copy(layer)
    alone._parameters = {**layer._parameters, "bias": None}
    return alone


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("shape", [(3, 64), (4, 48), (7, 100), (5, 33), (1, 1)])
def test_each_weight_is_the_nearest_of_its_levels(shape: tuple[int, int], how: Quantise) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(shape[1], shape[0])
    torch.testing.assert_close(read(stored(layer, how)).double(), restored(layer.weight.detach(), how))


@pytest.mark.parametrize("largest", [1e-30, 1e-9, 3.0, 1e5, 1e30])
@pytest.mark.parametrize("how", WAYS)
def test_weights_of_any_size_keep_their_digits(how: Quantise, largest: float) -> None:
    layer = nn.Linear(64, 2)
    weight = torch.linspace(-1, 1, 128).view(2, 64).detach() * largest
    layer.weight = nn.Parameter(weight)
    assert float((read(stored(layer, how)) - weight).abs().max()) < {"nf4": 0.16, "int8": 0.005}[how] * largest


def test_nf4_is_that_of_the_library(tmp_path: Path) -> None:
    layer = nn.Linear(256, 128)
    packed, state = bnb.quantize_4bit(layer.weight.detach(), quant_type="nf4", compress_statistics=False)
    ours = stored(layer, "nf4")
    assert torch.equal(ours.weight, packed.view(-1))
    assert torch.equal(read(ours), bnb.dequantize_4bit(packed, state))


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_quantised_model_is_the_model_of_what_is_stored(how: Quantise, dtype: Dtype, tmp_path: Path) -> None:
    """Bit for bit in the dtypes whose weights are not rounded at random."""
    model = tiny_llama()
    model.save_pretrained(tmp_path / "whole")
    with torch.no_grad():
        for layer in [m for m in model.model.modules() if isinstance(m, nn.Linear)]:
            layer.weight.copy_(read(stored(layer, how)))
    model.save_pretrained(tmp_path / "stored")
    found = hidden_states(load_checked(tmp_path / "whole", dtype=dtype, quantise=how), IDS, None, dtype=dtype)
    expected = hidden_states(load_checked(tmp_path / "stored", dtype=dtype), IDS, None, dtype=dtype)
    if dtype in ("float32", "bfloat16"):
        assert torch.equal(found, expected)
    else:
        assert float((found - expected).abs().max()) < 0.01 * float(expected.abs().max())


@pytest.mark.parametrize("how", WAYS)
def test_log_probs_are_near_those_of_the_whole_model(how: Quantise, tmp_path: Path) -> None:
    wide().save_pretrained(tmp_path)
    whole: Any = load(tmp_path)
    few: Any = load(tmp_path, dtype="float16", quantise=how)
    with torch.no_grad():
        exact = whole(input_ids=IDS).logits.log_softmax(-1)
        with computing("float16", torch.device("cpu")):
            found = few(input_ids=IDS).logits.log_softmax(-1)
    assert 0 < float((found - exact).abs().mean()) < {"nf4": 0.3, "int8": 0.03}[how] * float(exact.std())


@pytest.mark.parametrize("how", WAYS)
def test_the_linear_layers_are_stored_and_nothing_else(folder: Path, how: Quantise) -> None:
    model: Any = load_checked(folder, dtype="float16", quantise=how)
    body, head, _ = body_and_head(model)
    layers = {name: m for name, m in body.named_modules() if isinstance(m, QuantisedLinear)}
    whole: Any = load(folder)
    linear = {
        name for name, m in body_and_head(whole)[0].named_modules() if type(m).__name__ in ("Linear", "Conv1D")
    }  # fmt: skip
    assert layers.keys() == linear
    for name, layer in layers.items():
        count = layer.in_features * layer.out_features
        taken = layer.weight.nbytes + layer.scales.nbytes
        assert taken == layer.stored_bytes
        assert taken == (count + 4 * layer.out_features if how == "int8" else -(-count // 64) * 36), name
        assert layer.bias is None or layer.bias.dtype == torch.float16
    dtypes = {name: p.dtype for name, p in body.named_parameters() if name.rpartition(".")[0] not in layers}
    assert all(
        dtype == (torch.float16 if "expert" in name or name.endswith("gate.weight") else torch.float32)
        for name, dtype in dtypes.items()
    )
    assert head.dtype == torch.float32


@pytest.mark.parametrize("how", WAYS)
def test_layer_by_layer_in_float32_it_reads_what_is_stored(folder: Path, how: Quantise) -> None:
    model = load_layerwise(folder, "cpu", quantise=how)
    for _ in range(2):
        found, expected = (hidden_states(one, IDS, None) for one in (model, load(folder, quantise=how)))
        assert torch.equal(found, expected)


def test_the_noise_of_a_capture_is_that_of_the_dtype_alone(tmp_path: Path) -> None:
    teachers = {"aligned": Teacher(write_pair(tmp_path)[0], "aligned")}
    errors = {
        how: capture_noise(teachers, answers(), "float16", Sampled(20, None, 200, "cpu", "capture", how))["logps"]
        for how in (None, "nf4")
    }
    assert errors["nf4"]["error"] == pytest.approx(errors[None]["error"], rel=0.5)


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("make", [tiny_llama, gpt2])
def test_gradients_pass_and_what_was_read_is_not_kept(how: Quantise, make: Any, tmp_path: Path) -> None:
    make().save_pretrained(tmp_path)
    model: Any = load(tmp_path, quantise=how)
    plain: Any = load(tmp_path)
    for name, layer in body_and_head(model)[0].named_modules():
        if isinstance(layer, QuantisedLinear):
            weight = body_and_head(plain)[0].get_submodule(name).weight
            weight.data.copy_(read(layer).T if make is gpt2 else read(layer))
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    gradients = []
    for one in (plain, model):
        states = one.get_input_embeddings()(IDS).detach().requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            one(inputs_embeds=states).logits.square().mean().backward()
        gradients.append(states.grad)
        if one is plain:
            kept.clear()
    torch.testing.assert_close(*gradients)
    of_layers = [layer for layer in body_and_head(model)[0].modules() if isinstance(layer, QuantisedLinear)]
    sizes = {frozenset((layer.in_features, layer.out_features)) for layer in of_layers}
    assert not [t for t in kept if t.is_floating_point() and t.dim() == 2 and frozenset(t.shape) in sizes]
    assert {layer.weight.data_ptr() for layer in of_layers} <= {t.data_ptr() for t in kept}


@pytest.mark.parametrize("how", WAYS)
def test_a_weight_beyond_float16_is_refused_by_name(how: Quantise, tmp_path: Path) -> None:
    model = tiny_llama()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 5] = 7e4
    model.save_pretrained(tmp_path)
    with pytest.raises(AdpaError, match=r"layers\.1\.mlp\.up_proj\.weight reaches 7e\+04") as caught:
        load(tmp_path, dtype="float16", quantise=how)
    assert "dtype=float32" in caught.value.hint
    if how == "nf4":
        assert load(tmp_path, dtype="float32", quantise=how)


def test_a_model_whose_layers_read_weights_by_themselves_is_refused(tmp_path: Path) -> None:
    config = MambaConfig(vocab_size=VOCABULARY, hidden_size=16, state_size=4, num_hidden_layers=1)
    MambaForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(AdpaError, match="MambaForCausalLM cannot compute in float16 with nf4 weights") as caught:
        load_checked(tmp_path, dtype="float16", quantise="nf4")
    assert "quantise=none" in caught.value.hint


def test_a_model_without_linear_layers_is_refused() -> None:
    with pytest.raises(AdpaError, match="Sequential has no linear layer") as caught:
        quantise_layers(nn.Sequential(nn.Conv1d(2, 2, 1)), None, "nf4", "float16")
    assert "quantise=none" in caught.value.hint


def test_without_the_library_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_llama().save_pretrained(tmp_path)
    library.cache_clear()
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    try:
        with pytest.raises(AdpaError, match="need the package bitsandbytes, which is not installed") as caught:
            load(tmp_path, quantise="nf4")
    finally:
        library.cache_clear()
    assert caught.value.hint == "pip install peft bitsandbytes"
