"""DPPO's terms by hand and by their identities; the rewards and advantages they start from: test_tensors_ppo.py."""

import math

import pytest
import torch

from adpa_cli import methods
from adpa_cli.methods import Experience, Need, View
from adpa_cli.spec import make
from adpa_cli.tensors.ppo import rewards
from support.dense_batches import batch_for, random_inputs, reduced, value_and_gradients, view_of

DPPO, SFT, ADPA = methods.load("dppo"), methods.load("sft"), methods.load("adpa")
YES = torch.tensor([[True, True, True]])


def row(*values: float) -> torch.Tensor:
    return torch.tensor([values], dtype=torch.float64)


def loss_of(views: dict, params) -> torch.Tensor:
    terms = DPPO.terms(views, params)
    return sum(t.weight * reduced(t.values, views[t.part].mask, t.reduction) for t in terms)


def test_three_tokens_by_hand():
    """ρ = (1/2, 1, 2) with advantages (1, -1, 1): objectives 1/2, -1 and, held at 1.2, 1.2.

    Values (1, 0, 3), once (0.5, 0.1, 3), for returns (0, 1, 3): errors 1, -1 and 0, for the first one held is the less.
    The chosen answer has the probabilities (1/2, 1/4, 1/4): SFT 5/3 log 2.
    """
    chosen = row(*(math.log(p) for p in (1 / 2, 1 / 4, 1 / 4))).requires_grad_()
    drawn = row(*(math.log(p) for p in (1 / 8, 1 / 4, 1 / 2))).requires_grad_()
    values = row(1.0, 0.0, 3.0).requires_grad_()
    old = row(*[math.log(1 / 4)] * 3)
    known = Experience(old, row(0.5, 0.1, 3.0), row(1.0, -1.0, 1.0), row(0.0, 1.0, 3.0))
    views = {
        "chosen": View(chosen, YES, ~YES),
        "rollout": View(drawn, YES, ~YES, values=values, experience=known),
    }
    loss = loss_of(views, DPPO.params(clip=0.2, value_clip=0.2, value_weight=0.5, sft_weight=2.0))
    actor, critic, sft = (-0.5 + 1.0 - 1.2) / 3, (0.5 + 0.5 + 0.0) / 3, 5 / 3 * math.log(2)
    assert loss.item() == pytest.approx(actor + 0.5 * critic + 2 * sft)
    loss.backward()
    assert drawn.grad[0].tolist() == pytest.approx([-0.5 / 3, 1 / 3, 0.0])
    assert values.grad[0].tolist() == pytest.approx([0.5 / 3, -0.5 / 3, 0.0])
    assert chosen.grad[0].tolist() == pytest.approx([-2 / 3] * 3)


@pytest.mark.parametrize("alone", ["actor", "critic", "sft"])
def test_each_weight_is_of_its_own_term(alone):
    params = make(DPPO.params, {"sft_weight": float(alone == "sft"), "value_weight": float(alone == "critic")})
    inputs = batch_for(DPPO, params)
    views = {need.part: view_of(inputs[need.part], need, 4) for need in DPPO.needs}
    terms = {t.name: t for t in DPPO.terms(views, params)}
    assert {name for name, t in terms.items() if t.weight} == {"actor", alone}
    if alone == "sft":
        _, grads = value_and_gradients(DPPO, params, inputs)
        _, sft = value_and_gradients(SFT, SFT.params(), {"chosen": inputs["chosen"]})
        torch.testing.assert_close(grads["chosen"], sft["chosen"])


def test_the_policy_that_drew_the_answers_gets_the_gradient_of_reinforce():
    x = random_inputs(5)
    here = x.logits.log_softmax(-1).gather(-1, x.labels[..., None])[..., 0]
    gained = torch.randn(x.mask.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    zero = torch.zeros_like(gained)
    view = View(here, x.mask, x.end, values=zero, experience=Experience(here.detach(), zero, gained, zero))
    params = DPPO.params(sft_weight=0.0)
    own = torch.autograd.grad(loss_of({"chosen": view, "rollout": view}, params), x.logits, retain_graph=True)[0]
    want = torch.autograd.grad(reduced(-gained * here, x.mask, "seqmean"), x.logits)[0]
    torch.testing.assert_close(own, want)


def test_over_all_answers_of_one_token_it_is_the_gradient_of_adpa():
    """E_a~π of the actor's gradient, at the start and without a critic, is β times that of ADPA's advantage."""
    x, beta, vocabulary = random_inputs(3, rows=1, time=3), 0.3, 9
    yes = torch.tensor([[True]])
    logps, aligned, reference = (t[:, :1].log_softmax(-1)[0, 0] for t in (x.logits, x.aligned, x.reference))
    found = torch.zeros_like(x.logits)
    for token in range(vocabulary):
        policy, ours, theirs = (t[token].detach()[None, None] for t in (logps, aligned, reference))
        earned = rewards(policy, policy, ours, theirs, yes, beta=beta, per_token=True)
        zero = torch.zeros_like(earned)
        view = View(
            logps[token][None, None], yes, yes, values=zero, experience=Experience(policy, zero, earned, earned)
        )
        loss = loss_of({"chosen": view, "rollout": view}, DPPO.params(sft_weight=0.0, value_weight=0.0))
        found += policy.exp() * torch.autograd.grad(loss, x.logits, retain_graph=True)[0]

    one = x.apply(lambda t: t[:, :1])
    one = type(one)(one.logits, one.aligned, one.reference, one.start, one.labels, yes, yes)
    params = ADPA.params(gamma=1.0, missing_reference="exact")
    view = view_of(one, Need("rollout", signal=("aligned", "reference")), vocabulary)
    advantage = next(t for t in ADPA.terms({"chosen": view, "rollout": view}, params) if t.name == "advantage")
    want = torch.autograd.grad(advantage.values.sum(), one.logits)[0]
    torch.testing.assert_close(found[:, :1], beta * want)


def test_a_batch_without_experience_is_a_bug_with_a_name():
    view = View(row(0.0, 0.0, 0.0), YES, ~YES)
    with pytest.raises(TypeError, match="NEEDS"):
        DPPO.terms({"chosen": view, "rollout": view}, DPPO.params())
    with pytest.raises(TypeError, match=r"Experience\.advantages is a constant"):
        Experience(row(0.0), row(0.0), row(0.0).requires_grad_(), row(0.0))
