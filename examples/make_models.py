"""Make a teacher and a student that know nothing yet: two local Llama folders with one tokenizer, for any data set.

    python examples/make_models.py pairs.jsonl ./models     makes ./models/teacher and ./models/student

They stand for two models of one family of any size: a byte-level BPE trained on the data, random weights, no chat
template. What `adpa` does with them, `pipeline.sh` shows.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

from adpa_cli.data.preferences import load_dialogues
from adpa_cli.data.sources import parse_source
from adpa_cli.errors import AdpaError

BOS, END, PAD = "<|bos|>", "<|end|>", "<|pad|>"
CONTEXT = 1024


def texts(source: str, skip_bad_rows: bool) -> Iterator[str]:
    """Every turn of the training side of a data set: nothing is learnt from what is held out."""
    for dialogue in load_dialogues([parse_source(source)], "train", skip_bad_rows=skip_bad_rows).items:
        for message in dialogue.messages:
            yield message.content


def byte_level_bpe(corpus: Iterator[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A tokenizer of at most `vocabulary` tokens, the 256 bytes and the three special ones among them."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[BOS, END, PAD], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    inner.train_from_iterator(corpus, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token=BOS, eos_token=END, pad_token=PAD, model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )  # fmt: skip


def random_llama(tokenizer: PreTrainedTokenizerFast, width: int, layers: int, seed: int) -> LlamaForCausalLM:
    """A Llama of `layers` layers with heads of 32, embeddings shared with the head, and weights drawn from `seed`."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=3 * width, num_hidden_layers=layers,
        num_attention_heads=width // 32, max_position_embeddings=CONTEXT, tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def size(text: str) -> tuple[int, int]:
    """`320x5` as (width, layers)."""
    width, _, layers = text.partition("x")
    if not (width.isdigit() and layers.isdigit() and int(layers) and int(width) and int(width) % 32 == 0):
        raise argparse.ArgumentTypeError(f"{text} is not WIDTHxLAYERS with a width that 32 divides, such as 320x5")
    return int(width), int(layers)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description="Make a teacher and a student of random weights for a data set.")
    made.add_argument("data", help="preference data or dialogues: a file, ./folder or org/name")
    made.add_argument("out", type=Path, help="where the folders teacher and student go")
    made.add_argument("--vocabulary", type=int, default=16384, metavar="N", help="tokens at most [%(default)s]")
    made.add_argument("--teacher", type=size, default="320x5", metavar="WIDTHxLAYERS", help="[%(default)s, 12 M]")
    made.add_argument("--student", type=size, default="128x4", metavar="WIDTHxLAYERS", help="[%(default)s, 3 M]")
    made.add_argument("--seed", type=int, default=0, metavar="N", help="of the weights [%(default)s]")
    made.add_argument("--skip-bad-rows", action="store_true", help="leave out rows that cannot be used")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Make both folders; their paths go to stdout."""
    asked = parser().parse_args(arguments)
    logging.disable_progress_bar()
    try:
        tokenizer = byte_level_bpe(texts(asked.data, asked.skip_bad_rows), asked.vocabulary)
    except AdpaError as error:
        print(f"error: {error.message}\ntry: {error.hint}", file=sys.stderr)
        return error.exit_code
    for n, (role, (width, layers)) in enumerate((("teacher", asked.teacher), ("student", asked.student))):
        model = random_llama(tokenizer, width, layers, seed=asked.seed + n)
        folder = asked.out / role
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        print(f"{role}: {model.num_parameters() / 1e6:.1f} M parameters, {len(tokenizer)} tokens", file=sys.stderr)
        print(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
