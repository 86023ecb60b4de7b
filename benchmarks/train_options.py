"""What the options of training save and cost: seconds of an SFT step and peak memory, beside those without any.

On a CPU a Llama of 12.6 M parameters (V = 32,000), on a GPU the shape of Llama-3.2-1B; random weights, computed in
bfloat16, rows of log-normal length. Each setting runs in a process of its own: `X_s` is the median step after two that
are not counted, `X_mb` the peak beyond the libraries, on a GPU of what is allocated there; `X_time` and `X_memory` are
ratios to `plain`. `compile` is measured on demand, `liger` on a GPU where it is installed.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from adpa_cli import methods
from adpa_cli.engine.layout.examples import Example, TokenSequence
from adpa_cli.engine.layout.row_layout import packer_of
from adpa_cli.engine.ranks import Ranks
from adpa_cli.engine.training.loop import Run, train
from adpa_cli.engine.training.optimizer import tune
from adpa_cli.engine.training.student import Student
from adpa_cli.spec import Runtime, TrainSpec

SHAPES: dict[str, dict[str, Any]] = {
    "cpu": {"vocab_size": 32_000, "hidden_size": 256, "intermediate_size": 624, "num_hidden_layers": 6,
            "num_attention_heads": 8},
    "cuda": {"vocab_size": 128_256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
             "num_attention_heads": 32, "num_key_value_heads": 8},
}  # fmt: skip
ROWS, TOKENS = {"cpu": 16, "cuda": 64}, {"cpu": 2048, "cuda": 8192}
HALF = "bfloat16"
SETTINGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {"liger": "off"}), "recompute": ({}, {"liger": "off", "recompute": True}),
    "bfloat16": ({"weights": HALF}, {"liger": "off"}),
    "both": ({"weights": HALF}, {"liger": "off", "recompute": True}),
    "liger": ({}, {"liger": "on"}), "compile": ({}, {"liger": "off", "compile": True}),
}  # fmt: skip
"""By name: what of the spec and of the runtime is set."""


def measured(name: str, kind: str, threads: int, steps: int) -> tuple[float, float, float]:
    """(seconds of a step, peak memory in MB, loss of the last step) of a setting; called in a fresh process."""
    torch.set_num_threads(threads)
    ranks = Ranks.here()
    settings, runtime = SETTINGS[name]
    before = _peak(kind)
    torch.manual_seed(0)
    config = LlamaConfig(**SHAPES[kind], max_position_embeddings=2048, tie_word_embeddings=True)
    with torch.device(ranks.device):
        model = LlamaForCausalLM(config).train()
    rows = examples(ROWS[kind], config.vocab_size)
    method = methods.load("sft")
    spec = TrainSpec("sft", 1, {}, "", "", epochs=float(steps), batch_size=len(rows), lr=1e-5, **settings)
    asked = Runtime(tokens_per_device=TOKENS[kind], **runtime)
    packer = packer_of(model, spec.dtype, max(row.length for row in rows))
    tune(model, spec, asked)
    student = Student(model, spec.dtype)
    student.packer = packer
    times = [time.perf_counter()]
    with tempfile.TemporaryDirectory() as work:
        run = Run(
            spec=spec, method=method, params=method.params(), examples=rows, end_id=2, signal_of=lambda e, p: None,
            work=Path(work), runtime=asked, progress=lambda *_: times.append(time.perf_counter()),
        )  # fmt: skip
        last = train(student, run, ranks)
    return statistics.median(np.diff(times)[2:]), _peak(kind) - before, last["loss"]


def examples(count: int, vocabulary: int) -> list[Example]:
    """Rows whose prompts and answers have log-normal lengths around 60 and 90 tokens."""
    rng = np.random.default_rng(0)
    made = []
    for number in range(count):
        prompt, answer = (int(np.clip(rng.lognormal(mean, 0.6), 8, 500)) for mean in (4.1, 4.5))
        ids = rng.integers(5, vocabulary, prompt + answer).astype(np.int32)
        made.append(Example(str(number), {"chosen": TokenSequence(ids, np.arange(len(ids)) >= prompt)}))
    return made


def _peak(kind: str) -> float:
    """The most that this process has held so far, in MB: resident, or allocated on the card."""
    if kind == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024 / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--compile", action="store_true", help="compile the layers too, which takes half a minute")
    asked = parser.parse_args()
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    left_out = {"compile": not asked.compile, "liger": kind == "cpu" or find_spec("liger_kernel") is None}
    found: dict[str, float] = {}
    for name in SETTINGS:
        if not left_out.get(name):
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                seconds, peak, loss = pool.apply(measured, (name, kind, asked.threads, asked.steps))
            found |= {f"{name}_s": seconds, f"{name}_mb": peak, f"{name}_loss": loss}
            found |= {f"{name}_time": seconds / found["plain_s"], f"{name}_memory": peak / found["plain_mb"]}
    print(json.dumps(found) if asked.json else "\n".join(f"{key}: {value:.4g}" for key, value in found.items()))


if __name__ == "__main__":
    main()
