"""GKD by hand, by its limits, and against TRL."""

import dataclasses
import math

import pytest
import torch

from adpa_cli import methods
from support.dense_batches import Inputs, batch_for, value_and_gradients, view_of
from support.signal_changes import assert_same_terms, shuffled, with_absent_id

GKD, SFT = methods.load("gkd"), methods.load("sft")
LOG = math.log


def divergence(inputs, k=4, **values):
    """The divergence term of a batch."""
    views = {n.part: view_of(inputs[n.part], n, k) for n in GKD.needs}
    return GKD.terms(views, GKD.params(**values))[1].values


def test_three_tokens_by_hand():
    """k = 1, β = 1/2. Teacher (1/2, 1/4, 1/4), student (1/4, 1/2, 1/4): on {id, rest} T = (1/2, 1/2), S = (1/4, 3/4),
    M = (3/8, 5/8). dJSD/dq = (1-β) log(q/M) on each class, and dq/dz = q (onehot - π)."""
    z, p = (torch.tensor([[v]], dtype=torch.float64).log() for v in ([1 / 4, 1 / 2, 1 / 4], [1 / 2, 1 / 4, 1 / 4]))
    yes = torch.tensor([[True]])
    one = Inputs(z.clone().requires_grad_(), p, p, p, torch.tensor([[1]]), yes, yes)
    inputs = {"chosen": one, "rollout": one.apply(lambda x: x)}
    loss, grads = value_and_gradients(GKD, GKD.params(beta=0.5, sft_weight=1.0), inputs, k=1)
    forward = 1 / 2 * LOG(4 / 3) + 1 / 2 * LOG(4 / 5)
    reverse = 1 / 4 * LOG(2 / 3) + 3 / 4 * LOG(6 / 5)
    assert loss.item() == pytest.approx(LOG(2) + (forward + reverse) / 2)
    slope = [LOG(2 / 3) / 2, LOG(6 / 5) / 2, LOG(6 / 5) / 2]
    q = [1 / 4, 1 / 2, 1 / 4]
    mean = sum(a * b for a, b in zip(q, slope, strict=True))
    assert grads["rollout"][0, 0].tolist() == pytest.approx([a * (b - mean) for a, b in zip(q, slope, strict=True)])
    assert grads["chosen"][0, 0].tolist() == pytest.approx([1 / 4, -1 / 2, 1 / 4])


@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_with_the_whole_vocabulary_it_is_that_of_trl(beta, monkeypatch):
    """TRL's `generalized_jsd_loss` sums over masked positions and divides by their number."""
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    from trl.experimental.gkd import GKDTrainer

    inputs = batch_for(GKD, GKD.params())
    x = inputs["rollout"]
    mine = divergence(inputs, k=9, beta=beta)[x.mask].mean()
    labels = torch.where(x.mask, x.labels, -100)
    theirs = GKDTrainer.generalized_jsd_loss(x.logits, x.aligned, labels, beta=beta)
    torch.testing.assert_close(mine, theirs)
    ours, other = (torch.autograd.grad(v, x.logits)[0] for v in (mine, theirs))
    torch.testing.assert_close(ours, other)


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("k", [1, 4, 9])
def test_is_a_divergence_that_coarse_classes_lower(beta, k):
    inputs = batch_for(GKD, GKD.params())
    mask = inputs["rollout"].mask
    coarse, fine = (divergence(inputs, k=n, beta=beta)[mask] for n in (k, 9))
    assert (coarse >= 0).all()
    assert (coarse <= fine + 1e-12).all()


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_a_student_equal_to_its_teacher_only_feels_sft(beta):
    inputs = {k: dataclasses.replace(x, aligned=x.logits.detach()) for k, x in batch_for(GKD, GKD.params()).items()}
    loss, grads = value_and_gradients(GKD, GKD.params(beta=beta), inputs)
    want, sft = value_and_gradients(SFT, SFT.params(), {"chosen": inputs["chosen"]})
    torch.testing.assert_close((loss, grads["chosen"]), (want, sft["chosen"]))
    torch.testing.assert_close(grads["rollout"], torch.zeros_like(grads["rollout"]))


@pytest.mark.parametrize("change", [shuffled, with_absent_id])
def test_neither_the_order_of_the_ids_nor_an_absent_one_matters(change):
    assert_same_terms(GKD, GKD.params(), change)
