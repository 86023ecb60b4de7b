"""DPO by hand, by its identities, and against TRL's trainer."""

import dataclasses
import math

import pytest
import torch

from adpa_cli import methods
from adpa_cli.methods import View
from support.dense_batches import batch_for, loss_of, random_inputs, value_and_gradients, view_of
from support.trl_pairs import both_losses, trl_trainer

DPO = methods.load("dpo")


def one(logps, start, mask=None):
    """A view of one answer from its label log-probs."""
    values = torch.tensor([logps], dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([mask or [True] * len(logps)])
    return View(values, mask, torch.zeros_like(mask), start_logps=torch.tensor([start], dtype=torch.float64))


def test_one_pair_by_hand():
    """S_w - S_w^start = (-1-2+0.5) - (-2-2-1) = 2.5, S_l - S_l^start = -3 - (-1) = -2, h = 4.5, beta h = 0.45."""
    chosen = one([-1.0, -2.0, 0.5, -99.0], [-2.0, -2.0, -1.0, -7.0], [True, True, True, False])
    rejected = one([-3.0], [-1.0])
    (term,) = DPO.terms({"chosen": chosen, "rejected": rejected}, DPO.params(beta=0.1))
    assert term.values.shape == (1,)
    assert term.values.item() == pytest.approx(math.log(1 + math.exp(-0.45)))
    term.values.sum().backward()
    # d/dS_w = -beta sigma(-beta h), the opposite for the rejected answer.
    pull = 0.1 / (1 + math.exp(0.45))
    assert chosen.logps.grad[0].tolist() == pytest.approx([-pull, -pull, -pull, 0.0])
    assert rejected.logps.grad[0].tolist() == pytest.approx([pull])


def test_at_the_start_model_the_loss_is_log_2():
    params = DPO.params(beta=0.3)
    inputs = batch_for(DPO, params)
    same = {k: dataclasses.replace(x, start=x.logits.detach()) for k, x in inputs.items()}
    loss, grads = value_and_gradients(DPO, params, same)
    assert loss.item() == pytest.approx(math.log(2))
    for part, sign in (("chosen", -1), ("rejected", 1)):
        x = same[part]
        sums = (x.logits.log_softmax(-1).gather(-1, x.labels[..., None])[..., 0] * x.mask).sum(1)
        torch.testing.assert_close(grads[part], sign * 0.3 / 2 * torch.autograd.grad(sums.mean(), x.logits)[0])


def test_swapping_the_pair_moves_the_loss_by_beta_h():
    params = DPO.params(beta=0.7)
    inputs = batch_for(DPO, params)
    views = {n.part: view_of(inputs[n.part], n, 4) for n in DPO.needs}
    sums = {k: ((v.logps - v.start_logps) * v.mask).sum(1) for k, v in views.items()}
    swapped = {"chosen": views["rejected"], "rejected": views["chosen"]}
    (there,), (back,) = DPO.terms(views, params), DPO.terms(swapped, params)
    torch.testing.assert_close(there.values - back.values, -0.7 * (sums["chosen"] - sums["rejected"]))


def test_a_constant_in_both_reference_sums_cancels():
    params = DPO.params()
    inputs = batch_for(DPO, params)
    views = {n.part: view_of(inputs[n.part], n, 4) for n in DPO.needs}

    def raised(v):
        """5 nats more on every answer, spread over its tokens."""
        return dataclasses.replace(v, start_logps=v.start_logps + 5 * v.mask / v.mask.sum(1, keepdim=True))

    (plain,) = DPO.terms(views, params)
    (moved,) = DPO.terms({k: raised(v) for k, v in views.items()}, params)
    torch.testing.assert_close(moved.values, plain.values)


def test_the_end_token_counts():
    inputs = {"chosen": random_inputs(0), "rejected": random_inputs(1)}
    x = inputs["chosen"]
    cut = inputs | {"chosen": dataclasses.replace(x, mask=x.mask & ~x.end)}
    assert loss_of(DPO, DPO.params(), inputs) != loss_of(DPO, DPO.params(), cut)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("beta", [0.05, 1.0])
def test_equals_trl_on_a_small_llama(tmp_path, beta):
    """Value and gradient of every weight, tied embedding included, against the loss that TRL's own trainer computes."""
    pytest.importorskip("trl")
    theirs, ours, _ = both_losses(trl_trainer(tmp_path, beta=beta), DPO, DPO.params(beta=beta))
    assert abs(theirs[0].item() - math.log(2)) > 0.01, "the models must differ"
    torch.testing.assert_close(ours, theirs)
