"""`adpa export`: a whole folder or none, the same model, and a card without anything of this machine."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tokenizers import Tokenizer as Core
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, Qwen2Config

from adpa_cli.store.identity import model_files
from adpa_cli.store.store import Store
from support.cli_samples import Cli, Pipeline
from support.model_folders import SMALL, VARIED, byte_level, change, write_model

CONVERTER = """
import pathlib, sys
model, _, out, _, kind = sys.argv[1:]
assert pathlib.Path(model, "config.json").exists()
print("converting", kind)
pathlib.Path(out).write_bytes(b"GGUF" + kind.encode())
"""


def test_a_plain_folder_is_the_same_model_with_a_card(pipeline: Pipeline, cli: Cli, tmp_path: Path) -> None:
    ref = pipeline.made("distill adpa")
    assert cli("export", ref, "out/model").rows == [["out/model"]]
    source, target = pipeline.store / ref, tmp_path / "out" / "model"
    names = model_files(source)
    assert sorted(path.name for path in target.iterdir()) == sorted([*names, "README.md"])
    assert all((source / name).read_bytes() == (target / name).read_bytes() for name in names)
    assert all(os.stat(target / name).st_nlink == 1 for name in names)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model"]
    _, front, body = (target / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    about = yaml.safe_load(front)
    assert about["library_name"] == "transformers"
    assert "adpa" in about["tags"]
    assert "license" not in about
    for expected in (
        ref,
        "gamma",
        "## Scores",
        "reward-accuracy",
        "<|end|>",
        Store.find(pipeline.store).resolve(ref).id,
    ):
        assert expected in body
    assert str(pipeline.data) not in body
    assert pipeline.data.name in body
    again = cli("chat", "./out/model", "-", stdin="hello\n").out
    assert again == cli("chat", ref, "-", stdin="hello\n").out != ""


def test_weights_in_bfloat16_are_the_rounded_ones(pipeline: Pipeline, cli: Cli, tmp_path: Path) -> None:
    ref = pipeline.made("student")
    assert cli("export", ref, "half", "--dtype", "bfloat16").code == 0
    before = load_file(pipeline.store / ref / "model.safetensors")
    after = load_file(tmp_path / "half" / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], before[name].bfloat16()) for name in before)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "half")
    assert model.dtype == torch.bfloat16
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "half")
    assert model.generation_config.eos_token_id == tokenizer.convert_tokens_to_ids("<|end|>")
    assert (tmp_path / "half" / "model.safetensors").stat().st_mode & 0o044 == 0o044


@pytest.mark.parametrize("kind", [LlamaConfig, Qwen2Config], ids=lambda kind: kind.model_type)
def test_a_folder_from_elsewhere_is_exported_with_the_ids_of_its_tokenizer(
    cli: Cli, tmp_path: Path, kind: type[Any]
) -> None:
    core = byte_level(single_digits=True)
    settings = {"tokenizer_class": "GPT2Tokenizer", "extra_special_tokens": ["<|im_start|>"], "backend": "tokenizers"}
    write_model(tmp_path / "m", kind(**{**SMALL, "vocab_size": core.get_vocab_size()}), core, **settings)
    change(tmp_path / "m" / "config.json", rope_parameters={"rope_theta": 500000.0, "rope_type": "default"})
    assert cli("export", "./m", "out").code == 0
    expected = Core.from_file(str(tmp_path / "m" / "tokenizer.json")).encode(VARIED).ids
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer(VARIED, add_special_tokens=False)["input_ids"] == expected
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(tmp_path / "m").chat_template
    written = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert (written["tokenizer_class"], written["additional_special_tokens"]) == (
        "PreTrainedTokenizerFast", ["<|im_start|>"],
    )  # fmt: skip
    assert json.loads((tmp_path / "out" / "config.json").read_text())["rope_theta"] == 500000.0
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (tmp_path / "m" / "model.safetensors").read_bytes()


def test_ollama_gets_a_template_an_end_and_a_context(pipeline: Pipeline, cli: Cli, tmp_path: Path) -> None:
    ref = pipeline.made("student")
    record = json.loads(cli("export", ref, "out", "--to", "ollama", "--json").out)
    assert "Modelfile" in record["files"]
    lines = (tmp_path / "out" / "Modelfile").read_text(encoding="utf-8").splitlines()
    assert "FROM ." in lines
    assert 'PARAMETER stop "<|end|>"' in lines
    assert "PARAMETER num_ctx 256" in lines
    (template,) = [line for line in lines if line.startswith("TEMPLATE")]
    assert "<|user|>{{ end }}" in template
    assert template.endswith('<|assistant|>"""')


def test_gguf_is_left_to_the_converter_of_llama_cpp(
    pipeline: Pipeline, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = pipeline.made("student")
    monkeypatch.delenv("LLAMA_CPP", raising=False)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    assert "github.com/ggml-org/llama.cpp" in cli.refused(3, "export", ref, "out", "--to", "gguf")
    assert "is not at nowhere" in cli.refused(3, "export", ref, "out", "--to", "gguf", "--converter", "nowhere")
    (tmp_path / "llama").mkdir()
    (tmp_path / "llama" / "convert_hf_to_gguf.py").write_text(CONVERTER)
    ran = cli("export", ref, "out", "--to", "gguf", "--converter", "llama", "--dtype", "bfloat16")
    assert ran.rows == [["out"]]
    assert "converting bf16" in ran.err
    (made,) = [path for path in (tmp_path / "out").iterdir() if path.suffix == ".gguf"]
    assert made.read_bytes() == b"GGUFbf16"
    (tmp_path / "llama" / "convert_hf_to_gguf.py").write_text("import sys; sys.exit(7)")
    monkeypatch.setenv("LLAMA_CPP", str(tmp_path / "llama"))
    said = cli.refused(1, "export", ref, "other", "--to", "gguf")
    assert f"convert_hf_to_gguf.py failed on {ref.partition('/')[2]} (exit 7); its own error is printed above" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adpa-store", "llama", "out"]


def test_what_is_in_the_way_stays(pipeline: Pipeline, cli: Cli, tmp_path: Path) -> None:
    ref = pipeline.made("student")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    assert "is not empty" in cli.refused(2, "export", ref, "mine", "--force")
    assert "is a file, and a folder is needed" in cli.refused(2, "export", ref, "mine/thesis.tex", "--force")
    assert "is inside the store" in cli.refused(2, "export", ref, "adpa-store/sft/out")
    assert "leave it out" in cli.refused(2, "export", ref, "out", "--converter", "x")
    assert "is empty" in cli.refused(2, "export", ref, "")
    (tmp_path / "out").mkdir()
    assert cli("export", ref, "out").code == 0
    (tmp_path / "out" / "notes").write_text("old")
    assert "--force" in cli.refused(2, "export", ref, "out")
    assert cli("export", ref, "out", "--force").code == 0
    assert not (tmp_path / "out" / "notes").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adpa-store", "mine", "out"]


def test_damaged_weights_are_not_given_away(pipeline: Pipeline, cli: Cli, tmp_path: Path) -> None:
    ref = pipeline.made("student")
    weights = pipeline.store / ref / "model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(raw)
    assert f"adpa verify {ref}" in cli.refused(5, "export", ref, "out")
    assert [path.name for path in tmp_path.iterdir()] == ["adpa-store"]
