"""Distilled DPO by hand and by its identities."""

import dataclasses
import math

import pytest
import torch

from adpa_cli import methods
from support.dense_batches import Inputs, batch_for, value_and_gradients, view_of

DDPO = methods.load("ddpo")
LOG = math.log


def answer(rows, aligned, reference, start, labels) -> Inputs:
    """One answer from a probability row per token."""
    z, *others = (torch.tensor([v], dtype=torch.float64).log() for v in (rows, aligned, reference, start))
    mask = torch.ones(1, len(labels), dtype=torch.bool)
    return Inputs(z.requires_grad_(), *others, torch.tensor([labels]), mask, ~mask)


def test_three_tokens_by_hand():
    """Teachers: log-ratios log 2 + log 2 and log 2. Student against start: log 2 + 0 and -log 2, so h = 2 log 2.

    β = 1/4: the student's margin is 1/2 log 2; the teachers' is the same at 1/2, and log 2 more at 3/2.
    """
    a, b, c = [1 / 2, 1 / 4, 1 / 4], [1 / 4, 1 / 2, 1 / 4], [5 / 8, 1 / 8, 1 / 4]
    inputs = {
        "chosen": answer([a, a], [a, b], [b, a], [b, a], [0, 1]),
        "rejected": answer([c], [a], [c], [a], [1]),
    }
    loss, _ = value_and_gradients(DDPO, DDPO.params(beta=0.25, beta_teacher=0.5), inputs, k=1)
    assert loss.item() == pytest.approx(0, abs=1e-15)
    loss, grads = value_and_gradients(DDPO, DDPO.params(beta=0.25, beta_teacher=1.5), inputs, k=1)
    assert loss.item() == pytest.approx(LOG(2) ** 2)
    pull = 2 * 0.25 * LOG(2)
    want = [pull * g for g in (-1 / 2, 1 / 4, 1 / 4, 1 / 2, -3 / 4, 1 / 4)]
    assert grads["chosen"].flatten().tolist() == pytest.approx(want)
    assert grads["rejected"].flatten().tolist() == pytest.approx([pull * g for g in (-5 / 8, 7 / 8, -1 / 4)])


def test_swapping_the_pair_changes_nothing():
    inputs = batch_for(DDPO, DDPO.params())
    loss, grads = value_and_gradients(DDPO, DDPO.params(), inputs)
    swapped = {"chosen": inputs["rejected"], "rejected": inputs["chosen"]}
    back, theirs = value_and_gradients(DDPO, DDPO.params(), swapped)
    torch.testing.assert_close(back, loss)
    torch.testing.assert_close((theirs["rejected"], theirs["chosen"]), (grads["chosen"], grads["rejected"]))


def test_at_the_start_model_the_loss_is_the_squared_reward_margin():
    params = DDPO.params(beta=0.3, beta_teacher=0.2)
    inputs = {k: dataclasses.replace(x, start=x.logits.detach()) for k, x in batch_for(DDPO, params).items()}
    loss, grads = value_and_gradients(DDPO, params, inputs)
    sums, rewards = {}, {}
    for part, x in inputs.items():
        student, a, r = (
            (t.log_softmax(-1).gather(-1, x.labels[..., None])[..., 0] * x.mask).sum(1)
            for t in (x.logits, x.aligned, x.reference)
        )
        sums[part], rewards[part] = student, 0.2 * (a - r)
    margin = rewards["chosen"] - rewards["rejected"]
    torch.testing.assert_close(loss, margin.square().mean())
    for part, sign in (("chosen", -1), ("rejected", 1)):
        want = torch.autograd.grad((sign * 2 * 0.3 * margin * sums[part]).mean(), inputs[part].logits)[0]
        torch.testing.assert_close(grads[part], want)


def test_a_student_that_moved_as_its_teacher_did_has_no_loss():
    params = DDPO.params(beta=0.3, beta_teacher=0.3)
    inputs = {
        k: dataclasses.replace(x, aligned=x.logits.detach(), reference=x.start)
        for k, x in batch_for(DDPO, params).items()
    }
    loss, grads = value_and_gradients(DDPO, params, inputs)
    assert loss.item() == pytest.approx(0, abs=1e-20)
    assert all(g.abs().max() < 1e-12 for g in grads.values())


def test_the_same_reward_added_to_both_answers_cancels():
    params = DDPO.params()
    inputs = batch_for(DDPO, params)
    views = {n.part: view_of(inputs[n.part], n, 4) for n in DDPO.needs}

    def raised(v):
        """7 nats more of the aligned teacher on every answer, spread over its tokens."""
        more = v.signal.label_logps + 7 * v.mask / v.mask.sum(1, keepdim=True)
        return dataclasses.replace(v, signal=dataclasses.replace(v.signal, label_logps=more))

    (plain,) = DDPO.terms(views, params)
    (moved,) = DDPO.terms({k: raised(v) for k, v in views.items()}, params)
    torch.testing.assert_close(moved.values, plain.values)
    (one,) = DDPO.terms(views | {"chosen": raised(views["chosen"])}, params)
    assert not torch.allclose(one.values, plain.values)


def test_three_tokens_and_the_rewards_of_a_model_by_hand():
    """Of the same answers h = 2 log 2. β = 1/2: rewards 3 and 1 are 2 apart, log 2 less is left to fit."""
    a, b, c = [1 / 2, 1 / 4, 1 / 4], [1 / 4, 1 / 2, 1 / 4], [5 / 8, 1 / 8, 1 / 4]
    inputs = {"chosen": answer([a, a], [a, b], [b, a], [b, a], [0, 1]), "rejected": answer([c], [a], [c], [a], [1])}
    params = DDPO.params(beta=0.5, beta_teacher=9.0, reward="explicit")
    views = {need.part: view_of(inputs[need.part], need, 1) for need in DDPO.needs_for(params)}
    assert all(view.signal is None for view in views.values())
    rewards = {"chosen": 3.0, "rejected": 1.0}
    views = {part: dataclasses.replace(v, reward=torch.tensor([rewards[part]])) for part, v in views.items()}
    (term,) = DDPO.terms(views, params)
    assert term.values.item() == pytest.approx((2 - LOG(2)) ** 2)
    grads = torch.autograd.grad(term.values.sum(), [x.logits for x in inputs.values()])
    pull = -2 * 0.5 * (2 - LOG(2))
    assert grads[0].flatten().tolist() == pytest.approx(
        [pull * g for g in (1 / 2, -1 / 4, -1 / 4, -1 / 2, 3 / 4, -1 / 4)]
    )
    assert grads[1].flatten().tolist() == pytest.approx([pull * g for g in (5 / 8, -7 / 8, 1 / 4)])
