"""Log-probs of given answers under one model, without gradient: at the labels, or over the full vocabulary.

The full vocabulary is the yardstick for a signal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from adpa_cli.engine.device import device as own_device
from adpa_cli.engine.device import halving
from adpa_cli.engine.layout.batch import collate
from adpa_cli.engine.layout.examples import Answer, Example
from adpa_cli.engine.layout.micro_batches import micro_batches
from adpa_cli.engine.layout.sequences import TokenSequence
from adpa_cli.engine.layout.shared_prompt import answer_rows, states
from adpa_cli.engine.models import load_checked, output_head
from adpa_cli.engine.ranks import Ranks
from adpa_cli.engine.training.student import Critic, Student
from adpa_cli.methods import Need, Part
from adpa_cli.spec import Dtype

BLOCK_BYTES = 1 << 26
ALONE = Ranks(0, 1, torch.device("cpu"))

LabelLogps = dict[tuple[str, str], NDArray[np.float32]]
"""Float32 log-probs [T], in nats, of the answer tokens of (example id, part)."""
Rows = Sequence[Sequence[int]]
"""Token ids of some rows."""


@torch.no_grad()
def label_logps(
    model: Student | Critic,
    examples: Sequence[Example],
    parts: Sequence[Part],
    tokens: int,
    device: torch.device | str,
    ranks: Ranks = ALONE,
) -> LabelLogps:
    """Score every part of every example in length-sorted batches of at most `tokens` padded tokens; of several `ranks`
    that share out the model's weights each scores a part of the examples, in as many batches as the others.

    A reward model and a critic give values in place of log-probs: see `at_answers` of the model.
    """
    if ranks.count == 1:
        model.to(device)
    needs = [Need(part) for part in parts]
    logps: LabelLogps = {}
    for positions in micro_batches([e.length for e in examples], len(parts), tokens, ranks.count)[ranks.rank]:
        chosen = [examples[p] for p in positions or [0]]
        batch = collate(chosen, needs, in_one=ranks.count > 1).to(torch.device(device))
        flat = model.at_answers(batch).float().cpu().numpy()
        for name, part in batch.parts.items():
            where, mask = part.where.cpu().numpy(), part.mask.cpu().numpy()
            for i, example in enumerate(chosen if positions else ()):
                logps[example.id, name] = flat[where[i][mask[i]]]
    return logps


def halving_logps(
    model: Student | Critic, examples: Sequence[Example], parts: Sequence[Part], tokens: int, device: torch.device | str
) -> LabelLogps:
    """`label_logps` with half the `tokens` at a time as often as memory runs out; AdpaError when a row does not fit."""
    longest = max((example.length for example in examples), default=0)
    return halving(
        lambda most: label_logps(model, examples, parts, most, device), tokens, longest * len(parts),
        f"a row of {len(parts)} × {longest:,} tokens",
    )  # fmt: skip


def scorer(folder: Path, dtype: Dtype, tokens: int) -> Callable[[Rows, Rows], list[float]]:
    """A function of prompts and their answers, as token ids: the log-probs of all answer tokens under the model in a
    folder, in nats, one after the other. It reads at most `tokens` at a time, and holds the model for one call."""

    def score(prompts: Rows, answers: Rows) -> list[float]:
        rows = [TokenSequence.of(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]
        examples = [Example(str(n), {"rollout": row}) for n, row in enumerate(rows)]
        student = Student(load_checked(folder, dtype=dtype, device=own_device()), dtype)
        logps = halving_logps(student, examples, ["rollout"], tokens, own_device())
        return [float(logp) for example in examples for logp in logps[example.id, "rollout"]]

    return score


def log_ratios(logps: LabelLogps, base: LabelLogps) -> dict[tuple[str, str], float]:
    """Sum over an answer's tokens of its log-prob less that under another model, in nats, by (example id, part).

    It is the reward that DPO fits (Rafailov et al. 2023, eq. 5), without its β.
    """
    return {key: float((values - base[key]).astype(np.float64).sum()) for key, values in logps.items()}


def pair_margins(logps: LabelLogps, examples: Sequence[Example]) -> dict[str, float]:
    """Mean log-prob per token of the chosen answer minus that of the rejected, in nats, by example id."""
    means = {key: float(values.mean()) for key, values in logps.items()}
    return {e.id: means[e.id, "chosen"] - means[e.id, "rejected"] for e in examples}


@torch.no_grad()
def full_vocabulary_logps(
    model: PreTrainedModel, answers: Sequence[Answer], known: int
) -> Iterator[tuple[int, int, Tensor]]:
    """(number of an answer, number of a run of its tokens, [t, `known` + 1] float64 log-probs of the first ids and of
    all others together), the answers behind one another.

    The runs are as long as BLOCK_BYTES allow; together they have a row for each token of the answer. All answers go
    through the model at once.
    """
    head = output_head(model)
    weight = head.weight.float()
    layout = answer_rows(answers, share=False)
    flat = states(model, layout)[layout.where.to(weight.device)].float()
    rows = max(1, BLOCK_BYTES // (8 * weight.shape[0]))
    for n, own in enumerate(torch.split(flat, [len(answer.answer) for answer in answers])):
        for number, run in enumerate(torch.split(own, rows)):
            products = torch.nn.functional.linear(run, weight)
            logps = head.logits(products, products).double().log_softmax(-1).cpu()
            yield n, number, torch.cat([logps[:, :known], logps[:, known:].logsumexp(-1, keepdim=True)], 1)
