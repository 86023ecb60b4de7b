"""What each dtype leaves of the advantage of a real pair: `--pair DIR` holds `base`, `teacher` and `short.jsonl`.

The pair is a reference and the same model after a short DPO, with preference rows. Of `--pairs` rows that it was not
trained on (one a prompt, chosen by hash) the signal of both answers is captured in each dtype, written and read as a
training reads it, and compared with dense float32 forwards of transformers: `corr` is the correlation of the stored
advantage with the true one over the aligned teacher's top k, `error_ratio` the RMS of the difference over the RMS of
the advantage. `accuracy` is how often the summed log-ratio ranks the two answers right, `accuracy_gap` float32's less
that, in points. `body_bytes` are those of a weight of the body.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from adpa_cli.data.chat import Encoder
from adpa_cli.data.templates import Template
from adpa_cli.data.tokenizer import Tokenizer
from adpa_cli.engine.capture import aligned_pass, reference_pass
from adpa_cli.engine.frozen import held_places
from adpa_cli.engine.layout.examples import Answer, pair_answers
from adpa_cli.engine.layout.micro_batches import cut_blocks
from adpa_cli.engine.models import body_and_head, load
from adpa_cli.engine.noise import compared, first_by_hash
from adpa_cli.hub.externals import pairs_of
from adpa_cli.hub.model_folder import ModelFolder
from adpa_cli.signal.rows import SignalRows, SignalSpec
from adpa_cli.signal.shard import Shard, write_shard

K, BLOCK, STEP, PAIR_STEP = 50, 4096, 1 / 32, 1 / 128
PARTS = ("chosen", "rejected")
DTYPES = ("bfloat16", "tf32", "float16")


def unseen_answers(pair: Path, count: int, trained: int, longest: int) -> list[Answer]:
    """Both answers of `count` pairs, each of a prompt of its own that is in none of the first `trained` pairs."""
    folder = pair / "base"
    template = ModelFolder.of(folder).template
    items = pairs_of((str(pair / "short.jsonl"),), "train", None, False, template).items
    seen = {item.prompt for item in items[:trained]}
    fresh = {item.prompt: item for item in items[trained:] if item.prompt not in seen}
    chosen = first_by_hash(list(fresh.values()), lambda item: item.id, count)
    encoder = Encoder(Tokenizer.of(folder), Template(template, ModelFolder.of(folder).end_token))
    both = pair_answers(chosen, encoder, longest, "pair", "short.jsonl")
    return [*both.chosen, *both.rejected]


def blocks_of(answers: Sequence[Answer]) -> list[tuple[Answer, ...]]:
    cut = cut_blocks(answers, lambda a: len(a.prompt) + len(a.answer), lambda a: str(a.key), BLOCK)
    return [block.items for block in cut]


@torch.no_grad()
def dense(folder: Path, blocks: Sequence[Sequence[Answer]]) -> dict[Any, Any]:
    """[T, V] float32 log-probs of each answer by its key, by a plain forward of transformers in float32."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(DEVICE).eval()
    found = {}
    for answer in (answer for block in blocks for answer in block):
        ids = torch.tensor([[*answer.prompt, *answer.answer]], device=DEVICE)
        logits = model(input_ids=ids).logits[0, len(answer.prompt) - 1 : -1].float()
        found[answer.key] = logits.log_softmax(-1).cpu()
    return found


def captured(pair: Path, blocks: Sequence[Sequence[Answer]], dtype: Any) -> tuple[list[SignalRows], float, float]:
    """(the rows of all answers, bytes of a weight of the body, cpu-seconds)."""
    start, held = time.process_time(), 0.0
    rows: list[list[SignalRows]] = []
    for name in ("teacher", "base"):
        model = load(pair / name, dtype=dtype, device=DEVICE)
        tensors = [place.tensor for place in held_places(body_and_head(model)[0], dtype)]
        held = sum(t.nbytes for t in tensors) / sum(t.numel() for t in tensors)
        settings: dict[str, Any] = {"teacher": name, "dtype": dtype}
        if name == "teacher":
            rows = [aligned_pass(model, block, K, **settings) for block in blocks]
        else:
            rows = [reference_pass(model, b, r, **settings) for b, r in zip(blocks, rows, strict=True)]
    return [row for block in rows for row in block], held, time.process_time() - start


def stored(answers: Sequence[Answer], rows: Sequence[SignalRows], dtype: str, vocabulary: int) -> list[SignalRows]:
    """The rows as a training reads them: quantised, written and read."""
    spec = SignalSpec(K, vocabulary, STEP, PAIR_STEP, {"aligned": "teacher", "reference": "base"}, dtype)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "signal.adpa"
        write_shard(path, spec, [(answer.key, row) for answer, row in zip(answers, rows, strict=True)])
        shard = Shard(path)
        read = [shard.read(number) for number in range(len(rows))]
        shard.close()
    return read


def margins(answers: Sequence[Answer], ratios: dict[Any, float]) -> np.ndarray[Any, Any]:
    """Summed log-ratio of the chosen answer less that of the rejected one, by pair."""
    chosen = sorted((answer.key.example_id, answer.key) for answer in answers if answer.key.part == "chosen")
    rejected = sorted((answer.key.example_id, answer.key) for answer in answers if answer.key.part == "rejected")
    return np.array([ratios[a] - ratios[b] for (_, a), (_, b) in zip(chosen, rejected, strict=True)])


def accuracy(values: np.ndarray[Any, Any]) -> float:
    """Share of margins above 0, ties counting half, in percent."""
    return float(100 * ((values > 0) + 0.5 * (values == 0)).mean())


def measure(pair: Path, blocks: Sequence[Sequence[Answer]], dtypes: Sequence[str]) -> tuple[dict[str, Any], Any]:
    answers = [answer for block in blocks for answer in block]
    aligned, reference = dense(pair / "teacher", blocks), dense(pair / "base", blocks)
    labels = {a.key: torch.tensor(a.answer)[:, None] for a in answers}
    true = {k: float((aligned[k] - reference[k]).gather(1, at).double().sum()) for k, at in labels.items()}
    right = accuracy(margins(answers, true))
    result: dict[str, Any] = {"float32": {"accuracy": round(right, 2)}}
    points: dict[str, Any] = {}
    for dtype in dtypes:
        rows, held, seconds = captured(pair, blocks, dtype)
        ratios = {
            a.key: float((row.label_logps.astype(float) - row.reference_label_logps.astype(float)).sum())
            for a, row in zip(answers, rows, strict=True)
        }
        found, exact = [], []
        for answer, row in zip(answers, stored(answers, rows, dtype, len(aligned[answers[0].key][0])), strict=True):
            ids = torch.from_numpy(row.ids.astype(np.int64))
            found.append(row.difference.astype(np.float64).ravel())
            exact.append((aligned[answer.key] - reference[answer.key]).gather(1, ids).double().numpy().ravel())
        own = compared(np.concatenate(found), np.concatenate(exact))
        of_answers = compared(np.array(list(ratios.values())), np.array([true[key] for key in ratios]))
        share = accuracy(margins(answers, ratios))
        result[dtype] = {
            "corr": round(own["correlation"] or 0.0, 4), "error_ratio": round(own["error"] / own["rms"], 4),
            "rms": round(own["rms"], 5), "error": round(own["error"], 5),
            "log_ratio_corr": round(of_answers["correlation"] or 0.0, 4), "accuracy": round(share, 2),
            "accuracy_gap": round(right - share, 2), "body_bytes": held, "capture_cpu_s": round(seconds, 1),
        }  # fmt: skip
        points[dtype] = np.concatenate(exact), np.concatenate(found)
    return result, points


def svg(points: dict[str, Any], result: dict[str, Any], shown: int = 1500, side: int = 220) -> str:
    """A panel a dtype: the true advantage to the right, the stored one upwards, in nats."""
    most = 4 * max(result[dtype]["rms"] for dtype in points)
    width, height = len(points) * (side + 50) + 20, side + 92
    middle = 40 + side / 2
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        'font-size="12" text-anchor="middle">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="16" y="{middle}" transform="rotate(-90 16 {middle})">stored, nats</text>',
    ]
    for n, (dtype, (exact, found)) in enumerate(points.items()):
        figures = f"correlation {result[dtype]['corr']:.2f}, error {100 * result[dtype]['error_ratio']:.0f} %"
        pick = np.random.default_rng(0).permutation(len(exact))[:shown]
        parts += panel(45 + n * (side + 50), side, most, dtype, figures, exact[pick], found[pick])
    return "\n".join([*parts, "</svg>"]) + "\n"


def panel(left: int, side: int, most: float, name: str, figures: str, exact: Any, found: Any) -> list[str]:
    top, center = 40, left + side / 2

    def place(value: Any) -> Any:
        return side / 2 * (1 + np.clip(value / most, -1, 1))

    dots = "".join(f"M{left + place(x):.0f} {top + side - place(y):.0f}h1" for x, y in zip(exact, found, strict=True))
    ticks = [
        f'<text x="{left + float(place(value)):.0f}" y="{top + side + 16}">{value:.2g}</text>'
        for value in (-most, 0, most)
    ]
    return [
        f'<text x="{center}" y="16" font-weight="bold">{name}</text>', f'<text x="{center}" y="32">{figures}</text>',
        f'<rect x="{left}" y="{top}" width="{side}" height="{side}" fill="none" stroke="#888"/>',
        f'<path d="M{left} {top + side}L{left + side} {top}" stroke="#c33"/>',
        f'<path d="{dots}" stroke="#236" stroke-width="1.4" stroke-opacity="0.45"/>', *ticks,
        f'<text x="{center}" y="{top + side + 36}">true advantage, nats</text>',
    ]  # fmt: skip


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pair", type=Path, required=True, help="the folder with base, teacher and short.jsonl")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--pairs", type=int, default=70, help="rows that are measured [70]")
    parser.add_argument("--trained", type=int, default=64, help="pairs that the teacher was trained on [64]")
    parser.add_argument("--dtypes", default=",".join(DTYPES), help=f"[{','.join(DTYPES)}]")
    parser.add_argument("--plot", type=Path, help="an SVG to write")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    blocks = blocks_of(unseen_answers(asked.pair, asked.pairs, asked.trained, 512))
    result, points = measure(asked.pair, blocks, asked.dtypes.split(","))
    result |= {
        "answers": sum(map(len, blocks)), "tokens": sum(len(answer.answer) for block in blocks for answer in block),
        "device": torch.cuda.get_device_name() if DEVICE == "cuda" else "cpu", "threads": asked.threads,
    }  # fmt: skip
    if asked.plot:
        asked.plot.write_text(svg(points, result), encoding="utf-8")
    if asked.json:
        print(json.dumps(result, indent=2))
    else:
        for name, value in result.items():
            print(f"{name:10} {value}")


if __name__ == "__main__":
    main()
