"""The tiled top k against a stable sort of all logits."""

import math

import pytest
import torch

from adpa_cli.tensors.topk import head_topk, sort_keys

TILES = [None, (7, 1), (2, 3), (100, 64), (3, 1000)]


def expected(logits, k):
    """Python's stable sort: by descending logit, then by lower id."""
    ids = [sorted(range(len(row)), key=lambda i, row=row: (-row[i], i))[:k] for row in logits.tolist()]
    ids = torch.tensor(ids)
    return logits.log_softmax(1).gather(1, ids), ids, logits.logsumexp(1)


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equals_a_stable_sort_with_ties(tile, dtype):
    g = torch.Generator().manual_seed(1)
    hidden, weight = torch.randn(9, 5, generator=g).to(dtype), torch.randn(200, 5, generator=g).to(dtype)
    weight[50:90] = weight[10]
    hidden[3] = 0
    got = head_topk(hidden, weight, 60, tile=tile)
    logps, ids, lse = expected((hidden @ weight.T).float(), 60)
    assert torch.equal(got.ids, ids)
    torch.testing.assert_close((got.logps, got.lse), (logps, lse))
    assert got.ids[3].tolist() == list(range(60))


def test_by_hand_with_bias_and_a_tie():
    """Logits (0, log 2, 0, -1): two equal logits go to the lower id."""
    bias = torch.tensor([0.0, math.log(2), 0.0, -1.0])
    got = head_topk(torch.zeros(1, 2), torch.zeros(4, 2), 3, bias, tile=(1, 2))
    mass = 1 + 2 + 1 + math.exp(-1)
    assert got.ids.tolist() == [[1, 0, 2]]
    assert got.logps[0].tolist() == pytest.approx([math.log(2 / mass), -math.log(mass), -math.log(mass)])
    assert got.lse.item() == pytest.approx(math.log(mass))


def test_keys_sort_by_value_then_by_lower_id():
    """Zero and minus zero are one value; which of them a product gives depends on the machine."""
    logits = torch.tensor([[-0.0, 0.0, -1e30, 1e30, -1e-30, 1e-30, -2.0, -2.0]])
    order = sort_keys(logits, 100)[0].argsort(descending=True)
    assert order.tolist() == [3, 5, 0, 1, 4, 6, 7, 2]


def test_negative_logits_sort_by_value():
    bias = torch.tensor([-3.0, -1e30, -2.5, -1e-30, -2.0])
    assert head_topk(torch.zeros(1, 2), torch.zeros(5, 2), 5, bias).ids.tolist() == [[3, 4, 2, 0, 1]]


def test_k_is_cut_to_the_vocabulary_and_no_rows_are_fine():
    weight = torch.randn(4, 3)
    assert head_topk(torch.randn(2, 3), weight, 50).ids.shape == (2, 4)
    empty = head_topk(torch.zeros(0, 3), weight, 2)
    assert (empty.logps.shape, empty.ids.dtype, empty.lse.shape) == ((0, 2), torch.int64, (0,))


def test_no_gradient_and_a_broken_logit_shows():
    weight = torch.randn(4, 3, requires_grad=True)
    assert not head_topk(torch.randn(2, 3, requires_grad=True), weight, 2).logps.requires_grad
    broken = weight.detach().clone()
    broken[2, 1] = math.nan
    assert not head_topk(torch.ones(1, 3), broken, 2).lse.isfinite().any()


def test_autocast_runs_the_product_in_bfloat16():
    hidden, weight = torch.randn(6, 32), torch.randn(100, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = head_topk(hidden, weight, 5)
    want = head_topk(hidden.bfloat16(), weight.bfloat16(), 5)
    assert torch.equal(got.ids, want.ids)
    assert torch.equal(got.logps, want.logps)
    assert got.logps.dtype == torch.float32
