"""What rows of data cost: private memory a row of plan, capture and training, and the time to tokenise and deal them.

    python benchmarks/rows.py --rows 20000 --json

Data are pairs of a prompt and two answers of about 300 tokens each, made up from words that follow Zipf's law, and a
byte-level BPE trained on the spot. Each command of the program runs as a process of its own, on `--rows` pairs and on a
quarter of them. Its memory is looked at every 5 ms: the sum of RssAnon over the process and its children, so that pages
of mapped files do not count, and pages that a child shares with its parent count twice.

- `bytes_per_row` (bar 300): how much the peak grows from the few pairs to the many, over the pairs between them, as the
  greatest of the stages; `bytes_per_row_by_stage` has each: `plan`, `tokenise` (the first command that reads the data,
  rows of full length), `capture`, `training` (dckd on the signal of both answers), `training_start` (dpo, and the start
  log-probs that it needs). The model is one layer of width 8. From the tokens on rows are cut to 24 tokens so that it
  has little to compute; there are as many answers in a block and in a shard as rows of 600 tokens would give.
- `rows_per_s` (bar 800): pairs read and tokenised a second by one process on one core; `bare_rows_per_s` is the
  tokenizer alone on the same texts.
- `step_rows_ms_10m` (bar 10): the rows of an optimizer step at 10 million examples, the mean over an epoch's steps;
  `step_rows_first_ms_10m` is the step that permutes the epoch.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np

PROMPT = ANSWER = 300
CUT, BLOCK_TOKENS = 24, 16384
"""Tokens that rows are cut to for the model, and those of a block of uncut rows."""
WORDS, VOCABULARY, PIECES, PIECE = 20_000, 8_192, 3_000, 100
K, STEPS, FEW, PACED = 2, 2, 4, 4000
MANY = 10_000_000
TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ("<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")


def sentences(rng: np.random.Generator, words: Sequence[str], count: int) -> str:
    """`count` words by Zipf's law, with a capital and a full stop now and then."""
    ranks = np.minimum(rng.zipf(1.25, count), len(words)) - 1
    ends = set(np.flatnonzero(rng.random(count) < 0.08).tolist())
    return " ".join(words[rank] + "." if place in ends else words[rank] for place, rank in enumerate(ranks.tolist()))


def make_model(folder: Path) -> list[str]:
    """A model of one layer with a tokenizer trained on the spot; texts of about PIECE of its tokens."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    rng = np.random.default_rng(0)
    letters = np.array(list("etaoinshrdlucmfwypvbgkjqxz"))
    shares = 1 / np.arange(3, 3 + len(letters))
    words = ["".join(rng.choice(letters, size, p=shares / shares.sum())) for size in rng.integers(2, 9, WORDS)]
    text = sentences(rng, words, 400_000)
    core = Tokenizer(models.BPE())
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        text.split(". "),
        trainers.BpeTrainer(
            vocab_size=VOCABULARY, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False
        ),
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1, max_position_embeddings=2048, tie_word_embeddings=True, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    saved: Any = PreTrainedTokenizerFast
    tokenizer = saved(tokenizer_object=core, eos_token="<|end|>", pad_token="<|pad|>")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    ids = core.encode(sentences(rng, words, 150 * PIECES)).ids[: PIECE * PIECES]
    return [core.decode(ids[a : a + PIECE]).strip() for a in range(0, len(ids), PIECE)]


def write_pairs(path: Path, pieces: Sequence[str], rows: int) -> None:
    """A prompt and two answers a line, each of three pieces."""
    rng = np.random.default_rng(rows)
    with path.open("w", encoding="utf-8") as out:
        for start in range(0, rows, 10_000):
            drawn = rng.integers(0, len(pieces), (min(10_000, rows - start), 9)).tolist()
            for row, picks in enumerate(drawn, start):
                texts = [" ".join(pieces[at] for at in picks[part : part + 3]) for part in (0, 3, 6)]
                line = {"prompt": f"{row}: {texts[0]}", "chosen": texts[1], "rejected": texts[2]}
                out.write(json.dumps(line) + "\n")


def private_bytes(root: int) -> int:
    """RssAnon of a process and all its descendants, but for those that still are copies of their parent."""
    total, waiting = 0, [(root, b"")]
    while waiting:
        pid, parent = waiting.pop()
        about = Path(f"/proc/{pid}")
        try:
            program = (about / "cmdline").read_bytes()
            if program == parent:  # between its fork and its exec: its pages are counted already
                continue
            status = (about / "status").read_text()
            total += sum(1024 * int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon:"))
            for task in (about / "task").iterdir():
                waiting += ((int(child), program) for child in (task / "children").read_text().split())
        except (FileNotFoundError, ProcessLookupError):
            continue
    return total


def watched(words: Sequence[str], folder: Path) -> tuple[int, float]:
    """(the most private bytes, the seconds) of this file run with other words in a process of its own."""
    start, most = time.perf_counter(), 0
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen([sys.executable, __file__, *words], cwd=folder, stdout=log, stderr=log)
        while process.poll() is None:
            most = max(most, private_bytes(process.pid))
            time.sleep(0.005)
    if process.returncode:
        raise SystemExit(f"{' '.join(words)} failed:\n" + (folder / "log").read_text()[-4000:])
    return most, time.perf_counter() - start


def commands(data: str) -> dict[str, list[str]]:
    """The words of each stage, in the order in which they build on one another."""
    per_block = BLOCK_TOKENS // (PROMPT + ANSWER)
    short = ["--set", f"max_length={CUT}", "--set", "dtype=float32", "--yes"]
    blocks = ["--set", f"cache-teacher.block_tokens={per_block * CUT}"]
    start = ["--set", f"start-logps.block_tokens={per_block * CUT}"]
    steps = ["--max-steps", str(STEPS), "--batch-size", "16"]
    train = ["--data", data, *steps, *short]
    return {
        "plan": ["adpa", "plan", "dpo-teacher", "--reference", "./model", "--data", data, *steps],
        "tokenise": ["tokenise", data],
        "capture": [
            "adpa", "cache-teacher", "--teacher", "./model", "--data", data, "--top-k", str(K), "--tag", "signal",
            *blocks, *short,
        ],
        "training": [
            "adpa", "distill", "--method", "dckd", "--student", "./model", "--cache", "signal", "--no-eval", *train,
        ],
        "training_start": ["adpa", "dpo-teacher", "--reference", "./model", *train, *start],
    }  # fmt: skip


def growth(folder: Path, pieces: Sequence[str], rows: int) -> dict[str, Any]:
    """Bytes a row by stage, and what they are made of."""
    few, peaks, seconds = rows // FEW, dict[str, list[int]](), dict[str, float]()
    for count in (few, rows):
        name = f"pairs-{count}.jsonl"
        write_pairs(folder / name, pieces, count)
        for stage, words in commands(f"./{name}").items():
            most, took = watched([*words, *(["--store", f"store-{count}"] if words[0] == "adpa" else [])], folder)
            peaks.setdefault(stage, []).append(most)
            seconds[stage] = round(took, 1)
            print(f"{stage}, {count:,} pairs: {most / 1e6:,.0f} MB, {took:.0f} s", file=sys.stderr)
    per_row = {stage: round((many - small) / (rows - few), 1) for stage, (small, many) in peaks.items()}
    return {
        "rows": rows, "rows_few": few, "bytes_per_row": max(per_row.values()), "bytes_per_row_by_stage": per_row,
        "peak_mb": {stage: [round(peak / 1e6, 1) for peak in both] for stage, both in peaks.items()},
        "seconds": seconds,
    }  # fmt: skip


def tokenised(data: str, max_length: int = 2048) -> float:
    """Pairs a second of the pass that makes token ids of all rows, in this process."""
    from adpa_cli.engine.layout.examples import answers_for
    from adpa_cli.hub import Located
    from adpa_cli.stages.cache_teacher import CaptureSpec

    folder = Path("model").resolve()
    spec = CaptureSpec(("chosen", "rejected"), TEMPLATE, "<|end|>", max_length=max_length)
    source = Located("data", f"data:{data}", data, (str(Path(data).resolve()),))
    start = time.perf_counter()
    both = answers_for(spec, source, "train", folder)
    return len(both.of("chosen")) / (time.perf_counter() - start)


def bare(data: str) -> float:
    """Pairs a second of the tokenizer alone on the texts of some rows."""
    from tokenizers import Tokenizer

    core = Tokenizer.from_file("model/tokenizer.json")
    with Path(data).open(encoding="utf-8") as lines:
        texts = [list(json.loads(line).values()) for _, line in zip(range(2000), lines, strict=False)]
    start = time.perf_counter()
    for three in texts:
        for text in three:
            core.encode(text, add_special_tokens=False)
    return len(texts) / (time.perf_counter() - start)


def paces(folder: Path, pieces: Sequence[str], rows: int) -> dict[str, float]:
    """Pairs a second on one core: of all that is done to a row, and of the tokenizer alone."""
    name, found = "paced.jsonl", {}
    write_pairs(folder / name, pieces, rows)
    for key, word in (("rows_per_s", "tokenise"), ("bare_rows_per_s", "bare")):
        words = [sys.executable, __file__, word, name, "--one-core"]
        done = subprocess.run(words, check=True, stdout=subprocess.PIPE, cwd=folder)
        found[key] = round(json.loads(done.stdout.splitlines()[-1]))
    return found


def step_rows_times() -> Iterator[tuple[str, float]]:
    """Milliseconds of the rows of a step at 10 million examples: the mean of an epoch, and the first."""
    from adpa_cli.engine.training.schedule import step_rows, whole_steps
    from adpa_cli.spec import TrainSpec

    spec: Any = TrainSpec.__new__(TrainSpec)
    for field, value in {"batch_size": 128, "epochs": 1.0, "seed": 0}.items():
        object.__setattr__(spec, field, value)
    steps, first, start = whole_steps(MANY, 1.0, 128), 0.0, time.perf_counter()
    for step in range(steps):
        step_rows(MANY, spec, step)
        first = first or time.perf_counter() - start
    yield "step_rows_ms_10m", round(1000 * (time.perf_counter() - start) / steps, 3)
    yield "step_rows_first_ms_10m", round(1000 * first, 1)


def adpa(words: Sequence[str]) -> None:
    """The program itself, whose shards hold as many answers as they would if rows were not cut."""
    from adpa_cli.cli.main import run
    from adpa_cli.signal import block_files

    block_files.SHARD_TOKENS = block_files.SHARD_TOKENS * CUT // (PROMPT + ANSWER)
    sys.argv = ["adpa", *words]
    run()


def measure(rows: int) -> dict[str, Any]:
    """All figures."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["ADPA_CACHE"] = str(folder / "cache")
        pieces = make_model(folder / "model")
        paced = paces(folder, pieces, PACED)
        return {**growth(folder, pieces, rows), **paced, **dict(step_rows_times())}


def main() -> None:
    match sys.argv[1:]:
        case ["adpa", *words]:
            adpa(words)
        case [("tokenise" | "bare") as word, data, *more]:
            if more:
                os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
            print(tokenised(data) if word == "tokenise" else bare(data))
        case _:
            parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
            parser.add_argument("--rows", type=int, default=200_000, help="pairs")
            parser.add_argument("--json", action="store_true", help="print one JSON object")
            args = parser.parse_args()
            result = measure(args.rows)
            print(json.dumps(result, indent=2) if args.json else "\n".join(f"{k:24} {v}" for k, v in result.items()))


if __name__ == "__main__":
    main()
