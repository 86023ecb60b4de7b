"""Rows of logits in tiles, their top ids and the mass elsewhere, against a stable sort and a dense softmax."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from adpa_cli.tensors.head import selected_logps
from adpa_cli.tensors.output import Head, tile_rows
from adpa_cli.tensors.sums import sort_keys, split, top_ids


def stable(logits: Tensor, k: int) -> list[list[int]]:
    """Python's stable sort: by descending logit, then by lower id."""
    return [sorted(range(len(row)), key=lambda i, row=row: (-row[i], i))[:k] for row in logits.tolist()]


@pytest.mark.parametrize(("size", "k"), [(200, 60), (200, 200), (200, 300), (1000, 1), (3333, 7), (9999, 50), (64, 1)])
def test_top_ids_are_those_of_a_stable_sort_with_ties(size: int, k: int) -> None:
    logits = torch.randn(9, size, generator=torch.Generator().manual_seed(1))
    logits[0] = 0
    logits[1] = logits[1].round()
    logits[2, : size // 2] = -math.inf
    logits[3] = -math.inf
    logits[4, -1] = 9
    logits[5, ::3] = 5
    assert top_ids(logits, k).tolist() == stable(logits, k)


def test_keys_sort_by_value_then_by_lower_id() -> None:
    """Zero and minus zero are one value; which of them a product gives depends on the machine."""
    logits = torch.tensor([[-0.0, 0.0, -1e30, 1e30, -1e-30, 1e-30, -2.0, -2.0]])
    order = sort_keys(logits, torch.arange(100, 108)[None])[0].argsort(descending=True)
    assert order.tolist() == [3, 5, 0, 1, 4, 6, 7, 2]


def test_by_hand_with_bias_and_a_tie() -> None:
    """Logits (0, log 2, 0, -1): two equal logits go to the lower id."""
    bias = torch.tensor([0.0, math.log(2), 0.0, -1.0])
    ((span, logits),) = Head(torch.zeros(4, 2), bias).rows(torch.zeros(1, 2))
    ids = top_ids(logits, 3)
    logps, rest = split(logits, ids)
    mass = 1 + 2 + 1 + math.exp(-1)
    assert span == slice(0, 1)
    assert ids.tolist() == [[1, 0, 2]]
    assert logps[0].tolist() == pytest.approx([math.log(2 / mass), -math.log(mass), -math.log(mass)])
    assert rest.item() == pytest.approx(-1 - math.log(mass))


@pytest.mark.parametrize("step", [0, 1, 2, 3])
def test_tiles_of_rows_give_the_log_probs_of_all_at_once(step: int) -> None:
    g = torch.Generator().manual_seed(3)
    hidden, weight, bias = (torch.randn(*shape, generator=g) for shape in ((20, 5), (300, 5), (300,)))
    where = torch.tensor([19, 4, 4, 7, 0])
    asked = torch.randint(300, (5, 8), generator=g)
    asked[:, 1] = asked[:, 0]
    head = Head(weight.requires_grad_(), bias)
    parts = [split(logits, asked[span]) for span, logits in head.rows(hidden[where], step=step)]
    logps, rest = (torch.cat(column) for column in zip(*parts, strict=True))
    dense = (hidden[where] @ weight.detach().T + bias).double().log_softmax(1)
    expected = selected_logps(hidden[where], weight.detach(), asked, bias)
    torch.testing.assert_close(logps.double(), dense.gather(1, asked))
    torch.testing.assert_close((logps, rest), (expected.logps, expected.rest))
    assert not logps.requires_grad


def test_the_tile_depends_on_sizes_and_is_never_empty() -> None:
    cpu = torch.device("cpu")
    assert tile_rows(32_000, cpu) == 262
    assert tile_rows(1 << 24, cpu) == 1
    assert list(Head(torch.zeros(4, 3)).rows(torch.zeros(0, 3))) == []


def test_nothing_outside_is_minus_infinity_and_a_broken_logit_shows() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0]])
    logps, rest = split(logits.clone(), torch.tensor([[2, 0, 1]]))
    assert rest.item() == -math.inf
    assert logps.exp().sum().item() == pytest.approx(1)
    for broken in (math.nan, math.inf):
        logps, rest = split(torch.tensor([[0.0, broken, 2.0]]), torch.tensor([[0]]))
        assert torch.isnan(rest).any() or not torch.isfinite(logps).all()
        assert top_ids(torch.tensor([[0.0, broken, 2.0]]), 1).tolist() == [[1]]
