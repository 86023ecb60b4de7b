"""Sampled support: draws follow the softmax, depend on the answer alone, and give the full KL in the mean."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from adpa_cli.engine.capture import SampledSupport, aligned_pass, sampled_ids, sampled_support
from adpa_cli.engine.layout.examples import Answer
from adpa_cli.errors import DataError
from adpa_cli.signal.rows import AnswerKey, SignalRows, SignalSpec
from adpa_cli.signal.shard import Shard, write_shard
from adpa_cli.tensors.divergence import bucket_kl, renormalised_kl, sampled_kl
from support.answers import named_answer
from support.tiny_models import VOCABULARY, tiny_llama

ANSWERS = [
    named_answer("a", [2, 7, 9], [11, 12, 4]),
    named_answer("b", [2, 30], [8, 8, 20, 4]),
    named_answer("c", [2], [33]),
]
P = torch.tensor([0.5, 0.3, 0.15, 0.05])
Q = torch.tensor([0.1, 0.4, 0.2, 0.3])


def support(count: int, answers: list[Answer] = ANSWERS) -> SampledSupport:
    return SampledSupport(count, [1000 + ord(answer.key.example_id) for answer in answers])


def test_a_number_falls_on_the_id_whose_share_it_lies_in() -> None:
    noise = torch.tensor([[0.001, 0.499, 0.501, 0.799, 0.801, 0.949, 0.951, 0.999]], dtype=torch.float64)
    assert sampled_ids(P.log()[None], noise).tolist() == [[0, 0, 1, 1, 2, 2, 3, 3]]
    barred = torch.tensor([[0.0, -torch.inf, 0.0, -torch.inf]])
    assert set(sampled_ids(barred, torch.tensor([[1e-16, 0.5, 1 - 1e-16]]).double()).flatten().tolist()) <= {0, 2}


def test_a_hand_worked_row() -> None:
    """Draws 2, 0, 2 and the label 3: the drawn by falling count, the label, then the lowest other id."""
    noise = torch.tensor([[0.9, 0.1, 0.81, 0.94]], dtype=torch.float64)
    everything = torch.ones(4, dtype=torch.bool)
    ids, logps, rest, weights = sampled_support(P.log()[None], torch.tensor([3]), everything, noise)
    assert ids.tolist() == [[2, 0, 3, 1]]
    assert weights.tolist() == [[0.75, 0.25, 0, 0]]
    torch.testing.assert_close(logps[:, 1:4].exp(), torch.tensor([[0.15, 0.5, 0.05]]))
    assert logps[0, 4].item() == -torch.inf
    torch.testing.assert_close((logps[:, 0].exp(), rest.exp()), (torch.tensor([0.05]), torch.tensor([0.3])))
    known = torch.tensor([True, True, False, True])
    assert sampled_support(P.log()[None], torch.tensor([3]), known, noise)[3].sum().item() == 0.25


def gradient(loss: Any) -> Tensor:
    z = Q.log().clone().requires_grad_()
    loss(z.log_softmax(0)).backward()
    assert z.grad is not None
    return z.grad


def test_the_estimator_is_unbiased_by_enumeration_and_the_truncated_ones_are_not() -> None:
    """Over all 4^3 outcomes of three draws the mean of the gradients is q - p, that of the full KL."""
    full = gradient(lambda q: (P * (P.log() - q)).sum())
    torch.testing.assert_close(full, Q - P)
    mean, value = torch.zeros(4), 0.0
    for outcome in product(range(4), repeat=3):
        chance = float(P[list(outcome)].prod())
        weights = torch.bincount(torch.tensor(outcome), minlength=4) / 3
        mean += chance * gradient(lambda q, w=weights: sampled_kl(w, P.log(), q))
        value += chance * float(sampled_kl(weights, P.log(), Q.log()))
    torch.testing.assert_close(mean, full)
    assert value == pytest.approx(float((P * (P / Q).log()).sum()))
    top = slice(0, 2)
    inside = gradient(lambda q: bucket_kl(P[top].log(), P[2:].sum().log(), q[top], q[2:].logsumexp(0)))
    torch.testing.assert_close(inside[top], full[top])  # right at the ids
    torch.testing.assert_close(inside[2:], Q[2:] * (1 - P[2:].sum() / Q[2:].sum()))  # by the student elsewhere
    torch.testing.assert_close(gradient(lambda q: renormalised_kl(P[top].log(), q[top]))[2:], Q[2:])


def test_captured_draws_follow_the_teacher_and_its_log_probs_are_true() -> None:
    model, count = tiny_llama(), 4000
    exact = aligned_pass(model, ANSWERS, VOCABULARY, teacher="T")
    for full, rows in zip(exact, aligned_pass(model, ANSWERS, 5, teacher="T", support=support(count)), strict=True):
        assert rows.weights is not None
        np.testing.assert_allclose(rows.weights.sum(1), 1, atol=1e-6)
        where = np.arange(len(rows))[:, None]
        logps, weights = np.full((len(rows), VOCABULARY), -np.inf), np.zeros((len(rows), VOCABULARY))
        logps[where, full.ids] = full.logps
        weights[where, rows.ids] = rows.weights
        p = np.exp(logps)
        assert (np.abs(weights - p) < 5 * np.sqrt(p * (1 - p) / count) + 1e-3).all()
        finite = np.isfinite(rows.logps)
        assert (finite | (rows.weights == 0)).all()
        np.testing.assert_allclose(rows.logps[finite], logps[where, rows.ids][finite], atol=1e-5)
        np.testing.assert_allclose(rows.label_logps, full.label_logps, atol=1e-5)
        total = np.exp(rows.logps).sum(1) + np.exp(rows.rest_logps)
        absent = ~(rows.ids == rows.label_ids[:, None]).any(1)
        np.testing.assert_allclose(total + np.where(absent, np.exp(rows.label_logps), 0), 1, atol=1e-5)


def test_draws_depend_on_the_answer_and_not_on_batch_mates() -> None:
    model = tiny_llama()
    together = aligned_pass(model, ANSWERS, 5, teacher="T", support=support(20))
    for answer, rows in zip(ANSWERS, together, strict=True):
        (alone,) = aligned_pass(model, [answer], 5, teacher="T", support=support(20, [answer]))
        assert (alone.ids == rows.ids).all()
        assert (alone.weights == rows.weights).all()
    (other,) = aligned_pass(model, ANSWERS[:1], 5, teacher="T", support=SampledSupport(20, [7]))
    assert (other.weights != together[0].weights).any()


def test_ids_that_the_student_lacks_are_lost_to_the_weights() -> None:
    rows = aligned_pass(tiny_llama(), ANSWERS, 5, teacher="T", student_vocab=34, support=support(200))
    every = aligned_pass(tiny_llama(), ANSWERS, 5, teacher="T", support=support(200))
    for some, full in zip(rows, every, strict=True):
        assert some.weights is not None
        assert full.weights is not None
        lost = np.where(full.ids >= 34, full.weights, 0).sum(1)
        np.testing.assert_allclose(some.weights.sum(1), 1 - lost, atol=1e-6)
        assert (some.ids[some.weights > 0] < 34).all()


@pytest.mark.parametrize("step", [0.0, 1 / 32])
def test_a_shard_keeps_the_draws_exactly(tmp_path: Path, step: float) -> None:
    captured = aligned_pass(tiny_llama(), ANSWERS, 5, teacher="T", support=support(12))
    spec = SignalSpec(12, VOCABULARY, step, teachers={"aligned": "t"}, draws=12)
    keys = [AnswerKey(answer.key.example_id, "chosen", "0" * 32) for answer in ANSWERS]
    write_shard(tmp_path / "s.adpa", spec, list(zip(keys, captured, strict=True)))
    shard = Shard(tmp_path / "s.adpa")
    assert shard.spec == spec
    for (_, read), given in zip(shard, captured, strict=True):
        assert dense(read).tolist() == dense(given).tolist()
        np.testing.assert_allclose(read.label_logps, given.label_logps, atol=step + 1e-5)


def test_draws_without_a_word_in_the_header_and_the_other_way_are_refused(tmp_path: Path) -> None:
    captured = aligned_pass(tiny_llama(), ANSWERS[:1], 5, teacher="T", support=support(12))
    key = AnswerKey("a", "chosen", "0" * 32)
    with pytest.raises(DataError, match="`weights` is given, but no ids were drawn"):
        write_shard(tmp_path / "s.adpa", SignalSpec(12, VOCABULARY, teachers={"aligned": "t"}), [(key, captured[0])])
    plain = aligned_pass(tiny_llama(), ANSWERS[:1], 12, teacher="T")
    with pytest.raises(DataError, match="`weights` is missing"):
        write_shard(tmp_path / "s.adpa", SignalSpec(12, VOCABULARY, draws=12), [(key, plain[0])])
    with pytest.raises(DataError, match="none with a reference teacher"):
        SignalSpec(12, VOCABULARY, teachers={"aligned": "t", "reference": "r"}, draws=12)


def dense(rows: SignalRows) -> Any:
    """[T, V] the weights."""
    found = np.zeros((len(rows), VOCABULARY), dtype=np.float32)
    found[np.arange(len(rows))[:, None], rows.ids] = rows.weights
    return found
