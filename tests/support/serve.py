"""Models that say what they are made to, and `transformers serve` over one."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM


def sayer(tokenizer: Any, says: Sequence[str], context: int = 64) -> Any:
    """A model that says some tokens one after the other: the next is a function of the last one, for the residual
    stream holds nothing but its embedding."""
    size = len(tokenizer)
    config = LlamaConfig(
        vocab_size=size, hidden_size=64, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=context, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(size, 64))
        model.lm_head.weight.zero_()
        ids = tokenizer.convert_tokens_to_ids(list(says))
        for last, following in pairwise(ids):
            model.lm_head.weight[following, last] = 10.0
    return model


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
