"""PLaD's rank hinge by hand, by its identities, and against TRL's hinge."""

import dataclasses
import math

import pytest
import torch

from adpa_cli import methods
from support.dense_batches import Inputs, batch_for, random_inputs, value_and_gradients, view_of

PLAD, SFT = methods.load("plad"), methods.load("sft")
LOG = math.log


def answer(rows, labels) -> Inputs:
    """One answer from a probability row per token."""
    z = torch.tensor([rows], dtype=torch.float64).log()
    mask = torch.ones(1, len(labels), dtype=torch.bool)
    return Inputs(z.requires_grad_(), z.detach(), z.detach(), z.detach(), torch.tensor([labels]), mask, ~mask)


def pair() -> dict[str, Inputs]:
    """S_w = log 1/2 + log 1/4 = -3 log 2, S_l = log 1/8 = -3 log 2; averages -1.5 log 2 and -3 log 2."""
    return {
        "chosen": answer([[1 / 2, 1 / 4, 1 / 4], [1 / 2, 1 / 4, 1 / 4]], [0, 1]),
        "rejected": answer([[1 / 8, 3 / 8, 1 / 2]], [0]),
    }


def test_three_tokens_by_hand():
    """Equal sums: the hinge is delta; SFT is 3/2 log 2, weighed by 2."""
    loss, grads = value_and_gradients(PLAD, PLAD.params(delta=0.7, sft_weight=2.0), pair())
    assert loss.item() == pytest.approx(0.7 + 2 * 3 / 2 * LOG(2))
    # -(onehot - q) from the hinge, twice half of it from SFT.
    want = [2 * g for g in (-1 / 2, 1 / 4, 1 / 4, 1 / 2, -3 / 4, 1 / 4)]
    assert grads["chosen"].flatten().tolist() == pytest.approx(want)
    assert grads["rejected"].flatten().tolist() == pytest.approx([7 / 8, -3 / 8, -1 / 2])


def test_averages_by_hand():
    """The averages differ by 3/2 log 2 = 1.04: no hinge at delta 1, delta - 3/2 log 2 at delta 2."""
    loss, grads = value_and_gradients(PLAD, PLAD.params(delta=1.0, sft_weight=0.0, length_norm=True), pair())
    assert loss == 0
    assert not any(g.any() for g in grads.values())
    loss, grads = value_and_gradients(PLAD, PLAD.params(delta=2.0, sft_weight=0.0, length_norm=True), pair())
    assert loss.item() == pytest.approx(2 - 3 / 2 * LOG(2))
    assert grads["chosen"][0, 0].tolist() == pytest.approx([-1 / 4, 1 / 8, 1 / 8])


def test_pairs_that_win_by_the_margin_leave_sft():
    inputs = batch_for(PLAD, PLAD.params())
    x = inputs["rejected"]
    there = torch.nn.functional.one_hot(x.labels, 9).bool()
    inputs["rejected"] = dataclasses.replace(
        x, logits=torch.where(there, -100.0, x.logits).detach().requires_grad_()
    )  # fmt: skip
    loss, grads = value_and_gradients(PLAD, PLAD.params(), inputs)
    want, sft = value_and_gradients(SFT, SFT.params(), {"chosen": inputs["chosen"]})
    torch.testing.assert_close((loss, grads["chosen"]), (want, sft["chosen"]))
    assert not grads["rejected"].any()


def test_without_sft_weight_the_sft_term_is_gone():
    params = PLAD.params(delta=100.0, sft_weight=0.0)
    inputs = batch_for(PLAD, params)
    loss, grads = value_and_gradients(PLAD, params, inputs)
    views = {n.part: view_of(inputs[n.part], n, 4) for n in PLAD.needs}
    sums = {k: (v.logps * v.mask).sum(1).mean() for k, v in views.items()}
    torch.testing.assert_close(loss, (100 - sums["chosen"] + sums["rejected"]).detach())
    for part, sign in (("chosen", -1), ("rejected", 1)):
        torch.testing.assert_close(grads[part], sign * torch.autograd.grad(sums[part], inputs[part].logits)[0])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_equals_trl_hinge_without_reference(dtype):
    """TRL's own sums and loss at beta 1, called on the same logits."""
    cpo = pytest.importorskip("trl.experimental.cpo").CPOTrainer
    trainer = cpo.__new__(cpo)
    trainer.alpha, trainer.beta, trainer.loss_type = 0.0, 1.0, "hinge"
    trainer.accelerator = torch.zeros(1)  # it is only asked for its device
    inputs = {"chosen": random_inputs(0, dtype=dtype), "rejected": random_inputs(1, dtype=dtype)}
    sums = [cpo.get_batch_logps(*shifted(x)) for x in inputs.values()]
    hinges = trainer.cpo_loss(*sums)[0]
    assert (hinges == 0).any()
    assert (hinges > 0).any()
    want = torch.autograd.grad(hinges.mean(), [x.logits for x in inputs.values()])
    loss, grads = value_and_gradients(PLAD, PLAD.params(sft_weight=0.0), inputs)
    torch.testing.assert_close(loss, hinges.mean().detach())
    torch.testing.assert_close(list(grads.values()), list(want))


def shifted(x: Inputs):
    """Logits and labels as TRL reads them: the label of a position stands one to its right, -100 where none counts."""
    labels = torch.cat([torch.zeros_like(x.labels[:, :1]), x.labels.masked_fill(~x.mask, -100)], 1)
    return torch.cat([x.logits, x.logits[:, :1]], 1), labels
