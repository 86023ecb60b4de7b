"""SimPO by hand, by its identities, and against TRL's loss."""

import dataclasses
import math

import pytest
import torch

from adpa_cli import methods
from adpa_cli.methods import View
from support.dense_batches import Inputs, batch_for, loss_of, random_inputs, value_and_gradients

SIMPO, DPO = methods.load("simpo"), methods.load("dpo")
LOG = math.log


def answer(rows, labels) -> Inputs:
    """One answer from a probability row per token."""
    z = torch.tensor([rows], dtype=torch.float64).log()
    mask = torch.ones(1, len(labels), dtype=torch.bool)
    return Inputs(z.requires_grad_(), z.detach(), z.detach(), z.detach(), torch.tensor([labels]), mask, ~mask)


def test_three_tokens_by_hand():
    """Averages (log 1/2 + log 1/4) / 2 and log 1/8, margin 1/2: d = 3/2 log 2 - 1/2, loss = log(1 + exp(-2 d))."""
    inputs = {
        "chosen": answer([[1 / 2, 1 / 4, 1 / 4], [1 / 2, 1 / 4, 1 / 4]], [0, 1]),
        "rejected": answer([[1 / 8, 3 / 8, 1 / 2]], [0]),
    }
    loss, grads = value_and_gradients(SIMPO, SIMPO.params(beta=2.0, gamma_beta_ratio=0.5), inputs)
    d = 3 / 2 * LOG(2) - 1 / 2
    assert loss.item() == pytest.approx(LOG(1 + math.exp(-2 * d)))
    pull = 2 / (1 + math.exp(2 * d))
    # Half the pull at each of the two chosen tokens; d log softmax = onehot - q.
    want = [pull / 2 * g for g in (-1 / 2, 1 / 4, 1 / 4, 1 / 2, -3 / 4, 1 / 4)]
    assert grads["chosen"].flatten().tolist() == pytest.approx(want)
    assert grads["rejected"].flatten().tolist() == pytest.approx([pull * g for g in (7 / 8, -3 / 8, -1 / 2)])


def test_equal_averages_leave_the_margin():
    x = random_inputs(0)
    loss = loss_of(SIMPO, SIMPO.params(beta=2.5, gamma_beta_ratio=0.4), {"chosen": x, "rejected": x})
    assert loss.item() == pytest.approx(math.log1p(math.exp(2.5 * 0.4)))


def test_at_equal_lengths_without_margin_it_is_dpo_without_reference():
    """A uniform start model gives both answers the same sum, which cancels; beta is divided by the length."""
    keep = torch.tensor([[False, True, True, True, True, False]]).expand(4, 6)
    inputs = {
        part: dataclasses.replace(random_inputs(seed), mask=keep, start=torch.zeros(4, 6, 9, dtype=torch.float64))
        for seed, part in enumerate(("chosen", "rejected"))
    }
    got = value_and_gradients(SIMPO, SIMPO.params(beta=2.0, gamma_beta_ratio=0.0), inputs)
    torch.testing.assert_close(got, value_and_gradients(DPO, DPO.params(beta=2.0 / 4), inputs))


def test_a_longer_answer_with_the_same_average_changes_nothing():
    inputs = batch_for(SIMPO, SIMPO.params())
    twice = inputs | {"chosen": inputs["chosen"].apply(lambda t: torch.cat([t, t], 1).detach())}
    torch.testing.assert_close(loss_of(SIMPO, SIMPO.params(), twice), loss_of(SIMPO, SIMPO.params(), inputs))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("beta", "ratio"), [(2.0, 0.5), (10.0, 0.3)])
def test_equals_trl(beta, ratio, dtype):
    """TRL's own averages and loss, called on the same logits; its gamma is beta times our ratio."""
    cpo = pytest.importorskip("trl.experimental.cpo").CPOTrainer
    trainer = cpo.__new__(cpo)
    trainer.alpha, trainer.loss_type, trainer.label_smoothing = 0.0, "simpo", 0.0
    trainer.beta, trainer.simpo_gamma = beta, beta * ratio
    trainer.accelerator = torch.zeros(1)  # it is only asked for its device
    inputs = batch_for(SIMPO, SIMPO.params(), dtype=dtype)
    averages = [cpo.get_batch_logps(*shifted(x), average_log_prob=True) for x in inputs.values()]
    theirs = trainer.cpo_loss(*averages)[0].mean()
    want = torch.autograd.grad(theirs, [x.logits for x in inputs.values()])
    loss, grads = value_and_gradients(SIMPO, SIMPO.params(beta=beta, gamma_beta_ratio=ratio), inputs)
    torch.testing.assert_close(loss, theirs.detach())
    torch.testing.assert_close(list(grads.values()), list(want))


def shifted(x: Inputs):
    """Logits and labels as TRL reads them: the label of a position stands one to its right, -100 where none counts."""
    labels = torch.cat([torch.zeros_like(x.labels[:, :1]), x.labels.masked_fill(~x.mask, -100)], 1)
    return torch.cat([x.logits, x.logits[:, :1]], 1), labels


def test_an_answer_without_tokens_has_average_zero():
    none = torch.zeros(1, 2, dtype=torch.bool)
    one = torch.ones(1, 2, dtype=torch.bool)
    views = {
        "chosen": View(torch.full((1, 2), -1.0), none, none),
        "rejected": View(torch.full((1, 2), -3.0), one, none),
    }
    (term,) = SIMPO.terms(views, SIMPO.params(beta=1.0, gamma_beta_ratio=0.0))
    assert term.values.item() == pytest.approx(math.log1p(math.exp(-3)))
