"""Answers in slots beside plain batched `generate`: the same model, the same prompts, the same tokens, in turns.

The model's head is its embedding table moved by one token, and embeddings are large beside what the layers add, so it
counts down: a prompt that ends with token n gets n tokens, the last of which, 0, ends the answer. Both sides find a
length only by computing the answer; neither is told it. Prompts and answers are log-normal. Plain `generate` is greedy
with its default cache, on prompts sorted by length, in batches of as many rows as there are slots, so that both hold
the keys and values of equally many rows; each of its batches goes on until the longest answer ends.

CPU: the Llama of `train_step.py` (12.6 M parameters, and a head of its own), float32. CUDA: the shape of Llama-3.2-1B;
plain with bfloat16 weights, ours with float32 weights and bfloat16 products, as the rollout stage has them. `speedup`
is plain seconds over ours, the median over rounds. With `--all` also `smaller_batches`, of half the rows, and
`continuous_batching`, transformers' own, with pages for as many tokens as ours may hold: their seconds over ours.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import ContinuousBatchingConfig, GenerationConfig, LlamaConfig, LlamaForCausalLM

from adpa_cli.engine.generation.continuous_batching import left_padded
from adpa_cli.engine.generation.generate import generate_block
from adpa_cli.engine.generation.sampling import Decoding, Sampling
from adpa_cli.engine.models import Dtype

END, PAD = 0, 1
SMALL = {
    "vocab_size": 32_000, "hidden_size": 256, "intermediate_size": 624, "num_hidden_layers": 6,
    "num_attention_heads": 8, "num_key_value_heads": 8, "max_position_embeddings": 2048,
}  # fmt: skip
LLAMA_1B = {
    "vocab_size": 128_256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
    "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 4096,
}  # fmt: skip


@dataclass(frozen=True)
class Load:
    """Rows, how many at once, the median tokens of a prompt and of an answer, the most of each, and rounds."""

    shape: dict[str, int]
    dtype: Dtype
    rows: int
    slots: int
    prompt: float
    answer: float
    longest: int
    rounds: int


CPU = Load(SMALL, "float32", 96, 24, 60, 90, 500, 3)
CUDA = Load(LLAMA_1B, "bfloat16", 256, 64, 120, 210, 1000, 1)
PAGE = 64  # tokens
Side = Callable[[list[list[int]]], list[list[int]]]


def counting(shape: dict[str, int], device: str) -> LlamaForCausalLM:
    """A model whose likeliest token after n is n - 1."""
    torch.manual_seed(0)
    make: Any = LlamaConfig
    with torch.device(device):
        model = LlamaForCausalLM(make(**shape, tie_word_embeddings=False)).eval().requires_grad_(False)
        torch.nn.init.normal_(model.model.embed_tokens.weight)
    model.lm_head.weight.copy_(model.model.embed_tokens.weight.roll(-1, 0))
    return model


def prompts(load: Load) -> list[list[int]]:
    """Random tokens, of which the last is the number of tokens that the answer will have; shortest first."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(load.rows):
        length, answer = (
            int(np.clip(rng.lognormal(np.log(median), 0.6), 8, load.longest)) for median in (load.prompt, load.answer)
        )
        found.append([*rng.integers(load.longest, load.shape["vocab_size"], length - 1).tolist(), answer])
    return sorted(found, key=len)


def plain(model: Any, asked: list[list[int]], load: Load, rows: int) -> list[list[int]]:
    """Batches of `rows` prompts through `model.generate`."""
    make: Any = GenerationConfig
    settings = make(do_sample=False, max_new_tokens=load.longest + 1, eos_token_id=END, pad_token_id=PAD)
    answers = []
    for start in range(0, len(asked), rows):
        ids, mask = left_padded(asked[start : start + rows], PAD, model.device)
        with torch.no_grad():
            tokens = model.generate(input_ids=ids, attention_mask=mask, generation_config=settings)
        for row in tokens[:, ids.shape[1] :].tolist():
            answers.append(row[: row.index(END) + 1])
    return answers


def ours(model: Any, asked: list[list[int]], load: Load) -> list[list[int]]:
    """One block in `slots` slots."""
    sampling, names = Sampling(max_new_tokens=load.longest + 1), [str(row) for row in range(len(asked))]
    context = load.shape["max_position_embeddings"]
    room = load.slots * (len(asked[-1]) + sampling.max_new_tokens)
    made = generate_block(model, asked, names, Decoding(sampling, (END,), PAD, context, load.dtype), room)
    return [answer.ids for answer in made]


def measure(sides: dict[str, Side], rows: list[list[int]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each side, in turns, after the rows with the shortest answers, which are not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    short = sorted(sorted(rows, key=lambda row: row[-1])[: len(rows) // 8], key=len)
    for turn in range(rounds + 1):
        asked = rows if turn else short
        for name, side in sides.items():
            start = time.perf_counter()
            answers = side(asked)
            if [len(answer) for answer in answers] != [row[-1] for row in asked]:
                raise SystemExit(f"{name}: an answer has another length than its prompt asks for")
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def continuous(model: Any, asked: list[list[int]], load: Load) -> list[list[int]]:
    """All prompts through transformers' continuous batching, with pages for as many tokens as ours may hold."""
    make: Any = GenerationConfig
    settings = make(do_sample=False, max_new_tokens=load.longest + 1, eos_token_id=END, pad_token_id=PAD)
    pages = load.slots * (len(asked[-1]) + load.longest) // PAGE
    batching = ContinuousBatchingConfig(
        page_size=PAGE, num_blocks=pages, max_requests_per_batch=load.slots, max_batch_tokens=512
    )
    found = model.generate_batch(inputs=asked, generation_config=settings, continuous_batching_config=batching)
    return [found[name].generated_tokens for name in sorted(found, key=lambda name: int(name.split("_")[-1]))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, help="3 on a CPU, 1 on a card")
    parser.add_argument("--all", action="store_true", help="measure continuous batching and smaller batches too")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    load = CUDA if device == "cuda" else CPU
    model, rows = counting(load.shape, device), prompts(load)
    other = copy.deepcopy(model).to(torch.bfloat16) if load.dtype == "bfloat16" else model
    sides: dict[str, Side] = {
        "ours": lambda rows: ours(model, rows, load),
        "plain": lambda rows: plain(other, rows, load, load.slots),
    }
    if asked.all:
        sides["smaller_batches"] = lambda rows: plain(other, rows, load, load.slots // 2)
        sides["continuous_batching"] = lambda rows: continuous(other, rows, load)
    seconds = measure(sides, rows, asked.rounds or load.rounds)
    tokens = sum(row[-1] for row in rows)
    found: dict[str, Any] = {"speedup": _ratio(seconds["plain"], seconds["ours"])}
    found |= {name: _ratio(seconds[name], seconds["ours"]) for name in sides if name not in ("ours", "plain")}
    found |= {
        "tokens_per_s": tokens / statistics.median(seconds["ours"]),
        "plain_tokens_per_s": tokens / statistics.median(seconds["plain"]),
        "rows": load.rows, "slots": load.slots, "tokens": tokens, "dtype": load.dtype,
        "device": torch.cuda.get_device_name() if device == "cuda" else device,
    }  # fmt: skip
    print(json.dumps(found) if asked.json else "\n".join(f"{key}: {value}" for key, value in found.items()))


def _ratio(one: list[float], other: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(one, other, strict=True))


if __name__ == "__main__":
    main()
