"""The three reductions on two short answers, by hand."""

import math

import pytest
import torch

from adpa_cli.tensors.divergence import reduce

VALUES = torch.tensor([[1.0, 2.0, 6.0], [4.0, 50.0, math.nan]], requires_grad=True)
MASK = torch.tensor([[True, True, True], [True, False, False]])


@pytest.mark.parametrize(
    ("reduction", "want", "gradient"),
    [
        ("seqmean", (9 / 3 + 4 / 1) / 2, [1 / 6, 1 / 6, 1 / 6, 1 / 2]),
        ("tokmean", (9 + 4) / 4, [1 / 4, 1 / 4, 1 / 4, 1 / 4]),
        ("seqsum", (9 + 4) / 2, [1 / 2, 1 / 2, 1 / 2, 1 / 2]),
    ],
)
def test_by_hand(reduction, want, gradient):
    value = reduce(VALUES, MASK, reduction, batch_rows=2, batch_tokens=4)
    assert value.item() == pytest.approx(want)
    grad = torch.autograd.grad(value, VALUES)[0]
    assert grad[MASK].tolist() == pytest.approx(gradient)
    assert not grad[~MASK].any()


@pytest.mark.parametrize("reduction", ["seqmean", "tokmean", "seqsum"])
def test_one_value_per_example_is_averaged_whatever_the_reduction(reduction):
    assert reduce(torch.tensor([1.0, 4.0]), MASK, reduction, batch_rows=10, batch_tokens=4).item() == 0.5


def test_sizes_are_those_of_the_whole_batch():
    """Half of a batch of 4 rows and 10 tokens."""
    got = [reduce(VALUES, MASK, r, batch_rows=4, batch_tokens=10).item() for r in ("seqmean", "tokmean", "seqsum")]
    assert got == pytest.approx([(9 / 3 + 4) / 4, 13 / 10, 13 / 4])


@pytest.mark.parametrize("reduction", ["seqmean", "tokmean", "seqsum"])
def test_a_row_of_filling_adds_nothing(reduction):
    empty = reduce(VALUES, torch.zeros_like(MASK), reduction, batch_rows=2, batch_tokens=0)
    assert empty.item() == 0.0
    assert not torch.autograd.grad(empty, VALUES)[0].any()
