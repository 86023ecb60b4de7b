"""How fast `cache-teacher` captures, beside the bare forward of the same answers.

A Llama of random weights, 768 wide, 12 layers, V = 32,000 in float32; on a GPU Llama-3.1-8B's shape under bfloat16.
Pairs of answers to one prompt, half of all tokens prompts. *Capture* is the stage itself, from tokens to shards on
disk: the blocks that it cuts, top 50, quantised, compressed. *Bare* is the decoder over each answer behind its own
prompt, one at a time, on a GPU in blocks of the same size, and the logits at answer positions, thrown away. Both are
timed in turn, over and over; speeds are of all tokens given, a prompt counted with each of its answers; `ratio` is the
median over rounds.

`--model FOLDER` takes a real model instead, and with `--data FILE` the pairs of a file under its template. *Dense* is
then the bare forward with the log-softmax of its logits, their top 50 and the label's log-prob kept; `ratio_to_dense`
is the cpu-seconds of capture over those of dense, which `--threads 1` makes independent of what else runs.

`peak_extra_mb` is the most memory that capture holds beside the decoder's states, for as many answer tokens as are a
tile of logits, and for 4 and 8 times as many.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, get_args

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import torch
from common.memory import Peak
from transformers import LlamaConfig, LlamaForCausalLM

from adpa_cli.data.tables import table
from adpa_cli.engine.layout.examples import Answer, Answers, answers_for
from adpa_cli.engine.layout.micro_batches import cut_blocks
from adpa_cli.engine.layout.shared_prompt import answer_rows, states
from adpa_cli.engine.layout.tokenised import PAIR, rows_batch, schema
from adpa_cli.engine.models import body_and_head, load
from adpa_cli.hub import Located
from adpa_cli.planning.chat_templates import NO_CHOICE, template_in
from adpa_cli.signal.rows import AnswerKey, token_hash
from adpa_cli.spec import Dtype, hashed
from adpa_cli.stages import Job, Monitor, cache_teacher
from adpa_cli.stages.cache_teacher import CaptureSpec
from adpa_cli.tensors.output import Head, tile_rows
from adpa_cli.tensors.sums import split, top_ids

K = 50
CPU = {"vocab_size": 32_000, "hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12,
       "num_attention_heads": 12, "num_key_value_heads": 12}  # fmt: skip
GPU = {"vocab_size": 128_256, "hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32,
       "num_attention_heads": 32, "num_key_value_heads": 8, "rope_theta": 500_000.0}  # fmt: skip
"""Llama-3.1-8B."""


def model(shape: dict[str, Any]) -> LlamaForCausalLM:
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        made = LlamaForCausalLM(LlamaConfig(**shape, max_position_embeddings=4096, initializer_range=0.05))
    return made.eval().requires_grad_(False)


def pairs(count: int, mean: int, vocabulary: int) -> list[Answer]:
    """Two answers to each of `count` prompts, log-normal around `mean` tokens, and a prompt as long as their mean."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(count):
        lengths = np.clip(rng.lognormal(np.log(mean), 0.4, 2), 8, 4 * mean).astype(int)
        prompt = tuple(rng.integers(5, vocabulary, int(lengths.sum()) // 2).tolist())
        for part, length in zip(("chosen", "rejected"), lengths, strict=True):
            answer = tuple(rng.integers(5, vocabulary, int(length)).tolist())
            rows.append(Answer(AnswerKey(f"{number:016x}", part, token_hash(prompt, answer)), prompt, answer))
    return rows


def held(rows: list[Answer]) -> Answers:
    """Answers to prompts, two to each, or first ones and then second ones, in a mapped table."""
    sides = {part: [row for row in rows if row.key.part == part] for part in PAIR}
    made = [
        {"id": int(good.key.example_id, 16), "prompt": good.prompt,
         **{row.key.part: row.answer for row in (good, bad)}, **{f"{row.key.part}_cut": False for row in (good, bad)},
         **{f"{row.key.part}_hash": bytes.fromhex(row.key.tokens) for row in (good, bad)}}
        for good, bad in zip(*sides.values(), strict=True)
    ]  # fmt: skip

    def fill(add: Callable[[Any], None]) -> dict[str, Any]:
        add(rows_batch(made, schema(PAIR)))
        return {}

    return Answers(table("answers", None, schema(PAIR), fill), PAIR)


def capture(job: Job, rows: list[Answer], teacher: Any) -> None:
    """The stage with its rows and its loaded teacher at hand."""
    import adpa_cli.engine.models as models

    kept = cache_teacher.answers_of, models.load
    cache_teacher.answers_of, models.load = lambda *_: held(rows), lambda *_, **__: teacher
    try:
        with tempfile.TemporaryDirectory(dir=job.work) as folder:
            own = Job(**{**vars(job), "work": folder})
            cache_teacher.compute(own, Monitor())
            cache_teacher.finish(own)
    finally:
        cache_teacher.answers_of, models.load = kept


@torch.no_grad()
def bare(rows: list[Answer], teacher: Any, spec: CaptureSpec, *, dense: bool = False) -> list[Any]:
    """The decoder and the head at answer positions; with `dense` what is kept of each answer of these, else nothing."""
    head, kept = body_and_head(teacher)[1], []
    tokens = spec.block_tokens if head.is_cuda else 1  # a longer row has a block of its own
    for block in cut_blocks(rows, lambda a: len(a.prompt) + len(a.answer), lambda a: str(a.key), tokens):
        layout = answer_rows(block.items, share=False)
        hidden = states(teacher, layout, spec.dtype)[layout.where.to(head.device)]
        logits = torch.nn.functional.linear(hidden.to(head.dtype), head)
        if dense:
            labels = torch.tensor([token for answer in block.items for token in answer.answer], device=head.device)
            logps = logits.float().log_softmax(1)
            best, label = logps.topk(K), logps.gather(1, labels[:, None])
            kept.append([tensor.cpu().numpy() for tensor in (*best, label)])
        float(logits[-1, -1])  # waits for a GPU
    return kept


def extra_mb(teacher: Any, positions: int) -> float:
    """MB that a pass holds at once beside its input, [positions, H], and its output."""
    _, weight, _ = body_and_head(teacher)
    hidden = torch.randn(positions, weight.shape[1], device=weight.device)
    where = torch.arange(positions, device=weight.device)

    def work() -> None:
        for span, logits in Head(weight).rows(hidden):
            ids = top_ids(logits, K)
            split(logits, torch.cat([where[span, None] % weight.shape[0], ids], 1))

    with Peak() as peak:
        work()
    return peak.bytes / 2**20


def measure(job: Job, spec: CaptureSpec, rows: list[Answer], teacher: Any, rounds: int, dense: bool) -> dict[str, Any]:
    """Medians over rounds in which all are timed, the first of them by turns."""
    work: dict[str, Callable[[], Any]] = {
        "capture": lambda: capture(job, rows, teacher), "bare": lambda: bare(rows, teacher, spec)
    }  # fmt: skip
    if dense:
        work["dense"] = lambda: bare(rows, teacher, spec, dense=True)
    seconds: dict[str, list[float]] = {name: [] for name in work}
    cpu: dict[str, list[float]] = {name: [] for name in work}
    for n in range(-1, rounds):
        for name in sorted(work, reverse=bool(n % 2)):
            start, used = time.perf_counter(), time.process_time()
            work[name]()
            if n >= 0:
                seconds[name].append(time.perf_counter() - start)
                cpu[name].append(time.process_time() - used)
    tokens = sum(len(row.prompt) + len(row.answer) for row in rows)
    speed = {name: tokens / statistics.median(found) for name, found in seconds.items()}
    ratios = [b / c for c, b in zip(seconds["capture"], seconds["bare"], strict=True)]
    result: dict[str, Any] = {
        "capture_tokens_per_s": round(speed["capture"], 1), "bare_forward_tokens_per_s": round(speed["bare"], 1),
        "ratio": round(statistics.median(ratios), 3), "ratio_rounds": [round(ratio, 3) for ratio in ratios],
        **{f"{name}_cpu_s": round(statistics.median(used), 2) for name, used in cpu.items()},
    }  # fmt: skip
    if dense:
        to_dense = [c / d for c, d in zip(cpu["capture"], cpu["dense"], strict=True)]
        result["ratio_to_dense"] = round(statistics.median(to_dense), 3)
    return result


def pairs_in(file: str, folder: Path, spec: CaptureSpec, count: int) -> list[Answer]:
    """Both answers of the first `count` pairs of a file, under the template of a model folder."""
    template = template_in(folder, NO_CHOICE)
    if template is None:
        raise SystemExit(f"{folder} has no chat template: leave --data out")
    own = replace(spec, template=template.text, end=template.end, limit=count)
    answers = answers_for(own, Located("data", "data:0", file, (file,)), "train", folder)
    return [*answers.chosen, *answers.rejected]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pairs", type=int, help="prompts with two answers each [4, of a model 32, on a GPU 128]")
    parser.add_argument("--apart", action="store_true", help="measure without sharing prompts too")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--model", type=Path, metavar="FOLDER", help="a real teacher, measured beside dense too")
    parser.add_argument("--data", metavar="FILE", help="preference pairs instead of random tokens, with --model")
    parser.add_argument("--dtype", choices=get_args(Dtype), help="of the --model [float32, on a GPU bfloat16]")
    asked = parser.parse_args()
    if (asked.data or asked.dtype) and not asked.model:
        parser.error("--data and --dtype need --model")
    torch.set_num_threads(asked.threads)
    gpu = torch.cuda.is_available()
    spec = CaptureSpec(
        ("chosen", "rejected"), "", "", dtype=asked.dtype or ("bfloat16" if gpu else "float32"), pair_precision=None,
        prompts="auto", block_tokens=16384 if gpu or asked.model else 2048,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        result = measured(asked, spec, name, gpu)
    if asked.json:
        print(json.dumps(result, indent=2))
    else:
        for key, value in result.items():
            print(f"{key:34} {value}")


def measured(asked: argparse.Namespace, spec: CaptureSpec, work: str, gpu: bool) -> dict[str, Any]:
    """All that was asked for; what is written meanwhile lies in the folder `work`."""
    count = asked.pairs or (128 if gpu else 32 if asked.model else 4)
    shape = GPU if gpu else CPU
    if asked.model:
        teacher: Any = load(asked.model, dtype=spec.dtype, device="cuda" if gpu else "cpu")
        shape = {"model": asked.model.name, "vocab_size": len(body_and_head(teacher)[1])}
    else:
        teacher = model(shape)
        (Path(work) / "config.json").write_text(json.dumps(shape))
    if asked.data:
        rows = pairs_in(asked.data, asked.model, spec, count)
    else:
        rows = pairs(count, 400 if gpu else 100 if asked.model else 60, shape["vocab_size"])
    where = Located("model", "model:0", "teacher", (str(asked.model or work),))
    job = Job("cache-teacher", "cache-teacher/benchmark", hashed(spec), {"aligned": (where,)}, work)
    result: dict[str, Any] = {"device": torch.cuda.get_device_name() if gpu else "cpu", "threads": asked.threads}
    result |= measure(job, spec, rows, teacher, asked.rounds, bool(asked.model))
    if asked.apart:
        # The same with every prompt computed as often as it is given.
        own = replace(job, spec={**job.spec, "prompts": "apart"})
        apart = measure(own, spec, rows, teacher, asked.rounds, bool(asked.model))
        result |= {f"{name}_apart": value for name, value in apart.items()}
    tile = tile_rows(shape["vocab_size"], teacher.device)
    sizes = {n: round(extra_mb(teacher, n), 1) for n in (tile, 4 * tile, 8 * tile)}
    result |= {"peak_extra_mb": max(sizes.values()), "peak_extra_mb_by_answer_tokens": sizes}
    return result | {
        "tokens": sum(len(row.prompt) + len(row.answer) for row in rows),
        "answer_tokens": sum(len(row.answer) for row in rows), "shape": shape, "spec": asdict(spec),
    }  # fmt: skip


if __name__ == "__main__":
    main()
