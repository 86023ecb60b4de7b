"""Folders that are no model that can be used are refused by name, in a plan that is only shown as before work."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    Qwen2_5_VLConfig,
)

from adpa_cli.errors import AdpaError
from adpa_cli.hub import usable
from adpa_cli.hub.model_folder import ModelFolder
from adpa_cli.lab import world
from adpa_cli.store.identity import model_files
from adpa_cli.store.store import Store
from support.cli_samples import Cli, write_rows
from support.model_folders import CHATML, SMALL, byte_level, change, write_model, write_vision_language

FEW = ("--data", "few.jsonl", "--max-steps", "1", "--set", "max_length=64")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_model(tmp_path / "m")
    write_rows(tmp_path / "few.jsonl", world.demonstrations("train")[:4])
    return tmp_path / "m"


def adapter(folder: Path) -> None:
    (folder / "config.json").unlink()
    weights = load_file(folder / "model.safetensors")
    save_file({"lora_A": weights["model.norm.weight"]}, folder / "adapter_model.safetensors")
    (folder / "model.safetensors").unlink()
    change(folder / "adapter_config.json", base_model_name_or_path="org/base", peft_type="IA3")


def adapter_beside_a_configuration(folder: Path) -> None:
    config = (folder / "config.json").read_text()
    adapter(folder)
    (folder / "config.json").write_text(config)


def quantised(**said: Any) -> Callable[[Path], None]:
    return lambda folder: change(folder / "config.json", quantization_config=said)


def pickle_only(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def gguf_only(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    (folder / "model-Q4_K_M.gguf").write_bytes(b"GGUF")


def too_few_rows(folder: Path) -> None:
    shutil.rmtree(folder)
    core = byte_level()
    write_model(folder, llama(vocab_size=300), core)


def llama(**settings: Any) -> Any:
    return LlamaConfig(**{**SMALL, **settings})


def an_encoder(folder: Path) -> None:
    change(folder / "config.json", model_type="bert", architectures=["BertForMaskedLM"])


def sequence_to_sequence(folder: Path) -> None:
    made_as = ["T5ForConditionalGeneration"]
    change(folder / "config.json", model_type="t5", architectures=made_as, is_encoder_decoder=True)


def code_of_its_own(folder: Path) -> None:
    change(folder / "config.json", model_type="trap", auto_map={"AutoModelForCausalLM": "trap.Trap"})


def no_type(folder: Path) -> None:
    change(folder / "config.json", model_type=None)


def no_json(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def whole_numbers(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = weights["lm_head.weight"].to(torch.int8)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def no_safetensors(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"<html>not found</html>")


def empty_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"")


def half_of_the_weights(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])


def a_pointer(name: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")

    return make


def broken_index(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": [')


def says(file: str, **fields: Any) -> Callable[[Path], None]:
    return lambda folder: change(folder / file, **fields)


def uses_without_default(folder: Path) -> None:
    named = [{"name": "tool_use", "template": CHATML}, {"name": "rag", "template": CHATML}]
    change(folder / "tokenizer_config.json", chat_template=named)


def template_in_another_encoding(folder: Path) -> None:
    (folder / "chat_template.jinja").write_bytes(b"\xff\xfe{\x00")


def sees_images(folder: Path) -> None:
    Qwen2_5_VLConfig(text_config={**SMALL, "vocab_size": 340}).save_pretrained(folder)


@pytest.mark.parametrize(
    ("make", "said", "to_do"),
    [
        (adapter, "m is an adapter of org/base of the kind IA3; only LoRA adapters can be read", "merge_and_unload"),
        (adapter_beside_a_configuration, "m is an adapter of org/base of the kind IA3", "merge_and_unload"),
        (quantised(quant_method="gptq", bits=4), "m is quantised (GPTQ, 4 bits", "quantised from"),
        (quantised(quant_method="awq", w_bit=4), "m is quantised (AWQ, 4 bits", "quantised from"),
        (quantised(load_in_4bit=True), "m is quantised (bitsandbytes, 4 bits", "quantised from"),
        (quantised(quant_method="fp8"), "m is quantised (FP8", "quantised from"),
        (quantised(quant_method="newest"), "m is quantised (newest", "quantised from"),
        (pickle_only, "m has no safetensors weights (only pytorch_model.bin)", "save_pretrained"),
        (gguf_only, "m holds only GGUF files (model-Q4_K_M.gguf)", "gguf_file=NAME"),
        (too_few_rows, "only 300 rows: such ids are beyond the embedding", "resize_token_embeddings"),
        (an_encoder, "m is an encoder (BertForMaskedLM)", "decoder-only"),
        (sequence_to_sequence, "m is an encoder-decoder model (T5ForConditionalGeneration)", "decoder-only"),
        (code_of_its_own, "m needs its own code (model_type trap)", "part of transformers"),
        (no_type, "has no model_type", "decoder-only"),
        (no_json, "config.json is not valid JSON", "again"),
        (whole_numbers, "m is quantised (lm_head.weight is stored as I8)", "quantised from"),
        (no_safetensors, "model.safetensors is not a safetensors file", "again"),
        (empty_weights, "model.safetensors is not a safetensors file", "again"),
        (half_of_the_weights, "model.safetensors is incomplete", "again"),
        (a_pointer("model.safetensors"), "model.safetensors was not downloaded", "git lfs pull"),
        (a_pointer("tokenizer.json"), "tokenizer.json was not downloaded", "git lfs pull"),
        (broken_index, "model.safetensors.index.json does not list weight files", "again"),
        (says("config.json", vocab_size="many"), "config.json does not state its vocabulary", "again"),
        (says("config.json", hidden_size="wide"), "config.json does not state its size", "again"),
        (says("config.json", max_position_embeddings="long"), "config.json does not state its context", "again"),
        (says("tokenizer.json", added_tokens=[1]), "tokenizer.json does not state its tokens", "again"),
        (uses_without_default, "m has chat templates for some uses", "--template FILE"),
        (template_in_another_encoding, "chat_template.jinja is not UTF-8", "again"),
        (sees_images, "transformers has no model for its text part (qwen2_5_vl_text)", "Gemma 3"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("shown", [True, False])
def test_what_is_no_usable_model_is_named(
    cli: Cli, folder: Path, make: Callable[[Path], None], said: str, to_do: str, shown: bool
) -> None:
    make(folder)
    answer = cli.refused(1, "sft", "--model", "./m", *FEW, *(["-n"] if shown else []))
    assert said in answer
    assert to_do in answer
    assert not Store.find_or_empty(None).artifacts()


def test_a_folder_without_a_default_template_takes_one_that_is_named(cli: Cli, folder: Path) -> None:
    uses_without_default(folder)
    shown = cli("data", "few.jsonl", "--sft", "--model", "./m", "--template", "chatml", "--json").out
    assert json.loads(shown)["template"]["from"] == "--template"


def test_a_single_gguf_file_is_named(cli: Cli, folder: Path) -> None:
    (folder.parent / "one.gguf").write_bytes(b"GGUF")
    assert "one.gguf is a GGUF file" in cli.refused(1, "sft", "--model", "./one.gguf", *FEW)


def test_an_adapter_beside_whole_weights_is_said_and_not_hashed(cli: Cli, folder: Path) -> None:
    before = model_files(folder)
    change(folder / "adapter_config.json", base_model_name_or_path="org/base")
    shutil.copy(folder / "model.safetensors", folder / "adapter_model.safetensors")
    assert model_files(folder) == before
    assert usable.remarks(ModelFolder.of(folder), "m") == (
        "m: the adapter beside the weights (of org/base) is not used",
    )
    assert "the adapter beside the weights (of org/base) is not used" in cli("sft", "--model", "./m", *FEW, "-y").err


def test_special_tokens_beyond_the_embedding_that_nothing_writes_are_no_fault(folder: Path) -> None:
    """As Gemma 3's <image_soft_token>, the one id that its text models have no row for."""
    core, rows = byte_level(), ModelFolder.of(folder).rows
    core.add_special_tokens(["<image>"])
    core.save(str(folder / "tokenizer.json"))
    inside = ModelFolder.of(folder)
    assert (inside.rows, inside.token_ids) == (rows, rows + 1)
    usable.check_model(inside, "m")
    change(folder / "tokenizer_config.json", pad_token="<image>")
    with pytest.raises(AdpaError, match=f"ids up to {rows} .'<image>'., .* only {rows} rows"):
        usable.check_model(ModelFolder.of(folder), "m")


def test_padded_embeddings_work(cli: Cli, tmp_path: Path) -> None:
    write_model(tmp_path / "m", llama(vocab_size=512))
    write_rows(tmp_path / "few.jsonl", world.demonstrations("train")[:4])
    assert cli("sft", "--model", "./m", *FEW, "-n").rows


def test_shards_in_bfloat16_work(cli: Cli, folder: Path) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.to(torch.bfloat16).save_pretrained(folder, max_shard_size="30KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    made = cli("sft", "--model", "./m", *FEW, "-y").ref
    (saved,) = Path("adpa-store", made).glob("*.safetensors")
    assert {tensor.dtype for tensor in load_file(saved).values()} == {torch.float32}


def test_of_a_model_that_sees_images_the_part_that_reads_text_is_trained(cli: Cli, folder: Path) -> None:
    shutil.rmtree(folder)
    core = byte_level()
    write_vision_language(folder, core)
    inside = ModelFolder.of(folder)
    assert (inside.context, inside.size.hidden, inside.rows) == (256, 32, core.get_vocab_size())
    assert all("vision" not in name for name in inside.shapes)
    ran = cli("sft", "--model", "./m", *FEW, "-y")
    assert "the one that reads text is used and saved, as a model of its own" in " ".join(ran.err.split())
    config = json.loads(Path("adpa-store", ran.ref, "config.json").read_text())
    assert config["architectures"] == ["Gemma3ForCausalLM"]
    assert (config["rope_theta"], config["rope_local_base_freq"]) == (1000000.0, 10000.0)


def test_what_a_text_part_does_not_say_is_what_transformers_takes(folder: Path) -> None:
    """As in Gemma 3's 4B folder, whose config.json names neither heads nor vocabulary nor context."""
    outer = {"model_type": "gemma3", "text_config": {"model_type": "gemma3_text", "hidden_size": 2560}}
    (folder / "config.json").write_text(json.dumps(outer))
    (folder / "model.safetensors").unlink()
    inside = ModelFolder.of(folder)
    assert (inside.context, inside.vocabulary, inside.size.hidden) == (131072, 262208, 2560)
