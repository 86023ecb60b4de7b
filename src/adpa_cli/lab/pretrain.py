"""How the base models in `bases/` were made: `python -m adpa_cli.lab.pretrain OUT` makes them again.

Text of `world.pretraining`, one seed, one thread, some ten minutes. The weights are stored in float16, since they ship
with the package, and are meant to be computed with in float32, which `config.json` says.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from adpa_cli.lab import END, SPECIAL, world

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

SEED = 20250
BATCH = 64
POOL = 16
WARMUP = 0.05


@dataclass(frozen=True)
class Size:
    """Shape of a base model and how long it reads."""

    width: int
    layers: int
    steps: int
    lr: float


SIZES = {"teacher": Size(96, 4, 3000, 2e-3), "student": Size(48, 2, 2800, 4e-3)}


def tokenizer() -> PreTrainedTokenizerFast:
    """One token per word of the world, special tokens first."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {word: i for i, word in enumerate((*SPECIAL, *world.vocabulary()))}
    inner = Tokenizer(models.WordLevel(words, unk_token="<|unk|>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # transformers does not annotate it
        tokenizer_object=inner,
        bos_token="<|bos|>",
        eos_token=END,
        pad_token="<|pad|>",
        unk_token="<|unk|>",
        extra_special_tokens=["<|user|>", "<|assistant|>"],
        clean_up_tokenization_spaces=False,
        model_max_length=256,
    )


def model(size: Size, words: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """An untrained model of that size."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=size.width,
        intermediate_size=2 * size.width,
        num_hidden_layers=size.layers,
        num_attention_heads=4,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    return LlamaForCausalLM(config)


def train(name: str) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """The base model `name`, trained to predict every token of its texts; its last loss goes to stderr."""
    import torch

    torch.set_num_threads(1)
    size, words = SIZES[name], tokenizer()
    net = model(size, words)
    optimizer = torch.optim.AdamW(net.parameters(), lr=size.lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step / size.steps))
    texts = (f"<|bos|>{text}{END}" for text in world.pretraining(SEED))
    for step, batch in enumerate(_batches(texts)):
        if step == size.steps:
            break
        inputs = words(batch, padding=True, return_tensors="pt", return_token_type_ids=False)
        labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
        loss = net(**inputs, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 99:
            print(f"{name} step {step + 1}/{size.steps} loss {loss.item():.3f}", file=sys.stderr)
    return net, words


def _batches(texts: Iterator[str]) -> Iterator[list[str]]:
    """Batches of texts of like length, since padding would be half of a mixed one, in random order."""
    rng = Random(SEED)
    while True:
        pool = sorted(itertools.islice(texts, BATCH * POOL), key=lambda text: text.count(" "))
        batches = [pool[i : i + BATCH] for i in range(0, len(pool), BATCH)]
        while batches:
            yield batches.pop(int(rng.random() * len(batches)))


def _rate(done: float) -> float:
    return done / WARMUP if done < WARMUP else 0.5 * (1 + math.cos(math.pi * (done - WARMUP) / (1 - WARMUP)))


def save(folder: Path, net: LlamaForCausalLM, words: PreTrainedTokenizerFast) -> None:
    """Write a plain Hugging Face folder: weights in float16, to be loaded in float32."""
    import torch

    module: torch.nn.Module = net
    module.half()
    net.save_pretrained(folder)
    net.config.dtype = torch.float32
    net.config.save_pretrained(folder)
    words.save_pretrained(folder)


def main(arguments: list[str] | None = None) -> int:
    """Make the named base models, or both, in a folder."""
    parser = argparse.ArgumentParser(prog="python -m adpa_cli.lab.pretrain", description=main.__doc__)
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("names", nargs="*", metavar="NAME", help=" or ".join(SIZES))
    chosen = parser.parse_args(arguments)
    if unknown := set(chosen.names) - set(SIZES):
        parser.error(f"no base model {', '.join(sorted(unknown))}; there are {', '.join(SIZES)}")
    for name in chosen.names or SIZES:
        save(chosen.out / name, *train(name))
    return 0


if __name__ == "__main__":
    sys.exit(main())
