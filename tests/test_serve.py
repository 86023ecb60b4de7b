"""A checkpoint stops where it was trained to stop: in plain `transformers`, and behind its server."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config

from adpa_cli.data.chat import Encoder
from adpa_cli.data.examples import Message
from adpa_cli.data.templates import Template
from adpa_cli.data.tokenizer import Tokenizer
from adpa_cli.engine.models import save
from adpa_cli.lab import world
from support.cli_samples import Cli, write_rows
from support.model_folders import CHATML, SMALL, byte_level, write_model
from support.tiny_models import END, TEMPLATE, VOCABULARY, as_ours, pretrained_tokenizer

SAYS = ("<end>", "w1", "w2", "<end>")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that answers `w1 w2 <end>` to everything, and again from there on if nothing stops it."""
    tokenizer = pretrained_tokenizer()
    folder = tmp_path_factory.mktemp("checkpoint")
    save(_sayer(tokenizer), as_ours(tokenizer), folder, TEMPLATE, "<end>")
    assert tokenizer.eos_token == "</s>", "the base model ends elsewhere"
    return folder


def _sayer(tokenizer: Any) -> Any:
    """The next token is a function of the last one: the residual stream holds nothing but its embedding."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=64, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=64, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(VOCABULARY, 64))
        model.lm_head.weight.zero_()
        ids = tokenizer.convert_tokens_to_ids(list(SAYS))
        for last, following in pairwise(ids):
            model.lm_head.weight[following, last] = 10.0
    return model


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


@contextmanager
def serving(folder: Path, log: Path) -> Iterator[str]:
    """`transformers serve` on a free port, until it is no longer needed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).with_name("transformers")), "serve", str(folder), "--host", "127.0.0.1"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with (
        log.open("w") as out,
        subprocess.Popen(
            [*command, "--port", str(port), "--device", "cpu"], stdin=subprocess.DEVNULL, stdout=out, stderr=out,
            env=environment,
        ) as server,
    ):  # fmt: skip
        url = f"http://127.0.0.1:{port}"
        try:
            deadline = time.monotonic() + 120
            while not answers(f"{url}/health"):
                assert server.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.2)
            yield url
        finally:
            server.kill()


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def post(url: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)
