"""ADPA without the reference teacher, by hand and by its identities."""

import dataclasses
import math

import pytest
import torch

from adpa_cli import methods
from support.dense_batches import Inputs, batch_for, value_and_gradients, view_of
from support.signal_changes import assert_same_terms, shuffled, with_absent_id

NOREF, ADPA, SFT = methods.load("adpa-noref"), methods.load("adpa"), methods.load("sft")
LOG = math.log


def token(student, aligned, label) -> Inputs:
    """An answer of one token from probabilities."""
    z, p = (torch.tensor([[v]], dtype=torch.float64).log() for v in (student, aligned))
    yes = torch.tensor([[True]])
    return Inputs(z.requires_grad_(), p, p, p, torch.tensor([[label]]), yes, ~yes)


@pytest.mark.parametrize("label", [0, 1, 2])
def test_three_tokens_by_hand(label):
    """SFT log 2. k = 2: the teacher (1/2, 3/8, 1/8) keeps ids 0 and 1, so that token 2 scores log 3/8 as well.

    Student (1/4, 1/4, 1/2): cross-entropy c = 1/4 log 2 + (1/4 + 1/2) log 8/3; loss = log 2 + 2 c. For the logits of
    the student's answer 2 π_a (-score_a - c): token 0 gains, tokens 1 and 2 lose, by their probabilities 1 : 2.
    """
    inputs = {
        "chosen": token([1 / 2, 1 / 4, 1 / 4], [1 / 3] * 3, label=0),
        "rollout": token([1 / 4, 1 / 4, 1 / 2], [1 / 2, 3 / 8, 1 / 8], label=label),
    }
    loss, grads = value_and_gradients(NOREF, NOREF.params(gamma=2.0), inputs, k=2)
    c = 1 / 4 * LOG(2) + 3 / 4 * LOG(8 / 3)
    assert loss.item() == pytest.approx(LOG(2) + 2 * c)
    # LOG(8/3) - c = 1/4 log 4/3 and log 2 - c = -3/4 log 4/3.
    g = LOG(4 / 3)
    assert grads["rollout"][0, 0].tolist() == pytest.approx([-3 / 8 * g, 1 / 8 * g, 1 / 4 * g])
    assert grads["chosen"][0, 0].tolist() == pytest.approx([-1 / 2, 1 / 4, 1 / 4])


@pytest.mark.parametrize("reduction", ["seqmean", "tokmean", "seqsum"])
def test_without_weight_it_is_sft(reduction):
    params = NOREF.params(gamma=0.0, reduction=reduction)
    inputs = batch_for(NOREF, params)
    loss, grads = value_and_gradients(NOREF, params, inputs)
    want, sft = value_and_gradients(SFT, SFT.params(reduction=reduction), {"chosen": inputs["chosen"]})
    assert torch.equal(loss, want)
    assert torch.equal(grads["chosen"], sft["chosen"])
    assert not grads["rollout"].any()


def cross_entropy(inputs, k, **values):
    params = NOREF.params(**values)
    views = {n.part: view_of(inputs[n.part], n, k) for n in NOREF.needs}
    return next(t.values for t in NOREF.terms(views, params) if t.name == "reverse_ce")


def test_over_the_whole_vocabulary_it_is_divergence_plus_entropy():
    """K = V: KL(pi || aligned) + H(pi), and for the logits -pi (log p - E_pi log p)."""
    inputs = batch_for(NOREF, NOREF.params())
    x = inputs["rollout"]
    values = cross_entropy(inputs, k=9)
    logps, p = x.logits.log_softmax(-1), x.aligned.log_softmax(-1)
    pi = logps.exp()
    torch.testing.assert_close(values, (pi * (logps - p)).sum(-1) - (pi * logps).sum(-1))
    grad = torch.autograd.grad(values.sum(), x.logits)[0]
    torch.testing.assert_close(grad, (-pi * (p - (pi * p).sum(-1, keepdim=True))).detach())


@pytest.mark.parametrize("k", [1, 4, 9])
def test_it_is_adpa_with_a_uniform_reference_up_to_a_constant(k):
    inputs = batch_for(NOREF, NOREF.params())
    inputs = {name: dataclasses.replace(x, reference=torch.zeros_like(x.reference)) for name, x in inputs.items()}
    loss, grads = value_and_gradients(NOREF, NOREF.params(gamma=2.0), inputs, k)
    other, adpa = value_and_gradients(ADPA, ADPA.params(gamma=2.0, student_tail="floor"), inputs, k)
    torch.testing.assert_close(loss - 2 * LOG(9), other)
    torch.testing.assert_close(grads, adpa)


@pytest.mark.parametrize("k", [4, 9])
def test_it_is_least_where_all_mass_lies_on_the_teachers_likeliest_token(k):
    inputs = batch_for(NOREF, NOREF.params())
    x = inputs["rollout"]
    best = x.aligned.log_softmax(-1).amax(-1)
    assert (cross_entropy(inputs, k) > -best).all()
    sure = torch.nn.functional.one_hot(x.aligned.argmax(-1), 9) * 200.0
    there = inputs | {"rollout": dataclasses.replace(x, logits=sure.double().requires_grad_())}
    torch.testing.assert_close(cross_entropy(there, k), -best)


def test_tokens_outside_the_top_k_never_gain():
    """They score the least of all, so that descent cannot raise their logits."""
    inputs = batch_for(NOREF, NOREF.params())
    x = inputs["rollout"]
    grad = torch.autograd.grad(cross_entropy(inputs, k=4).sum(), x.logits)[0]
    inside = torch.zeros_like(grad, dtype=torch.bool).scatter(-1, x.aligned.topk(4, dim=-1).indices, True)
    assert (grad[~inside] > 0).all()


def test_without_the_end_token_it_adds_nothing_there():
    inputs = batch_for(NOREF, NOREF.params())
    x = inputs["rollout"]
    on, off = cross_entropy(inputs, k=4), cross_entropy(inputs, k=4, kd_on_eos=False)
    assert not off[x.end].any()
    assert torch.equal(off[~x.end], on[~x.end])


@pytest.mark.parametrize("change", [shuffled, with_absent_id])
def test_neither_the_order_of_the_ids_nor_an_absent_one_matters(change):
    assert_same_terms(NOREF, NOREF.params(), change)
