"""Examples and teacher signal for the tests of training, with every method's loss from dense logits, row by row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from adpa_cli import methods
from adpa_cli.engine.layout.examples import Example, TokenSequence
from adpa_cli.engine.training.loop import Run
from adpa_cli.signal.rows import SignalRows
from adpa_cli.spec import Runtime, TrainSpec
from support.tiny_models import END, TEMPLATE, VOCABULARY

K = 6


def sequence(rng: np.random.Generator, prompt: int, answer: int) -> TokenSequence:
    """A prompt and an answer of random words; answers longer than one token end with the end token."""
    ids = rng.integers(5, VOCABULARY, prompt + answer).astype(np.int32)
    ids[-1] = END if answer > 1 else ids[-1]
    return TokenSequence(ids, np.arange(prompt + answer) >= prompt)


def examples(count: int, seed: int = 0) -> list[Example]:
    """Rows with all three parts, of unequal lengths; every fourth rollout is a single token."""
    rng = np.random.default_rng(seed)
    found = []
    for n in range(count):
        prompt = int(rng.integers(1, 6))
        lengths = {name: int(rng.integers(2, 12)) for name in ("chosen", "rejected", "rollout")}
        if n % 4 == 0:
            lengths["rollout"] = 1
        found.append(Example(f"row{n}", {name: sequence(rng, prompt, size) for name, size in lengths.items()}))
    return found


def answer_logps(model: Any, part: TokenSequence) -> Tensor:
    """[T,V] dense log-probs at the positions before the answer's tokens, one unpadded row at a time."""
    logits = model(input_ids=torch.from_numpy(part.ids.astype(np.int64))[None]).logits[0]
    return logits.log_softmax(-1)[torch.from_numpy(np.flatnonzero(part.answer) - 1)]


def labels(part: TokenSequence) -> Tensor:
    """[T] the answer's tokens."""
    return torch.from_numpy(part.ids[part.answer].astype(np.int64))


def outside(logps: Tensor, ids: Tensor) -> Tensor:
    """[T] log of the mass of [T,V] outside ids [T,J]."""
    return logps.masked_fill(torch.zeros_like(logps, dtype=torch.bool).scatter(1, ids, True), -np.inf).logsumexp(1)


@torch.no_grad()
def signal_rows(aligned: Any, reference: Any, part: TokenSequence) -> SignalRows:
    """The signal of one answer, unquantised, from dense log-probs."""
    ours, theirs, taken = answer_logps(aligned, part), answer_logps(reference, part), labels(part)[:, None]
    top, own = ours.topk(K, dim=1), theirs.topk(K, dim=1).values[:, -1]
    seen = torch.cat([top.indices, taken], 1)
    there = theirs.gather(1, top.indices)

    def numbers(values: Tensor) -> Any:
        return values.float().numpy()

    return SignalRows(
        ids=top.indices.int().numpy(), logps=numbers(top.values), label_ids=taken[:, 0].int().numpy(),
        label_logps=numbers(ours.gather(1, taken)[:, 0]), rest_logps=numbers(outside(ours, seen)),
        difference=numbers(top.values - there), in_reference=(there >= own[:, None]).numpy(),
        reference_kth=numbers(own), reference_label_logps=numbers(theirs.gather(1, taken)[:, 0]),
        reference_rest_logps=numbers(outside(theirs, seen)),
    )  # fmt: skip


def signal_source(rows: Sequence[Example], aligned: Any, reference: Any) -> Callable[[str, str], SignalRows]:
    """What a training reads its signal from."""
    table = {(e.id, name): signal_rows(aligned, reference, part) for e in rows for name, part in e.parts.items()}
    return lambda example_id, part: table[example_id, part]


@torch.no_grad()
def start_of(model: Any, rows: Sequence[Example]) -> dict[tuple[str, str], Any]:
    """What a training is given of the model it starts from: dense log-probs of both answers' tokens."""
    return {(e.id, name): _taken(model, e.parts[name]).numpy() for e in rows for name in ("chosen", "rejected")}


def dense_loss(name: str, model: Any, start: Any, rows: Sequence[Example], signal: Any, params: Any) -> Tensor:
    """The loss of a batch with the default reductions, from the equations, in the model's dtype."""
    return torch.stack([_ROW_LOSSES[name](model, start, row, signal, params) for row in rows]).mean()


def _taken(model: Any, part: TokenSequence) -> Tensor:
    return answer_logps(model, part).gather(1, labels(part)[:, None])[:, 0]


def _sft(model: Any, start: Any, row: Example, signal: Any, params: Any) -> Tensor:
    return -_taken(model, row.parts["chosen"]).mean()


def _dpo(model: Any, start: Any, row: Example, signal: Any, params: Any) -> Tensor:
    with torch.no_grad():
        before = [_taken(start, row.parts[name]).sum() for name in ("chosen", "rejected")]
    now = [_taken(model, row.parts[name]).sum() for name in ("chosen", "rejected")]
    return -logsigmoid(params.beta * ((now[0] - before[0]) - (now[1] - before[1])))


def _dckd(model: Any, start: Any, row: Example, signal: Any, params: Any) -> Tensor:
    total = _sft(model, start, row, signal, params)
    for name in ("chosen", "rejected"):
        student, known = answer_logps(model, row.parts[name]), signal(row.id, name)
        ids = torch.from_numpy(known.ids.astype(np.int64))
        ours = torch.from_numpy(known.logps).to(student.dtype)
        left = torch.log1p(-ours.exp().sum(1))
        apart = (ours.exp() * (ours - student.gather(1, ids))).sum(1)
        total = total + params.alpha * (apart + left.exp() * (left - outside(student, ids))).mean()
    return total


def _adpa(model: Any, start: Any, row: Example, signal: Any, params: Any) -> Tensor:
    known = signal(row.id, "rollout")
    student = answer_logps(model, row.parts["rollout"])
    there = torch.from_numpy(known.logps - known.difference)
    floor = torch.from_numpy(known.reference_kth)[:, None].expand_as(there)
    scores = torch.from_numpy(known.logps) - torch.where(torch.from_numpy(known.in_reference), there, floor)
    mass = student.gather(1, torch.from_numpy(known.ids.astype(np.int64))).exp()
    return _sft(model, start, row, signal, params) - params.gamma * (mass * scores).sum(1).mean()


_ROW_LOSSES = {"sft": _sft, "dpo": _dpo, "dckd": _dckd, "adpa": _adpa}


def make_run(method: str, rows: Sequence[Example], signal: Any, work: Path, **settings: Any) -> Run:
    """A run of a method at its default parameters; `runtime` and what the loop calls may be given too."""
    own = {
        key: settings.pop(key)
        for key in ("runtime", "progress", "note", "stop", "evaluation_steps", "evaluate", "start_of")
        if key in settings
    }
    read = methods.load(method)
    fixed = {"method": method, "method_version": read.version, "params": {}, "template": TEMPLATE, "end": "<end>"}
    spec = TrainSpec(**fixed, dtype="float32", **{"lr": 1e-2, "epochs": 1.0, "batch_size": 4, **settings})
    return Run(
        spec=spec, method=read, params=read.params(), examples=rows, end_id=END, signal_of=signal, work=work,
        **{"runtime": Runtime(tokens_per_device=60), **own},
    )  # fmt: skip
