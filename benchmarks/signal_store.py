"""Size, error and speed of the teacher-signal shard, in one process and one thread.

    python benchmarks/signal_store.py --input FILE.npz --json

FILE holds, for N token positions: ids [N, K], logps, label_ids [N], label_logps, rest_logps, reference_logps [N, K],
reference_label_logps [N], reference_rest_logps, reference_kth_logp, vocab_size. Without it a signal is made up whose
ids follow Zipf's law. Sizes are of the whole file, header and index included; speeds are of the pair-less shard
(and of the pair, under their own names), the best of several passes over enough copies to outlast the clock.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from adpa_cli.signal.rows import AnswerKey, SignalRows, SignalSpec, advantage, reference_logps, token_hash
from adpa_cli.signal.shard import Shard, write_shard

PAIR = ("difference", "in_reference", "reference_kth", "reference_label_logps", "reference_rest_logps")
Array = Any


def synthetic(n: int = 2048, k: int = 50, vocab_size: int = 32_000) -> dict[str, Array]:
    """Softmaxes over a vocabulary with Zipfian frequencies, the reference a perturbation of the aligned teacher."""
    rng = np.random.default_rng(0)
    prior = -np.log(np.arange(1, vocab_size + 1) + 20.0)
    data: dict[str, list[Array]] = {}
    for _ in range(n):
        logits = prior + rng.normal(0, 2.5, vocab_size)
        aligned = logits - np.log(np.exp(logits).sum())
        other = logits + rng.normal(0, 0.3, vocab_size)
        reference = other - np.log(np.exp(other).sum())
        ids = np.argsort(-aligned, kind="stable")[:k]
        label = int(rng.choice(vocab_size, p=np.exp(aligned) / np.exp(aligned).sum()))
        left = np.ones(vocab_size, dtype=bool)
        left[ids] = left[label] = False
        row = {
            "ids": ids,
            "logps": aligned[ids],
            "label_ids": label,
            "label_logps": aligned[label],
            "rest_logps": np.log(np.exp(aligned[left]).sum()),
            "reference_logps": reference[ids],
            "reference_label_logps": reference[label],
            "reference_rest_logps": np.log(np.exp(reference[left]).sum()),
            "reference_kth_logp": np.sort(reference)[-k],
        }
        for name, value in row.items():
            data.setdefault(name, []).append(value)
    return {name: np.array(values) for name, values in data.items()} | {"vocab_size": np.array(vocab_size)}


def rows_of(data: dict[str, Array], at: slice) -> SignalRows:
    names = ("ids", "logps", "label_ids", "label_logps", "rest_logps")
    ids, logps, label_ids, label_logps, rest = (
        data[name][at].astype(np.int32 if name.endswith("ids") else np.float32) for name in names
    )
    reference, kth = data["reference_logps"][at].astype(np.float32), data["reference_kth_logp"][at].astype(np.float32)
    ends = (data[name][at].astype(np.float32) for name in ("reference_label_logps", "reference_rest_logps"))
    member = reference >= kth[:, None]
    return SignalRows(ids, logps, label_ids, label_logps, rest, logps - reference, member, kth, *ends)


def without_reference(rows: SignalRows) -> SignalRows:
    return replace(rows, **dict.fromkeys(PAIR))


def in_order_of(read: SignalRows, given: SignalRows) -> SignalRows:
    """`given` with its ids in the order in which `read` has them."""
    back = np.argsort(np.argsort(read.ids, axis=1), axis=1)
    order = np.take_along_axis(np.argsort(given.ids, axis=1), back, axis=1)
    per_id = ("ids", "logps", "difference", "in_reference")
    return replace(given, **{name: np.take_along_axis(getattr(given, name), order, axis=1) for name in per_id})


def classes(rows: SignalRows, logps: Array, label: Array, rest: Array) -> Array:
    """[T, K + 2] float64 log-probs of {ids, label when outside, rest}."""
    outside = ~(rows.ids == rows.label_ids[:, None]).any(axis=1)
    columns = [logps, np.where(outside, label, -np.inf)[:, None], rest[:, None]]
    return np.concatenate(columns, axis=1).astype(np.float64)


def kl(p: Array, q: Array) -> Array:
    return np.where(
        np.isneginf(p), 0, np.exp(p) * (np.where(np.isneginf(p), 0, p) - np.where(np.isneginf(q), 0, q))
    ).sum(1)


def adpa_gradient(rows: SignalRows, student: Array) -> Array:
    """[T, K + 1] gradient of -sum pi A at the logits of the ids and, together, of all else: -pi (A - sum pi A)."""
    pi, a = np.exp(student.astype(np.float64)), advantage(rows).astype(np.float64)
    mean = (pi * a).sum(axis=1, keepdims=True)
    return np.concatenate([-pi * (a - mean), (1 - pi.sum(axis=1, keepdims=True)) * mean], axis=1)


def errors(shard: Shard, given: list[SignalRows]) -> dict[str, float]:
    """The greatest errors as stored and as read; of what is read the mean KL and the cosine of ADPA's gradient."""
    single, pair, as_read, kls, ours, exact = 0.0, 0.0, 0.0, [], [], []
    for i, source in enumerate(given):
        raw, read = shard.read(i, raw=True), shard.read(i)
        rows = in_order_of(raw, source)
        single = max(
            single, *(greatest(getattr(raw, f), getattr(rows, f)) for f in ("logps", "label_logps", "rest_logps"))
        )
        pair = max(pair, *(greatest(a, b) for a, b in zip(pair_values(raw), pair_values(rows), strict=True)))
        as_read = max(as_read, greatest(read.logps, rows.logps))
        if (raw.in_reference != rows.in_reference).any():
            raise SystemExit("a membership bit changed")
        sides = [classes(r, r.logps, r.label_logps, r.rest_logps) for r in (rows, read)]
        kls.append(kl(*sides))
        student = reference_logps(rows)
        exact.append(adpa_gradient(rows, student).ravel())
        ours.append(adpa_gradient(read, student).ravel())
    a, b = np.concatenate(ours), np.concatenate(exact)
    return {
        "max_abs_error_nats": single,
        "max_abs_error_nats_pair": pair,
        "max_abs_error_nats_read": as_read,
        "mean_kl_error_nats": float(np.concatenate(kls).mean()),
        "adpa_gradient_cosine": float(a @ b / np.sqrt((a @ a) * (b @ b))),
    }


def pair_values(rows: SignalRows) -> list[Array]:
    """What a shard stores of the reference: differences, and the k-th."""
    label, rest = (getattr(rows, f"reference_{name}_logps") for name in ("label", "rest"))
    return [rows.difference, rows.reference_kth, rows.label_logps - label, rows.rest_logps - rest]


def greatest(stored: Array, given: Array) -> float:
    finite = np.isfinite(given)
    return float(np.abs(stored[finite].astype(np.float64) - given[finite]).max(initial=0))


def best(work: Callable[[], object], passes: int = 7) -> float:
    """Seconds of the quickest pass; processor time, so that neighbours on the machine count as little as they can."""
    seconds = []
    for _ in range(passes):
        start = time.process_time()
        work()
        seconds.append(time.process_time() - start)
    return min(seconds)


def speeds(
    folder: Path, spec: SignalSpec, answers: list[tuple[AnswerKey, SignalRows]], copies: int
) -> dict[str, float]:
    many = [(replace(key, example_id=f"{key.example_id}-{c}"), rows) for c in range(copies) for key, rows in answers]
    path, tokens = folder / "speed.adpa", sum(len(rows) for _, rows in many)
    encode = best(lambda: write_shard(path, spec, many), 3)
    shard = Shard(path)
    order = list(range(len(shard)))
    random.Random(0).shuffle(order)
    stream = best(lambda: [None for _ in shard])
    alone = best(lambda: [shard.read(i) and None for i in order])
    return {
        "encode_tokens_per_s": round(tokens / encode),
        "decode_tokens_per_s": round(tokens / stream),
        "random_access_tokens_per_s": round(tokens / alone),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, help="an npz file of teacher signal")
    parser.add_argument("--frame", type=int, default=256, help="tokens per answer")
    parser.add_argument("--step", type=float, default=1 / 32, help="nats; 0 is exact")
    parser.add_argument("--pair-step", type=float, default=1 / 128, help="nats; 0 is exact")
    parser.add_argument("--copies", type=int, default=16, help="copies of the signal in the timed shard")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    data = dict(np.load(args.input)) if args.input else synthetic()
    total, k = data["ids"].shape
    starts = range(0, total, args.frame)
    given = [rows_of(data, slice(s, s + args.frame)) for s in starts]
    keys = [AnswerKey(f"example-{i}", "rollout", token_hash([], rows.label_ids)) for i, rows in enumerate(given)]
    pair = SignalSpec(
        k, int(data["vocab_size"]), args.step, args.pair_step, {"aligned": "a" * 12, "reference": "b" * 12}
    )
    single = replace(pair, teachers={"aligned": "a" * 12})
    answers = list(zip(keys, given, strict=True))
    alone = [(key, without_reference(rows)) for key, rows in answers]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_shard(folder / "pair.adpa", pair, answers)
        write_shard(folder / "single.adpa", single, alone)
        shards = {name: Shard(folder / f"{name}.adpa") for name in ("single", "pair")}
        result: dict[str, Any] = {
            "tokens": total,
            "k": k,
            "vocab_size": pair.vocab_size,
            "step": args.step,
            "bytes_per_token": shards["single"].path.stat().st_size / total,
            "bytes_per_token_pair": shards["pair"].path.stat().st_size / total,
            "bytes_per_token_frames_only": sum(shards["single"].sizes) / total,
            "bytes_per_token_pair_frames_only": sum(shards["pair"].sizes) / total,
            **errors(shards["pair"], given),
            **speeds(folder, single, alone, args.copies),
            **{f"{key}_pair": value for key, value in speeds(folder, pair, answers, args.copies).items()},
        }
    if args.json:
        print(json.dumps(result, indent=2))
    else:
        for key, value in result.items():
            print(f"{key:36} {value:,.6g}")


if __name__ == "__main__":
    main()
