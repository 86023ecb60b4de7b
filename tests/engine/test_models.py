"""Model folders round-trip, damaged ones are refused by name, and the head is what the model says it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    CohereConfig,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    GraniteConfig,
    OPTConfig,
    Qwen2Config,
)

from adpa_cli.data.tokenizer import Tokenizer
from adpa_cli.engine.models import body_and_head, check_head, hidden_states, load, output_head, save
from adpa_cli.errors import AdpaError, NotFound
from adpa_cli.tensors.head import selected_logps
from adpa_cli.tensors.output import Head
from support.tiny_models import END, PAD, TEMPLATE, VOCABULARY, tiny_llama, tiny_tokenizer

IDS = torch.tensor([[2, 7, 9, 11], [2, 30, PAD, PAD]])
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save(tiny_llama(), tiny_tokenizer(), tmp_path / "model", TEMPLATE, "<end>")
    return tmp_path / "model"


def edit_config(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def edit_weights(folder: Path, change: Any) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def header(folder: Path) -> dict[str, Any]:
    """The JSON header of the folder's safetensors."""
    data = (folder / "model.safetensors").read_bytes()
    found: dict[str, Any] = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return found


def test_a_saved_model_loads_with_the_same_weights(folder: Path) -> None:
    loaded, original = load(folder), tiny_llama()
    assert not loaded.training
    assert not any(weight.requires_grad for weight in loaded.parameters())
    for name, weight in original.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight)


def test_dtypes_of_inference_and_of_training(folder: Path) -> None:
    assert {weight.dtype for weight in load(folder).parameters()} == {torch.float32}
    trained = load(folder, train=True)
    assert trained.training
    assert {(weight.dtype, weight.requires_grad) for weight in trained.parameters()} == {(torch.float32, True)}


def test_dropout_is_off_in_training(tmp_path: Path) -> None:
    config = GPT2Config(
        vocab_size=VOCABULARY, n_embd=16, n_layer=1, n_head=2, resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5,
        bos_token_id=2, eos_token_id=4,
    )  # fmt: skip
    save(AutoModelForCausalLM.from_config(config), tiny_tokenizer(), tmp_path, TEMPLATE, "<end>")
    model: Any = load(tmp_path, train=True)
    assert torch.equal(model(input_ids=IDS).logits, model(input_ids=IDS).logits)
    assert (model.config.resid_pdrop, model.config.embd_pdrop, model.config.attn_pdrop) == (0, 0, 0)


def test_generation_by_plain_transformers_stops_at_the_end_token(tmp_path: Path) -> None:
    model = tiny_llama()
    with torch.no_grad():  # the state's first coordinate is large everywhere, and speaks for the end token
        model.model.embed_tokens.weight[:, 0] = 50
        model.lm_head.weight.zero_()
        model.lm_head.weight[END, 0] = 1
    save(model, tiny_tokenizer(), tmp_path, TEMPLATE, "<end>")
    other = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert other.generate(torch.tensor([[2, 7]]), attention_mask=torch.ones(1, 2), max_new_tokens=9).tolist() == [
        [2, 7, END]
    ]
    settings = json.loads((tmp_path / "generation_config.json").read_text())
    assert (settings["eos_token_id"], settings["pad_token_id"]) == (END, PAD)


def test_the_saved_tokenizer_has_the_template_and_the_end_token(folder: Path) -> None:
    tokenizer, ours = AutoTokenizer.from_pretrained(folder), Tokenizer.of(folder)
    assert (tokenizer.eos_token, ours.named["eos_token"]) == ("<end>", "<end>")
    text = tokenizer.apply_chat_template([{"role": "user", "content": "w1 w2"}], tokenize=False)
    assert text == "w1 w2 <end> "
    assert tokenizer("w1 w2 <end>").input_ids == ours.ids("w1 w2 <end>") == [6, 7, END]


def test_saving_changes_neither_model_nor_tokenizer(tmp_path: Path) -> None:
    model, tokenizer = tiny_llama().to(torch.bfloat16), tiny_tokenizer()
    generation, config, before = model.generation_config, model.config.to_dict(), tokenizer.core.to_str()
    save(model, tokenizer, tmp_path, TEMPLATE, "<end>")
    assert model.generation_config is generation
    assert model.config.to_dict() == config
    assert (model.dtype, tokenizer.named["eos_token"], tokenizer.core.to_str()) == (torch.bfloat16, "</s>", before)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_files_are_float32_with_one_metadata_key_and_equal_bytes(
    tmp_path: Path, tied: bool, dtype: torch.dtype
) -> None:
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        model = tiny_llama(tie_word_embeddings=tied).to(dtype)
        save(model, tiny_tokenizer(), folder, TEMPLATE, "<end>")
    names = sorted(path.name for path in folders[0].iterdir())
    assert names == sorted(path.name for path in folders[1].iterdir())
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} <= set(names)
    assert all((folders[0] / name).read_bytes() == (folders[1] / name).read_bytes() for name in names)
    tensors = header(folders[0])
    assert tensors.pop("__metadata__") == {"format": "pt"}
    assert {entry["dtype"] for entry in tensors.values()} == {"F32"}
    assert ("lm_head.weight" in tensors) is not tied
    assert json.loads((folders[0] / "config.json").read_text())["dtype"] == "float32"
    loaded = load(folders[0])
    _, head, _ = body_and_head(loaded)
    assert (head.data_ptr() == loaded.get_input_embeddings().weight.data_ptr()) is tied


@pytest.mark.parametrize("token", ["<none>", "w1 w2"])
def test_an_end_token_outside_the_vocabulary_is_refused(tmp_path: Path, token: str) -> None:
    with pytest.raises(AdpaError, match=token):
        save(tiny_llama(), tiny_tokenizer(), tmp_path / "model", TEMPLATE, token)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("train", [True, False])
def test_a_weight_that_is_not_finite_is_named(folder: Path, value: float, train: bool) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    edit_weights(folder, lambda weights: weights[name].view(-1)[5:6].fill_(value))
    with pytest.raises(AdpaError, match=name) as caught:
        load(folder, train=train)
    assert str(folder) in caught.value.message
    assert caught.value.hint


def test_a_missing_tensor_is_named_instead_of_drawn_at_random(folder: Path) -> None:
    edit_weights(folder, lambda weights: weights.pop("model.norm.weight"))
    with pytest.raises(AdpaError, match=r"lacks 1 .*model\.norm\.weight"):
        load(folder)


def test_a_tensor_of_another_shape_is_named(folder: Path) -> None:
    edit_config(folder, intermediate_size=24)
    shapes = r"has the shape \[16, 32\], .*\[16, 24\]"
    with pytest.raises(AdpaError, match=rf"model\.layers\.0\.mlp\.down_proj\.weight .* {shapes}"):
        load(folder)


def damage_nothing_there(folder: Path) -> None:
    (folder / "config.json").unlink()


def damage_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def damage_kind(folder: Path) -> None:
    edit_config(folder, model_type="no-such-model")


def damage_task(folder: Path) -> None:
    edit_config(folder, model_type="t5")


def damage_weights(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


def pickle_instead(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def remote_code(folder: Path) -> None:
    (folder / "trap.py").write_text(f"open({str(folder / 'ran')!r}, 'w')\nclass Trap: pass\n")
    edit_config(folder, model_type="trap", auto_map={"AutoConfig": "trap.Trap", "AutoModelForCausalLM": "trap.Trap"})


@pytest.mark.parametrize(
    "damage",
    [
        damage_nothing_there,
        damage_config,
        damage_kind,
        damage_task,
        damage_weights,
        pickle_instead,
        remote_code,
    ],
)
def test_a_folder_that_does_not_load_is_named_with_a_hint(folder: Path, damage: Any) -> None:
    damage(folder)
    with pytest.raises(AdpaError) as caught:
        load(folder)
    assert str(folder) in caught.value.message
    assert caught.value.hint
    assert not (folder / "ran").exists()


def test_a_folder_without_a_usable_tokenizer_says_what_to_do(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(AdpaError, match="cannot be loaded") as caught:
        Tokenizer.of(folder)
    assert caught.value.hint
    (folder / "tokenizer.json").unlink()
    with pytest.raises(NotFound, match="has no tokenizer"):
        Tokenizer.of(folder)


SMALL = {"vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
WIDE = {**SMALL, "intermediate_size": 32}
PLAIN = [
    GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=1, n_head=2),
    GPTNeoXConfig(**WIDE),
    Qwen2Config(**WIDE, num_key_value_heads=1),
    OPTConfig(**SMALL, ffn_dim=32, word_embed_proj_dim=8),
]


@pytest.mark.parametrize("config", PLAIN, ids=lambda config: config.model_type)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_heads_without_tricks_pass_and_rebuild_the_logits(config: Any, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).to(dtype).eval()
    check_head(model)
    _, weight, bias = body_and_head(model)
    rebuilt = torch.nn.functional.linear(hidden_states(model, IDS, MASK), weight, bias).float()
    with torch.no_grad():
        logits = model(input_ids=IDS, attention_mask=MASK).logits.float()
    real = MASK.bool()
    assert torch.allclose(rebuilt[real], logits[real], atol=1e-5 if dtype == torch.float32 else 2e-2)


CHANGED = [
    (Gemma2Config(**WIDE, num_key_value_heads=1, head_dim=8, final_logit_softcapping=2.0), "final_logit_softcapping"),
    (GraniteConfig(**WIDE, logits_scaling=8.0), "logits_scaling"),
    (CohereConfig(**WIDE, logit_scale=0.5, eos_token_id=4), "logit_scale"),
]


@pytest.mark.parametrize(("config", "name"), CHANGED, ids=lambda value: getattr(value, "model_type", ""))
def test_scaled_and_capped_heads_give_the_models_log_probs_and_gradients(config: Any, name: str) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    model.get_output_embeddings().weight.data.mul_(20)  # logits that feel the cap
    check_head(model)
    head = output_head(model)
    states = hidden_states(model, IDS, None)[0]
    asked = torch.tensor([[1, 3], [0, 3], [2, -1], [4, 4]])
    out = selected_logps(states, head.weight, asked, head.bias, scale=head.scale, softcap=head.softcap)
    logps = model(input_ids=IDS).logits[0].log_softmax(-1)
    expected = logps.gather(1, asked.clamp_min(0)).masked_fill(asked < 0, 0.0)
    torch.testing.assert_close(out.logps, expected, rtol=1e-4, atol=1e-5)
    got, want = (
        torch.autograd.grad(x.sum(), list(model.parameters()), allow_unused=True) for x in (out.logps, expected)
    )
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("config", "name"), CHANGED, ids=lambda value: getattr(value, "model_type", ""))
def test_what_a_configuration_does_not_tell_of_the_logits_is_refused(
    config: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model scales or caps, and `output_head` does not see it; logits are small."""
    model = AutoModelForCausalLM.from_config(config).eval()
    _, weight, bias = body_and_head(model)
    monkeypatch.setattr("adpa_cli.engine.models.output_head", lambda _: Head(weight, bias))
    with pytest.raises(AdpaError, match=f"{type(model).__name__}.*changes its logits"):
        check_head(model)


def test_checking_a_head_leaves_the_model_as_it_was() -> None:
    model = tiny_llama(attention_dropout=0.5).train()
    check_head(model)
    assert model.training
    assert not model.lm_head._forward_hooks


def test_padding_on_the_right_does_not_change_hidden_states() -> None:
    model = tiny_llama()
    alone = hidden_states(model, IDS[1:, :2], None)
    for mask in (MASK, None):
        assert torch.allclose(hidden_states(model, IDS, mask)[1, :2], alone[0], atol=1e-5)


def test_autocast_is_on_for_float32_weights_computed_in_bfloat16() -> None:
    model = tiny_llama()
    exact, mixed = (hidden_states(model, IDS, MASK, dtype=dtype) for dtype in ("float32", "bfloat16"))
    assert not torch.equal(exact, mixed)
    assert torch.allclose(exact, mixed.float(), atol=0.2)
    mixed.sum().backward()
    assert {weight.grad.dtype for weight in model.parameters() if weight.grad is not None} == {torch.float32}
