"""A method over one global batch: its loss, and on some steps how much each term pulls, and the student's entropy.

Gradients of terms are compared at the logits, the one place that all of them go through: their norms follow from the
gradient with respect to the selected log-probs, without a second pass through the model, and from the global batch
alone, however it is cut.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from adpa_cli.engine.layout.batch import Batch, PartBatch, views
from adpa_cli.engine.layout.examples import Example, TokenSequence
from adpa_cli.engine.training.step_report import ENTROPY, GRADIENT, LENGTH
from adpa_cli.errors import AdpaError
from adpa_cli.methods import Method, Part, Term, View
from adpa_cli.tensors.divergence import reduce
from adpa_cli.tensors.output import Stats, logit_grad_squares

EVERY = 10
"""Steps from one that is measured to the next; the first is."""
CELLS, PADDING = "cells", "padding"
Answers = tuple[Tensor, Tensor, Stats | None, Tensor | None]
"""What a student gives for a micro-batch; see `Student.forward`."""


@dataclass(frozen=True)
class Objective:
    """`method` at its `params` over the `examples` of a step; its terms are `measured` on some steps."""

    method: Method
    params: Any
    examples: Sequence[Example]
    measured: bool = False

    @cached_property
    def sequences(self) -> dict[Part, list[TokenSequence]]:
        """What the step reads, by part."""
        needs = self.method.needs_for(self.params)
        return {need.part: [example.parts[need.part] for example in self.examples] for need in needs}

    @cached_property
    def tokens(self) -> dict[Part, int]:
        """Answer tokens by part."""
        return {part: sum(sequence.tokens for sequence in own) for part, own in self.sequences.items()}

    @cached_property
    def stats(self) -> bool:
        """Whether the student is to say what its whole softmax is like."""
        return self.measured or any(need.stats for need in self.method.needs_for(self.params))

    def loss(self, batch: Batch, answers: Answers, weight: float, sums: dict[str, Tensor]) -> Tensor:
        """The share of the loss of a micro-batch, times `weight`; its share of every number is added to `sums`."""
        total: Tensor | None = None
        for term, share in self._shares(views(batch, *answers), batch.parts):
            part = term.weight * share
            total = part if total is None else total + part
            for name, value in ((term.name, share), ("loss", part)):
                sums[name] = sums.get(name, 0.0) + weight * value.detach()
        if total is None:
            raise AdpaError(f"the method {self.method.name} returned no terms")
        stats = answers[2]
        if self.measured and stats is not None:
            self._measure(batch, answers, stats, weight, sums)
        for name, count in ((CELLS, batch.cells), (PADDING, batch.padding if weight else batch.cells)):
            sums[name] = sums.get(name, 0.0) + total.detach().new_full((), count, dtype=torch.float64)
        return weight * total

    def _shares(self, seen: Mapping[Part, View], parts: Mapping[str, PartBatch]) -> Iterator[tuple[Term, Tensor]]:
        """Each term, and its share of the mean over the global batch."""
        rows = len(self.examples)
        for term in self.method.terms(seen, self.params):
            mask, tokens = parts[term.part].mask, self.tokens[term.part]
            yield term, reduce(term.values, mask, term.reduction, batch_rows=rows, batch_tokens=tokens)

    def _measure(self, batch: Batch, answers: Answers, stats: Stats, weight: float, sums: dict[str, Tensor]) -> None:
        """Add the squared gradient at the logits of each term that has one, with its weight, and entropies."""
        logps, rest, values = answers[0].detach(), answers[1].detach(), answers[3]
        leaves = logps.clone().requires_grad_(), rest.clone().requires_grad_()
        seen = views(batch, *leaves, stats, None if values is None else values.detach())
        for term, share in self._shares(seen, batch.parts):
            if not share.requires_grad:
                continue
            pulls = torch.autograd.grad(weight * term.weight * share, leaves, retain_graph=True, allow_unused=True)
            grads = [torch.zeros_like(leaf) if g is None else g for g, leaf in zip(pulls, leaves, strict=True)]
            squares = logit_grad_squares(batch.ids, logps, rest, stats.log_sum_squares, *grads).sum()
            name = GRADIENT + term.name
            sums[name] = sums.get(name, 0.0) + squares
        for part, own in batch.parts.items():
            total = torch.where(own.mask, stats.entropy[own.where].double(), 0.0).sum()
            sums[ENTROPY + part] = sums.get(ENTROPY + part, 0.0) + weight * total

    def numbers(self, sums: Mapping[str, float]) -> dict[str, float]:
        """The numbers of the step, of the sums over all micro-batches and processes."""
        known = {name: value for name, value in sums.items() if name not in (CELLS, PADDING)}
        numbers = {name: value**0.5 if name.startswith(GRADIENT) else value for name, value in known.items()}
        for part, count in self.tokens.items():
            if ENTROPY + part in numbers:
                numbers[ENTROPY + part] /= max(1, count)
        rows = len(self.examples)
        lengths = {f"{LENGTH}{part}": count / rows for part, count in self.tokens.items() if part == "rollout"}
        tokens = sum(len(sequence) for own in self.sequences.values() for sequence in own)
        return {**numbers, **lengths, "tokens": tokens, "padding": sums[PADDING] / sums[CELLS]}
