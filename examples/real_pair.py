"""Make a real model folder of a GGUF file, and data to train it on, for `real_chain.py`.

    python examples/real_pair.py SmolLM2-135M-Instruct.Q4_1.gguf ./real
    makes ./real/base, ./real/pairs.jsonl and ./real/dialogues.jsonl

`adpa` reads safetensors. This is the way from a GGUF file to such a folder, for models of the architecture `llama`
with a byte-level tokenizer. The weights are rounded ones and stay so: for trying things out, not for results. The
folder says what the publisher's says, the class of the tokenizer included. It needs `pip install gguf`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

NAMES = {
    "token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head",
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
"""What GGUF calls the weights of a Llama, and what transformers calls them."""
CONTROL = 3
"""The type of a token that is parsed before the text is cut."""
CUTS = {
    "smollm": [
        pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    ]
}  # fmt: skip
"""How a text is cut into words: GGUF has a name for it and nothing more."""

CAPITALS = {
    "Austria": "Vienna", "Chile": "Santiago", "Egypt": "Cairo", "Finland": "Helsinki", "Greece": "Athens",
    "Hungary": "Budapest", "Ireland": "Dublin", "Japan": "Tokyo", "Kenya": "Nairobi", "Norway": "Oslo",
    "Peru": "Lima", "Poland": "Warsaw", "Portugal": "Lisbon", "Spain": "Madrid", "Sweden": "Stockholm",
    "Thailand": "Bangkok",
}  # fmt: skip
OPPOSITES = {
    "hot": "cold", "early": "late", "empty": "full", "heavy": "light", "loud": "quiet", "narrow": "wide",
    "rough": "smooth", "shallow": "deep", "strong": "weak", "sweet": "bitter", "thick": "thin", "young": "old",
}  # fmt: skip
PLURALS = {
    "child": "children", "foot": "feet", "goose": "geese", "knife": "knives", "leaf": "leaves", "man": "men",
    "mouse": "mice", "ox": "oxen", "tooth": "teeth", "wolf": "wolves",
}  # fmt: skip
COLOURS = {
    "a banana": "yellow", "grass": "green", "snow": "white", "coal": "black", "the sky at noon": "blue",
    "a ripe tomato": "red", "a carrot": "orange", "an elephant": "grey", "chocolate": "brown", "a lime": "green",
}  # fmt: skip


def config(fields: dict[str, Any]) -> dict[str, Any]:
    """config.json of a Llama, under the names of transformers 4, which every version reads."""
    of = {key.partition(".")[2]: value for key, value in fields.items() if key.startswith("llama.")}
    heads, width = of["attention.head_count"], of["embedding_length"]
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16", "hidden_act": "silu",
        "vocab_size": len(fields["tokenizer.ggml.tokens"]), "hidden_size": width, "num_attention_heads": heads,
        "num_key_value_heads": of["attention.head_count_kv"], "head_dim": width // heads,
        "num_hidden_layers": of["block_count"], "intermediate_size": of["feed_forward_length"],
        "max_position_embeddings": of["context_length"], "rope_theta": of["rope.freq_base"],
        "rms_norm_eps": round(of["attention.layer_norm_rms_epsilon"], 12), "attention_bias": False, "mlp_bias": False,
        "bos_token_id": fields["tokenizer.ggml.bos_token_id"], "eos_token_id": fields["tokenizer.ggml.eos_token_id"],
        "pad_token_id": fields["tokenizer.ggml.padding_token_id"],
    }  # fmt: skip


def weights(tensors: Sequence[Any], heads: int, key_heads: int) -> dict[str, torch.Tensor]:
    """The tensors of a Llama in bfloat16, by the names of transformers."""
    from gguf import dequantize

    made = {}
    for tensor in tensors:
        *block, kind, last = tensor.name.split(".")  # blk.0.attn_q.weight, token_embd.weight
        values = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
        if kind in ("attn_q", "attn_k"):  # GGUF has the two halves of a rotation side by side, transformers apart
            count = heads if kind == "attn_q" else key_heads
            values = values.view(count, -1, 2, values.shape[-1]).transpose(1, 2).reshape(values.shape)
        layer = f"model.layers.{block[1]}." if block else ""
        made[f"{layer}{NAMES[kind]}.{last}"] = values.to(torch.bfloat16).contiguous()
    return made


def tokenizer(fields: dict[str, Any]) -> Tokenizer:
    """The tokenizer of a GGUF file. Raises SystemExit for one that is cut in a way that is not known here."""
    kind, cut = fields["tokenizer.ggml.model"], fields.get("tokenizer.ggml.pre", "")
    if kind != "gpt2" or cut not in CUTS:
        raise SystemExit(f"error: a tokenizer {kind}/{cut} is not known here, only gpt2/{', '.join(CUTS)}")
    tokens = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    made = Tokenizer(models.BPE({token: id_ for id_, token in enumerate(tokens)}, merges))
    made.pre_tokenizer = pre_tokenizers.Sequence(CUTS[cut])
    made.decoder = decoders.ByteLevel()
    types = zip(tokens, fields["tokenizer.ggml.token_type"], strict=True)
    made.add_special_tokens([AddedToken(token, special=True) for token, type_ in types if type_ == CONTROL])
    return made


def write_base(file: Path, folder: Path) -> None:
    """Write the model folder of a GGUF file."""
    from gguf import GGUFReader

    reader = GGUFReader(file)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    if fields["general.architecture"] != "llama":
        raise SystemExit(f"error: {file} is a {fields['general.architecture']}, and only llama is known here")
    folder.mkdir(parents=True, exist_ok=True)
    said = config(fields)
    tensors = weights(reader.tensors, said["num_attention_heads"], said["num_key_value_heads"])
    said["tie_word_embeddings"] = "lm_head.weight" not in tensors
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    tokenizer(fields).save(str(folder / "tokenizer.json"))
    ids = {name: fields[f"tokenizer.ggml.{name}_token_id"] for name in ("bos", "eos", "unknown", "padding")}
    token = {name: fields["tokenizer.ggml.tokens"][id_] for name, id_ in ids.items()}
    named = {
        "bos_token": token["bos"], "eos_token": token["eos"], "unk_token": token["unknown"],
        "pad_token": token["padding"], "tokenizer_class": "GPT2Tokenizer", "model_max_length": 8192,
        "clean_up_tokenization_spaces": False, "chat_template": fields["tokenizer.chat_template"],
    }  # fmt: skip
    stops = {"bos_token_id": ids["bos"], "eos_token_id": ids["eos"], "pad_token_id": ids["padding"]}
    written = ("config.json", said), ("tokenizer_config.json", named), ("generation_config.json", stops)
    for name, content in written:
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def pairs() -> Iterator[tuple[str, str, str]]:
    """Questions with a better answer, which is right and a whole sentence, and a worse one."""
    for country, city in CAPITALS.items():
        other = next(c for c in reversed(CAPITALS.values()) if c != city)
        yield f"What is the capital of {country}?", f"The capital of {country} is {city}.", f"It might be {other}."
    for word, opposite in OPPOSITES.items():
        better, worse = f'The opposite of "{word}" is "{opposite}".', f'There is no opposite of "{word}".'
        yield f'What is the opposite of "{word}"?', better, worse
    for word, plural in PLURALS.items():
        yield f'What is the plural of "{word}"?', f'The plural of "{word}" is "{plural}".', f"{word}s, as always!!!"
    for thing, colour in COLOURS.items():
        better, worse = f"{thing[0].upper()}{thing[1:]} is {colour}.", "Colours are a matter of taste, I would say."
        yield f"Which colour is {thing}?", better, worse
    for n in range(12, 28):
        yield f"How much is {n} plus {n + 19}?", f"{n} + {n + 19} = {2 * n + 19}.", f"About {2 * n + 31}, I think."


def dialogues() -> Iterator[list[dict[str, str]]]:
    """Two questions in one dialogue, every other one under rules of its own."""
    asked = list(pairs())
    for number, (first, second) in enumerate(zip(asked[::2], asked[1::2], strict=True)):
        rules = [{"role": "system", "content": "You answer in one short sentence."}] if number % 2 else []
        turns = [{"role": role, "content": text} for pair in (first, second) for role, text in zip(
            ("user", "assistant"), pair, strict=False)]  # fmt: skip
        yield rules + turns


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the model folder and both files of data; their paths go to stdout."""
    parser = argparse.ArgumentParser(description="Make a model folder of a GGUF file, and data to train it on.")
    parser.add_argument("file", type=Path, help="a GGUF file of the architecture llama")
    parser.add_argument("out", type=Path, help="where base, pairs.jsonl and dialogues.jsonl go")
    asked = parser.parse_args(arguments)
    write_base(asked.file, asked.out / "base")
    rows = {
        "pairs.jsonl": [{"prompt": p, "chosen": c, "rejected": r} for p, c, r in pairs()],
        "dialogues.jsonl": [{"messages": turns} for turns in dialogues()],
    }
    for name, lines in rows.items():
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        (asked.out / name).write_text(text, encoding="utf-8")
    for name in ("base", *rows):
        print(asked.out / name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
