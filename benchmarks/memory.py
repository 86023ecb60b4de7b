"""How much memory a capture takes: measured on a model that fits here, and scaled to Llama-3.1-8B.

The model has random bfloat16 weights in Llama-3.1-8B's proportions, a quarter of its widths and vocabulary and 8 of its
32 layers, in a folder of shards as the hub has them. Everything is MB of 10^6 bytes, GB of 10^9.

Measured on the CPU, each time in a new process, by a look at /proc/self/status every millisecond:
- Loading in each dtype, of five times the one with the highest peak, for a look may come too late. Beyond what the
  process has with torch and transformers loaded (`python_mb`), `load_peak_mb` is the most memory of its own (RssAnon)
  meanwhile, `held_mb` what is in use afterwards, `host_extra_mb` the first less the second, `mapped_mb` pages of files
  that stay mapped (RssFile), those of weights held as they are stored among them. Bytes a weight are counted from the
  tensors of body, embedding and head.
- Both passes of the stage over a block of `--tokens` in the default dtype, rows of 2,048, half of their tokens answers:
  `capture_peak_mb` is the most memory of all kinds (VmRSS), Python's with it.

Computed: `estimate_mb` is the plan's for that capture, `estimate_row_mb` for a block of one row. A CPU passes the rows
of such a block one by one and a card all at once, so what a layer makes of a whole block cannot be measured here.
`capture_8b_gb` is what a capture of Llama-3.1-8B takes on a card at the default block (bar 22): its weights at the
bytes a weight measured here, and by the plan's formula the activations, and
the context of the card. `estimate_8b_gb` is the plan's own figure. `held_to_estimate` is the same of weights alone, at
the small shape.

Loading goes tensor by tensor and each is 16 times as large in Llama-3.1-8B, so `host_extra_8b_gb` is 16 times
`host_extra_mb` (bar 2). For that the processes that load give every freed block of 2 MiB back to the system, a 16th of
the 32 MiB from which glibc always does; the one that captures does as usual.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, get_args

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

from adpa_cli.engine.capture import aligned_pass, reference_pass
from adpa_cli.engine.costs import Held, frozen, scoring_memory
from adpa_cli.engine.layout.examples import Answer
from adpa_cli.engine.models import body_and_head, load_checked
from adpa_cli.families import published
from adpa_cli.hub.model_folder import ModelFolder
from adpa_cli.signal.rows import AnswerKey, token_hash
from adpa_cli.sizes import ModelSize, Row, Rows, Where
from adpa_cli.spec import Dtype
from adpa_cli.stages.cache_teacher import CaptureSpec

SHAPE: dict[str, Any] = {"vocab_size": 32_064, "hidden_size": 1024, "intermediate_size": 3584, "num_hidden_layers": 8,
         "num_attention_heads": 8, "num_key_value_heads": 2, "rope_theta": 500_000.0}  # fmt: skip
LARGE = "llama-3.1-8b"
DTYPES: tuple[Dtype, ...] = ("float16", "bfloat16", "float32")
LOADS = 5
K, LONGEST = CaptureSpec.top_k, CaptureSpec.max_length


class Resident:
    """Around some work: `most` is afterwards the most bytes of a kind that the process had resident."""

    def __init__(self, kind: str) -> None:
        self.kind, self.most, self.done = kind, resident(kind), threading.Event()

    def __enter__(self) -> Resident:
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.done.set()
        self.thread.join()
        self.most = max(self.most, resident(self.kind))

    def _watch(self) -> None:
        while not self.done.wait(0.001):
            self.most = max(self.most, resident(self.kind))


def resident(kind: str) -> int:
    """Bytes of this process's RssAnon, RssFile or VmRSS."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{kind}:"):
            return 1024 * int(line.split()[1])
    raise SystemExit(f"/proc/self/status has no {kind}: this benchmark needs Linux 4.5 or later")


def make(folder: Path) -> None:
    """The model, in shards as large a part of it as 5 GB are of Llama-3.1-8B."""
    quiet: Any = logging
    quiet.disable_progress_bar()
    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(LlamaConfig(**SHAPE, max_position_embeddings=4096, tie_word_embeddings=False))
    model.to(torch.bfloat16).save_pretrained(folder, max_shard_size="100MB")


def block(tokens: int) -> list[Answer]:
    """Both answers to one prompt after another, in rows of `LONGEST` tokens that are `tokens` together."""
    rng, rows = np.random.default_rng(0), []
    for number in range(max(1, tokens // (2 * LONGEST))):
        prompt = tuple(rng.integers(5, SHAPE["vocab_size"], LONGEST // 2).tolist())
        for part in ("chosen", "rejected"):
            answer = tuple(rng.integers(5, SHAPE["vocab_size"], LONGEST - len(prompt)).tolist())
            rows.append(Answer(AnswerKey(str(number), part, token_hash(prompt, answer)), prompt, answer))
    return rows


def bytes_per_weight(model: Any) -> dict[str, float]:
    """Of the body, the embedding and the head, as a loaded model holds them."""
    embedding, head = model.get_input_embeddings().weight, body_and_head(model)[1]
    body = [weight for weight in model.parameters() if weight is not embedding and weight is not head]
    groups = {"body": body, "embedding": [embedding], "head": [head]}
    return {name: sum(w.nbytes for w in held) / sum(w.numel() for w in held) for name, held in groups.items()}


def loading(folder: Path, dtype: Dtype) -> dict[str, Any]:
    """What this process takes to load the model."""
    torch.set_num_threads(1)  # another core is left to watch
    before, mapped = resident("RssAnon"), resident("RssFile")
    with Resident("RssAnon") as watch:
        model = load_checked(folder, dtype=dtype)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # small blocks that were freed are in use no more
    held = resident("RssAnon")
    return {
        "python_mb": mb(before), "load_peak_mb": mb(watch.most - before), "held_mb": mb(held - before),
        "mapped_mb": mb(resident("RssFile") - mapped), "host_extra_mb": mb(watch.most - held),
        "host_extra_share": round((watch.most - held) / (held - before), 3),
        "tensors_mb": mb(sum(weight.nbytes for weight in model.parameters())),
        "bytes_per_weight": bytes_per_weight(model),
    }  # fmt: skip


def capturing(folder: Path, dtype: Dtype, tokens: int) -> dict[str, Any]:
    """What this process takes in all to capture a block, once the model is loaded."""
    model, answers, start = load_checked(folder, dtype=dtype), block(tokens), time.perf_counter()
    with Resident("VmRSS") as watch:
        rows = aligned_pass(model, answers, K, teacher="aligned", dtype=dtype)
        reference_pass(model, answers, rows, teacher="reference", dtype=dtype)
    return {"capture_peak_mb": mb(watch.most), "capture_s": round(time.perf_counter() - start, 1)}


def weights(size: ModelSize, held: dict[str, float], dtype: Dtype, kind: str) -> float:
    """Bytes of a model at measured bytes a weight, and of the largest weight as a product reads it."""
    read = 4 * size.hidden * size.inner if (dtype, kind) == ("float16", "cpu") else 0  # as float32; others as they are
    return held["body"] * size.body + (held["embedding"] + held["head"]) * size.head + read


def estimate(size: ModelSize, rows: int, dtype: Dtype, kind: str) -> int:
    """Bytes that the plan says a capture of a block of rows takes."""
    given: Rows = {"chosen": [Row(LONGEST / 2, LONGEST / 2)] * rows}
    return scoring_memory(size, given, Held(dtype), rows * LONGEST, 1 + K, Where(kind)).device


def scaled(held: dict[str, dict[str, float]]) -> dict[str, Any]:
    """A capture of the large model on a card at the default block, by dtype: weights as measured, and by formula."""
    size, rows, result = published()[LARGE].size, CaptureSpec.block_tokens // LONGEST, dict[str, Any]()
    for dtype in DTYPES:
        formula, own = estimate(size, rows, dtype, "cuda"), weights(size, held[dtype], dtype, "cuda")
        estimated = frozen(size, Held(dtype), Where("cuda"))
        result[dtype] = {
            "capture_gb": gb(formula - estimated + own), "estimate_gb": gb(formula), "weights_gb": gb(own),
            "estimated_weights_gb": gb(estimated),
        }  # fmt: skip
    return result


def mb(count: float) -> float:
    return round(count / 1e6, 1)


def gb(count: float) -> float:
    return round(count / 1e9, 2)


def apart(folder: Path, dtype: Dtype, tokens: int = 0) -> Any:
    """What a process of its own measures: loading, or the capture of `tokens`."""
    words = [sys.executable, __file__, "--folder", str(folder), "--dtype", dtype, "--tokens", str(tokens)]
    how = {} if tokens else {"MALLOC_MMAP_THRESHOLD_": str(2 * 2**20)}
    return json.loads(subprocess.run(words, check=True, stdout=subprocess.PIPE, env=os.environ | how).stdout)


def run(tokens: int) -> dict[str, Any]:
    """All that is measured and computed."""
    default, rows = DTYPES[0], len(block(tokens))
    with tempfile.TemporaryDirectory() as name:
        make(Path(name))
        size = ModelFolder.of(Path(name)).size
        loaded = {
            dtype: max((apart(Path(name), dtype) for _ in range(LOADS)), key=lambda found: found["load_peak_mb"])
            for dtype in DTYPES
        }
        captured = apart(Path(name), default, tokens)
    for dtype, found in loaded.items():
        own = weights(size, found["bytes_per_weight"], dtype, "cpu")
        found["held_to_estimate"] = round(own / frozen(size, Held(dtype), Where()), 4)
    large, usual = scaled({dtype: found["bytes_per_weight"] for dtype, found in loaded.items()}), loaded[default]
    factor = published()[LARGE].size.head / size.head
    return {
        "capture_8b_gb": large[default]["capture_gb"], "estimate_8b_gb": large[default]["estimate_gb"],
        "host_extra_mb": usual["host_extra_mb"], "host_extra_8b_gb": gb(1e6 * factor * usual["host_extra_mb"]),
        "held_bytes_per_body_weight": round(usual["bytes_per_weight"]["body"], 4), "dtype": default, **captured,
        "estimate_mb": mb(estimate(size, rows, default, "cpu")),
        "estimate_row_mb": mb(estimate(size, 1, default, "cpu")), "loading": loaded,
        "scaled": {"model": LARGE, "block_tokens": CaptureSpec.block_tokens, **large},
        "tokens": rows * LONGEST, "parameters": size.parameters, "shape": SHAPE,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--tokens", type=int, default=CaptureSpec.block_tokens, help=f"to capture [{CaptureSpec.block_tokens}]"
    )
    parser.add_argument("--folder", type=Path, help="only what one process does: capture, with --tokens 0 load")
    parser.add_argument("--dtype", choices=get_args(Dtype), default=DTYPES[0], help=f"of the --folder [{DTYPES[0]}]")
    asked = parser.parse_args()
    if asked.folder:
        own = (asked.folder, asked.dtype)
        print(json.dumps(capturing(*own, asked.tokens) if asked.tokens else loading(*own)))
        return
    if asked.tokens < 1:
        parser.error("--tokens must be at least 1 without --folder")
    result = run(asked.tokens)
    if asked.json:
        print(json.dumps(result, indent=2))
    else:
        for key, value in result.items():
            print(f"{key:28} {value}")


if __name__ == "__main__":
    main()
