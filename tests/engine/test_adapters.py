"""Adapters beside frozen weights: they begin as their base, are what peft reads and writes, and are never rounded."""

from __future__ import annotations

import copy
import json
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSequenceClassification,
    Dots1Config,
    Dots1ForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
)

from adpa_cli.engine.adapters import (
    NAME,
    Base,
    adapter_layers,
    adapter_weights,
    add_adapter,
    has_adapter,
    train_adapter,
    write_adapter,
)
from adpa_cli.engine.arithmetic import computing
from adpa_cli.engine.generation.generate import generate_block
from adpa_cli.engine.generation.sampling import Decoding, Sampling
from adpa_cli.engine.layerwise import load_layerwise
from adpa_cli.engine.lora import check_lora
from adpa_cli.engine.models import SCALAR_HEAD, body_of, load, load_checked, save
from adpa_cli.engine.rewards.reward_model import sequence_rewards
from adpa_cli.engine.training.adapted import base_of, load_adapted
from adpa_cli.engine.training.optimizer import tune
from adpa_cli.engine.training.student import critic_of
from adpa_cli.engine.update import adapter_update, folder_pairs, measured_update
from adpa_cli.errors import AdpaError, UsageError
from adpa_cli.spec import Dtype, Runtime
from adpa_cli.store.identity import model_digest
from support.model_folders import byte_level, write_vision_language
from support.peft_folders import adapter_state
from support.tiny_models import END, PAD, TEMPLATE, VOCABULARY, tiny_llama, tiny_tokenizer
from support.tuned_models import ARCHITECTURES, IDS, check_equal, computed, made, spec

EXPERTS: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "num_experts_per_tok": 2, "max_position_embeddings": 64,
}  # fmt: skip
MODELS: dict[str, Callable[[], Any]] = {
    "llama": tiny_llama, "llama tied": lambda: tiny_llama(tie_word_embeddings=True), "gpt2": lambda: made("gpt2"),
    "opt": lambda: made("opt"), "phi3": lambda: made("phi3"),
    "mixtral": lambda: MixtralForCausalLM(MixtralConfig(**EXPERTS, intermediate_size=24, num_local_experts=4)),
    "qwen2 moe": lambda: Qwen2MoeForCausalLM(
        Qwen2MoeConfig(**EXPERTS, moe_intermediate_size=16, shared_expert_intermediate_size=24, num_experts=4)
    ),
    "dots1": lambda: Dots1ForCausalLM(
        Dots1Config(**EXPERTS, head_dim=4, intermediate_size=24, moe_intermediate_size=16, n_routed_experts=4,
                    n_shared_experts=1, first_k_dense_replace=1)
    ),
}  # fmt: skip
DTYPES: list[Dtype] = ["float32", "bfloat16", "float16", "tf32"]


def base_folder(folder: Path, name: str = "llama") -> Path:
    torch.manual_seed(0)
    save(MODELS[name]().eval(), tiny_tokenizer(), folder, TEMPLATE, "<end>")
    return folder


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return base_folder(tmp_path / "base")


@torch.no_grad()
def logits(model: Any, dtype: Dtype = "float32") -> Tensor:
    with computing(dtype, torch.device("cpu")):
        return model(input_ids=IDS).logits.float()


@torch.no_grad()
def moved(model: Any, size: float = 0.05) -> Any:
    """The same model with other low-rank matrices, B among them."""
    source = torch.Generator().manual_seed(1)
    for weight in adapter_weights(model).values():
        weight.add_(size * torch.randn(weight.shape, generator=source))
    return model


def adapted(base: Path, dtype: Dtype = "float32", **settings: Any) -> Any:
    model = load_checked(base, dtype=dtype)
    add_adapter(model, body_of(model), spec(**{"lora": 4, **settings}))
    return model


def written(base: Path, folder: Path, **settings: Any) -> Path:
    """An adapter of a base that has learned something."""
    write_adapter(moved(adapted(base, **settings)), folder, Base(base, ""))
    return folder


@contextmanager
def as_theirs() -> Iterator[None]:
    """Around calls of peft by itself, which warns of names in transformers that it still uses, and of its own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def read_by_peft(base: Path, folder: Path, kind: Any = AutoModelForCausalLM, **more: Any) -> Any:
    with as_theirs():
        return PeftModel.from_pretrained(kind.from_pretrained(base, **more), folder).eval()


def foreign(base: Path, folder: Path, **settings: Any) -> Path:
    """An adapter folder that peft alone has made."""
    config = LoraConfig(**{"r": 4, "lora_alpha": 8, "task_type": "CAUSAL_LM", "target_modules": ["q_proj"], **settings})
    with as_theirs():
        model: Any = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    source = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(0.05 * torch.randn(weight.shape, generator=source))
    with as_theirs():
        model.save_pretrained(folder)
    return folder


# How one begins.


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", MODELS)
def test_an_adapter_begins_as_its_base_to_the_bit(name: str, dtype: Dtype, tmp_path: Path) -> None:
    base = base_folder(tmp_path, name)
    model = adapted(base, dtype)
    assert torch.equal(logits(model, dtype), logits(load_checked(base, dtype=dtype), dtype))
    assert all(bool(layer.lora_A[NAME].weight.any()) for layer in adapter_layers(model).values())
    assert not torch.equal(logits(moved(model), dtype), logits(load_checked(base, dtype=dtype), dtype))


def test_what_is_drawn_depends_on_the_seed_alone(base: Path) -> None:
    def drawn(dtype: Dtype, seed: int, state: int) -> dict[str, Tensor]:
        model = load_checked(base, dtype=dtype)
        torch.manual_seed(state)
        before = torch.get_rng_state()
        add_adapter(model, body_of(model), spec(lora=4, seed=seed))
        assert torch.equal(torch.get_rng_state(), before), "others draw from there"
        return adapter_state(model)

    first, same, other = drawn("float32", 0, 1), drawn("bfloat16", 0, 2), drawn("float32", 1, 1)
    assert {tensor.dtype for tensor in same.values()} == {torch.float32}
    assert all(torch.equal(first[name], same[name]) for name in first)
    downs = [name for name in first if "lora_A" in name]
    assert not any(torch.equal(first[name], other[name]) for name in downs)
    rows = [row for name in downs for row in first[name][:, :8].tolist()]
    assert len({tuple(row) for row in rows}) == len(rows), "no two layers draw the same"
    for name in downs:  # evenly between ± 1 / √in, as peft does
        bound = first[name].shape[1] ** -0.5
        assert 0.8 * bound < float(first[name].abs().max()) <= bound


@pytest.mark.parametrize(
    ("name", "ends"),
    [
        ("llama", {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}),
        ("gpt2", {"c_attn", "c_proj", "c_fc"}),
        ("phi3", {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"}),
        ("mixtral", {"q_proj", "k_proj", "v_proj", "o_proj"}),
        ("qwen2 moe", {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}),
        ("dots1", {"q_proj", "k_proj", "v_proj", "o_proj"}),
    ],
)
def test_all_linear_is_every_linear_layer_but_head_experts_and_what_peft_takes_for_them(
    name: str, ends: set[str], tmp_path: Path
) -> None:
    model = adapted(base_folder(tmp_path, name), lora=1)
    assert {path.rpartition(".")[2] for path in adapter_layers(model)} == ends
    assert model.peft_config[NAME].target_modules == ends


def test_targets_by_ends_of_names(base: Path) -> None:
    model = adapted(base, lora_targets="q_proj, layers.1.mlp.down_proj", lora_alpha=3)
    assert {name.partition("layers.")[2] for name in adapter_layers(model)} == {
        "0.self_attn.q_proj", "1.self_attn.q_proj", "1.mlp.down_proj",
    }  # fmt: skip
    assert {layer.scaling[NAME] for layer in adapter_layers(model).values()} == {0.75}
    assert {layer.scaling[NAME] for layer in adapter_layers(adapted(base)).values()} == {2.0}


def test_targets_and_ranks_that_cannot_be_are_refused(base: Path) -> None:
    with pytest.raises(UsageError, match="no linear layer in the body of the model is called 'qproj'") as caught:
        adapted(base, lora_targets="q_proj,qproj")
    assert "--set STAGE.lora_targets=q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj" in caught.value.hint
    with pytest.raises(UsageError, match="lora_targets: no linear layer"):
        adapted(base, lora_targets="lm_head")
    with pytest.raises(UsageError, match="lora=17 exceeds the rank of model") as caught:
        adapted(base, lora=17)
    assert caught.value.hint.startswith("--set STAGE.lora=16")
    assert adapter_layers(adapted(base, lora=16))


def test_without_peft_it_is_said_what_to_install(base: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = written(base, tmp_path / "adapter")
    for name in [name for name in sys.modules if name.partition(".")[0] == "peft"]:
        monkeypatch.setitem(sys.modules, name, None)
    for use in (lambda: adapted(base), lambda: load(folder)):
        with pytest.raises(AdpaError, match="peft, which is not installed") as caught:
            use()
        assert caught.value.hint == "pip install peft bitsandbytes"


# What is written.


@pytest.mark.parametrize("name", MODELS)
def test_peft_reads_what_is_written_and_merging_changes_nothing(name: str, tmp_path: Path) -> None:
    base = base_folder(tmp_path / "base", name)
    model, content = moved(adapted(base)), f"model:{model_digest(base)}"
    for folder in ("adapter", "again"):
        write_adapter(model, tmp_path / folder, Base(base, content))
    folder, expected = tmp_path / "adapter", logits(model)
    assert float((expected - logits(load(base))).abs().max()) > 1e-3
    torch.testing.assert_close(logits(read_by_peft(base, folder)), expected, rtol=0, atol=1e-6)
    assert torch.equal(logits(load_checked(folder)), expected)
    merged: Any = load(folder, train=True)
    assert not has_adapter(merged)
    assert list(merged.state_dict()) == list(load(base).state_dict())
    assert all(weight.requires_grad and weight.dtype == torch.float32 for weight in merged.parameters())
    torch.testing.assert_close(logits(merged.eval()), expected, rtol=0, atol=1e-4 * float(expected.abs().max()))
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "again").iterdir()}
    assert files.keys() == {"adapter_config.json", "adapter_model.safetensors", "adapter_base.json"}
    assert json.loads(files["adapter_base.json"]) == {"content": content, "quantise": None, "targets": ""}
    said = json.loads(files["adapter_config.json"])
    assert said["base_model_name_or_path"] == "../base"
    assert said["target_modules"] == sorted(said["target_modules"])
    assert list(said) == sorted(said)


def test_saving_writes_an_adapter_with_the_tokenizer_and_where_it_stops(base: Path, tmp_path: Path) -> None:
    model = moved(adapted(base))
    save(model, tiny_tokenizer(), tmp_path / "adapter", TEMPLATE, "<end>", base, Base(base, ""))
    names = {path.name for path in (tmp_path / "adapter").iterdir()}
    assert "config.json" not in names
    assert "model.safetensors" not in names
    theirs = {path.name for path in base.iterdir()}
    assert names - theirs == {"adapter_config.json", "adapter_model.safetensors", "adapter_base.json"}
    for name in names & theirs:
        assert (tmp_path / "adapter" / name).read_bytes() == (base / name).read_bytes(), name


def test_a_base_of_the_hub_is_named_as_one(base: Path, tmp_path: Path) -> None:
    write_adapter(adapted(base), tmp_path / "adapter", Base(base, "model:01", "org/name", "f" * 40))
    said = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (said["base_model_name_or_path"], said["revision"]) == ("org/name", "f" * 40)


# What others have written.

KINDS: dict[str, dict[str, Any]] = {
    "some layers": {"target_modules": ["q_proj", "v_proj", "down_proj"]},
    "all": {"target_modules": "all-linear"},
    "a pattern": {"target_modules": r".*layers\.0\..*(q|k)_proj"},
    "one layer": {"layers_to_transform": [1]},
    "rank-stabilised": {"target_modules": ["q_proj", "down_proj"], "use_rslora": True},
    "own ranks and scales": {
        "target_modules": ["q_proj", "down_proj"], "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"down_proj": 64},
    },
    "DoRA": {"target_modules": ["q_proj", "down_proj"], "use_dora": True},
    "dropout": {"lora_dropout": 0.5},
    "another start": {"init_lora_weights": "gaussian"},
    "biases": {"bias": "lora_only"},
    "biases of B": {"lora_bias": True},
    "embedding and head whole": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "norms whole": {"modules_to_save": ["input_layernorm", "norm"]},
    "products whole": {"modules_to_save": ["o_proj"]},
    "the head": {"target_modules": ["q_proj", "lm_head"]},
    "the embedding": {"target_modules": ["q_proj", "embed_tokens"]},
}  # fmt: skip
OF_TIED = ["some layers", "embedding and head whole", "the head", "the embedding"]


@pytest.mark.parametrize(("kind", "tied"), [*((kind, False) for kind in KINDS), *((kind, True) for kind in OF_TIED)])
def test_a_folder_of_peft_is_a_model_with_the_same_logits(kind: str, tied: bool, tmp_path: Path) -> None:
    base = tmp_path / "base"
    save(tiny_llama(3, tie_word_embeddings=tied, attention_bias=True), tiny_tokenizer(), base, TEMPLATE, "<end>")
    folder = foreign(base, tmp_path / "adapter", **KINDS[kind])
    expected = logits(read_by_peft(base, folder))
    scale = float(expected.abs().max())
    assert float((expected - logits(load(base))).abs().max()) > 1e-3 * scale
    torch.testing.assert_close(logits(load_checked(folder)), expected, rtol=0, atol=1e-6 * scale)
    torch.testing.assert_close(logits(load_layerwise(folder, "cpu")), expected, rtol=0, atol=1e-6 * scale)
    torch.testing.assert_close(logits(load(folder, train=True).eval()), expected, rtol=0, atol=1e-4 * scale)
    for dtype, size in (("float16", 0.02), ("tf32", 0.02), ("bfloat16", 0.1)):
        held: Any = load_checked(folder, dtype=dtype)
        assert float((logits(held, dtype) - expected).abs().max()) < size * scale, dtype


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"init_lora_weights": "olora"}, "init_lora_weights=olora, which changes the base as well"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights=pissa, which changes the base as well"),
        ({"alora_invocation_tokens": [5, 6]}, "uses alora_invocation_tokens, which is not read here"),
        ({"trainable_token_indices": [5]}, "uses trainable_token_indices, which is not read here"),
    ],
)
def test_what_cannot_compute_beside_frozen_weights_is_refused(
    settings: dict[str, Any], said: str, base: Path, tmp_path: Path
) -> None:
    folder = foreign(base, tmp_path / "adapter", **settings)
    with pytest.raises(AdpaError, match=said) as caught:
        load(folder)
    assert "merge_and_unload" in caught.value.hint


def test_what_a_newer_peft_says_besides_is_refused_where_it_means_something(base: Path, tmp_path: Path) -> None:
    folder = foreign(base, tmp_path / "adapter")
    path = folder / "adapter_config.json"
    said = json.loads(path.read_text())
    path.write_text(json.dumps({**said, "not_yet_known": None, "nor_this": False}))
    assert has_adapter(load(folder))
    path.write_text(json.dumps({**said, "not_yet_known": 3}))
    with pytest.raises(AdpaError, match="uses not_yet_known, which is not read here"):
        load(folder)


def change(folder: Path, edit: Callable[[dict[str, Tensor]], Any]) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "adapter_model.safetensors")


UP = "base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight"


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda t: t.pop(UP), "1 of the adapter's tensors are missing, model.layers.1.self_attn.q_proj.lora_B"),
        (lambda t: t.update({UP.replace("1", "7"): t[UP].clone()}), "it has no layer for 1 tensors, model.layers.7"),
        (lambda t: t.update({UP: torch.zeros(3, 4)}), r"is \[16, 4\] there, and \[3, 4\] in the adapter"),
        (lambda t: t.update({UP: t[UP] * torch.inf}), "has values that are not finite"),
        (lambda t: t.update({"base_model.model.model.gate.weight": torch.zeros(2)}), "it has no model.gate.weight"),
        (lambda t: t.update({"base_model.model.lm_head.weight": torch.zeros(2, 2)}), r"lm_head.weight is \[37, 16\]"),
    ],
)
def test_tensors_that_do_not_fit_are_errors(edit: Any, said: str, base: Path, tmp_path: Path) -> None:
    """peft only warns of them."""
    folder = foreign(base, tmp_path / "adapter")
    change(folder, edit)
    with pytest.raises(AdpaError, match=said) as caught:
        load(folder)
    assert caught.value.hint


def test_a_damaged_or_absent_file_is_an_error(base: Path, tmp_path: Path) -> None:
    folder = foreign(base, tmp_path / "adapter")
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(AdpaError):
        load(folder)
    path.unlink()
    with pytest.raises(AdpaError, match=r"adapter_model\.safetensors"):
        load(folder)


# How one computes.


@pytest.mark.parametrize(("dtype", "expected"), [("float16", torch.float32), ("tf32", torch.float32),
                                                 ("bfloat16", torch.bfloat16), ("float32", torch.float32)])  # fmt: skip
def test_the_base_is_held_and_the_adapter_computes_in_float32(
    dtype: Dtype, expected: torch.dtype, base: Path, tmp_path: Path
) -> None:
    model = load_checked(written(base, tmp_path / "adapter"), dtype=dtype)
    seen: list[tuple[Tensor, Tensor]] = []
    layer = adapter_layers(model)["model.layers.1.mlp.down_proj"]
    layer.lora_A[NAME].register_forward_hook(lambda _, given, out: seen.append((given[0], out)))
    logits(model, dtype)
    ((given, out),) = seen
    assert out.dtype == expected
    assert layer.lora_A[NAME].weight.dtype == torch.float32
    assert layer.base_layer.weight.dtype == {"float32": torch.float32, "bfloat16": torch.bfloat16}.get(
        dtype, torch.float16
    )
    if dtype != "bfloat16":
        torch.testing.assert_close(out, given.float() @ layer.lora_A[NAME].weight.T, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float16", "tf32"])
def test_answers_are_those_of_the_merged_model(dtype: Dtype, base: Path, tmp_path: Path) -> None:
    folder = written(base, tmp_path / "adapter")
    save(load(folder, train=True), tiny_tokenizer(), tmp_path / "merged", TEMPLATE, "<end>")
    decoding = Decoding(Sampling(0.0, 1.0, 8), (END,), PAD, 64, dtype)
    prompts = [[5, 9, 30], [7, 12, 8, 6], [20, 11]]
    answers = [
        [answer.ids for answer in generate_block(load(path, dtype=dtype), prompts, ["a", "b", "c"], decoding)]
        for path in (folder, tmp_path / "merged", base)
    ]
    assert answers[0] == answers[1] != answers[2]


def test_layers_on_quantised_weights_are_read_as_they_were_trained(base: Path, tmp_path: Path) -> None:
    model = load_checked(base, quantise="nf4")
    add_adapter(model, body_of(model), spec(lora=4))
    write_adapter(moved(model), tmp_path / "adapter", Base(base, "", quantise="nf4"))
    again = load_checked(tmp_path / "adapter")
    assert torch.equal(logits(again), logits(model))
    assert torch.equal(logits(load_layerwise(tmp_path / "adapter", "cpu")), logits(model))
    assert not torch.equal(logits(load(tmp_path / "adapter", train=True).eval()), logits(model)), "merged into the base"
    with pytest.raises(UsageError, match="trained with nf4 weights, and int8 weights were requested") as caught:
        load(tmp_path / "adapter", quantise="int8")
    assert "quantise=nf4" in caught.value.hint


def test_the_text_part_of_a_model_that_sees_images(tmp_path: Path) -> None:
    base = tmp_path / "base"
    write_vision_language(base, byte_level())
    folder, first = tmp_path / "adapter", torch.tensor([[5, 9, 7, 30, 11, 8]])
    write_adapter(moved(adapted(base)), folder, base_of(base, "", spec(lora=4)))
    with torch.no_grad():
        expected = moved(adapted(base))(input_ids=first).logits
        assert torch.equal(load_checked(folder)(input_ids=first).logits, expected)
        whole = read_by_peft(base, folder, AutoModelForImageTextToText)
        torch.testing.assert_close(whole(input_ids=first).logits, expected)
    change(folder, lambda t: [t.update({k.replace("language_model.", "", 1): t.pop(k)}) for k in list(t)])
    with torch.no_grad():
        assert torch.equal(load_checked(folder)(input_ids=first).logits, expected), "as in a model of that part alone"


# How one is trained.


def test_only_the_adapter_trains(base: Path) -> None:
    model = load_adapted(base, spec(lora=4, dtype="bfloat16"), "cpu")
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    assert trained.keys() == adapter_weights(model).keys()
    assert {weight.dtype for weight in trained.values()} == {torch.float32}
    assert model.training
    products = [layer.base_layer.weight for layer in adapter_layers(model).values()]
    assert {weight.dtype for weight in products} == {torch.bfloat16}
    logits(model, "bfloat16")
    with computing("bfloat16", torch.device("cpu")):
        model(input_ids=IDS).logits.float().sum().backward()
    assert all(weight.grad is not None for weight in trained.values())
    assert all(weight.grad is None for weight in model.parameters() if not weight.requires_grad)


@pytest.mark.parametrize("name", ["llama", "llama tied", "gpt2"])
def test_gradients_are_those_of_the_product_added_to_the_weights(name: str, tmp_path: Path) -> None:
    base = base_folder(tmp_path, name)
    model = moved(adapted(base, lora_alpha=12)).double()
    train_adapter(model)
    source = torch.Generator().manual_seed(2)
    pull = torch.randn(*IDS.shape, VOCABULARY, generator=source, dtype=torch.float64)
    (model(input_ids=IDS).logits.log_softmax(-1) * pull).sum().backward()

    dense: Any = load(base).double()
    weights = {name: weight.detach().clone().requires_grad_() for name, weight in adapter_weights(model).items()}
    changed = {}
    for path, layer in adapter_layers(model).items():
        down, up = (weights[f"{path}.{part}.{NAME}.weight"] for part in ("lora_A", "lora_B"))
        product = 3.0 * up @ down  # alpha / r
        own = dense.get_submodule(path).weight
        changed[f"{path}.weight"] = own + (product if isinstance(layer.base_layer, torch.nn.Linear) else product.T)
    out = torch.func.functional_call(dense, changed, (), {"input_ids": IDS}, tie_weights=True).logits
    (out.log_softmax(-1) * pull).sum().backward()
    for name, weight in adapter_weights(model).items():
        torch.testing.assert_close(weight.grad, weights[name].grad, rtol=1e-6, atol=1e-9, msg=name)


@pytest.mark.parametrize(("name", "dtype"), [*((name, "float32") for name in ARCHITECTURES), ("llama", "bfloat16")])
def test_recomputing_changes_no_gradient(name: str, dtype: Dtype, tmp_path: Path) -> None:
    save(made(name).eval(), tiny_tokenizer(), tmp_path, TEMPLATE, "<end>")
    own, found = spec(lora=4, dtype=dtype), []
    for recompute in (False, True):
        model = load_adapted(tmp_path, own, "cpu")
        moved(model)
        tune(model, own, Runtime(recompute=recompute))
        with computing(dtype, torch.device("cpu")):
            found.append(computed(model))
    check_equal(found[1], found[0])
    assert found[0][1].keys() == adapter_weights(model).keys()
    assert found[1][2] < 0.6 * found[0][2], "it keeps less"


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # torch's compiler uses what torch warns of
def test_compiling_changes_no_gradient(tmp_path: Path) -> None:
    save(tiny_llama(num_hidden_layers=1), tiny_tokenizer(), tmp_path, TEMPLATE, "<end>")
    own, found = spec(lora=4, lora_targets="q_proj,down_proj"), []
    for is_compiled in (False, True):
        model = load_adapted(tmp_path, own, "cpu")
        moved(model)
        tune(model, own, Runtime(compile=is_compiled))
        found.append(computed(model))
    check_equal(found[1], found[0])


def test_a_critic_has_the_frozen_weights_of_its_student_and_an_adapter_of_its_own(base: Path) -> None:
    model = load_adapted(base, spec(lora=4), "cpu")
    critic = critic_of(model, "float32")
    ours, theirs = dict(body_of(model).named_parameters()), dict(critic.body.named_parameters())
    assert ours.keys() == theirs.keys()
    for name, weight in ours.items():
        assert (weight is theirs[name]) != weight.requires_grad, name
        assert torch.equal(weight, theirs[name])


def test_the_size_of_what_was_learned_is_that_of_the_merged_weights(base: Path, tmp_path: Path) -> None:
    model = adapted(base, dtype="bfloat16")
    begun, first, second = (tmp_path / name for name in ("begun", "first", "second"))
    write_adapter(model, begun, Base(base, ""))
    assert adapter_update(model, base, begun)["rms"] == 0.0
    for folder in (first, second):
        write_adapter(moved(model), folder, Base(base, ""))
        save(load(folder, train=True), tiny_tokenizer(), tmp_path / f"whole-{folder.name}", TEMPLATE, "<end>")
    found = adapter_update(model, begun, second)
    assert adapter_update(model, base, second) == found
    dense = measured_update(folder_pairs(base, tmp_path / "whole-second"))
    assert found["rms"] == pytest.approx(dense["rms"], rel=1e-2)  # the weights are bfloat16 here
    assert set(found["seen"].values()) == {1.0}
    since = adapter_update(model, first, second)
    between = measured_update(folder_pairs(tmp_path / "whole-first", tmp_path / "whole-second"))
    assert since["rms"] == pytest.approx(between["rms"], rel=2e-2)


def test_a_training_goes_on_with_the_adapter_that_it_starts_from(base: Path, tmp_path: Path) -> None:
    folder = written(base, tmp_path / "adapter")
    before = load(folder)
    model = load_adapted(folder, spec(lora=4), "cpu")
    assert all(torch.equal(tensor, adapter_state(model)[name]) for name, tensor in adapter_state(before).items())
    assert {name for name, weight in model.named_parameters() if weight.requires_grad} == adapter_weights(model).keys()
    for settings, said in (
        ({"lora": 8}, "an adapter with lora=4, and its training cannot continue with lora=8"),
        ({"lora": 4, "lora_alpha": 4}, "an adapter with lora_alpha=8"),
        ({"lora": 4, "lora_targets": "q_proj"}, "an adapter with lora_targets=down_proj,gate_proj"),
        ({"lora": 4, "quantise": "nf4"}, "an adapter with quantise=none"),
    ):
        with pytest.raises(UsageError, match=said) as caught:
            load_adapted(folder, spec(**settings), "cpu")
        assert "merge it and train all weights" in caught.value.hint
    same = spec(lora=4, lora_targets="down_proj,gate_proj,up_proj,q_proj,k_proj,v_proj,o_proj")
    assert has_adapter(load_adapted(folder, same, "cpu")), "the same layers in other words"


@pytest.mark.parametrize(
    ("model", "settings", "part"),
    [
        ("llama", {"target_modules": ["q_proj", "lm_head"]}, "lm_head"),
        ("llama", {"target_modules": ["q_proj", "embed_tokens"]}, "embed_tokens"),
        ("opt", {"target_modules": ["q_proj"], "bias": "lora_only"}, "q_proj.base_layer.bias"),
        ("opt", {"target_modules": ["q_proj"], "modules_to_save": ["final_layer_norm"]}, ""),
        ("opt", {"target_modules": ["q_proj"], "bias": "all"}, "q_proj.base_layer.bias"),
    ],
)
def test_a_training_that_would_lose_a_part_of_an_adapter_is_refused(
    model: str, settings: dict[str, Any], part: str, tmp_path: Path
) -> None:
    base = base_folder(tmp_path / "base", model)
    folder = foreign(base, tmp_path / "adapter", **settings)
    own = spec(lora=4, lora_targets=",".join(sorted(settings["target_modules"])))
    if part:
        with pytest.raises(UsageError, match=f"is merged on loading .*{part}") as caught:
            load_adapted(folder, own, "cpu")
        assert f"adpa export {folder} MERGED" in caught.value.hint
        return
    write_adapter(load_adapted(folder, own, "cpu"), tmp_path / "again", base_of(folder, "", own))
    assert torch.equal(logits(load(tmp_path / "again")), logits(load(folder)))


def test_experts_that_are_no_linear_layers_are_said_to_be_left_out(tmp_path: Path) -> None:
    for name in ("mixtral", "qwen2 moe"):
        folder = base_folder(tmp_path / name, name)
        assert check_lora(spec(lora=4), folder, None, name) == (
            f"lora leaves the experts of {name} as they are: they are no linear layers",
        )
        assert not [path for path in adapter_layers(adapted(folder)) if ".experts" in path]
    assert check_lora(spec(lora=4), base_folder(tmp_path / "llama"), None, "") == ()


@pytest.mark.parametrize("name", MODELS)
def test_a_training_goes_on_with_an_adapter_of_the_same_words(name: str, tmp_path: Path) -> None:
    base, folder, own = base_folder(tmp_path / "base", name), tmp_path / "adapter", spec(lora=4)
    write_adapter(moved(adapted(base)), folder, base_of(base, "", own))
    assert has_adapter(load_adapted(folder, own, "cpu"))


def test_a_reward_model_is_an_adapter_with_its_head(base: Path, tmp_path: Path) -> None:
    model = load_adapted(base, spec(lora=4, dtype="bfloat16"), "cpu", scalar=True)
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert trained == {*adapter_weights(model), SCALAR_HEAD}
    moved(model)
    with torch.no_grad():
        model.get_parameter(SCALAR_HEAD).normal_(generator=torch.Generator().manual_seed(3))
    folder = tmp_path / "adapter"
    save(model, tiny_tokenizer(), folder, TEMPLATE, "<end>", base, Base(base, ""))
    said = json.loads((folder / "adapter_config.json").read_text())
    assert (said["task_type"], said["modules_to_save"]) == ("SEQ_CLS", ["score"])
    ids = [5, 9, 30, 7, 12, 8]
    theirs = read_by_peft(base, folder, AutoModelForSequenceClassification, num_labels=1)
    theirs.config.pad_token_id = 1
    with torch.no_grad():
        expected = float(theirs(input_ids=torch.tensor([ids])).logits[0, 0])
    (ours,) = sequence_rewards(folder, [ids], "float32", "cpu", 100)
    assert ours == pytest.approx(expected, abs=1e-5)
    assert sequence_rewards(folder, [ids], "float32", "cpu", 100, layerwise=True) == pytest.approx([expected], abs=1e-5)
    both = sequence_rewards(folder, [ids, ids[:3]], "float16", "cpu", 100)
    assert both[0] == pytest.approx(expected, rel=0.05, abs=0.05)
    again = load_adapted(folder, spec(lora=4), "cpu", scalar=True)
    assert torch.equal(again.get_parameter(SCALAR_HEAD), copy.deepcopy(model).get_parameter(SCALAR_HEAD))
