"""Q-argmax by hand and by its identities."""

import dataclasses
import math

import pytest
import torch

from adpa_cli import methods
from adpa_cli.methods import Signal
from adpa_cli.methods.q_argmax import favourite
from support.dense_batches import Inputs, batch_for, signal_of, value_and_gradients, view_of
from support.signal_changes import assert_same_terms, shuffled, with_absent_id

Q, SFT = methods.load("q-argmax"), methods.load("sft")
LOG = math.log


def token(student, aligned, reference, label) -> Inputs:
    """An answer of one token from probabilities."""
    z, p, r = (torch.tensor([[v]], dtype=torch.float64).log() for v in (student, aligned, reference))
    yes = torch.tensor([[True]])
    return Inputs(z.requires_grad_(), p, r, p, torch.tensor([[label]]), yes, ~yes)


CHOSEN = token([1 / 2, 1 / 4, 1 / 4], [1 / 3] * 3, [1 / 3] * 3, label=0)


@pytest.mark.parametrize("label", [0, 1, 2])
def test_three_tokens_by_hand(label):
    """k = 2, aligned ids 0 and 1, the reference's 2 and 0, so that 1 is missing there and counts as its least, 1/4.

    A_0 = log (1/2)/(1/4) = log 2 is above A_1 = log (3/8)/(1/4) = log 3/2 (the true ratio of 1 would be log 3), and so
    a* = 0. Student (1/4, 1/4, 1/2): loss = log 2 + 2 log 4, for the logits 2 (π - (1, 0, 0)).
    """
    rollout = token([1 / 4, 1 / 4, 1 / 2], [1 / 2, 3 / 8, 1 / 8], [1 / 4, 1 / 8, 5 / 8], label)
    loss, grads = value_and_gradients(Q, Q.params(gamma=2.0), {"chosen": CHOSEN, "rollout": rollout}, k=2)
    assert loss.item() == pytest.approx(LOG(2) + 2 * LOG(4))
    assert grads["rollout"][0, 0].tolist() == pytest.approx([-3 / 2, 1 / 2, 1])
    assert grads["chosen"][0, 0].tolist() == pytest.approx([-1 / 2, 1 / 4, 1 / 4])


@pytest.mark.parametrize(("plausibility", "token_"), [(0.0, 1), (0.3, 1), (0.4, 0), (0.9, 0), (1.0, 0)])
def test_plausibility_by_hand(plausibility, token_):
    """A = (log 4/5, log 3/2): token 1 is favoured while its 3/8 is enough; where nothing is, the likeliest is taken."""
    rollout = token([1 / 5, 2 / 5, 2 / 5], [1 / 2, 3 / 8, 1 / 8], [5 / 8, 1 / 4, 1 / 8], label=2)
    params = Q.params(gamma=1.0, plausibility=plausibility)
    loss, _ = value_and_gradients(Q, params, {"chosen": CHOSEN, "rollout": rollout}, k=2)
    assert loss.item() == pytest.approx(LOG(2) - LOG([1 / 5, 2 / 5][token_]))


@pytest.mark.parametrize("reduction", ["seqmean", "tokmean", "seqsum"])
def test_without_weight_it_is_sft(reduction):
    params = Q.params(gamma=0.0, reduction=reduction)
    inputs = batch_for(Q, params)
    loss, grads = value_and_gradients(Q, params, inputs)
    want, sft = value_and_gradients(SFT, SFT.params(reduction=reduction), {"chosen": inputs["chosen"]})
    assert torch.equal(loss, want)
    assert torch.equal(grads["chosen"], sft["chosen"])
    assert not grads["rollout"].any()


def best_token(aligned: list[float], reference: list[float], k: int) -> int:
    """The paper's rule on log-probs, in plain floats."""
    ids = sorted(range(len(aligned)), key=lambda i: -aligned[i])[:k]
    theirs = sorted(range(len(reference)), key=lambda i: -reference[i])[:k]
    floor = reference[theirs[-1]]
    return max(ids, key=lambda i: aligned[i] - (reference[i] if i in theirs else floor))


@pytest.mark.parametrize("reduction", ["seqmean", "tokmean", "seqsum"])
@pytest.mark.parametrize("k", [1, 4, 9])
def test_it_is_sft_on_the_answers_relabelled_by_the_favoured_token(k, reduction):
    inputs = batch_for(Q, Q.params())
    x = inputs["rollout"]
    a, r = (t.log_softmax(-1).tolist() for t in (x.aligned, x.reference))
    favoured = torch.tensor([[best_token(a[b][t], r[b][t], k) for t in range(6)] for b in range(4)])
    loss, grads = value_and_gradients(Q, Q.params(gamma=3.0, reduction=reduction), inputs, k)
    base, sft = value_and_gradients(SFT, SFT.params(reduction=reduction), {"chosen": inputs["chosen"]})
    relabelled = {"chosen": dataclasses.replace(x, labels=favoured)}
    extra, moved = value_and_gradients(SFT, SFT.params(reduction=reduction), relabelled)
    torch.testing.assert_close(loss, base + 3 * extra)
    torch.testing.assert_close(grads, {"chosen": sft["chosen"], "rollout": 3 * moved["chosen"]})


def test_among_equal_advantages_the_likeliest_token_is_favoured():
    """Equal teachers: every advantage is 0, whatever the order of the ids."""
    x = batch_for(Q, Q.params())["rollout"]
    signal, ids = signal_of(dataclasses.replace(x, reference=x.aligned), 4, reference=True)
    order = torch.tensor([2, 3, 0, 1])
    mixed = dataclasses.replace(signal, **{
        name: getattr(signal, name)[..., order] for name in ("logps", "difference", "in_reference")
    })  # fmt: skip
    for now, its in ((signal, ids), (mixed, ids[..., order])):
        chosen = its.gather(-1, favourite(now, 0.0)[..., None])[..., 0]
        assert torch.equal(chosen, x.aligned.argmax(-1))


def test_an_absent_id_is_not_favoured_over_negative_advantages():
    """Advantages -1 and -2 at real ids, log-prob -inf at the first one, which the student lacks."""
    flat = torch.zeros(1, 1)
    logps = torch.tensor([[[-math.inf, -1.0, -2.0]]])
    difference, known = torch.tensor([[[0.0, -2.0, -1.0]]]), torch.ones(1, 1, 3, dtype=torch.bool)
    signal = Signal(logps, flat, flat, difference, known, flat - 9, flat, flat)
    assert favourite(signal, 0.0).item() == 2
    assert favourite(signal, 1.0).item() == 1


def test_scale_and_shift_of_the_advantage_change_nothing():
    signal, _ = signal_of(batch_for(Q, Q.params())["rollout"], 4, reference=True)
    signal = dataclasses.replace(signal, reference_kth=torch.full_like(signal.reference_kth, -1e4))
    other = dataclasses.replace(signal, difference=2.5 * signal.difference - 7)
    assert torch.equal(favourite(signal, 0.0), favourite(other, 0.0))
    assert not torch.equal(favourite(signal, 0.0), favourite(dataclasses.replace(signal, difference=-signal.difference),
                                                             0.0))  # fmt: skip


def test_without_the_end_token_it_adds_nothing_there():
    inputs = batch_for(Q, Q.params())
    views = {n.part: view_of(inputs[n.part], n, 4) for n in Q.needs}
    on, off = (Q.terms(views, Q.params(kd_on_eos=e))[1].values for e in (True, False))
    end = inputs["rollout"].end
    assert not off[end].any()
    assert torch.equal(off[~end], on[~end])


@pytest.mark.parametrize("change", [shuffled, with_absent_id])
@pytest.mark.parametrize("plausibility", [0.0, 0.3])
def test_neither_the_order_of_the_ids_nor_an_absent_one_matters(change, plausibility):
    assert_same_terms(Q, Q.params(plausibility=plausibility), change)
