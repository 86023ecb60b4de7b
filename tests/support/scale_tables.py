"""The tables of docs/scale.md, by the estimators of the project; `python -m support.scale_tables` prints them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace

from adpa_cli.engine.costs import (
    Held,
    scoring_memory,
    signal_bytes_per_token,
    signal_disk,
    trained,
    training_memory,
)
from adpa_cli.families import FAMILIES, published
from adpa_cli.report.models import training_specs
from adpa_cli.sizes import Memory, ModelSize, Row, RowTable, Where, forward_flops
from adpa_cli.spec import Runtime

CARD = Where("cuda")
LONG = Row(1024, 1024)
BLOCK = 16384
LARGEST = "a 70 B Llama"
LLAMA_70B = ModelSize(
    parameters=70_553_706_496, hidden=8192, layers=80, inner=28672, keys=1024, width=8192, vocabulary=128_256,
    tied=False, stored=2,
)  # fmt: skip
MODELS = ("danube3-500m", "llama-3.2-1b", "danube2-1.8b", "mistral-7b", "llama-3.1-8b", "llama-2-13b")
RATE = 400e12


def sizes() -> dict[str, ModelSize]:
    known = published()
    return {**{name: known[name].size for name in MODELS}, LARGEST: LLAMA_70B}


def capture(size: ModelSize, quantise: str | None = None, offload: str = "none") -> float:
    held = Held("bfloat16", quantise, offload)
    return scoring_memory(size, {"chosen": [LONG] * (BLOCK // 2048)}, held, BLOCK, 51, CARD).device / 1e9


def training(size: ModelSize, weights: str = "float32", cards: int = 1, lora: int | None = None) -> float:
    """Gigabytes on each card of SFT on one row of 2,048 tokens at a time, recomputed; where several share the state, a
    part of it each, and the two largest groups of weights that are gathered at a time."""
    family = next(family for family in FAMILIES if family.alias == "llama-3.2-1b")
    spec = next(spec for _, spec in training_specs(family, "student"))
    asked = replace(spec, weights=weights, lora=lora)
    whole: Memory = training_memory(size, {"answer": [LONG]}, asked, Runtime(recompute=True), 1, CARD)
    state = trained(size, asked, CARD)
    gathered = 4 * (size.head * (1 if size.tied else 2) + size.body / size.layers) if cards > 1 else 0
    return float(whole.device - state + state / cards + gathered) / 1e9


def fits() -> Iterator[str]:
    yield "| model | capture | capture, nf4 | training | bfloat16 weights | LoRA | training, 8 cards |"
    yield "|---|---|---|---|---|---|---|"
    for name, size in sizes().items():
        cells = (
            capture(size), capture(size, "nf4"), training(size), training(size, "bfloat16"),
            training(size, lora=16), training(size, cards=8),
        )  # fmt: skip
        yield f"| {name} | " + " | ".join(f"{cell:,.0f}" if cell >= 100 else f"{cell:.1f}" for cell in cells) + " |"


def signals() -> Iterator[str]:
    yield "| vocabulary | k | one teacher, B a token | pair, B a token | pair, 10 M answers of 486 tokens |"
    yield "|---|---|---|---|---|"
    for vocabulary in (32_000, 128_256):
        for k in (10, 50):
            alone, both = (signal_bytes_per_token(vocabulary, k, 1 / 32, pair) for pair in (None, 1 / 128))
            kept = answers(10_000_000)
            total = signal_disk(kept, both, k, True, 0).keeps / 1e12
            yield f"| {vocabulary:,} | {k} | {alone:.0f} | {both:.0f} | {total:.2f} TB |"


def answers(prompts: int) -> RowTable:
    """Rows of 694 tokens, of which 486 are of the answer."""
    import numpy as np

    return RowTable(np.full(prompts, 208.0, np.float32), np.full(prompts, 486.0, np.float32))


def runs() -> Iterator[str]:
    """Capture of a pair of teachers on three answers a prompt: operations, hours of one card and of 64, and bytes."""
    yield "| prompts | teachers | operations | one card | 64 cards | signals | blocks meanwhile |"
    yield "|---|---|---|---|---|---|---|"
    for prompts, name in ((6_413, "llama-3.1-8b"), (10_000_000, "llama-3.1-8b"), (10_000_000, LARGEST)):
        rows = answers(prompts)
        size = sizes()[name]
        flops = forward_flops(size, rows) * 4  # the aligned teacher on all three answers, the reference on the third
        hours = flops / RATE / 3600
        one = signal_bytes_per_token(size.vocabulary, 50, 1 / 32, None)
        both = signal_bytes_per_token(size.vocabulary, 50, 1 / 32, 1 / 128)
        disks = [*[signal_disk(rows, one, 50, False, 0)] * 2, signal_disk(rows, both, 50, True, 0)]
        kept, extra = sum(disk.keeps for disk in disks) / 1e9, sum(disk.extra for disk in disks) / 1e9
        yield (
            f"| {prompts:,} | {name} | {flops:.1e} | {hours:,.1f} h | {hours / 64:,.1f} h "
            f"| {kept:,.0f} GB | {extra:,.0f} GB |"
        )


def tables() -> list[str]:
    return ["\n".join(lines) for lines in (fits(), signals(), runs())]


if __name__ == "__main__":
    sys.stdout.write("\n\n".join(tables()) + "\n")
