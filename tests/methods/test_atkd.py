"""ATKD by hand and by its identities."""

import dataclasses
import math
import statistics

import pytest
import torch
from torch.nn import functional as F

from adpa_cli import methods
from support.dense_batches import Inputs, batch_for, value_and_gradients
from support.signal_changes import assert_same_terms, shuffled, with_absent_id

ATKD, SFT = methods.load("atkd"), methods.load("sft")
LOG = math.log


def answer(student, teacher, labels) -> Inputs:
    """One answer from the probabilities of each of its tokens, the last of them the end token."""
    z, p = (torch.tensor([v], dtype=torch.float64).log() for v in (student, teacher))
    yes = torch.ones(1, len(labels), dtype=torch.bool)
    end = torch.tensor([[False] * (len(labels) - 1) + [True]])
    return Inputs(z.requires_grad_(), p, p, p, torch.tensor([labels]), yes, end)


def three() -> Inputs:
    return answer(
        student=[[1 / 2, 3 / 8, 1 / 8], [1 / 4, 1 / 2, 1 / 4], [1 / 4, 1 / 2, 1 / 4]],
        teacher=[[3 / 4, 1 / 8, 1 / 8], [1 / 2, 1 / 4, 1 / 4], [1 / 4, 1 / 2, 1 / 4]],
        labels=[0, 0, 0],
    )


@pytest.mark.parametrize("k", [2, 3])
def test_three_tokens_by_hand(k):
    """The teacher doubts the labels by u = 1/4, 1/2, 3/4; below the median 1/2 is the first: easy, the others hard.

    1: others 1/2 : 1/2 against 3/4 : 1/4, DKD = 1/2 log 2/3 + 1/2 log 2 = 1/2 log 4/3.
    2: TKD = 1/2 log 2 + 1/2 log 2/3 = 1/2 log 4/3; others 1/2 : 1/2 against 2/3 : 1/3, DKD = 1/2 log 9/8;
       together 1/2 log 3/2.
    3: the student is the teacher, 0. Loss = λ 1/2 log 4/3 + (1 - λ) (1/2 log 3/2 + 0) / 2.
    """
    loss, grads = value_and_gradients(ATKD, ATKD.params(), {"chosen": three()}, k)
    assert loss.item() == pytest.approx(0.2 * 1 / 2 * LOG(4 / 3) + 0.8 * 1 / 4 * LOG(3 / 2))
    first, second, third = grads["chosen"][0].tolist()
    # DKD: student's share among the others minus the teacher's, 0 at the label.
    assert first == pytest.approx([0, 0.2 * (3 / 4 - 1 / 2), 0.2 * (1 / 4 - 1 / 2)])
    # TKD: q - p at the label, q (1 - u / (1 - q_label)) = q / 3 elsewhere; DKD: 2/3 - 1/2 and 1/3 - 1/2.
    assert second == pytest.approx([0.4 * (1 / 4 - 1 / 2), 0.4 * (1 / 6 + 1 / 6), 0.4 * (1 / 12 - 1 / 6)])
    assert third == pytest.approx([0, 0, 0])


@pytest.mark.parametrize("label", [1, 2])
def test_a_token_as_likely_to_the_teacher_as_the_label_is_another(label):
    """Teacher (1/2, 1/4, 1/4), student (1/4, 1/2, 1/4) or, for label 1, (1/4, 1/4, 1/2): p = q = 1/4 at the label.

    TKD = 0; the others are 2/3 : 1/3 against 1/3 : 2/3, DKD = 1/3 log 2.
    """
    student = [1 / 4, 1 / 4, 1 / 4]
    student[3 - label] = 1 / 2
    x = answer([student], [[1 / 2, 1 / 4, 1 / 4]], [label])
    loss, grads = value_and_gradients(ATKD, ATKD.params(), {"chosen": x}, k=3)
    assert loss.item() == pytest.approx(0.8 / 3 * LOG(2))
    want = [-0.8 / 3, 0.8 / 3, 0.8 / 3]
    want[label] = 0.0
    assert grads["chosen"][0, 0].tolist() == pytest.approx(want)


def reference(x: Inputs, k: int) -> list[list[tuple[float, float, float]]]:
    """(u, TKD, DKD) of each answer token, from dense probabilities in plain floats, with the top-k classes."""
    out = []
    for b in range(len(x.labels)):
        row = []
        for t in range(x.labels.shape[1]):
            if not x.mask[b, t]:
                continue
            p, q = (z[b, t].detach().softmax(-1).tolist() for z in (x.aligned, x.logits))
            g = int(x.labels[b, t])
            top = sorted(range(len(p)), key=lambda i, p=p: -p[i])[:k]
            kept = [i for i in top if i != g]
            left = [i for i in range(len(p)) if i not in kept and i != g]
            u, v = 1 - p[g], 1 - q[g]
            classes = [[i] for i in kept] + ([left] if left else [])
            sums = [(sum(p[i] for i in c) / u, sum(q[i] for i in c) / v) for c in classes]
            target = p[g] * LOG(p[g] / q[g]) + u * LOG(u / v)
            row.append((u, target, sum(a * LOG(a / b) for a, b in sums)))
        out.append(row)
    return out


def mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0


@pytest.mark.parametrize("lam", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("k", [1, 4, 9])
def test_against_dense_probabilities(k, lam):
    inputs = batch_for(ATKD, ATKD.params(), seed=5)
    loss, _ = value_and_gradients(ATKD, ATKD.params(easy_weight=lam), inputs, k)
    want = 0.0
    for row in reference(inputs["chosen"], k):
        middle = statistics.median_low([u for u, _, _ in row])
        easy = mean([d for u, _, d in row if u < middle])
        want += (lam * easy + (1 - lam) * mean([t + d for u, t, d in row if u >= middle])) / 4
    assert loss.item() == pytest.approx(want, abs=1e-12)


def test_the_divergence_splits_into_its_two_parts():
    """Whole vocabulary: KL = TKD + u DKD, so the parts that the test above compares with are those of KL."""
    x = batch_for(ATKD, ATKD.params())["chosen"]
    kl = F.kl_div(x.logits.log_softmax(-1), x.aligned.log_softmax(-1), reduction="none", log_target=True).sum(-1)
    parts = [t + u * d for row in reference(x, 9) for u, t, d in row]
    assert parts == pytest.approx(kl[x.mask].tolist())


@pytest.mark.parametrize("k", [1, 4, 9])
def test_a_student_equal_to_its_teacher_is_left_alone(k):
    inputs = {n: dataclasses.replace(x, aligned=x.logits.detach()) for n, x in batch_for(ATKD, ATKD.params()).items()}
    loss, grads = value_and_gradients(ATKD, ATKD.params(), inputs, k)
    torch.testing.assert_close(loss, torch.zeros_like(loss))
    torch.testing.assert_close(grads["chosen"], torch.zeros_like(grads["chosen"]))


def test_easy_tokens_are_not_taught_their_label():
    """λ = 1: only tokens below their answer's median have a gradient, and none has it at its label."""
    inputs = batch_for(ATKD, ATKD.params(), seed=5)
    x = inputs["chosen"]
    _, grads = value_and_gradients(ATKD, ATKD.params(easy_weight=1.0), inputs)
    doubt = 1 - x.aligned.softmax(-1).gather(-1, x.labels[..., None])[..., 0]
    middle = torch.stack([d[m].median() for d, m in zip(doubt, x.mask, strict=True)])[:, None]
    easy = x.mask & (doubt < middle)
    assert easy.any()
    assert torch.equal(grads["chosen"].abs().sum(-1) > 1e-9, easy)
    assert grads["chosen"].gather(-1, x.labels[..., None]).abs().max() < 1e-12


@pytest.mark.parametrize("length", [1, 2, 3])
def test_without_an_easy_token_its_mean_is_zero(length):
    """Answers of one or two tokens, or with equal doubts, have nothing below the lower median."""
    x = answer([[1 / 4, 1 / 2, 1 / 4]] * length, [[1 / 2, 1 / 4, 1 / 4]] * length, [0] * length)
    loss, grads = value_and_gradients(ATKD, ATKD.params(easy_weight=1.0), {"chosen": x}, k=2)
    assert loss == 0
    assert not grads["chosen"].any()
    loss, _ = value_and_gradients(ATKD, ATKD.params(), {"chosen": x}, k=2)
    assert loss.item() == pytest.approx(0.8 * 1 / 2 * LOG(3 / 2))


def test_sft_can_be_added():
    inputs = batch_for(ATKD, ATKD.params())
    plain, grads = value_and_gradients(ATKD, ATKD.params(), inputs)
    loss, more = value_and_gradients(ATKD, ATKD.params(sft_weight=2.0), inputs)
    want, sft = value_and_gradients(SFT, SFT.params(), inputs)
    torch.testing.assert_close(loss, plain + 2 * want)
    torch.testing.assert_close(more["chosen"], grads["chosen"] + 2 * sft["chosen"])


def test_a_teacher_that_is_almost_sure_stays_exact():
    """u near 1e-6 in float32: its logarithm is summed, never taken from 1 - p."""
    x = answer([[1 - 3e-6, 2e-6, 1e-6]], [[1 - 2e-6, 1e-6, 1e-6]], [0])
    want, _ = value_and_gradients(ATKD, ATKD.params(), {"chosen": x}, k=2)
    single = x.apply(lambda t: t.float() if t.dtype == torch.float64 else t)
    loss, grads = value_and_gradients(ATKD, ATKD.params(), {"chosen": single}, k=2)
    assert loss.item() == pytest.approx(want.item(), rel=1e-4)
    assert grads["chosen"][0, 0].tolist() == pytest.approx([0, 0.8 * (2 / 3 - 1 / 2), 0.8 * (1 / 3 - 1 / 2)], abs=1e-4)


@pytest.mark.parametrize("change", [shuffled, with_absent_id])
def test_neither_the_order_of_the_ids_nor_an_absent_one_matters(change):
    assert_same_terms(ATKD, ATKD.params(), change)


@pytest.mark.parametrize(("spread", "mass", "least"), [(2.0, 0.4, 0.93), (3.0, 0.7, 0.99), (4.0, 0.85, 0.995)])
def test_one_class_for_the_rest_costs_what_the_notes_say(spread, mass, least):
    """On random logits of 2,000 ids, half of the student's own: the gradient of 50 ids against that of all."""
    generator = torch.Generator().manual_seed(0)
    teacher, noise = (torch.randn(2, 16, 2000, dtype=torch.float64, generator=generator) for _ in range(2))
    teacher = spread * teacher
    labels = torch.multinomial(teacher.softmax(-1).flatten(0, 1), 1, generator=generator).view(2, 16)
    inside = teacher.softmax(-1).topk(50).values.sum(-1).mean().item()
    assert mass < inside < mass + 0.15
    yes = torch.ones(2, 16, dtype=torch.bool)
    gradients = []
    for k in (50, 2000):
        student = (0.9 * teacher + noise).requires_grad_()
        inputs = {"chosen": Inputs(student, teacher, teacher, teacher, labels, yes, ~yes)}
        gradients.append(value_and_gradients(ATKD, ATKD.params(), inputs, k)[1]["chosen"].flatten())
    assert least < F.cosine_similarity(*gradients, dim=0).item() < 1 - 1e-6
