"""Divergences and advantages against torch, numpy and three-token sums done by hand."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from adpa_cli.tensors.divergence import (
    advantage,
    bucket_kl,
    expected_advantage,
    outside,
    renormalised_kl,
    rest_advantage,
)
from support.dense_batches import log_mass_outside

LOG = math.log


def row(*probabilities):
    return torch.tensor([probabilities], dtype=torch.float64).log()


def random_logps(seed, rows=50, vocabulary=12, scale=2.0):
    g = torch.Generator().manual_seed(seed)
    return (torch.randn(rows, vocabulary, generator=g, dtype=torch.float64) * scale).requires_grad_()


def kl51(teacher, logits, k):
    """Bucket KL of full distributions: [N,V] teacher log-probs, [N,V] student logits."""
    student = logits.log_softmax(-1)
    top = teacher.topk(k, dim=-1)
    return bucket_kl(
        top.values, log_mass_outside(teacher, top.indices),
        student.gather(-1, top.indices), log_mass_outside(student, top.indices),
    )  # fmt: skip


def test_bucket_kl_of_three_tokens_by_hand():
    """Teacher (1/2, 1/4, 1/4) keeps id 0; student (1/4, 1/2, 1/4): 1/2 log 2 + 1/2 log(2/3) = 1/2 log(4/3)."""
    logits = row(1 / 4, 1 / 2, 1 / 4).requires_grad_()
    value = kl51(row(1 / 2, 1 / 4, 1 / 4), logits, 1)
    assert value.item() == pytest.approx(0.5 * LOG(4 / 3))
    # q_0 - p_0 at the id; q_k (1 - (1/2) / (3/4)) = q_k / 3 outside.
    assert torch.autograd.grad(value.sum(), logits)[0][0].tolist() == pytest.approx([-1 / 4, 1 / 6, 1 / 12])


def test_renormalised_kl_of_three_tokens_by_hand():
    """Teacher (1/2, 1/4 | 1/4) becomes (2/3, 1/3); student (1/4, 1/2, 1/4)."""
    logits = row(1 / 4, 1 / 2, 1 / 4).requires_grad_()
    value = renormalised_kl(row(1 / 2, 1 / 4), logits.log_softmax(-1)[:, :2])
    assert value.item() == pytest.approx(2 / 3 * LOG(8 / 3) + 1 / 3 * LOG(2 / 3))
    # q - p over the ids; the tail is pushed down with q_k.
    assert torch.autograd.grad(value.sum(), logits)[0][0].tolist() == pytest.approx([-5 / 12, 1 / 6, 1 / 4])


def test_bucket_kl_lies_between_zero_and_the_full_kl():
    teacher, logits = random_logps(0).detach().log_softmax(-1), random_logps(1)
    full = F.kl_div(logits.log_softmax(-1), teacher, reduction="none", log_target=True).sum(-1)
    before = torch.zeros_like(full)
    for k in (1, 3, 6, 11):
        value = kl51(teacher, logits, k)
        assert (value >= before - 1e-12).all(), "more ids tell more"
        assert (value <= full + 1e-12).all()
        before = value
    torch.testing.assert_close(kl51(teacher, logits, 12), full)
    torch.testing.assert_close(kl51(teacher, teacher, 3), torch.zeros(50, dtype=torch.float64))


def test_bucket_kl_gradient_formula():
    teacher, logits, k = random_logps(2).detach().log_softmax(-1), random_logps(3), 4
    grad = torch.autograd.grad(kl51(teacher, logits, k).sum(), logits)[0].numpy()
    p, q = teacher.exp().numpy(), logits.detach().softmax(-1).numpy()
    for n in range(50):
        ids = np.argsort(-p[n])[:k]
        inside = np.isin(np.arange(12), ids)
        want = np.where(inside, q[n] - p[n], q[n] * (1 - p[n][~inside].sum() / q[n][~inside].sum()))
        np.testing.assert_allclose(grad[n], want, atol=1e-12)


def test_bucket_kl_with_infinite_and_tiny_rests_has_no_nan():
    student = torch.tensor([[-0.5, -1.0]] * 4, requires_grad=True)
    rests = torch.tensor([-math.inf, -3.0, -math.inf, -200.0], requires_grad=True)
    teacher_rest = torch.tensor([-math.inf, -30.0, LOG(0.01), LOG(0.01)])
    value = bucket_kl(torch.tensor([[LOG(0.99), -math.inf]] * 4), teacher_rest, student, rests)
    inside = 0.99 * (LOG(0.99) + 0.5)
    assert value[:2].tolist() == pytest.approx([inside, inside]), "less than 1e-8 outside counts as none"
    assert value[3].item() == pytest.approx(inside + 0.01 * (LOG(0.01) + 200))
    assert value.isfinite().all()
    value.sum().backward()
    torch.testing.assert_close(student.grad, torch.tensor([[-0.99, 0.0]] * 4))
    torch.testing.assert_close(rests.grad, torch.tensor([0.0, 0.0, 0.0, -0.01]))


def test_outside_adds_the_label_unless_it_is_among_the_ids():
    label = torch.tensor([LOG(0.2), LOG(0.2), LOG(0.2)], requires_grad=True)
    rest = torch.tensor([LOG(0.3), LOG(0.3), -math.inf], requires_grad=True)
    value = outside(label, rest, torch.tensor([False, True, False]))
    assert value.exp().tolist() == pytest.approx([0.5, 0.3, 0.2])
    value.sum().backward()
    assert label.grad.tolist() == pytest.approx([0.4, 0.0, 1.0])
    assert rest.grad.tolist() == pytest.approx([0.6, 1.0, 0.0])


ALIGNED = row(1 / 2, 3 / 8)
"""Three tokens: aligned (1/2, 3/8, 1/8) keeps ids 0, 1; reference (1/4, 1/8, 5/8) keeps 2, 0, so it lacks token 1."""
DIFFERENCE = row(1 / 2, 3 / 8) - row(1 / 4, 1 / 8)
KTH = torch.tensor([LOG(1 / 4)], dtype=torch.float64)
IN_REFERENCE = torch.tensor([[True, False]])


@pytest.mark.parametrize(
    ("rule", "clamp", "want"),
    [
        ("kth", None, [LOG(2), LOG(3 / 2)]),
        ("aligned", None, [LOG(2), 0.0]),
        ("exact", None, [LOG(2), LOG(3)]),
        ("exact", (1e-8, 1 - 1e-8), [LOG(2), 1 - 1e-8]),
        ("aligned", (1e-8, 1 - 1e-8), [LOG(2), 1e-8]),
        ("kth", (-0.5, 0.5), [0.5, LOG(3 / 2)]),
    ],
)
def test_advantage_of_a_token_that_the_reference_lacks(rule, clamp, want):
    got = advantage(ALIGNED, DIFFERENCE, KTH, IN_REFERENCE, missing_reference=rule, clamp=clamp)
    assert got[0].tolist() == pytest.approx(want)


def test_the_paper_floor_needs_no_membership():
    """Against a merge of two explicit top-k lists, entry by entry, in numpy."""
    aligned, reference = (random_logps(s).detach().log_softmax(-1) for s in (4, 5))
    ours, theirs = aligned.topk(5), reference.topk(5)
    member = (ours.indices[..., None] == theirs.indices[..., None, :]).any(-1)
    got = advantage(ours.values, ours.values - reference.gather(-1, ours.indices), theirs.values[:, -1], member)
    for n in range(50):
        listed = dict(zip(theirs.indices[n].tolist(), theirs.values[n].tolist(), strict=True))
        floor = min(listed.values())
        for j, i in enumerate(ours.indices[n].tolist()):
            assert got[n, j].item() == pytest.approx(ours.values[n, j].item() - listed.get(i, floor))


def test_released_rule_floors_probabilities_at_1e_7():
    logps = torch.tensor([[-0.1, -20.0, -25.0]])
    difference = torch.tensor([[19.9, 5.0, -4.0]])
    got = advantage(
        logps, difference, torch.tensor([-30.0]), torch.tensor([[True, True, False]]), missing_reference="aligned"
    )
    assert got[0].tolist() == pytest.approx([-0.1 - LOG(1e-7), 0.0, 0.0])


@pytest.mark.parametrize("rule", ["kth", "aligned", "exact"])
def test_an_absent_id_has_no_advantage(rule):
    logps = torch.tensor([[-0.2, -math.inf]])
    got = advantage(
        logps, torch.tensor([[0.3, math.nan]]), torch.tensor([-3.0]), torch.tensor([[True, False]]),
        missing_reference=rule,
    )  # fmt: skip
    assert got[0].tolist() == pytest.approx([0.3, 0.0])


@pytest.mark.parametrize(
    ("tail", "want", "tail_score"),
    [
        ("zero", 1 / 4 * LOG(2) + 1 / 4 * LOG(3 / 2), 0.0),
        ("bucket", 1 / 4 * LOG(2) + 1 / 4 * LOG(3 / 2) - 1 / 2 * LOG(5), -LOG(5)),
        ("floor", 1 / 4 * LOG(2) + 3 / 4 * LOG(3 / 2), LOG(3 / 2)),
    ],
)
def test_expected_advantage_of_three_tokens_by_hand(tail, want, tail_score):
    """Student (1/4, 1/4, 1/2); A = (log 2, log 3/2); outside, aligned has 1/8 and the reference 5/8."""
    logits = row(1 / 4, 1 / 4, 1 / 2).requires_grad_()
    logps = logits.log_softmax(-1)
    value = expected_advantage(
        logps[:, :2], torch.tensor([[LOG(2), LOG(3 / 2)]], dtype=torch.float64), student_tail=tail,
        student_rest=logps[:, 2], rest_values=rest_advantage(*(torch.tensor([LOG(p)]) for p in (1 / 8, 5 / 8))),
    )  # fmt: skip
    assert value.item() == pytest.approx(want)
    got = torch.autograd.grad(value.sum(), logits)[0][0].tolist()
    scores = [LOG(2), LOG(3 / 2), tail_score]
    assert got == pytest.approx([q * (a - want) for q, a in zip([1 / 4, 1 / 4, 1 / 2], scores, strict=True)], abs=1e-7)


def test_expected_advantage_is_a_difference_of_two_divergences():
    """Whole vocabulary, exact: sum of pi A = KL(pi || reference) - KL(pi || aligned), and its gradient in logits."""
    aligned, reference = (random_logps(s).detach().log_softmax(-1) for s in (6, 7))
    logits = random_logps(8)
    top = aligned.topk(12)
    scores = advantage(
        top.values, top.values - reference.gather(-1, top.indices), reference.amin(-1),
        torch.ones_like(top.indices, dtype=torch.bool), missing_reference="exact",
    )  # fmt: skip
    logps = logits.log_softmax(-1)
    value = expected_advantage(logps.gather(-1, top.indices), scores)

    def kl(other):
        return F.kl_div(other, logps, reduction="none", log_target=True).sum(-1)

    torch.testing.assert_close(value, kl(reference) - kl(aligned))
    grad = torch.autograd.grad(-value.sum(), logits, retain_graph=True)[0]
    full = aligned - reference
    pi = logps.exp()
    torch.testing.assert_close(grad, -pi * (full - (pi * full).sum(-1, keepdim=True)))
    shifted = expected_advantage(logps.gather(-1, top.indices), scores + 3)
    torch.testing.assert_close(torch.autograd.grad(-shifted.sum(), logits)[0], grad)


def test_bucketed_advantage_is_a_difference_of_coarse_divergences():
    """Classes = the aligned ids and one for the rest, exact scores: the same identity on k + 1 classes."""
    aligned, reference, pi = (random_logps(s).detach().log_softmax(-1) for s in (9, 10, 11))
    ids = aligned.topk(4).indices

    def coarse(logps):
        return torch.cat([logps.gather(-1, ids), log_mass_outside(logps, ids)[:, None]], -1)

    a, r, q = coarse(aligned), coarse(reference), coarse(pi)
    value = expected_advantage(
        q[:, :4], (a - r)[:, :4], student_tail="bucket", student_rest=q[:, 4],
        rest_values=rest_advantage(a[:, 4], r[:, 4]),
    )  # fmt: skip
    torch.testing.assert_close(value, (q.exp() * (q - r)).sum(-1) - (q.exp() * (q - a)).sum(-1))


def test_rest_advantage_is_finite_and_clamped():
    never = torch.tensor([-math.inf, -math.inf, LOG(0.5)])
    other = torch.tensor([-math.inf, LOG(0.5), -math.inf])
    assert rest_advantage(never, other).tolist() == pytest.approx([0.0, LOG(1e-8 / 0.5), LOG(0.5 / 1e-8)])
    assert rest_advantage(never, other, (-1, 2)).tolist() == [0.0, -1.0, 2.0]


def test_an_empty_student_tail_adds_nothing():
    rest = torch.tensor([-math.inf], requires_grad=True)
    value = expected_advantage(
        torch.zeros(1, 1), torch.ones(1, 1), student_tail="bucket", student_rest=rest, rest_values=torch.tensor([-9.0])
    )
    assert value.item() == 1.0
    value.backward()
    assert rest.grad.item() == 0.0


def test_a_tail_without_its_numbers_is_refused():
    with pytest.raises(TypeError, match="'bucket' needs"):
        expected_advantage(torch.zeros(1, 1), torch.ones(1, 1), student_tail="bucket", student_rest=torch.zeros(1))
