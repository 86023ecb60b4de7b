"""What a training step costs with cached signal, beside supervised steps on the same tokens.

A Llama of 12.6 M parameters, V = 32,000, k = 50, log-normal lengths, micro-batches of 2,048 padded tokens. Every method
is stepped in turn, over and over: AdamW and the reading of the signal included. `sft_tokens_per_s` trains on both
answers of each pair as rows of their own; `dckd_tokens_per_s` and `adpa_tokens_per_s` on the same pairs, all sequence
tokens counted. `dckd_cost`, `adpa_cost`: seconds of a step over those of SFT, the median over rounds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from adpa_cli import methods
from adpa_cli.engine.loop import Run, train
from adpa_cli.engine.processes import make_accelerator
from adpa_cli.engine.schedule import Example, TokenSequence
from adpa_cli.engine.student import Student
from adpa_cli.signal import AnswerKey, SignalReader, SignalRows, SignalSpec, token_hash, write_shard
from adpa_cli.spec import Runtime, TrainSpec

VOCABULARY, K, PAIRS, ROUNDS = 32_000, 50, 24, 5
METHODS = {"sft": ("chosen",), "dckd": ("chosen", "rejected"), "adpa": ("chosen", "rollout")}


def model() -> LlamaForCausalLM:
    """12.6 M parameters, tied embeddings."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=256, intermediate_size=624, num_hidden_layers=6, num_attention_heads=8,
        num_key_value_heads=8, max_position_embeddings=2048, tie_word_embeddings=True,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def sequences(rng: np.random.Generator) -> list[TokenSequence]:
    """Two answers for each of the prompts; lengths log-normal around 60 and 90 tokens."""
    made = []
    for _ in range(PAIRS):
        prompt = rng.integers(5, VOCABULARY, int(np.clip(rng.lognormal(4.1, 0.6), 8, 400)))
        for _ in range(2):
            answer = rng.integers(5, VOCABULARY, int(np.clip(rng.lognormal(4.5, 0.6), 8, 500)))
            ids = np.concatenate([prompt, answer]).astype(np.int32)
            made.append(TokenSequence(ids, np.arange(len(ids)) >= len(prompt)))
    return made


def signal(rng: np.random.Generator, labels: Any) -> SignalRows:
    """A pair of teachers on one answer, both with a random softmax over the whole vocabulary."""
    tokens = len(labels)
    logits = rng.normal(0, 3, (2, tokens, VOCABULARY)).astype(np.float32)
    aligned, reference = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
    ids = np.argpartition(-aligned, K, axis=1)[:, :K].astype(np.int32)
    row = np.arange(tokens)
    seen = np.zeros((tokens, VOCABULARY), dtype=bool)
    np.put_along_axis(seen, ids, True, axis=1)
    seen[row, labels] = True
    at = [np.take_along_axis(x, ids, axis=1) for x in (aligned, reference)]
    rest = [np.log(np.where(seen, 0, np.exp(x)).sum(1)) for x in (aligned, reference)]
    kth = np.partition(reference, -K, axis=1)[:, -K]
    return SignalRows(
        ids, at[0], labels.astype(np.int32), aligned[row, labels], rest[0], at[0] - at[1], at[1] >= kth[:, None], kth,
        reference[row, labels], rest[1],
    )  # fmt: skip


def cached(folder: Path, answers: dict[AnswerKey, SignalRows]) -> SignalReader:
    """The signal on disk, as `cache-teacher` leaves it."""
    spec = SignalSpec(K, VOCABULARY, teachers={"aligned": "a", "reference": "b"})
    write_shard(folder / "signal-00000.adpa", spec, list(answers.items()))
    return SignalReader(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    rng = np.random.default_rng(0)
    rows = sequences(rng)
    with tempfile.TemporaryDirectory() as folder:
        keys = [AnswerKey(str(i // 2), ("chosen", "second")[i % 2], token_hash([], r.ids)) for i, r in enumerate(rows)]
        reader = cached(Path(folder), {k: signal(rng, r.ids[r.answer]) for k, r in zip(keys, rows, strict=True)})
        runs = {name: run(name, parts, rows, keys, reader, Path(folder)) for name, parts in METHODS.items()}
        seconds = measure(runs, asked.rounds)
    tokens = sum(len(row) for row in rows)
    found: dict[str, float] = {f"{name}_tokens_per_s": tokens / statistics.median(s) for name, s in seconds.items()}
    for name in ("dckd", "adpa"):
        found[f"{name}_cost"] = statistics.median(a / b for a, b in zip(seconds[name], seconds["sft"], strict=True))
    found |= {"tokens": tokens, "parameters": sum(p.numel() for p in model().parameters())}
    print(json.dumps(found) if asked.json else "\n".join(f"{key}: {value:.4g}" for key, value in found.items()))


def run(name: str, parts: Any, rows: Any, keys: Any, reader: SignalReader, folder: Path) -> Run:
    """One optimizer step of a method over all pairs; for SFT every answer is a row."""
    if name == "sft":
        examples = [Example(str(i), {"chosen": row}) for i, row in enumerate(rows)]
    else:
        examples = [Example(str(i), dict(zip(parts, rows[2 * i : 2 * i + 2], strict=True))) for i in range(PAIRS)]
    method = methods.load(name)
    params = method.params()
    spec = TrainSpec(
        name, 1, {}, "", "", epochs=1.0, batch_size=len(examples), dtype="float32", lr=1e-5, warmup_ratio=0.0
    )
    order = dict(zip(parts, (0, 1), strict=False))
    return Run(
        spec=spec, method=method, params=params, examples=examples, end_id=2,
        signal_of=lambda example, part: reader.read(keys[2 * int(example) + order[part]]),
        work=folder / name, runtime=Runtime(tokens_per_device=2048),
    )  # fmt: skip


def measure(runs: dict[str, Run], rounds: int) -> dict[str, list[float]]:
    """Seconds of a step of each run, in turns, after one round that is not counted."""
    students = {name: Student(model(), "float32") for name in runs}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 1):
        for name, one in runs.items():
            one.work.mkdir(exist_ok=True)
            start = time.perf_counter()
            train(students[name], one, make_accelerator())
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return seconds


if __name__ == "__main__":
    main()
