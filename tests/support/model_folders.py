"""Model folders of the shapes that people have: byte-level tokenizers, sampling values, old and new configurations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer as Core
from tokenizers import decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, Gemma3Config, Gemma3ForConditionalGeneration, LlamaConfig

SPECIALS = ("<|pad|>", "<|im_start|>", "<|im_end|>", "<|endoftext|>")
START, END, TEXT_END = 1, 2, 3
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
TEXTS = ("the cat sat on the mat and 12345 dogs ran", "numbers 100 2000 30000 are not words", "def f(x): return x + 22")
SMALL: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 256, "initializer_range": 0.3,
    "bos_token_id": None, "eos_token_id": END, "pad_token_id": 0,
}  # fmt: skip
VARIED = "Hello 12345 na\u00efve e\u0301 \u4f60\u597d don't\n\n x=1+22;\t<|im_start|>user\nhi<|im_end|>\n"


def byte_level(single_digits: bool = False, extra: tuple[str, ...] = ()) -> Core:
    """A byte-level BPE tokenizer with merges of its own; with `single_digits` every digit is a token."""
    core = Core(models.BPE())
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False)
    first: Any = pre_tokenizers.Digits(individual_digits=True)
    core.pre_tokenizer = pre_tokenizers.Sequence([first, bytes_only]) if single_digits else bytes_only
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=340, special_tokens=[*SPECIALS, *extra], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    # The merges are learnt without the digits apart, so that a text with them shows who applies the pre-tokenizer.
    plain = Core(models.BPE())
    plain.pre_tokenizer = bytes_only
    plain.train_from_iterator(TEXTS * 20, trainer)
    raw, learnt = json.loads(core.to_str()), json.loads(plain.to_str())
    return Core.from_str(json.dumps({**raw, "model": learnt["model"], "added_tokens": learnt["added_tokens"]}))


def write_tokenizer(folder: Path, core: Core, **config: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    core.save(str(folder / "tokenizer.json"))
    named = {"eos_token": "<|im_end|>", "pad_token": "<|pad|>", "chat_template": CHATML, "model_max_length": 256}
    (folder / "tokenizer_config.json").write_text(json.dumps({**named, **config}))


def write_model(folder: Path, config: Any = None, core: Core | None = None, **tokenizer_config: Any) -> Any:
    """A model with random weights, a Llama unless another configuration is given, and its tokenizer."""
    core = core or byte_level()
    config = config or LlamaConfig(**{**SMALL, "vocab_size": core.get_vocab_size()})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    model.save_pretrained(folder)
    write_tokenizer(folder, core, **tokenizer_config)
    return model


def write_vision_language(folder: Path, core: Core) -> Any:
    """A model that sees images, as Gemma 3 from 4B on, and its tokenizer."""
    text = {**SMALL, "vocab_size": core.get_vocab_size(), "num_hidden_layers": 2, "sliding_window": 16}
    sight = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Gemma3Config(
        text_config=text, vision_config={**sight, "image_size": 28, "patch_size": 14}, mm_tokens_per_image=4,
        image_token_index=300,
    )  # fmt: skip
    torch.manual_seed(0)
    model = Gemma3ForConditionalGeneration(config).eval()
    model.save_pretrained(folder)
    write_tokenizer(folder, core)
    return model


def change(path: Path, **fields: Any) -> None:
    """Other fields in a JSON file; None takes one away."""
    values = {**(json.loads(path.read_text()) if path.exists() else {}), **fields}
    path.write_text(json.dumps({name: value for name, value in values.items() if value is not None}))
