"""Captures as other tools write them, made by their documentation: what `adpa import` is tested on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

DOCUMENTED = """\
d: {d}
k: 12
exact_k: 4   # the values that are stored as they are
exact_dtype: bfloat16
polynomial_terms: [0, 1, "sqrt"]
term_dtype: float32
residual_bins:
- scale_dtype: float16
  element_bits: 8
  num_elements: 5
- element_bits: 3
  num_elements: 2
  scale_dtype: float32
delta_encoding: false
error_diffusion: false
"""


def bits(numbers: list[int], width: int) -> list[int]:
    """Integers as one stream of bits, highest first, filled up to whole bytes."""
    text = "".join(format(number, f"0{width}b") for number in numbers)
    text += "0" * (-len(text) % 8)
    return [int(text[i : i + 8], 2) for i in range(0, len(text), 8)]


def half(value: float) -> np.float32:
    """Rounded to bfloat16: the upper half of a float32."""
    return np.float32(np.frombuffer(np.float32(value).tobytes()[2:].rjust(4, b"\0"), "<f4")[0])


def encoded(logps: list[float]) -> tuple[list[int], list[float]]:
    """One position under DOCUMENTED: its bytes, and the values that they stand for."""
    exact = [half(value) for value in logps[:4]]
    data = b"".join(value.tobytes()[2:] for value in exact)
    t = np.arange(8, dtype=np.float64)
    curve = np.stack([t**0, t, np.sqrt(t)], axis=1)
    factors = np.linalg.lstsq(curve, np.array(logps[4:]), rcond=None)[0].astype("<f4")
    data += factors.tobytes()
    values = [float(value) for value in curve @ factors.astype(np.float64)]
    start = 0
    for kind, width, count in (("<f2", 8, 5), ("<f4", 3, 2)):
        left = [logps[4 + start + i] - values[start + i] for i in range(count)]
        scale = np.array([max(max(map(abs, left)) / 2 ** (width - 1), 1e-6)], dtype=kind)
        low, high = -(2 ** (width - 1)), 2 ** (width - 1) - 1
        numbers = [min(high, max(low, round(value / float(scale[0])))) for value in left]
        data += scale.tobytes() + bytes(bits([number - low for number in numbers], width))
        for i, number in enumerate(numbers):
            values[start + i] += number * float(scale[0])
        start += count
    return list(data), [*map(float, exact), *values]


@dataclass(frozen=True)
class Sequences:
    """The answers of the pipeline's pairs under its tokenizer, with made-up teachers."""

    model: str
    size: int
    rows: list[tuple[str, str, list[int], list[int]]]
    """Example id, part, prompt ids, answer ids."""


def ranked(rng: np.random.Generator, size: int, k: int) -> tuple[list[int], list[float]]:
    logits = rng.normal(0, 3, size)
    logps = logits - np.log(np.exp(logits).sum())
    order = np.argsort(-logps)[:k]
    return order.tolist(), logps[order].tolist()


def write_capture(folder: Path, made: Sequences) -> dict[tuple[str, str], list[tuple[list[int], list[float]]]]:
    """A DistillKit capture of the sequences, with a padding token behind; by answer, what each position holds."""
    folder.mkdir()
    (folder / "compression_config.yaml").write_text(DOCUMENTED.format(d=made.size))
    rng, width = np.random.default_rng(0), int(np.ceil(np.log2(made.size)))
    columns: dict[str, list[Any]] = {"input_ids": [], "compressed_logprobs": [], "bytepacked_indices": []}
    expected = {}
    for example, part, prompt, answer in made.rows:
        tokens = [*prompt, *answer, 0]
        codes, packed, values = [], [], []
        for _ in tokens[1:]:
            ids, logps = ranked(rng, made.size, 12)
            code, meant = encoded(logps)
            codes.append(code)
            packed.append(bits(ids, width))
            values.append((ids, meant))
        for name, value in zip(columns, (tokens, codes, packed), strict=True):
            columns[name].append(value)
        expected[example, part] = values[len(prompt) - 1 :][: len(answer)]
    lists = {"input_ids": pa.list_(pa.uint64()), "compressed_logprobs": pa.list_(pa.list_(pa.uint8()))}
    lists["bytepacked_indices"] = lists["compressed_logprobs"]
    pq.write_table(pa.table({name: pa.array(v, lists[name]) for name, v in columns.items()}), folder / "data_0.parquet")
    return expected


def completion(tokenizer: Any, answer: list[int], rng: np.random.Generator, size: int) -> dict[str, Any]:
    """A chat completion; its tokens told by id, by bytes or by text in turn."""
    content = []
    for t, label in enumerate(answer):
        ids, logps = ranked(rng, size, 5 - (t == 1))

        def entry(token: int, logp: float, kind: int = t % 3) -> dict[str, Any]:
            text = tokenizer.convert_ids_to_tokens(token)
            told = (f"token_id:{token}", "?", text)[kind]
            return {"token": told, "logprob": logp, "bytes": list(text.encode()) if kind == 1 else None}

        own = dict(zip(ids, logps, strict=True)).get(label, -30.0)
        content.append({**entry(label, own), "top_logprobs": [entry(*x) for x in zip(ids, logps, strict=True)]})
    return {"choices": [{"logprobs": {"content": content}}]}
