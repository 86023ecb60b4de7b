"""DPKD by hand and by its identities."""

import dataclasses
import math

import pytest
import torch

from adpa_cli import methods
from support.dense_batches import Inputs, batch_for, random_inputs, value_and_gradients

DPKD, DPO, SFT = (methods.load(name) for name in ("dpkd", "dpo", "sft"))
LOG = math.log


def answer(rows, teacher, labels) -> Inputs:
    """One answer from a probability row per token."""
    z, p = (torch.tensor([v], dtype=torch.float64).log() for v in (rows, teacher))
    mask = torch.ones(1, len(labels), dtype=torch.bool)
    return Inputs(z.requires_grad_(), p, p, p, torch.tensor([labels]), mask, ~mask)


@pytest.mark.parametrize(("length_norm", "ratio", "share"), [(True, 1 / 2, 1 / 2), (False, 1, 1)])
def test_three_tokens_by_hand(length_norm, ratio, share):
    """Chosen: ratios 2 and 1 to the teacher, log 2 in sum, half in the mean; rejected: ratio 1/4.

    h = (ratio + 2) log 2 at beta 1, so exp(-h) = 2^-(ratio + 2); SFT = 3/2 log 2; a quarter of the loss is SFT.
    """
    inputs = {
        "chosen": answer([[1 / 2, 1 / 4, 1 / 4]] * 2, [[1 / 4, 1 / 2, 1 / 4], [5 / 8, 1 / 4, 1 / 8]], [0, 1]),
        "rejected": answer([[1 / 8, 3 / 8, 1 / 2]], [[1 / 2, 1 / 4, 1 / 4]], [0]),
    }
    params = DPKD.params(beta=1.0, mix=0.75, length_norm=length_norm)
    loss, grads = value_and_gradients(DPKD, params, inputs, k=1)
    odds = 2 ** -(ratio + 2)
    assert loss.item() == pytest.approx(3 / 4 * LOG(1 + odds) + 1 / 4 * 3 / 2 * LOG(2))
    pull = 3 / 4 * odds / (1 + odds)
    want = [(pull * share + 1 / 8) * g for g in (-1 / 2, 1 / 4, 1 / 4, 1 / 2, -3 / 4, 1 / 4)]
    assert grads["chosen"].flatten().tolist() == pytest.approx(want)
    assert grads["rejected"].flatten().tolist() == pytest.approx([pull * g for g in (7 / 8, -3 / 8, -1 / 2)])


def test_with_the_start_model_as_teacher_it_is_dpo():
    params = DPKD.params(beta=0.3, mix=1.0, length_norm=False)
    inputs = batch_for(DPKD, params)
    same = {k: dataclasses.replace(x, start=x.aligned) for k, x in inputs.items()}
    got = value_and_gradients(DPKD, params, same)
    torch.testing.assert_close(got, value_and_gradients(DPO, DPO.params(beta=0.3), same))


def test_without_mix_it_is_sft():
    params = DPKD.params(mix=0.0, reduction="tokmean")
    inputs = batch_for(DPKD, params)
    loss, grads = value_and_gradients(DPKD, params, inputs)
    want, sft = value_and_gradients(SFT, SFT.params(reduction="tokmean"), {"chosen": inputs["chosen"]})
    assert torch.equal(loss, want)
    assert torch.equal(grads["chosen"], sft["chosen"])
    assert not grads["rejected"].any()


@pytest.mark.parametrize("length_norm", [True, False])
def test_a_student_equal_to_its_teacher_loses_log_2(length_norm):
    params = DPKD.params(mix=1.0, length_norm=length_norm)
    inputs = {k: dataclasses.replace(x, aligned=x.logits.detach()) for k, x in batch_for(DPKD, params).items()}
    assert value_and_gradients(DPKD, params, inputs)[0].item() == pytest.approx(LOG(2))


def test_at_equal_lengths_the_two_forms_differ_by_the_length():
    keep = torch.tensor([[False, True, True, True, True, False]]).expand(4, 6)
    inputs = {
        part: dataclasses.replace(random_inputs(seed), mask=keep) for seed, part in enumerate(("chosen", "rejected"))
    }
    got = value_and_gradients(DPKD, DPKD.params(beta=2.0), inputs)
    torch.testing.assert_close(got, value_and_gradients(DPKD, DPKD.params(beta=2.0 / 4, length_norm=False), inputs))
