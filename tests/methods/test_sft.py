"""SFT by hand and against torch's cross entropy."""

import dataclasses
import math

import pytest
import torch
from torch.nn import functional as F

from adpa_cli import methods
from support.dense_batches import batch_for, random_inputs, value_and_gradients

SFT = methods.load("sft")


def test_two_tokens_by_hand():
    """Token 0 at probability 1/2, then token 1 at 1/3: (log 2 + log 3) / 2; gradient (q - onehot) / 2."""
    x = random_inputs(0, rows=1, time=3, vocabulary=3)
    logits = torch.tensor([[[math.log(2), 0, 0], [0, 0, 0], [5, 1, 2]]], dtype=torch.float64, requires_grad=True)
    labels, mask = torch.tensor([[0, 1, 2]]), torch.tensor([[True, True, False]])
    x = dataclasses.replace(x, logits=logits, labels=labels, mask=mask, end=torch.tensor([[False, True, False]]))
    loss, grads = value_and_gradients(SFT, SFT.params(), {"chosen": x})
    assert loss.item() == pytest.approx((math.log(2) + math.log(3)) / 2)
    assert grads["chosen"][0].flatten().tolist() == pytest.approx([-1 / 4, 1 / 8, 1 / 8, 1 / 6, -1 / 3, 1 / 6, 0, 0, 0])


@pytest.mark.parametrize(("rows", "reduction"), [(1, "seqmean"), (4, "tokmean")])
def test_equals_cross_entropy(rows, reduction):
    params = SFT.params(reduction=reduction)
    inputs = batch_for(SFT, params, rows=rows)
    x = inputs["chosen"]
    want = F.cross_entropy(x.logits.flatten(0, 1), x.labels.masked_fill(~x.mask, -100).flatten(), ignore_index=-100)
    loss, grads = value_and_gradients(SFT, params, inputs)
    torch.testing.assert_close(loss, want.detach())
    torch.testing.assert_close(grads["chosen"], torch.autograd.grad(want, x.logits)[0])


def test_gradient_is_probability_minus_label_over_length_and_rows():
    inputs = batch_for(SFT, SFT.params())
    x = inputs["chosen"]
    _, grads = value_and_gradients(SFT, SFT.params(), inputs)
    length = x.mask.sum(1)[:, None, None]
    want = (x.logits.softmax(-1) - F.one_hot(x.labels, 9)) * x.mask[..., None] / (4 * length)
    torch.testing.assert_close(grads["chosen"], want.detach())
