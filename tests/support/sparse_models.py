"""Model folders of published shapes whose weights, all zeros in a sparse file, take no room on the disk."""

from __future__ import annotations

import hashlib
import json
import math
import os
from pathlib import Path

from adpa_cli.families import published
from adpa_cli.sizes import ModelSize
from adpa_cli.store.identity import HashCache
from support.model_folders import byte_level, write_tokenizer

SPECIALS = (
    "<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<end_of_turn>",
)  # fmt: skip
LLAMA_70B = ModelSize(
    parameters=70_553_706_496, hidden=8192, layers=80, inner=28672, keys=1024, width=8192, vocabulary=128_256,
    tied=False,
)  # fmt: skip
"""Llama-3.1-70B."""
LONG_AGO = 1_700_000_000
"""When the weights were written, in Unix seconds: what is remembered of a younger file is not believed."""


def shapes_of(size: ModelSize) -> dict[str, tuple[int, ...]]:
    """The tensors of a Llama of a size, by name."""
    hidden, inner, width, keys = size.hidden, size.inner, size.width, size.keys
    layer = {
        "self_attn.q_proj": (width, hidden), "self_attn.k_proj": (keys, hidden), "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, width), "mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner), "input_layernorm": (hidden,), "post_attention_layernorm": (hidden,),
    }  # fmt: skip
    layers = {f"layers.{n}.{name}": shape for n in range(size.layers) for name, shape in layer.items()}
    ends = {"embed_tokens": (size.vocabulary, hidden), "norm": (hidden,)}
    named = {f"model.{name}.weight": shape for name, shape in {**ends, **layers}.items()}
    return named if size.tied else {**named, "lm_head.weight": (size.vocabulary, hidden)}


def write_weights(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """A safetensors file of zeros in bfloat16, of which only the header is written."""
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": (start, end)}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    os.utime(path, (LONG_AGO, LONG_AGO))


def write_sparse(folder: Path, alias: str, template: str = "", size: ModelSize | None = None) -> Path:
    """A Llama of the size of a published model or ready pair, or of another; its tokenizer is small, with Llama's
    special tokens."""
    size = size or published()[alias].size
    write_tokenizer(
        folder, byte_level(extra=SPECIALS), chat_template=template, bos_token=SPECIALS[0], eos_token=SPECIALS[1],
        model_max_length=131_072,
    )  # fmt: skip
    heads = size.width // 64
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "bfloat16", "head_dim": 64,
        "hidden_size": size.hidden, "intermediate_size": size.inner, "num_hidden_layers": size.layers,
        "num_attention_heads": heads, "num_key_value_heads": size.keys // 64, "vocab_size": size.vocabulary,
        "tie_word_embeddings": size.tied, "max_position_embeddings": 131_072,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    write_weights(folder / "model.safetensors", shapes_of(size))
    return folder


def weights_digest(folder: Path) -> str:
    """What stands for the sha256 of the weights, gigabytes that nobody needs to read: that of the folder's name."""
    return hashlib.sha256(folder.name.encode()).hexdigest()


def remember_weights(folder: Path, cache: HashCache) -> None:
    """Let a cache know the digest of the weights."""
    path = folder / "model.safetensors"
    stat = path.stat()
    cache.put(path, (stat.st_size, stat.st_mtime_ns, stat.st_ino), weights_digest(folder))
