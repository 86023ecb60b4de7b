"""A tokenizer is tokenizer.json as it stands, and is saved so that every version of transformers reads it so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Core
from tokenizers import models, pre_tokenizers, processors
from transformers import AutoTokenizer

from adpa_cli.data.tokenizer import Tokenizer, portable_settings
from adpa_cli.errors import AdpaError, NotFound
from support.model_folders import SPECIALS, VARIED, byte_level, change, write_tokenizer


@pytest.mark.parametrize("kind", ["GPT2Tokenizer", "LlamaTokenizerFast", "Qwen2Tokenizer", "PreTrainedTokenizerFast"])
def test_ids_are_those_of_the_file_whatever_class_is_named(tmp_path: Path, kind: str) -> None:
    write_tokenizer(tmp_path, byte_level(single_digits=True), tokenizer_class=kind)
    tokenizer = Tokenizer.of(tmp_path)
    assert tokenizer.ids(VARIED) == Core.from_file(str(tmp_path / "tokenizer.json")).encode(VARIED).ids
    assert len(tokenizer.ids("12345")) == 5


def test_saved_files_have_the_source_file_the_template_the_end_and_a_class_of_both_versions(tmp_path: Path) -> None:
    source = tmp_path / "source"
    write_tokenizer(source, byte_level(single_digits=True), tokenizer_class="TokenizersBackend", backend="tokenizers")
    files = Tokenizer.of(source).saved_files("{{ messages }}", "<|endoftext|>")
    assert files["tokenizer.json"] == (source / "tokenizer.json").read_bytes()
    assert files["chat_template.jinja"] == b"{{ messages }}"
    assert json.loads(files["tokenizer_config.json"]) == {
        "clean_up_tokenization_spaces": False, "eos_token": "<|endoftext|>", "model_max_length": 256,
        "pad_token": "<|pad|>", "tokenizer_class": "PreTrainedTokenizerFast",
    }  # fmt: skip
    saved = tmp_path / "saved"
    saved.mkdir()
    for name, content in files.items():
        (saved / name).write_bytes(content)
    again = Tokenizer.of(saved)
    assert again.saved_files("{{ messages }}", "<|endoftext|>") == files
    assert again.ids(VARIED) == Tokenizer.of(source).ids(VARIED)


def test_no_token_is_named_that_would_first_have_to_be_added() -> None:
    """It would get an id that the model has no row for."""
    vocabulary = {"a": 0, "<end>": 1, "<think>": 2}
    config = {
        "bos_token": "<s>", "eos_token": {"content": "<end>", "lstrip": False}, "image_token": "<image>",
        "additional_special_tokens": ["<end>", "<tool>"], "add_bos_token": True, "model_max_length": 9,
        "added_tokens_decoder": {"1": {"content": "<end>"}, "7": {"content": "<tool>"}, "5": {"content": "<think>"}},
    }  # fmt: skip
    assert portable_settings(config, vocabulary) == {
        "add_bos_token": True, "added_tokens_decoder": {"1": {"content": "<end>"}},
        "additional_special_tokens": ["<end>"], "clean_up_tokenization_spaces": False,
        "eos_token": {"content": "<end>", "lstrip": False}, "model_max_length": 9,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }  # fmt: skip


def test_a_list_of_extra_tokens_which_transformers_4_cannot_read_gets_its_older_name() -> None:
    written = portable_settings({"extra_special_tokens": ["<a>", "<gone>"]}, {"<a>": 0})
    assert written["additional_special_tokens"] == ["<a>"]
    assert "extra_special_tokens" not in written
    named = portable_settings({"extra_special_tokens": {"image_token": "<a>", "other": "<gone>"}}, {"<a>": 0})
    assert named["extra_special_tokens"] == {"image_token": "<a>"}


@pytest.mark.parametrize("asked", [None, True, False])
@pytest.mark.parametrize("writes", [True, False])
def test_whether_a_text_begins_with_bos_is_what_the_file_says_before_and_after(
    tmp_path: Path, asked: bool | None, writes: bool
) -> None:
    core = byte_level()
    if writes:
        core.post_processor = processors.TemplateProcessing(
            single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
        )
    said = {} if asked is None else {"add_bos_token": asked}
    write_tokenizer(tmp_path / "source", core, bos_token="<|im_start|>", **said)
    tokenizer = Tokenizer.of(tmp_path / "source")
    assert tokenizer.begins_with_bos is writes
    files = tokenizer.saved_files("", "<|im_end|>")
    assert json.loads(files["tokenizer_config.json"]).get("add_bos_token") is asked
    (tmp_path / "saved").mkdir()
    for name, content in files.items():
        (tmp_path / "saved" / name).write_bytes(content)
    for folder in ("source", "saved"):
        ids = AutoTokenizer.from_pretrained(tmp_path / folder)("a")["input_ids"]
        assert (ids[0] == 1) is writes
    assert Tokenizer.of(tmp_path / "saved").begins_with_bos is writes


def test_a_folder_with_the_two_files_of_gpt2_is_converted(tmp_path: Path) -> None:
    core = byte_level()
    core.model.save(str(tmp_path))
    change(tmp_path / "tokenizer_config.json", tokenizer_class="GPT2Tokenizer", eos_token="<|endoftext|>")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["merges.txt", "tokenizer_config.json", "vocab.json"]
    tokenizer = Tokenizer.of(tmp_path)
    text = "the cat sat on 12345 mats, don't"
    assert tokenizer.ids(text) == core.encode(text).ids
    assert tokenizer.named["eos_token"] == "<|endoftext|>"
    files = tokenizer.saved_files("", "<|endoftext|>")
    again: Any = Core.from_str(files["tokenizer.json"].decode())
    assert again.encode(text, add_special_tokens=False).ids == core.encode(text).ids


def test_another_padding_token_changes_nothing_else(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, byte_level())
    tokenizer = Tokenizer.of(tmp_path)
    other = tokenizer.padded_with(3)
    assert (tokenizer.named["pad_token"], other.named["pad_token"]) == (SPECIALS[0], SPECIALS[3])
    assert other.ids(VARIED) == tokenizer.ids(VARIED)


def test_rows_are_neither_padded_nor_cut_by_what_the_file_asks_for(tmp_path: Path) -> None:
    core = Core(models.WordLevel({"a": 0, "<pad>": 1}, unk_token="a"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.enable_truncation(2)
    core.enable_padding(length=4, pad_id=1, pad_token="<pad>")
    write_tokenizer(tmp_path, core)
    assert Tokenizer.of(tmp_path).ids("a a a") == [0, 0, 0]


def test_files_that_are_none_are_named(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="has no tokenizer"):
        Tokenizer.of(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(AdpaError, match=r"cannot be loaded: tokenizer\.json"):
        Tokenizer.of(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(AdpaError, match=r"cannot be converted to tokenizer\.json"):
        Tokenizer.of(tmp_path)
