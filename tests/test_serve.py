"""A checkpoint stops where it was trained to stop: in plain `transformers`, and behind its server."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config

from adpa_cli.data.chat import Encoder
from adpa_cli.data.examples import Message
from adpa_cli.data.templates import Template
from adpa_cli.data.tokenizer import Tokenizer
from adpa_cli.engine.models import save
from adpa_cli.lab import world
from support.cli_samples import Cli, write_rows
from support.model_folders import CHATML, SMALL, byte_level, write_model
from support.serve import post, sayer, serving
from support.tiny_models import END, TEMPLATE, as_ours, pretrained_tokenizer

SAYS = ("<end>", "w1", "w2", "<end>")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that answers `w1 w2 <end>` to everything, and again from there on if nothing stops it."""
    tokenizer = pretrained_tokenizer()
    folder = tmp_path_factory.mktemp("checkpoint")
    save(sayer(tokenizer, SAYS), as_ours(tokenizer), folder, TEMPLATE, "<end>")
    assert tokenizer.eos_token == "</s>", "the base model ends elsewhere"
    return folder


def test_plain_transformers_stop_at_the_end_token_that_was_trained(checkpoint: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    prompt = tokenizer("w5 <end>", return_tensors="pt")
    out = model.generate(input_ids=prompt["input_ids"], max_new_tokens=20)
    assert tokenizer.convert_ids_to_tokens(out[0, 2:].tolist()) == ["w1", "w2", "<end>"]
    assert tokenizer.eos_token_id == END


@pytest.mark.slow
def test_transformers_serve_stops_there_too(checkpoint: Path, tmp_path: Path) -> None:
    with serving(checkpoint, tmp_path / "log") as url:
        body = {"model": str(checkpoint), "messages": [{"role": "user", "content": "w5"}], "max_tokens": 20}
        answer = post(f"{url}/v1/chat/completions", {**body, "stream": False})
        (choice,) = answer["choices"]
        assert choice["message"]["content"].split() == ["w1", "w2"]
        assert choice["finish_reason"] == "stop"


@pytest.mark.slow
def test_transformers_serve_reads_the_tokens_that_were_trained(cli: Cli, tmp_path: Path) -> None:
    """A Qwen2, whose tokenizer transformers 5 rebuilds by class, with numbers that tokenizer.json keeps together."""
    core = byte_level()
    write_model(tmp_path / "m", Qwen2Config(**{**SMALL, "vocab_size": core.get_vocab_size()}), core)
    write_rows(tmp_path / "few.jsonl", world.demonstrations("train")[:4])
    words = ("--data", "few.jsonl", "--max-steps", "1", "--set", "max_length=64", "-y")
    assert cli("export", cli("sft", "--model", "./m", *words).ref, "out").code == 0
    text = "Add 12345 and 2000, don't"
    asked = Encoder(Tokenizer.of(tmp_path / "m"), Template(CHATML, "<|im_end|>")).prompt([Message("user", text)])
    with serving(tmp_path / "out", tmp_path / "log") as url:
        body = {"model": str(tmp_path / "out"), "messages": [{"role": "user", "content": text}], "max_tokens": 2}
        answer = post(f"{url}/v1/chat/completions", {**body, "stream": False})
        assert answer["usage"]["prompt_tokens"] == len(asked)
