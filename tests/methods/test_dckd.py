"""DCKD by hand and by its identities."""

import dataclasses
import math

import pytest
import torch
from torch.nn import functional as F

from adpa_cli import methods
from adpa_cli.methods import Need
from support.dense_batches import Inputs, batch_for, random_inputs, reduced, value_and_gradients, view_of
from support.signal_changes import assert_same_terms, shuffled, with_absent_id

DCKD, SFT = methods.load("dckd"), methods.load("sft")


def answer(student, teacher, label) -> Inputs:
    """An answer of one token, the end token, from probabilities."""
    z, p = (torch.tensor([[v]], dtype=torch.float64).log() for v in (student, teacher))
    yes = torch.tensor([[True]])
    return Inputs(z.requires_grad_(), p, p, p, torch.tensor([[label]]), yes, yes)


def test_three_tokens_by_hand():
    """k = 1. On y_w teacher (1/2, 1/4, 1/4), student (1/4, 1/2, 1/4): KL = 1/2 log(4/3), SFT on token 1 = log 2.

    On y_l teacher (1/4, 1/8, 5/8), student uniform: ids {2}, KL = 5/8 log(15/8) + 3/8 log(9/16).
    """
    inputs = {
        "chosen": answer([1 / 4, 1 / 2, 1 / 4], [1 / 2, 1 / 4, 1 / 4], label=1),
        "rejected": answer([1 / 3, 1 / 3, 1 / 3], [1 / 4, 1 / 8, 5 / 8], label=0),
    }
    loss, grads = value_and_gradients(DCKD, DCKD.params(alpha=0.5), inputs, k=1)
    kl_w = 1 / 2 * math.log(4 / 3)
    kl_l = 5 / 8 * math.log(15 / 8) + 3 / 8 * math.log(9 / 16)
    assert loss.item() == pytest.approx(math.log(2) + 0.5 * (kl_w + kl_l))
    # SFT: (1/4, -1/2, 1/4); KL: q - p at the id, q (1 - r/r_q) outside, r/r_q = 2/3 and 9/16.
    assert grads["chosen"][0, 0].tolist() == pytest.approx([1 / 4 - 1 / 8, -1 / 2 + 1 / 12, 1 / 4 + 1 / 24])
    want = [0.5 * 1 / 3 * 7 / 16, 0.5 * 1 / 3 * 7 / 16, 0.5 * (1 / 3 - 5 / 8)]
    assert grads["rejected"][0, 0].tolist() == pytest.approx(want)


@pytest.mark.parametrize("reduction", ["seqmean", "tokmean", "seqsum"])
def test_without_weight_it_is_sft(reduction):
    params = DCKD.params(alpha=0.0, reduction=reduction)
    inputs = batch_for(DCKD, params)
    loss, grads = value_and_gradients(DCKD, params, inputs)
    want, sft = value_and_gradients(SFT, SFT.params(reduction=reduction), {"chosen": inputs["chosen"]})
    assert torch.equal(loss, want)
    assert torch.equal(grads["chosen"], sft["chosen"])
    assert not grads["rejected"].any()


def test_a_student_equal_to_its_teacher_only_feels_sft():
    inputs = {k: dataclasses.replace(x, aligned=x.logits.detach()) for k, x in batch_for(DCKD, DCKD.params()).items()}
    loss, grads = value_and_gradients(DCKD, DCKD.params(alpha=5.0), inputs)
    want, sft = value_and_gradients(SFT, SFT.params(), {"chosen": inputs["chosen"]})
    torch.testing.assert_close((loss, grads["chosen"]), (want, sft["chosen"]))
    torch.testing.assert_close(grads["rejected"], torch.zeros_like(grads["rejected"]))


def test_with_the_whole_vocabulary_it_is_the_full_divergence():
    """K = V: KL51 is torch's kl_div, each side with its own mean."""
    inputs = batch_for(DCKD, DCKD.params())
    parts = []
    for x in inputs.values():
        full = F.kl_div(x.logits.log_softmax(-1), x.aligned.log_softmax(-1), reduction="none", log_target=True).sum(-1)
        parts.append(reduced(full, x.mask, "seqmean"))
    sft, _ = value_and_gradients(SFT, SFT.params(), {"chosen": inputs["chosen"]})
    loss, grads = value_and_gradients(DCKD, DCKD.params(alpha=0.7), inputs, k=9)
    want = 0.7 * (parts[0] + parts[1])
    torch.testing.assert_close(loss, (sft + want).detach())
    torch.testing.assert_close(grads["rejected"], torch.autograd.grad(want, inputs["rejected"].logits)[0])


def test_swapping_the_pair_changes_only_the_sft_term():
    params = DCKD.params()
    a, b = random_inputs(3), random_inputs(4)
    there = terms_of({"chosen": a, "rejected": b}, params)
    back = terms_of({"chosen": b, "rejected": a}, params)
    assert torch.equal(there["kl_chosen"], back["kl_rejected"])
    assert torch.equal(there["kl_rejected"], back["kl_chosen"])
    assert (there["kl_chosen"] >= 0).all()
    assert not torch.equal(there["sft"], back["sft"])


def terms_of(inputs, params):
    views = {n.part: view_of(inputs[n.part], n, 4) for n in DCKD.needs_for(params)}
    return {t.name: t.values.detach() for t in DCKD.terms(views, params)}


def test_without_dispreferred_answers_the_rejected_divergence_is_gone():
    params = DCKD.params(dispreferred=False)
    assert DCKD.needs_for(params) == (Need("chosen", signal=("aligned",)),)
    inputs = batch_for(DCKD, DCKD.params())
    both, some = terms_of(inputs, DCKD.params()), terms_of({"chosen": inputs["chosen"]}, params)
    assert set(both) - set(some) == {"kl_rejected"}
    assert all(torch.equal(some[name], both[name]) for name in some)


def test_without_the_end_token_it_adds_nothing_there_but_still_counts():
    on, off = (terms_of(batch_for(DCKD, DCKD.params()), DCKD.params(kd_on_eos=e)) for e in (True, False))
    x = batch_for(DCKD, DCKD.params())["chosen"]
    assert not off["kl_chosen"][x.end].any()
    assert on["kl_chosen"][x.end].all()
    assert torch.equal(off["kl_chosen"][~x.end], on["kl_chosen"][~x.end])
    assert torch.equal(off["sft"], on["sft"])


@pytest.mark.parametrize("tail", ["bucket", "renormalised"])
def test_a_position_that_the_signal_does_not_cover_is_no_divergence_and_no_gradient(tail):
    """What an imported capture holds where it has no position: no id with mass, all of it in the rest."""
    params = DCKD.params(tail=tail)
    inputs = batch_for(DCKD, params)
    views = {n.part: view_of(inputs[n.part], n, 4) for n in DCKD.needs_for(params)}
    where = inputs["chosen"].end
    signal = views["chosen"].signal
    bare = dataclasses.replace(
        signal,
        logps=signal.logps.masked_fill(where[..., None], -math.inf),
        label_logps=signal.label_logps.masked_fill(where, -math.inf),
        rest_logps=signal.rest_logps.masked_fill(where, 0.0),
    )
    whole = {term.name: term.values for term in DCKD.terms(views, params)}
    views["chosen"] = dataclasses.replace(views["chosen"], signal=bare, label_in_topk=views["chosen"].label_in_topk)
    values = {term.name: term.values for term in DCKD.terms(views, params)}["kl_chosen"]
    assert torch.equal(values, whole["kl_chosen"].masked_fill(where, 0.0))
    (slope,) = torch.autograd.grad(values.sum(), [inputs["chosen"].logits])
    assert not slope[where].any()
    assert torch.isfinite(slope).all()
    assert slope[inputs["chosen"].mask & ~where].any()


def test_release_preset_against_the_released_formula():
    """One pair per micro-batch: token mean of CE plus 0.1 times each side's mean of the KL, 0 at the end token."""
    from adpa_cli.spec import make

    preset = {k: v for k, v in DCKD.presets["release"].items() if k in DCKD.params.__dataclass_fields__}
    inputs = batch_for(DCKD, DCKD.params(), rows=2)
    inputs = {k: x.apply(lambda t: t[:1]) for k, x in inputs.items()}
    loss, grads = value_and_gradients(DCKD, make(DCKD.params, preset), inputs)
    want = 0.0
    for part, x in inputs.items():
        q, p = (t.detach()[0].softmax(-1).tolist() for t in (x.logits, x.aligned))
        at = [t for t in range(6) if x.mask[0, t]]
        for t in at:
            if part == "chosen":
                want += -math.log(q[t][x.labels[0, t]]) / len(at)
            if not x.end[0, t]:
                ids = sorted(range(9), key=lambda i, t=t: -p[t][i])[:4]
                pairs = [(p[t][i], q[t][i]) for i in ids]
                pairs.append((1 - sum(a for a, _ in pairs), 1 - sum(b for _, b in pairs)))
                want += 0.1 * sum(a * math.log(a / b) for a, b in pairs) / len(at)
            if part == "rejected":
                left, mine = (0.0, 0.0) if x.end[0, t] else pairs[-1]
                slopes = [
                    0.0 if x.end[0, t] else q[t][i] - p[t][i] if i in ids else q[t][i] * (1 - left / mine)
                    for i in range(9)
                ]  # fmt: skip
                assert grads[part][0, t].tolist() == pytest.approx([0.1 * s / len(at) for s in slopes], abs=1e-12)
    assert loss.item() == pytest.approx(want)


@pytest.mark.parametrize("change", [shuffled, with_absent_id])
@pytest.mark.parametrize("tail", ["bucket", "renormalised"])
def test_neither_the_order_of_the_ids_nor_an_absent_one_matters(change, tail):
    assert_same_terms(DCKD, DCKD.params(tail=tail), change)
