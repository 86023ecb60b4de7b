"""Log-probs of given answers under one model, without gradient: at the labels, or over the full vocabulary.

The full vocabulary is the yardstick for a signal.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from adpa_cli.engine.device import ROOM, fitting
from adpa_cli.engine.layout.batch import Batch, collate
from adpa_cli.engine.layout.examples import Example
from adpa_cli.engine.layout.micro_batches import micro_batches
from adpa_cli.engine.models import Dtype, hidden_states, output_head
from adpa_cli.engine.training.student import Student
from adpa_cli.errors import AdpaError
from adpa_cli.methods import Need, Part
from adpa_cli.signal import SignalRows

BLOCK_BYTES = 1 << 26

LabelLogps = dict[tuple[str, str], NDArray[np.float32]]
"""Float32 log-probs [T], in nats, of the answer tokens of (example id, part)."""


def label_logps(
    student: Student, examples: Sequence[Example], parts: Sequence[Part], tokens: int, device: torch.device | str
) -> LabelLogps:
    """Score every part of every example in length-sorted batches of at most `tokens` padded tokens."""
    student.to(device)
    return at_answers(lambda batch: student(batch.layouts, batch.ids)[0][:, 0], examples, parts, tokens, device)


@torch.no_grad()
def at_answers(
    number: Callable[[Batch], Tensor],
    examples: Sequence[Example],
    parts: Sequence[Part],
    tokens: int,
    device: torch.device | str,
) -> LabelLogps:
    """The `number` [N] that a model gives to every answer position of a batch, as float32 [T] by (example id, part)."""
    needs = [Need(part) for part in parts]
    logps: LabelLogps = {}
    for positions in micro_batches([example.length for example in examples], len(parts), tokens)[0]:
        chosen = [examples[p] for p in positions]
        batch = collate(chosen, needs, -1, _no_signal, {}).to(torch.device(device))
        flat = number(batch).float().cpu().numpy()
        for name, part in batch.parts.items():
            where, mask = part.where.cpu().numpy(), part.mask.cpu().numpy()
            for i, example in enumerate(chosen):
                logps[example.id, name] = flat[where[i][mask[i]]]
    return logps


def halving_logps(
    student: Student, examples: Sequence[Example], parts: Sequence[Part], tokens: int, device: torch.device | str
) -> LabelLogps:
    """`label_logps` with half the `tokens` at a time as often as memory runs out; AdpaError when a row does not fit."""
    return halving(functools.partial(label_logps, student), examples, parts, tokens, device)


def halving(
    score: Callable[[Sequence[Example], Sequence[Part], int, torch.device | str], LabelLogps],
    examples: Sequence[Example],
    parts: Sequence[Part],
    tokens: int,
    device: torch.device | str,
) -> LabelLogps:
    """What `score` gives with at most `tokens` at a time, halved as often as memory runs out.

    Each process scores by itself, so none need agree. Raises AdpaError when a row does not fit.
    """
    while True:
        logps = fitting(functools.partial(score, examples, parts, tokens, device))
        if logps is not None:
            return logps
        longest = max(example.length for example in examples)
        if tokens <= longest * len(parts):
            raise AdpaError(f"a row of {len(parts)} × {longest:,} tokens does not fit in memory", f"use {ROOM}")
        tokens //= 2


def pair_margins(logps: LabelLogps, examples: Sequence[Example]) -> dict[str, float]:
    """Mean log-prob per token of the chosen answer minus that of the rejected, in nats, by example id."""
    means = {key: float(values.mean()) for key, values in logps.items()}
    return {e.id: means[e.id, "chosen"] - means[e.id, "rejected"] for e in examples}


def _no_signal(example_id: str, part: str) -> SignalRows:
    raise KeyError((example_id, part))


@torch.no_grad()
def full_vocabulary_logps(
    model: PreTrainedModel, prompt: Sequence[int], answer: Sequence[int], known: int, dtype: Dtype
) -> Iterator[Tensor]:
    """[t, `known` + 1] float64 log-probs of the first ids and of all others together, for runs of the answer's tokens.

    The runs are as long as BLOCK_BYTES allow; together they have a row for each token of `answer`.
    """
    head = output_head(model)
    weight = head.weight.float()
    ids = torch.tensor([[*prompt, *answer][:-1]], device=weight.device)
    states = hidden_states(model, ids, torch.ones_like(ids), dtype=dtype)[0, len(prompt) - 1 :].float()
    rows = max(1, BLOCK_BYTES // (8 * weight.shape[0]))
    for run in torch.split(states, rows):
        products = torch.nn.functional.linear(run, weight)
        logps = head.logits(products, products).double().log_softmax(-1).cpu()
        yield torch.cat([logps[:, :known], logps[:, known:].logsumexp(-1, keepdim=True)], 1)
