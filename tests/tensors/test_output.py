"""The size of a gradient at the logits against one worked by hand, and against autograd through dense logits."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from adpa_cli.tensors.head import selected_logps
from adpa_cli.tensors.output import logit_grad_squares


def squares(hidden: Tensor, weight: Tensor, ids: Tensor, grad_logps: Tensor, grad_rest: Tensor) -> Tensor:
    found = selected_logps(hidden, weight, ids, stats=True)
    assert found.stats is not None
    return logit_grad_squares(ids, found.logps, found.rest, found.stats.log_sum_squares, grad_logps, grad_rest)


def test_three_tokens_by_hand() -> None:
    """p = (1/2, 1/4, 1/4); L = -log p_0: dz = p - e_0. L = log of the mass outside id 0: dz = (-1/2, 1/4, 1/4) + …"""
    logits = torch.tensor([[0.5, 0.25, 0.25]]).log()
    ids = torch.tensor([[0]])
    known = (ids, logits[:, :1], torch.tensor([math.log(0.5)]), torch.tensor([math.log(0.375)]))
    label = logit_grad_squares(*known, torch.tensor([[-1.0]]), torch.tensor([0.0]))
    assert label.tolist() == pytest.approx([0.25 + 0.0625 + 0.0625])
    # dz_0 = -p_0 S = -1/2; dz_j = p_j (1/R - S) = (1/4)(2 - 1) = 1/4.
    outside = logit_grad_squares(*known, torch.tensor([[0.0]]), torch.tensor([1.0]))
    assert outside.tolist() == pytest.approx([0.25 + 0.0625 + 0.0625])
    both = logit_grad_squares(*known, torch.tensor([[3.0]]), torch.tensor([-2.0]))
    # S = 1: dz_0 = 3 - 1/2, dz_j = (1/4)(-4 - 1) = -5/4 twice.
    assert both.tolist() == pytest.approx([6.25 + 2 * 1.5625])


@pytest.mark.parametrize("scale", [0.1, 1.0, 2.0])
def test_equals_autograd_through_dense_logits(scale: float) -> None:
    """With ids that repeat and ids that are absent."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(40, 8, generator=generator, dtype=torch.float64)
    weight = scale * torch.randn(30, 8, generator=generator, dtype=torch.float64)
    ids = torch.randint(-1, 30, (40, 7), generator=generator)
    ids[:20, 3] = ids[:20, 0]
    grad_logps = torch.randn(40, 7, generator=generator, dtype=torch.float64)
    grad_rest = torch.randn(40, generator=generator, dtype=torch.float64)
    logits = (hidden @ weight.T).requires_grad_()
    logps = logits.log_softmax(1)
    picked = torch.where(ids < 0, 0.0, logps.gather(1, ids.clamp_min(0)))
    chosen = torch.zeros(40, 31, dtype=torch.bool).scatter(1, ids.where(ids >= 0, 30), True)[:, :30]
    rest = logps.masked_fill(chosen, -math.inf).logsumexp(1)
    ((grad_logps * picked).sum() + (grad_rest * rest).sum()).backward()
    found = squares(hidden, weight, ids, grad_logps, grad_rest)
    torch.testing.assert_close(found, logits.grad.square().sum(1), rtol=1e-6, atol=1e-9)


def test_nothing_outside_the_ids_and_nothing_chosen() -> None:
    """R = 0 takes no gradient; without an id the whole mass is outside, and its logarithm never moves."""
    hidden, weight = torch.eye(3), torch.eye(3)
    ids = torch.tensor([[0, 1, 2], [-1, -1, -1], [2, 2, -1]])
    grad_rest = torch.tensor([5.0, 5.0, 0.0])
    found = squares(hidden, weight, ids, torch.tensor([[-1.0, 0, 0], [9.0, 9, 9], [-0.25, -0.75, 4.0]]), grad_rest)
    p = torch.softmax(torch.eye(3), 1).double()
    label = (p - torch.tensor([[1.0, 0, 0], [0, 0, 0], [0, 0, 1.0]])).square().sum(1)
    assert found.tolist() == pytest.approx([label[0].item(), 0.0, label[2].item()], abs=1e-6)


def test_where_the_outside_is_lost_in_rounding_the_figure_stays_within_its_bounds() -> None:
    """Σ_outside p² lies between 0 and R², so at R = 2e-9 what it adds is at most (g_rest - R S)²."""
    weight = torch.tensor([[20.0], [0.0], [0.0]])
    found = squares(torch.ones(1, 1), weight, torch.tensor([[0]]), torch.tensor([[0.0]]), torch.tensor([0.5]))
    assert 0.25 - 1e-6 <= found.item() <= 0.5 + 1e-6
