"""Rollouts by the real vLLM, which has an environment of its own: `nox -s vllm` makes it and names its executable."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from adpa_cli.engine.generation.vllm_server import started
from adpa_cli.engine.layout.examples import Rollout, read_rollouts
from adpa_cli.lab import BASES, END, TEMPLATE
from support.cli_samples import Cli

VLLM = os.environ.get("ADPA_VLLM", "")
pytestmark = pytest.mark.skipif(not VLLM, reason="ADPA_VLLM names no executable of vLLM: nox -s vllm")
WORDS = ("--data", "builtin:tiny-pairs", "--template", "tiny.jinja", "--end", END, "--limit", "64",
         "--set", "rollout.dtype=float32", "--max-new-tokens", "32", "--set", "rollout.max_length=128")  # fmt: skip


def model_folder(folder: Path) -> Path:
    """A model with random weights and the tokenizer of the tiny one, whose heads are too narrow for vLLM on a CPU."""
    shutil.copytree(BASES / "student", folder)
    about = json.loads((folder / "config.json").read_text())
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(
        vocab_size=about["vocab_size"], hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=256, initializer_range=0.2,
        bos_token_id=about["bos_token_id"], eos_token_id=about["eos_token_id"],
    )).save_pretrained(folder)  # fmt: skip
    return folder


def rows(cli: Cli, *words: str) -> list[Rollout]:
    ran = cli("rollout", "--student", "./model", *WORDS, *words)
    return list(read_rollouts(Path("adpa-store", ran.ref)))


def test_answers_are_ours(cli: Cli, tmp_path: Path) -> None:
    """Greedy float32 answers are ours token by token; sampled ones are the same whichever rows they are drawn with, and
    whether the server was started for the stage or ran before."""
    (tmp_path / "tiny.jinja").write_text(TEMPLATE)
    folder = model_folder(tmp_path / "model")
    ours = rows(cli, "--temperature", "0")
    begun = time.monotonic()
    theirs = rows(cli, "--temperature", "0", "--engine", "vllm", "--set", f"rollout.vllm={VLLM}")
    seconds = time.monotonic() - begun
    assert [(row.id, row.answer_ids, row.cut) for row in theirs] == [(row.id, row.answer_ids, row.cut) for row in ours]
    assert len(ours) == 64
    assert {row.cut for row in ours} == {True, False}
    with started(VLLM, folder, "float32", 128, tmp_path / "vllm.txt", lambda: None) as server:
        sampled = [
            rows(cli, "--temperature", "0.7", "--engine", "vllm", "--base-url", server.url,
                 "--set", f"rollout.block_tokens={size}")
            for size in (256, 8192)
        ]  # fmt: skip
    assert sampled[0] == sampled[1]
    assert [row.answer_ids for row in sampled[0]] != [row.answer_ids for row in ours]
    print(f"{len(ours)} of 64 greedy answers are equal; with the start of the server they took {seconds:.0f} s")
