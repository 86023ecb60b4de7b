"""WPO by hand and by its identities."""

import dataclasses
import math

import pytest
import torch

from adpa_cli import methods
from adpa_cli.engine.ranks import Ranks
from adpa_cli.engine.training.loop import train
from adpa_cli.engine.training.student import Student
from adpa_cli.methods import View
from support.dense_batches import Inputs, batch_for, value_and_gradients, view_of
from support.tiny_models import tiny_llama
from support.train_samples import examples, make_run, start_of
from support.trl_pairs import both_losses, trl_trainer

WPO, DPO = methods.load("wpo"), methods.load("dpo")


def answer(rows, start, labels) -> Inputs:
    """One answer from a probability row per token."""
    z, s = (torch.tensor([v], dtype=torch.float64).log() for v in (rows, start))
    mask = torch.ones(1, len(labels), dtype=torch.bool)
    return Inputs(z.requires_grad_(), s, s, s, torch.tensor([labels]), mask, ~mask)


def test_three_tokens_by_hand():
    """Σ p² = 3/8: ω_w = 1/2 (log 4/3 + log 2/3) = 1/2 log 8/9, ω_l = log 2/3; w = 2/3 sqrt(8/9).

    h = log 2 - log 1/2 = 2 log 2 at β 1/2: -log σ(log 2) = log(3/2), pull = w β / 3.
    """
    half = [1 / 2, 1 / 4, 1 / 4]
    inputs = {
        "chosen": answer([half, half], [[1 / 4, 1 / 2, 1 / 4], half], [0, 1]),
        "rejected": answer([half], [[1 / 4, 1 / 4, 1 / 2]], [2]),
    }
    loss, grads = value_and_gradients(WPO, WPO.params(beta=0.5), inputs)
    weight = 2 / 3 * math.sqrt(8 / 9)
    assert loss.item() == pytest.approx(weight * math.log(3 / 2))
    pull = weight * 0.5 / 3
    want = [pull * g for g in (-1 / 2, 1 / 4, 1 / 4, 1 / 2, -3 / 4, 1 / 4)]
    assert grads["chosen"].flatten().tolist() == pytest.approx(want)
    assert grads["rejected"].flatten().tolist() == pytest.approx([pull * g for g in (-1 / 2, -1 / 4, 3 / 4)])


def ratios(inputs, params):
    """WPO's value of every pair over DPO's."""
    (ours,) = WPO.terms({n.part: view_of(inputs[n.part], n, 4) for n in WPO.needs}, params)
    (theirs,) = DPO.terms({n.part: view_of(inputs[n.part], n, 4) for n in DPO.needs}, DPO.params(beta=params.beta))
    return (ours.values / theirs.values).detach()


def test_the_weight_lies_in_0_1_and_only_scales_dpo():
    inputs = batch_for(WPO, WPO.params(), rows=1)
    weight = ratios(inputs, WPO.params())
    assert 0 < weight < 1
    loss, grads = value_and_gradients(WPO, WPO.params(), inputs)
    want, theirs = value_and_gradients(DPO, DPO.params(beta=0.01), inputs)
    torch.testing.assert_close(loss, weight[0] * want)
    torch.testing.assert_close(grads, {part: weight[0] * g for part, g in theirs.items()})


@pytest.mark.parametrize("k", [1, 3, 9])
def test_answers_drawn_from_k_equal_tokens_weigh_1(k):
    """Uniform over k tokens, the label among them: log 1/k = log Σ p². More on the label is clamped."""
    params = WPO.params()
    inputs = {}
    for part, x in batch_for(WPO, params).items():
        likely = (torch.arange(9) - x.labels[..., None]) % 9 < k
        inputs[part] = dataclasses.replace(x, logits=torch.where(likely, 0.0, -800.0).double().requires_grad_())
    torch.testing.assert_close(ratios(inputs, params), torch.ones(4, dtype=torch.float64))
    top = {
        part: dataclasses.replace(x, logits=x.logits.detach() + torch.nn.functional.one_hot(x.labels, 9))
        for part, x in inputs.items()
    }
    assert torch.equal(ratios(top, params), torch.ones(4, dtype=torch.float64))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", range(2))
def test_equals_trl_on_a_small_llama_where_no_weight_is_clamped(tmp_path, seed):
    """TRL has no clamp; below 1 value and gradient of every weight are those of its trainer."""
    pytest.importorskip("trl")
    trainer = trl_trainer(tmp_path, seed, beta=0.5, use_weighting=True)
    theirs, ours, views = both_losses(trainer, WPO, WPO.params(beta=0.5))
    sums = [((v.logps - v.log_sum_squares) * v.mask).sum(1) / v.mask.sum(1) for v in views.values()]
    assert (sum(sums) < -0.01).all(), "a weight is clamped"
    torch.testing.assert_close(ours, theirs)


def test_squares_that_carry_a_gradient_are_refused():
    flat = torch.zeros(1, 2)
    with pytest.raises(TypeError, match=r"View\.log_sum_squares is a constant"):
        View(flat, flat > 0, flat > 0, log_sum_squares=flat.clone().requires_grad_())


def test_the_loop_hands_it_the_squares_of_the_student(tmp_path):
    """The first step, where student and start are one: the loss is log 2 times the mean weight, from dense logits."""
    rows = examples(4)
    model = tiny_llama(0)
    weights = []
    for row in rows:
        total = 0.0
        for name in ("chosen", "rejected"):
            part = row.parts[name]
            ids = torch.from_numpy(part.ids).long()
            with torch.no_grad():
                logps = model(input_ids=ids[None]).logits[0].log_softmax(-1)
            at = torch.from_numpy(part.answer).nonzero()[:, 0]
            taken = logps[at - 1].gather(1, ids[at][:, None])[:, 0]
            total += (taken - logps[at - 1].exp().square().sum(1).log()).mean().item()
        weights.append(min(1.0, math.exp(total)))
    assert min(weights) < 0.99
    run = make_run("wpo", rows, None, tmp_path, max_steps=1, start_of=start_of(model, rows))
    student = Student(tiny_llama(0).requires_grad_(), "float32")
    assert train(student, run, Ranks.here())["wpo"] == pytest.approx(math.log(2) * sum(weights) / 4, rel=1e-5)
