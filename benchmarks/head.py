"""What selected log-probs through the head cost beside the dense way, forward and backward.

*Dense* is `F.linear`, float32 `log_softmax` over all logits, a gather at the chosen ids, a masked logsumexp for the
mass outside them where the method reads it, and autograd. *Ours* is `selected_logps`. Both are timed in turn, over and
over, in one process, and differentiate to hidden states and weight. Three needs cover all methods: one label (sft,
dpo), a label and k ids with the mass outside (dckd, adpa, atkd), one label with the log of Σ p² (wpo). `time_ratio` is
the median over rounds of ours over dense, the worst need counting. `memory_ratio` is that of the most bytes alive at
once, less the weight and its gradient, which both have. `max_grad_rel_error` is the largest error of an entry of a
float32 gradient, over the largest entry, against dense float64.

On a CPU float32 with two threads; on a GPU bfloat16 autocast over float32 weights and plain bfloat16, 512 and 8,192
tokens, the figures of the worst of these four on top.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from common.memory import Peak
from torch import Tensor
from torch.nn import functional as F

from adpa_cli.tensors.head import selected_logps


@dataclass(frozen=True)
class Need:
    """What methods read of a position: `chosen` ids, the mass outside them, the log of Σ p² without gradient."""

    methods: tuple[str, ...]
    chosen: int
    rest: bool = False
    stats: bool = False


@dataclass(frozen=True)
class Problem:
    """Random inputs of one size; `autocast` says that products run in bfloat16 while the weights are float32."""

    hidden: Tensor
    weight: Tensor
    autocast: bool

    def computing(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.hidden.device.type, torch.bfloat16) if self.autocast else nullcontext()


Way = Callable[[Tensor, Tensor, Tensor, Need], tuple[Tensor, Tensor | None]]


def ours(hidden: Tensor, weight: Tensor, ids: Tensor, need: Need) -> tuple[Tensor, Tensor | None]:
    found = selected_logps(hidden, weight, ids, stats=need.stats)
    return found.logps, found.rest if need.rest else None


def dense(hidden: Tensor, weight: Tensor, ids: Tensor, need: Need) -> tuple[Tensor, Tensor | None]:
    logits = F.linear(hidden, weight)
    logps = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
    del logits
    if need.stats:
        with torch.no_grad():
            (2 * logps).logsumexp(-1)
    return logps.gather(-1, ids), logps.scatter(-1, ids, -float("inf")).logsumexp(-1) if need.rest else None


def step(way: Way, problem: Problem, need: Need, ids: Tensor, pulls: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Gradients of hidden states and weight of a random weighting of what the method reads."""
    with problem.computing():
        logps, rest = way(problem.hidden, problem.weight, ids, need)
        loss = (logps * pulls[0]).sum() + (0.0 if rest is None else (rest * pulls[1]).sum())
    del logps, rest
    return torch.autograd.grad(loss, (problem.hidden, problem.weight))


def seconds(work: Callable[[], Any], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def peak_bytes(work: Callable[[], Any]) -> int:
    """The most bytes alive at once, beyond those that were before."""
    with Peak() as peak:
        work()
    return peak.bytes


def error(problem: Problem, need: Need, ids: Tensor, pulls: tuple[Tensor, Tensor]) -> float:
    """Largest error of a gradient's entry over its largest entry; float32 against dense float64."""
    single = Problem(*(t.detach().float().requires_grad_() for t in (problem.hidden, problem.weight)), False)
    double = Problem(*(t.detach().double().requires_grad_() for t in (problem.hidden, problem.weight)), False)
    wide = pulls[0].double(), pulls[1].double()
    pairs = zip(step(ours, single, need, ids, pulls), step(dense, double, need, ids, wide), strict=True)
    return max(float((got - want).abs().max() / want.abs().max()) for got, want in pairs)


def measure(problem: Problem, need: Need, rounds: int) -> dict[str, Any]:
    """Ratios of one need on one problem."""
    device, (tokens, vocabulary) = problem.hidden.device, (problem.hidden.shape[0], problem.weight.shape[0])
    ids = torch.rand(tokens, vocabulary, device=device).topk(need.chosen, dim=1).indices
    pulls = torch.randn(tokens, need.chosen, device=device), torch.randn(tokens, device=device)
    work = {name: lambda way=way: step(way, problem, need, ids, pulls) for name, way in WAYS.items()}
    found: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(-1, rounds):
        for name in sorted(work, reverse=bool(turn % 2)):
            taken = seconds(work[name], device)
            if turn >= 0:
                found[name].append(taken)
    gradient = problem.weight.numel() * problem.weight.element_size()
    beyond = {name: peak_bytes(one) - gradient for name, one in work.items()}
    ratios = [a / b for a, b in zip(found["ours"], found["dense"], strict=True)]
    return {
        "methods": need.methods, "chosen": need.chosen, "time_ratio": round(statistics.median(ratios), 3),
        "time_ratio_rounds": [round(ratio, 3) for ratio in ratios],
        "memory_ratio": round(beyond["ours"] / beyond["dense"], 4),
        **{f"{name}_s": round(statistics.median(taken), 4) for name, taken in found.items()},
        **{f"{name}_mb": round(held / 2**20, 1) for name, held in beyond.items()},
    }  # fmt: skip


WAYS: dict[str, Way] = {"ours": ours, "dense": dense}


def compare(asked: argparse.Namespace, tokens: int, dtype: str, device: torch.device) -> dict[str, Any]:
    """All needs at one size in one dtype."""
    torch.manual_seed(0)
    kind = torch.bfloat16 if dtype == "bfloat16" else torch.float32
    hidden = torch.randn(tokens, asked.hidden, device=device).to(kind).requires_grad_()
    weight = (torch.randn(asked.vocab, asked.hidden, device=device) / asked.hidden**0.5).to(kind).requires_grad_()
    problem = Problem(hidden, weight, dtype == "bfloat16 autocast")
    needs = (
        Need(("sft", "dpo"), 1),
        Need(("dckd", "adpa", "atkd"), 1 + asked.k, rest=True),
        Need(("wpo",), 1, stats=True),
    )
    found = [measure(problem, need, asked.rounds) for need in needs]
    worst = {name: max(one[name] for one in found) for name in ("time_ratio", "memory_ratio")}
    return worst | {"tokens": tokens, "dtype": dtype, "needs": found}


def largest_error(asked: argparse.Namespace, device: torch.device) -> float:
    """Over both kinds of need, at the size asked for."""
    torch.manual_seed(1)
    hidden = torch.randn(asked.tokens, asked.hidden, device=device)
    weight = torch.randn(asked.vocab, asked.hidden, device=device) / asked.hidden**0.5
    problem, worst = Problem(hidden, weight, False), 0.0
    for need in (Need(("sft",), 1), Need(("adpa",), 1 + asked.k, rest=True)):
        ids = torch.rand(asked.tokens, asked.vocab, device=device).topk(need.chosen, dim=1).indices
        pulls = torch.randn(asked.tokens, need.chosen, device=device), torch.randn(asked.tokens, device=device)
        worst = max(worst, error(problem, need, ids, pulls))
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--tokens", type=int, default=512, help="positions; a GPU is measured at 8,192 too")
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--vocab", type=int, default=128_256)
    parser.add_argument("--k", type=int, default=50)
    parser.add_argument("--rounds", type=int, help="[3, on a GPU 10]")
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    gpu = torch.cuda.is_available()
    device = torch.device("cuda" if gpu else "cpu")
    torch.set_num_threads(asked.threads)
    asked.rounds = asked.rounds or (10 if gpu else 3)
    sizes = sorted({asked.tokens, 8192}) if gpu else [asked.tokens]
    runs = [
        compare(asked, tokens, dtype, device)
        for tokens in sizes
        for dtype in (("bfloat16 autocast", "bfloat16") if gpu else ("float32",))
    ]
    worst = {name: max(run[name] for run in runs) for name in ("time_ratio", "memory_ratio")}
    result: dict[str, Any] = worst | {"max_grad_rel_error": float(f"{largest_error(asked, device):.2g}")}
    result |= {"tokens": asked.tokens, "hidden": asked.hidden, "vocab": asked.vocab, "k": asked.k}
    result |= {"device": torch.cuda.get_device_name() if gpu else "cpu", "threads": asked.threads}
    result |= {"dtype": [run["dtype"] for run in runs] if gpu else "float32", "runs": runs}
    print(json.dumps(result, indent=2) if asked.json else "\n".join(f"{k:20} {v}" for k, v in result.items()))


if __name__ == "__main__":
    main()
