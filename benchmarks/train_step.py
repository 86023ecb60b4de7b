"""What a training step costs, beside TRL's trainers on the same rows, tokens and optimizer steps.

A Llama of 12.6 M parameters, V = 32,000, in float32, and 24 pairs of answers of log-normal lengths; on a GPU
Llama-3.2-1B's shape under bfloat16, and 64 longer pairs. A step is over all rows: the reading of cached signal (k = 50)
and AdamW included; reference log-probs are computed before, on both sides. SFT trains on both answers of each pair as
rows of their own, the other methods on the pairs. TRL runs at the fastest settings found (`training/theirs.py`).

Seconds are of steps taken in turns, on a GPU one side after the other; ratios are medians over rounds. `sft_speedup`,
`dpo_speedup`: TRL's seconds over ours. `distill_speedup`: those of TRL's GKD, with a teacher of 8 times the student
live, over those of DCKD or ADPA, whichever is slower. `peak_memory_ratio`: ours over TRL's, of the most that a step
holds at once beyond weights, gradients and optimizer state; the worse of SFT and DPO. `dckd_cost`, `adpa_cost`:
seconds over those of our SFT. `sft_loss_gap`, `dpo_loss_gap`: how far our losses are from TRL's, relative, at the step
where they differ most.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Mapping
from typing import Any

import torch
from training.pace import MEMORY, Ran, Side
from training.workload import Workload, here, parameters

PEERS = {"sft": "trl_sft", "dpo": "trl_dpo", "dckd": "trl_gkd", "adpa": "trl_gkd"}
DISTILLED = ("dckd", "adpa")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--skip", choices=["distill"], help="leave a part out")
    asked = parser.parse_args()
    work = here()
    methods = [method for method in PEERS if asked.skip is None or method not in DISTILLED]
    found = measure(work, methods, asked.rounds, asked.threads)
    report: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if work.device == "cuda" else "cpu",
        "dtype": work.dtype,
    }
    report |= {"threads": asked.threads, "tokens": sum(map(len, work.sequences()))}
    report |= {"parameters": parameters(work.student), "teacher_parameters": parameters(work.teacher)}
    report |= compare(found, report["tokens"])
    print(json.dumps(report) if asked.json else "\n".join(f"{key}: {value}" for key, value in report.items()))
    return 0 if all({method, PEERS[method]} <= found.keys() for method in methods) else 1


def measure(work: Workload, methods: list[str], rounds: int, threads: int) -> dict[str, Ran]:
    """Step all sides in turns, or on a GPU, whose memory they could not share, one after the other."""
    from training.ours import Ours  # here, for our processes import this file and need not load TRL
    from training.theirs import Theirs

    steps = rounds + MEMORY + 1
    loops = {method: Ours(method, work) for method in methods}
    loops |= {PEERS[method]: Theirs(PEERS[method].removeprefix("trl_"), work) for method in methods}
    sides = {name: Side(loop, steps, threads) for name, loop in loops.items()}
    together = [[name] for name in sides] if work.device == "cuda" else [list(sides)]
    found: dict[str, Ran] = {}
    for names in together:
        try:
            for name in names:
                sides[name].go()
                sides[name].step()  # settings are tried out before it, which others would disturb
            for _ in range(steps - 1):
                for name in names:
                    sides[name].step()
            for name in names:
                found[name] = sides[name].finish()
                print(f"{name}: {statistics.median(found[name].seconds):.3f} s a step", file=sys.stderr)
        except (EOFError, ConnectionError):
            print(f"{', '.join(names)}: failed, see above", file=sys.stderr)
            for name in names:
                sides[name].stop()
    return found


def compare(found: Mapping[str, Ran], tokens: int) -> dict[str, Any]:
    """What can be said of the sides that ran."""
    said: dict[str, Any] = {f"{name}_tokens_per_s": tokens / statistics.median(r.seconds) for name, r in found.items()}
    said |= {f"{name}_peak_mb": ran.peak / 2**20 for name, ran in found.items()}
    said |= {f"{name}_{key}": value for name, ran in found.items() for key, value in ran.settings.items()}
    for method, peer in PEERS.items():
        if {method, peer} <= found.keys():
            ours, theirs = found[method], found[peer]
            said[f"{method}_speedup"] = ratio(theirs, ours)
            said[f"{method}_peak_memory_ratio"] = ours.peak / theirs.peak
            if method not in DISTILLED:
                said[f"{method}_loss_gap"] = max(
                    abs(a / b - 1) for a, b in zip(ours.losses, theirs.losses, strict=True)
                )
    for method in DISTILLED:
        if {method, "sft"} <= found.keys():
            said[f"{method}_cost"] = ratio(found[method], found["sft"])
    if speedups := [said[key] for method in DISTILLED if (key := f"{method}_speedup") in said]:
        said["distill_speedup"] = min(speedups)
    if peaks := [said[key] for method in ("sft", "dpo") if (key := f"{method}_peak_memory_ratio") in said]:
        said["peak_memory_ratio"] = max(peaks)
    return said


def ratio(one: Ran, other: Ran) -> float:
    """How many times as long a step takes; the median over rounds."""
    return statistics.median(a / b for a, b in zip(one.seconds, other.seconds, strict=True))


if __name__ == "__main__":
    sys.exit(main())
