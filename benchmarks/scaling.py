"""How much faster two jobs are than one: `adpa cache-teacher` and `adpa rollout` with `--shard`, one thread each.

A Llama of random weights (12.6 M parameters beside a head of its own, V = 32,000) in float32, with a tokenizer of as
many words, and pairs of random words. The work is cut into three parts, of which the third is never made, so that the
jobs leave their own figures behind. First part 1 and then part 2 run alone; then, in another store, both at once.
`capture_speedup_2` and `rollout_speedup_2` are the seconds that the blocks took alone, added up, over those of the
slower of the two jobs at once: blocks only, without start-up, tokens and finishing. The median over rounds.

With `--whole`, `adpa_plus_2` is how many times as long `adpa distill --method adpa+ --student tiny` takes with
`--gpus 2` as without, start-up and all, one after the other. Each has a store and caches of its own:
nothing that the other made is found.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WORDS, PARTS = 32_000, 3
SHAPE = {
    "vocab_size": WORDS, "hidden_size": 256, "intermediate_size": 624, "num_hidden_layers": 6,
    "num_attention_heads": 8, "num_key_value_heads": 8, "max_position_embeddings": 2048,
}  # fmt: skip
TEMPLATE = "{% for m in messages %}<s> {{ m['content'] }} </s>{% endfor %}{% if add_generation_prompt %}<s> {% endif %}"


def write_model(folder: Path) -> None:
    """A model of random weights with its tokenizer."""
    torch.manual_seed(0)
    make: Any = LlamaConfig
    model = LlamaForCausalLM(make(**SHAPE, tie_word_embeddings=False, bos_token_id=1, eos_token_id=2))
    model.save_pretrained(folder)
    words = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"w{n}": n for n in range(3, WORDS)}
    plain = Tokenizer(models.WordLevel(words, "<unk>"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]  # its stub is read-only
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=plain, unk_token="<unk>", bos_token="<s>", eos_token="</s>", chat_template=TEMPLATE
    )
    tokenizer.save_pretrained(folder)


def write_pairs(path: Path, count: int) -> None:
    """Pairs of random words, log-normal around 60."""
    draw = random.Random(0)

    def text() -> str:
        return " ".join(f"w{draw.randrange(3, WORDS)}" for _ in range(int(min(300, draw.lognormvariate(4.1, 0.4)))))

    rows = [{"prompt": text(), "chosen": text(), "rejected": text()} for _ in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def seconds_of_blocks(words: list[str], parts: list[list[int]], place: Path) -> list[float]:
    """Seconds that the blocks of parts 1 and 2 took in a fresh store, whose jobs run in turns; those of one turn at
    once."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory(dir=place) as store:
        for turn in parts:
            jobs = [
                subprocess.Popen(
                    [sys.executable, "-m", "adpa_cli", *words, "--shard", f"{part}/{PARTS}", "--store", store, "-q"],
                    env=environment, cwd=place,
                ) for part in turn
            ]  # fmt: skip
            if any(job.wait() for job in jobs):
                raise SystemExit(f"a job failed: adpa {' '.join(words)}")
        states = [path for part in (1, 2) for path in Path(store).glob(f".partial/*/_part-{part}-of-{PARTS}.json")]
        if len(states) != 2:  # the jobs found nothing left to the third part, and completed it all
            raise SystemExit("there are fewer blocks than parts; use more --pairs")
        return [float(json.loads(path.read_text())["progress"]["worked"]) for path in states]


def speedup(words: list[str], place: Path, rounds: int) -> dict[str, float]:
    """The median of the seconds alone over those of the slower of two at once, and the last seconds."""
    found = []
    for _ in range(rounds):
        alone = seconds_of_blocks(words, [[1], [2]], place)
        both = seconds_of_blocks(words, [[1, 2]], place)
        found.append(sum(alone) / max(both))
    return {"speedup_2": round(statistics.median(found), 2), "seconds_1": round(sum(alone), 1),
            "seconds_2": round(max(both), 1)}  # fmt: skip


def seconds_of_all(words: list[str], place: Path) -> float:
    """Seconds that a command takes in an empty store, beside empty caches."""
    with tempfile.TemporaryDirectory(dir=place) as folder:
        caches = {"HF_HOME": f"{folder}/hub", "XDG_CACHE_HOME": f"{folder}/cache", "TMPDIR": folder}
        environment = {**os.environ, **caches, "OMP_NUM_THREADS": "1"}
        began = time.monotonic()
        subprocess.run(
            [sys.executable, "-m", "adpa_cli", *words, "--store", f"{folder}/store", "-q"],
            env=environment, cwd=place, check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        return time.monotonic() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pairs", type=int, default=192)
    parser.add_argument("--whole", action="store_true", help="also time a whole distillation in two processes")
    asked = parser.parse_args()
    result: dict[str, Any] = {"cores": os.cpu_count(), "pairs": asked.pairs}
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        write_model(place / "model")
        write_pairs(place / "train.jsonl", asked.pairs)
        data = ["--data", "./train.jsonl", "--set", "dtype=float32"]
        capture = ["cache-teacher", "--teacher", "./model", *data, "--set", "block_tokens=2048"]
        rollout = ["rollout", "--student", "./model", *data, "--max-new-tokens", "64", "--temperature", "0",
                   "--set", "block_tokens=1024"]  # fmt: skip
        for stage, words in (("capture", capture), ("rollout", rollout)):
            result |= {f"{stage}_{key}": value for key, value in speedup(words, place, asked.rounds).items()}
        if asked.whole:
            words = ["distill", "--method", "adpa+", "--student", "tiny"]
            one, two = (seconds_of_all([*words, *more], place) for more in ([], ["--gpus", "2"]))
            result |= {"adpa_plus_2": round(two / one, 2), "whole_seconds_1": round(one, 1)}
            result |= {"whole_seconds_2": round(two, 1)}
    if asked.json:
        print(json.dumps(result, indent=2))
    else:
        for key, value in result.items():
            print(f"{key:34} {value}")


if __name__ == "__main__":
    main()
