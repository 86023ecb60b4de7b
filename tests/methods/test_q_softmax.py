"""Q-softmax by hand and by its identities."""

import dataclasses
import math

import pytest
import torch

from adpa_cli import methods
from support.dense_batches import Inputs, batch_for, value_and_gradients, view_of
from support.signal_changes import assert_same_terms, shuffled, with_absent_id

Q, ARGMAX, SFT = methods.load("q-softmax"), methods.load("q-argmax"), methods.load("sft")
LOG = math.log


def token(student, aligned, reference, label) -> Inputs:
    """An answer of one token from probabilities."""
    z, p, r = (torch.tensor([[v]], dtype=torch.float64).log() for v in (student, aligned, reference))
    yes = torch.tensor([[True]])
    return Inputs(z.requires_grad_(), p, r, p, torch.tensor([[label]]), yes, ~yes)


@pytest.mark.parametrize(("beta", "target"), [(0.0, [1 / 2, 1 / 2]), (1.0, [4 / 7, 3 / 7]), (2.0, [16 / 25, 9 / 25])])
def test_three_tokens_by_hand(beta, target):
    """k = 2: A = (log 2, log 3/2) on ids 0 and 1, the second by the floor rule, so that the target is 2^β : (3/2)^β.

    Student (1/4, 1/4, 1/2): KL = t_0 log 4 t_0 + t_1 log 4 t_1; loss = log 2 + 2 KL, for the logits 2 (π - t).
    """
    inputs = {
        "chosen": token([1 / 2, 1 / 4, 1 / 4], [1 / 3] * 3, [1 / 3] * 3, label=0),
        "rollout": token([1 / 4, 1 / 4, 1 / 2], [1 / 2, 3 / 8, 1 / 8], [1 / 4, 1 / 8, 5 / 8], label=2),
    }
    loss, grads = value_and_gradients(Q, Q.params(gamma=2.0, beta=beta), inputs, k=2)
    t, u = target
    assert loss.item() == pytest.approx(LOG(2) + 2 * (t * LOG(4 * t) + u * LOG(4 * u)))
    assert grads["rollout"][0, 0].tolist() == pytest.approx([2 * (1 / 4 - t), 2 * (1 / 4 - u), 1])
    assert grads["chosen"][0, 0].tolist() == pytest.approx([-1 / 2, 1 / 4, 1 / 4])


@pytest.mark.parametrize("reduction", ["seqmean", "tokmean", "seqsum"])
def test_without_weight_it_is_sft(reduction):
    params = Q.params(gamma=0.0, reduction=reduction)
    inputs = batch_for(Q, params)
    loss, grads = value_and_gradients(Q, params, inputs)
    want, sft = value_and_gradients(SFT, SFT.params(reduction=reduction), {"chosen": inputs["chosen"]})
    assert torch.equal(loss, want)
    assert torch.equal(grads["chosen"], sft["chosen"])
    assert not grads["rollout"].any()


def divergence(inputs, k=4, **values):
    """The divergence term of a batch, and its view."""
    views = {n.part: view_of(inputs[n.part], n, k) for n in Q.needs}
    return next(t.values for t in Q.terms(views, Q.params(**values)) if t.name == "kl_advantage"), views["rollout"]


def test_a_constant_advantage_asks_for_a_uniform_student_on_the_ids():
    """Equal teachers, K = 4: KL = -log 4 - mean over the ids of log π."""
    inputs = {k: dataclasses.replace(x, reference=x.aligned) for k, x in batch_for(Q, Q.params()).items()}
    values, view = divergence(inputs, beta=20.0)
    torch.testing.assert_close(values, -LOG(4) - view.topk_logps.mean(-1))
    assert (values >= -1e-12).all()


def test_a_shift_of_the_advantage_changes_nothing():
    """The shift is a factor on the reference's probabilities; its floor is moved along."""
    inputs = batch_for(Q, Q.params())
    views = {n.part: view_of(inputs[n.part], n, 4) for n in Q.needs}
    s = views["rollout"].signal
    moved = dataclasses.replace(s, difference=s.difference + 3, reference_kth=s.reference_kth - 3)
    other = views | {"rollout": dataclasses.replace(views["rollout"], signal=moved)}
    torch.testing.assert_close(
        Q.terms(other, Q.params(beta=1.0))[1].values, Q.terms(views, Q.params(beta=1.0))[1].values
    )


@pytest.mark.parametrize("k", [1, 4, 9])
def test_the_sharpest_target_is_q_argmax(k):
    inputs = batch_for(Q, Q.params())
    loss, grads = value_and_gradients(Q, Q.params(beta=1e5), inputs, k)
    want, hard = value_and_gradients(ARGMAX, ARGMAX.params(), inputs, k)
    torch.testing.assert_close((loss, grads), (want, hard))


def test_a_student_equal_to_the_target_is_left_alone():
    """K = V: a student that is the softmax of β A has divergence 0 and no gradient."""
    inputs = batch_for(Q, Q.params())
    x = inputs["rollout"]
    logits = (2.0 * (x.aligned.log_softmax(-1) - x.reference.log_softmax(-1))).requires_grad_()
    values, _ = divergence(inputs | {"rollout": dataclasses.replace(x, logits=logits)}, k=9, beta=2.0)
    torch.testing.assert_close(values, torch.zeros_like(values))
    torch.testing.assert_close(torch.autograd.grad(values.sum(), logits)[0], torch.zeros_like(logits))


def test_without_the_end_token_it_adds_nothing_there():
    inputs = batch_for(Q, Q.params())
    (on, _), (off, _) = (divergence(inputs, kd_on_eos=e) for e in (True, False))
    end = inputs["rollout"].end
    assert not off[end].any()
    assert torch.equal(off[~end], on[~end])


@pytest.mark.parametrize("change", [shuffled, with_absent_id])
def test_neither_the_order_of_the_ids_nor_an_absent_one_matters(change):
    assert_same_terms(Q, Q.params(beta=1.0), change)
