"""Rewards, advantages and losses of PPO by hand, by their identities, and against sums in numpy."""

import numpy as np
import pytest
import torch

from adpa_cli.tensors import ppo

ROWS = torch.tensor([[True, True, True], [True, True, False]])


def tensors(seed: int, count: int, rows: int = 4, time: int = 6):
    """`count` random [B,T] tensors and a mask of one stretch per row."""
    g = torch.Generator().manual_seed(seed)
    first = torch.randint(0, 2, (rows, 1), generator=g)
    last = torch.randint(2, time, (rows, 1), generator=g)
    place = torch.arange(time)[None]
    drawn = [torch.randn(rows, time, generator=g, dtype=torch.float64) for _ in range(count)]
    return [*drawn, (place >= first) & (place <= last)]


def test_rewards_by_hand():
    """β = 1/2; log-ratio of the teachers (2, 4, -1), of the policy to its start (1, 0, 2)."""
    aligned, zero = torch.tensor([[2.0, 4.0, -1.0]] * 2), torch.zeros(2, 3)
    policy = torch.tensor([[1.0, 0.0, 2.0]] * 2)
    token = ppo.rewards(policy, zero, aligned, zero, ROWS, beta=0.5, per_token=True)
    assert token.tolist() == [[0.5, 2.0, -1.5], [0.5, 2.0, 0.0]]
    last = ppo.rewards(policy, zero, aligned, zero, ROWS, beta=0.5, per_token=False)
    assert last.tolist() == [[-0.5, 0.0, 1.5], [-0.5, 3.0, 0.0]]
    clipped = ppo.rewards(policy, zero, aligned, zero, ROWS, beta=0.5, per_token=True, clip=0.75)
    assert clipped.tolist() == [[0.25, 0.75, -1.5], [0.25, 0.75, 0.0]]


def test_both_rewards_pay_an_answer_the_same():
    *logps, mask = tensors(0, 4)
    token, last = (ppo.rewards(*logps, mask, beta=0.3, per_token=p) for p in (True, False))
    torch.testing.assert_close(token.sum(1), last.sum(1))


def test_equal_teachers_only_leave_the_distance_to_the_start():
    policy, start, teacher, mask = tensors(1, 3)
    for per_token in (True, False):
        found = ppo.rewards(policy, start, teacher, teacher, mask, beta=0.3, per_token=per_token)
        torch.testing.assert_close(found, torch.where(mask, 0.3 * (start - policy), 0.0))
        at_start = ppo.rewards(policy, policy, teacher, teacher, mask, beta=0.3, per_token=per_token)
        assert not at_start.any()


def test_advantages_by_hand():
    """γ = 1/2, λ = 1/2; surprises from the end: 4 - 2 = 2; 0 + 1 - 1 = 0; 1 + 1/2 - 1 = 1/2."""
    rewards, values = torch.tensor([[1.0, 0.0, 4.0]]), torch.tensor([[1.0, 1.0, 2.0]])
    found, returns = ppo.advantages(rewards, values, torch.ones(1, 3, dtype=torch.bool), gamma=0.5, lam=0.5)
    assert found.tolist() == [[0.5 + 0.25 * 0.5, 0.5, 2.0]]
    assert returns.tolist() == [[1.625, 1.5, 4.0]]


def test_without_a_critic_or_discount_the_advantage_is_the_reward_to_go():
    rewards, mask = tensors(2, 1)
    found, returns = ppo.advantages(rewards, torch.zeros_like(rewards), mask, gamma=1.0, lam=1.0)
    inside = rewards.masked_fill(~mask, 0.0)
    torch.testing.assert_close(found, torch.where(mask, inside.flip(1).cumsum(1).flip(1), 0.0))
    assert torch.equal(found, returns)


def test_what_lies_outside_an_answer_has_no_say():
    rewards, values, mask = tensors(3, 2)
    found = ppo.advantages(rewards, values, mask, gamma=0.9, lam=0.8)
    other = ppo.advantages(torch.where(mask, rewards, 7.0), torch.where(mask, values, -9.0), mask, gamma=0.9, lam=0.8)
    torch.testing.assert_close(found, other)
    assert not found[0][~mask].any()


def test_advantages_are_the_sum_they_are_defined_by():
    """A_t = Σ_l (γλ)^l δ_{t+l}, row by row in numpy."""
    rewards, values, mask = tensors(4, 2)
    mine, _ = ppo.advantages(rewards, values, mask, gamma=0.9, lam=0.95)
    for row in range(len(rewards)):
        r, v = (x[row][mask[row]].numpy() for x in (rewards, values))
        surprise = r + 0.9 * np.append(v[1:], 0.0) - v
        want = [sum((0.9 * 0.95) ** (n - t) * surprise[n] for n in range(t, len(r))) for t in range(len(r))]
        np.testing.assert_allclose(mine[row][mask[row]].numpy(), want, rtol=1e-12)


def test_whitened_advantages_have_mean_0_and_deviation_1():
    values, mask = tensors(5, 1)
    found = ppo.whitened(values * 3 + 2, mask)
    assert found[mask].mean().item() == pytest.approx(0, abs=1e-12)
    assert found[mask].std().item() == pytest.approx(1)
    assert not found[~mask].any()
    assert not ppo.whitened(values[:1, :1], mask[:1, :1] | True).any(), "one number has no deviation"


def test_clipped_losses_by_hand():
    """ρ = 2 with clip 0.2: a gain counts as 1.2 A, a loss whole. A value of 3 is held at 1.2; both errors compared."""
    new, old = torch.tensor([[2.0, 2.0, 0.5]]).log(), torch.zeros(1, 3)
    assert ppo.actor_loss(new, old, torch.tensor([[1.0, -1.0, 1.0]]), 0.2).tolist() == [
        pytest.approx([-1.2, 2.0, -0.5])
    ]
    values, before, returns = torch.tensor([[3.0, 3.0]]), torch.tensor([[1.0, 1.0]]), torch.tensor([[4.0, 2.0]])
    assert ppo.critic_loss(values, before, returns, 0.2).tolist() == [pytest.approx([0.5 * 2.8**2, 0.5])]


def test_at_the_policy_that_drew_the_answers_the_gradient_is_that_of_reinforce():
    logps, advantage, _ = tensors(6, 2)
    logps.requires_grad_()
    ppo.actor_loss(logps, logps.detach(), advantage, 0.2).sum().backward()
    torch.testing.assert_close(logps.grad, -advantage)


def test_answers_of_one_token_give_in_expectation_beta_times_the_gradient_of_adpa():
    """All of a vocabulary of 5 drawn with the policy's weights; no critic, no whitening, policy = start."""
    g = torch.Generator().manual_seed(7)
    z, aligned, reference = (torch.randn(5, generator=g, dtype=torch.float64) for _ in range(3))
    aligned, reference = aligned.log_softmax(0), reference.log_softmax(0)
    z.requires_grad_()
    logps = z.log_softmax(0)
    one, old = torch.ones(5, 1, dtype=torch.bool), logps.detach()[:, None]
    paid = ppo.rewards(old, old, aligned[:, None], reference[:, None], one, beta=0.05, per_token=True)
    found, _ = ppo.advantages(paid, torch.zeros_like(paid), one, gamma=1.0, lam=0.95)
    loss = (old.exp() * ppo.actor_loss(logps[:, None], old, found, 0.2)).sum()
    adpa = -(logps.exp() * (aligned - reference)).sum()
    ours, theirs = (torch.autograd.grad(x, z, retain_graph=True)[0] for x in (loss, adpa))
    torch.testing.assert_close(ours, 0.05 * theirs)
