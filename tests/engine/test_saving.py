"""What is saved is the model of the source folder for every reader: names, flags, end tokens, ids."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer as Core
from transformers import (
    AutoTokenizer,
    Gemma3ForCausalLM,
    LlamaConfig,
    LlavaConfig,
    MixtralConfig,
    Qwen2Config,
    Qwen3MoeConfig,
)

from adpa_cli.data.tokenizer import Tokenizer
from adpa_cli.engine.models import check_head, load, save
from adpa_cli.engine.rewards.reward_model import load_reward_model
from adpa_cli.engine.tokenizer_files import check_saved_tokenizer, keep_ids, save_tokenizer
from adpa_cli.errors import AdpaError
from adpa_cli.hub.model_folder import ModelFolder
from support.chat_families import FAMILIES
from support.model_folders import (
    CHATML,
    END,
    SMALL,
    TEXT_END,
    VARIED,
    byte_level,
    change,
    write_model,
    write_vision_language,
)

IDS = torch.arange(5, 40)[None]


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=IDS).logits
    return found


def saved(source: Path, end: str = "<|im_end|>") -> tuple[Any, Path]:
    """The model of a folder, and the folder that it is saved into."""
    model, folder = load(source), source.with_name("saved")
    save(model, Tokenizer.of(source), folder, CHATML, end, source)
    return model, folder


def read(folder: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / name).read_text())
    return found


def tensors(folder: Path) -> list[str]:
    with safe_open(folder / "model.safetensors", "pt") as opened:
        return sorted(opened.keys())


def test_the_rotary_base_of_an_old_folder_stands_where_it_stood(tmp_path: Path) -> None:
    write_model(tmp_path / "m")
    change(tmp_path / "m" / "config.json", rope_parameters=None, rope_theta=1000000.0)
    model, folder = saved(tmp_path / "m")
    config = read(folder, "config.json")
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 1000000.0
    assert (config["dtype"], config["torch_dtype"]) == ("float32", "float32")
    assert torch.equal(logits(load(folder)), logits(model))


def test_a_head_that_differs_from_the_embedding_is_written_and_not_called_tied(tmp_path: Path) -> None:
    write_model(tmp_path / "m")
    change(tmp_path / "m" / "config.json", tie_word_embeddings=True)
    weights = load_file(tmp_path / "m" / "model.safetensors")
    assert not torch.equal(weights["lm_head.weight"], weights["model.embed_tokens.weight"])
    model, folder = saved(tmp_path / "m")
    assert read(folder, "config.json")["tie_word_embeddings"] is False
    assert "lm_head.weight" in tensors(folder)
    assert torch.equal(logits(load(folder)), logits(model))


def test_a_copy_of_a_tied_embedding_is_written_once(tmp_path: Path) -> None:
    write_model(tmp_path / "m")
    change(tmp_path / "m" / "config.json", tie_word_embeddings=True)
    path = tmp_path / "m" / "model.safetensors"
    weights = load_file(path)
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, path, metadata={"format": "pt"})
    _, folder = saved(tmp_path / "m")
    assert read(folder, "config.json")["tie_word_embeddings"] is True
    assert "lm_head.weight" not in tensors(folder)


@pytest.mark.parametrize(
    ("source", "end", "stops"),
    [
        ({"eos_token_id": [END, TEXT_END], "temperature": 0.7, "do_sample": True}, "<|im_end|>", [END, TEXT_END]),
        ({"eos_token_id": TEXT_END}, "<|im_end|>", [END, TEXT_END]),
        ({"eos_token_id": [TEXT_END, TEXT_END]}, "<|endoftext|>", TEXT_END),
        ({"eos_token_id": [END, 5000, 40]}, "<|im_end|>", END),  # no row, and ordinary text
        ({"_from_model_config": True, "eos_token_id": END, "temperature": 9.0}, "<|im_end|>", END),
        (None, "<|im_end|>", END),
    ],
)
def test_generation_stops_at_the_end_token_and_where_the_source_stops(
    tmp_path: Path, source: dict[str, Any] | None, end: str, stops: int | list[int]
) -> None:
    write_model(tmp_path / "m")
    path = tmp_path / "m" / "generation_config.json"
    path.unlink() if source is None else path.write_text(json.dumps(source))
    _, folder = saved(tmp_path / "m", end)
    written = read(folder, "generation_config.json")
    assert written["eos_token_id"] == read(folder, "config.json")["eos_token_id"] == stops
    assert written["pad_token_id"] == 0
    own = source if source and "_from_model_config" not in source else {}
    assert {k: v for k, v in written.items() if k in ("temperature", "do_sample")} == {
        k: v for k, v in own.items() if k != "eos_token_id"
    }
    assert ModelFolder.of(folder).stop_ids == tuple([stops] if isinstance(stops, int) else stops)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (MixtralConfig, "model.layers.0.block_sparse_moe.experts.3.w2.weight"),
        (Qwen3MoeConfig, "model.layers.0.mlp.experts.3.down_proj.weight"),
    ],
)
def test_experts_keep_the_names_of_the_source(tmp_path: Path, kind: Any, name: str) -> None:
    experts = {"num_local_experts" if kind is MixtralConfig else "num_experts": 4, "num_experts_per_tok": 2}
    config = kind(**{**SMALL, **experts, "moe_intermediate_size": 16, "vocab_size": byte_level().get_vocab_size()})
    write_model(tmp_path / "m", config)
    model, folder = saved(tmp_path / "m")
    assert name in tensors(tmp_path / "m")
    assert tensors(folder) == tensors(tmp_path / "m")
    written = read(folder, "config.json")
    assert written["num_experts"] == written["num_local_experts"] == 4
    assert torch.equal(logits(load(folder)), logits(model))


def test_settings_of_the_source_file_are_not_those_of_the_saved_one(tmp_path: Path) -> None:
    write_model(tmp_path / "m")
    change(
        tmp_path / "m" / "config.json", auto_map={"AutoModel": "a.B"}, transformers_version="4.40.0",
        _name_or_path="org/m", torch_dtype="bfloat16", max_window_layers=28,
    )  # fmt: skip
    _, folder = saved(tmp_path / "m")
    written = read(folder, "config.json")
    assert not {"auto_map", "_name_or_path", "quantization_config"} & set(written)
    assert written["torch_dtype"] == "float32"
    assert written["max_window_layers"] == 28
    assert not written["transformers_version"].startswith("4")
    assert "_from_model_config" not in read(folder, "generation_config.json")


def test_the_text_part_of_a_model_that_sees_images_is_loaded_and_saved_alone(tmp_path: Path) -> None:
    whole = write_vision_language(tmp_path / "m", byte_level())
    model, folder = saved(tmp_path / "m")
    check_head(model)
    assert type(model) is Gemma3ForCausalLM
    assert torch.equal(logits(model), logits(whole))
    again = load(folder)
    assert type(again) is Gemma3ForCausalLM
    assert torch.equal(logits(again), logits(whole))
    assert not any("vision" in name or "projector" in name for name in tensors(folder))
    trained: Any = load(tmp_path / "m", train=True)
    trained(input_ids=IDS).logits.sum().backward()
    assert all(weight.grad is not None for name, weight in trained.named_parameters() if "norm" not in name)
    ranker: Any = load(tmp_path / "m", train=True, scalar=True)
    assert ranker(input_ids=IDS).logits.tolist() == [[0.0]]


def test_a_text_part_that_is_a_llama_is_saved_as_a_llama(tmp_path: Path) -> None:
    from transformers import AutoModelForImageTextToText

    sight = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    size = byte_level().get_vocab_size()
    config = LlavaConfig(
        text_config={**SMALL, "model_type": "llama", "vocab_size": size},
        vision_config={**sight, "model_type": "clip_vision_model", "image_size": 28, "patch_size": 14},
        image_token_index=300,
    )
    torch.manual_seed(0)
    whole: Any = AutoModelForImageTextToText.from_config(config).eval()
    write_model(tmp_path / "m")
    whole.save_pretrained(tmp_path / "m")
    _, folder = saved(tmp_path / "m")
    assert read(folder, "config.json")["architectures"] == ["LlamaForCausalLM"]
    assert torch.equal(logits(load(folder)), logits(whole))


@pytest.mark.parametrize("kind", [LlamaConfig, Qwen2Config], ids=lambda kind: kind.model_type)
@pytest.mark.parametrize("named", ["GPT2Tokenizer", "Qwen2Tokenizer", "LlamaTokenizerFast"])
def test_ids_of_a_saved_folder_are_those_of_the_source_file(tmp_path: Path, kind: Any, named: str) -> None:
    """transformers 5 rebuilds the tokenizer of whatever is a Qwen2, whose class splits digits otherwise."""
    core = byte_level(single_digits=True)
    config = kind(**{**SMALL, "vocab_size": core.get_vocab_size()})
    write_model(tmp_path / "m", config, core, tokenizer_class=named)
    expected = Core.from_file(str(tmp_path / "m" / "tokenizer.json")).encode(VARIED).ids
    _, folder = saved(tmp_path / "m")
    assert Tokenizer.of(folder).ids(VARIED) == expected
    for trusted in (False, True):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trusted)
        assert tokenizer(VARIED, add_special_tokens=False)["input_ids"] == expected
    assert (folder / "tokenizer_as_saved.py").exists() is (kind is Qwen2Config)
    # What was saved is a source in its turn.
    save(load(folder), Tokenizer.of(folder), tmp_path / "again", CHATML, "<|im_end|>", folder)
    assert AutoTokenizer.from_pretrained(tmp_path / "again")(VARIED, add_special_tokens=False)["input_ids"] == expected


OF_TYPE = {
    "gemma-3": "gemma3_text", "granite-3.3": "granite", "llama-2": "llama", "llama-3.2": "llama",
    "mistral-nemo": "mistral", "mistral-v0.1": "mistral", "olmo-2": "olmo2", "phi-3": "phi3", "phi-4": "phi3",
    "qwen2.5": "qwen2", "qwen3": "qwen3", "r1-distill": "qwen2", "smollm2": "llama", "tulu-3": "llama",
    "zephyr": "mistral",
}  # fmt: skip


@pytest.mark.parametrize("name", OF_TYPE)
def test_the_tokenizer_of_every_family_is_saved_as_it_is(tmp_path: Path, name: str) -> None:
    family = FAMILIES[name]
    source, folder = family.save(tmp_path / "source"), tmp_path / "saved"
    folder.mkdir()
    config = {**json.loads((source / "config.json").read_text()), "model_type": OF_TYPE[name], "num_attention_heads": 2}
    (folder / "config.json").write_text(json.dumps(config))
    save_tokenizer(Tokenizer.of(source), folder, family.text, family.end)
    core, tokenizer = Core.from_file(str(source / "tokenizer.json")), AutoTokenizer.from_pretrained(folder)
    text = VARIED + " a ".join(token.content for token in family.tokens)
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == core.encode(text, add_special_tokens=False).ids
    assert tokenizer("a")["input_ids"] == core.encode("a").ids
    assert tokenizer.eos_token == family.end
    # Its texts are not normalised first, as those of other Qwen2 are.
    assert (folder / "tokenizer_as_saved.py").exists() is (name == "r1-distill")


def test_ids_that_no_folder_would_give_are_refused_with_both(tmp_path: Path) -> None:
    write_model(tmp_path / "m", tokenizer_class="PreTrainedTokenizerFast")
    other = Tokenizer(byte_level(single_digits=True), {})
    with pytest.raises(AdpaError, match=r"from token \d+ on it gives \[[\d, ]+\], tokenizer\.json \[[\d, ]+\]"):
        keep_ids(tmp_path / "m", other)


def test_the_check_before_the_work_leaves_the_folder_alone(tmp_path: Path) -> None:
    core = byte_level(single_digits=True)
    write_model(tmp_path / "m", Qwen2Config(**{**SMALL, "vocab_size": core.get_vocab_size()}), core)
    before = {path.name: path.read_bytes() for path in (tmp_path / "m").iterdir()}
    check_saved_tokenizer(tmp_path / "m", CHATML, "<|im_end|>")
    assert {path.name: path.read_bytes() for path in (tmp_path / "m").iterdir()} == before


def test_a_reward_model_is_saved_with_the_padding_that_its_head_skips(tmp_path: Path) -> None:
    write_model(tmp_path / "m", pad_token="<|im_end|>", bos_token="<|im_start|>")
    tokenizer = Tokenizer.of(tmp_path / "m")
    model = load_reward_model(tmp_path / "m", tokenizer, END, "cpu")
    save(model, tokenizer, tmp_path / "saved", CHATML, "<|im_end|>", tmp_path / "m")
    assert read(tmp_path / "saved", "config.json")["pad_token_id"] == 1
    assert read(tmp_path / "saved", "tokenizer_config.json")["pad_token"] == "<|im_start|>"
    assert not (tmp_path / "saved" / "generation_config.json").exists()


def test_a_folder_without_its_source_is_saved_too(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m")
    tokenizer = Tokenizer.of(tmp_path / "m")
    shutil.rmtree(tmp_path / "m")
    save(model, tokenizer, tmp_path / "saved", CHATML, "<|endoftext|>")
    assert read(tmp_path / "saved", "generation_config.json")["eos_token_id"] == TEXT_END
