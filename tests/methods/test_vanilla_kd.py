"""Vanilla KD by hand and by its identities."""

import dataclasses
import math

import pytest
import torch

from adpa_cli import methods
from support.dense_batches import Inputs, batch_for, value_and_gradients, view_of
from support.signal_changes import assert_same_terms, shuffled, with_absent_id

KD, DCKD, SFT = (methods.load(name) for name in ("vanilla-kd", "dckd", "sft"))


def test_three_tokens_by_hand():
    """k = 1. Teacher (1/2, 1/4, 1/4), student (1/4, 1/2, 1/4): KL = 1/2 log(4/3), SFT on token 1 = log 2."""
    z, p = (torch.tensor([[v]], dtype=torch.float64).log() for v in ([1 / 4, 1 / 2, 1 / 4], [1 / 2, 1 / 4, 1 / 4]))
    yes = torch.tensor([[True]])
    inputs = {"chosen": Inputs(z.requires_grad_(), p, p, p, torch.tensor([[1]]), yes, yes)}
    loss, grads = value_and_gradients(KD, KD.params(alpha=0.5), inputs, k=1)
    assert loss.item() == pytest.approx(math.log(2) + 0.5 * 1 / 2 * math.log(4 / 3))
    # SFT: (1/4, -1/2, 1/4); KL: q - p at the id, q (1 - r/r_q) outside, r/r_q = 2/3.
    assert grads["chosen"][0, 0].tolist() == pytest.approx([1 / 4 - 1 / 8, -1 / 2 + 1 / 12, 1 / 4 + 1 / 24])
    # All the teacher's mass on the id: cross entropy with it, q - onehot.
    loss, grads = value_and_gradients(KD, KD.params(alpha=0.5, tail="renormalised"), inputs, k=1)
    assert loss.item() == pytest.approx(math.log(2) + 0.5 * math.log(4))
    assert grads["chosen"][0, 0].tolist() == pytest.approx([1 / 4 - 3 / 8, -1 / 2 + 1 / 4, 1 / 4 + 1 / 8])


@pytest.mark.parametrize("reduction", ["seqmean", "tokmean", "seqsum"])
def test_without_weight_it_is_sft(reduction):
    params = KD.params(alpha=0.0, reduction=reduction)
    inputs = batch_for(KD, params)
    loss, grads = value_and_gradients(KD, params, inputs)
    want, sft = value_and_gradients(SFT, SFT.params(reduction=reduction), inputs)
    assert torch.equal(loss, want)
    assert torch.equal(grads["chosen"], sft["chosen"])


@pytest.mark.parametrize("tail", ["bucket", "renormalised"])
@pytest.mark.parametrize("kd_on_eos", [True, False])
def test_is_dckd_without_dispreferred_answers(tail, kd_on_eos):
    values = {"alpha": 0.7, "tail": tail, "kd_on_eos": kd_on_eos}
    inputs = batch_for(KD, KD.params())
    loss, grads = value_and_gradients(KD, KD.params(**values), inputs)
    want, theirs = value_and_gradients(DCKD, DCKD.params(dispreferred=False, **values), inputs)
    assert torch.equal(loss, want)
    assert torch.equal(grads["chosen"], theirs["chosen"])


@pytest.mark.parametrize("k", [1, 4, 9])
def test_a_teacher_sure_of_the_label_is_more_sft(k):
    inputs = batch_for(KD, KD.params())
    x = inputs["chosen"]
    sure = 200.0 * torch.nn.functional.one_hot(x.labels, 9).double()
    inputs = {"chosen": dataclasses.replace(x, aligned=sure)}
    loss, grads = value_and_gradients(KD, KD.params(alpha=0.6), inputs, k)
    want, sft = value_and_gradients(SFT, SFT.params(), inputs)
    torch.testing.assert_close((loss, grads["chosen"]), (1.6 * want, 1.6 * sft["chosen"]))


def test_a_student_equal_to_its_teacher_only_feels_sft():
    inputs = {k: dataclasses.replace(x, aligned=x.logits.detach()) for k, x in batch_for(KD, KD.params()).items()}
    loss, grads = value_and_gradients(KD, KD.params(alpha=5.0), inputs)
    want, sft = value_and_gradients(SFT, SFT.params(), inputs)
    torch.testing.assert_close((loss, grads["chosen"]), (want, sft["chosen"]))


def test_without_the_end_token_it_adds_nothing_there_but_still_counts():
    x = batch_for(KD, KD.params())["chosen"]
    view = view_of(x, KD.needs[0], 4)
    on, off = (KD.terms({"chosen": view}, KD.params(kd_on_eos=e))[1].values for e in (True, False))
    assert not off[x.end].any()
    assert on[x.end].all()
    assert torch.equal(off[~x.end], on[~x.end])


@pytest.mark.parametrize("change", [shuffled, with_absent_id])
@pytest.mark.parametrize("tail", ["bucket", "renormalised"])
def test_neither_the_order_of_the_ids_nor_an_absent_one_matters(change, tail):
    assert_same_terms(KD, KD.params(tail=tail), change)
