"""ADPA by hand, by its identities, and its release preset against the released formula."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from adpa_cli import methods
from adpa_cli.errors import UsageError
from adpa_cli.methods.adpa import bounds
from adpa_cli.spec import make
from support.dense_batches import Inputs, batch_for, reduced, value_and_gradients, view_of
from support.signal_changes import assert_same_terms, shuffled, with_absent_id

ADPA, SFT = methods.load("adpa"), methods.load("sft")
LOG = math.log


def token(student, aligned, reference, label) -> Inputs:
    """An answer of one token from probabilities."""
    z, p, r = (torch.tensor([[v]], dtype=torch.float64).log() for v in (student, aligned, reference))
    yes = torch.tensor([[True]])
    return Inputs(z.requires_grad_(), p, r, p, torch.tensor([[label]]), yes, ~yes)


THREE = {
    "chosen": token([1 / 2, 1 / 4, 1 / 4], [1 / 3] * 3, [1 / 3] * 3, label=0),
    "rollout": token([1 / 4, 1 / 4, 1 / 2], [1 / 2, 3 / 8, 1 / 8], [1 / 4, 1 / 8, 5 / 8], label=1),
}
"""k = 2: the aligned ids are 0 and 1; the reference's are 2 and 0, so that 1 is missing there and 2 is only there."""


@pytest.mark.parametrize(
    ("values", "scores"),
    [
        ({}, [LOG(2), LOG(3 / 2), 0]),
        ({"missing_reference": "aligned"}, [LOG(2), 0, 0]),
        ({"missing_reference": "exact"}, [LOG(2), LOG(3), 0]),
        ({"missing_reference": "exact", "clamp": "release"}, [LOG(2), 1 - 1e-8, 0]),
        ({"missing_reference": "exact", "clamp": "-1,0.5"}, [0.5, 0.5, 0]),
        ({"student_tail": "floor"}, [LOG(2), LOG(3 / 2), LOG(3 / 2)]),
        ({"student_tail": "bucket"}, [LOG(2), LOG(3 / 2), LOG(1 / 5)]),
        ({"student_tail": "bucket", "clamp": "-1,1"}, [LOG(2), LOG(3 / 2), -1]),
    ],
)
def test_three_tokens_by_hand(values, scores):
    """SFT log 2; student (1/4, 1/4, 1/2) on its own token; loss = log 2 - 2 (A_0 / 4 + A_1 / 4 + A_2 / 2)."""
    loss, grads = value_and_gradients(ADPA, ADPA.params(gamma=2.0, **values), THREE, k=2)
    pi = [1 / 4, 1 / 4, 1 / 2]
    mean = sum(q * a for q, a in zip(pi, scores, strict=True))
    assert loss.item() == pytest.approx(LOG(2) - 2 * mean)
    want = [-2 * q * (a - mean) for q, a in zip(pi, scores, strict=True)]
    assert grads["rollout"][0, 0].tolist() == pytest.approx(want, abs=1e-9)
    assert grads["chosen"][0, 0].tolist() == pytest.approx([-1 / 2, 1 / 4, 1 / 4])


@pytest.mark.parametrize(
    ("values", "scores"),
    [
        ({}, [2, 2 * LOG(3 / 2) / LOG(2), 0]),
        ({"clamp": "-1,1.5"}, [1.5, 2 * LOG(3 / 2) / LOG(2), 0]),
        ({"missing_reference": "exact", "clamp": "release"}, [1 - 1e-8, 1 - 1e-8, 0]),
        ({"student_tail": "bucket", "clamp": "-1,1.5"}, [1.5, 2 * LOG(3 / 2) / LOG(2), -1]),
    ],
)
def test_three_tokens_by_hand_in_units_of_the_rms(values, scores):
    """RMS (log 2) / 2: the advantages log 2, log 3/2 (exact: log 3) and, in the bucket, log 1/5 are divided by it, and
    limits are of what comes out. Loss = log 2 - 2 (A_0 / 4 + A_1 / 4 + A_2 / 2)."""
    counted = ADPA.params(gamma=2.0, unit="rms", **values)
    params = ADPA.in_nats(counted, LOG(2) / 2)
    loss, grads = value_and_gradients(ADPA, params, THREE, k=2)
    pi = [1 / 4, 1 / 4, 1 / 2]
    mean = sum(q * a for q, a in zip(pi, scores, strict=True))
    assert loss.item() == pytest.approx(LOG(2) - 2 * mean)
    want = [-2 * q * (a - mean) for q, a in zip(pi, scores, strict=True)]
    assert grads["rollout"][0, 0].tolist() == pytest.approx(want, abs=1e-8)


def expected_by_numpy(x: Inputs, k: int, rms: float, clamp: tuple[float, float] | None) -> np.ndarray:
    """[B,T] Σ over the aligned top k of π clamp(A / rms), with the k-th floor: in float64, position by position."""
    student, aligned, reference = (t.detach().numpy().astype(np.float64) for t in (x.logits, x.aligned, x.reference))
    found = np.zeros(student.shape[:2])
    for b, t in np.ndindex(*found.shape):
        q, p, r = (np.exp(v[b, t]) / np.exp(v[b, t]).sum() for v in (student, aligned, reference))
        least = np.sort(r)[-k]
        for a in np.argsort(-p)[:k]:
            value = (np.log(p[a]) - np.log(max(r[a], least))) / rms
            found[b, t] += q[a] * (value if clamp is None else min(max(value, clamp[0]), clamp[1]))
    return found


@pytest.mark.parametrize("clamp", [None, (-0.5, 0.75), (1e-8, 1 - 1e-8)])
@pytest.mark.parametrize("unit", ["nat", "rms"])
def test_normalised_and_clamped_as_written_out(clamp, unit):
    words = "none" if clamp is None else ",".join(map(str, clamp))
    params, rms = ADPA.params(clamp=words, unit=unit, gamma=1.7), 0.57
    inputs = batch_for(ADPA, params)
    read = ADPA.in_nats(params, rms) if unit == "rms" else params
    term, view = advantage_term(inputs, read, k=4)
    want = -1.7 * expected_by_numpy(inputs["rollout"], 4, rms if unit == "rms" else 1.0, clamp)
    mask = view.mask.numpy()
    np.testing.assert_allclose((term.weight * term.values.detach().numpy())[mask], want[mask], rtol=1e-9)


@pytest.mark.parametrize("clamp", ["none", "-1,1"])
def test_one_weight_suits_teachers_whose_difference_is_stretched(clamp):
    """Log-ratios c times as large have c times the RMS, and the loss counted in it stays what it is."""
    params = ADPA.params(clamp=clamp, unit="rms", missing_reference="exact")
    inputs = batch_for(ADPA, params)
    views = {n.part: view_of(inputs[n.part], n, 4) for n in ADPA.needs}
    signal = views["rollout"].signal
    stretched = dataclasses.replace(signal, difference=3 * signal.difference)
    other = views | {"rollout": dataclasses.replace(views["rollout"], signal=stretched)}
    ours, theirs = (ADPA.terms(v, ADPA.in_nats(params, rms))[1] for v, rms in ((views, 0.4), (other, 1.2)))
    torch.testing.assert_close(theirs.weight * theirs.values, ours.weight * ours.values)


@pytest.mark.parametrize("tail", ["zero", "bucket", "floor"])
@pytest.mark.parametrize("missing", ["kth", "exact"])
def test_equal_teachers_leave_sft(tail, missing):
    params = ADPA.params(student_tail=tail, missing_reference=missing)
    inputs = {k: dataclasses.replace(x, reference=x.aligned) for k, x in batch_for(ADPA, params).items()}
    loss, grads = value_and_gradients(ADPA, params, inputs)
    want, sft = value_and_gradients(SFT, SFT.params(), {"chosen": inputs["chosen"]})
    assert torch.equal(loss, want)
    assert torch.equal(grads["chosen"], sft["chosen"])
    assert not grads["rollout"].any()


def test_equal_teachers_in_release_mode_leave_sft_within_its_clamp():
    params = ADPA.params(clamp="release", missing_reference="aligned")
    inputs = {k: dataclasses.replace(x, reference=x.aligned) for k, x in batch_for(ADPA, params).items()}
    loss, _ = value_and_gradients(ADPA, params, inputs)
    want, _ = value_and_gradients(SFT, SFT.params(), {"chosen": inputs["chosen"]})
    assert abs(loss - want) <= 1.5e-8


@pytest.mark.parametrize("reduction", ["seqmean", "tokmean", "seqsum"])
def test_without_weight_it_is_sft(reduction):
    params = ADPA.params(gamma=0.0, reduction=reduction)
    inputs = batch_for(ADPA, params)
    loss, grads = value_and_gradients(ADPA, params, inputs)
    want, sft = value_and_gradients(SFT, SFT.params(reduction=reduction), {"chosen": inputs["chosen"]})
    assert torch.equal(loss, want)
    assert torch.equal(grads["chosen"], sft["chosen"])
    assert not grads["rollout"].any()


def advantage_term(inputs, params, k):
    views = {n.part: view_of(inputs[n.part], n, k) for n in ADPA.needs}
    return next(t for t in ADPA.terms(views, params) if t.name == "advantage"), views["rollout"]


def test_over_the_whole_vocabulary_it_is_a_difference_of_divergences():
    """K = V, exact: -sum pi A = KL(pi || aligned) - KL(pi || reference); dz = -pi (A - mean A), rows sum to 0."""
    inputs = batch_for(ADPA, ADPA.params())
    term, _ = advantage_term(inputs, ADPA.params(missing_reference="exact"), k=9)
    x = inputs["rollout"]
    logps, a, r = (t.log_softmax(-1) for t in (x.logits, x.aligned, x.reference))
    pi = logps.exp()
    torch.testing.assert_close(term.values, (pi * (logps - a)).sum(-1) - (pi * (logps - r)).sum(-1))
    grad = torch.autograd.grad(term.values.sum(), x.logits)[0]
    torch.testing.assert_close(grad, (-pi * (a - r - (pi * (a - r)).sum(-1, keepdim=True))).detach())


@pytest.mark.parametrize("k", [4, 9])
def test_a_shift_of_the_advantage_moves_only_mass_across_the_border(k):
    """A + c at every id: the gradient changes by -c π_a (1[a in S] - mass of S), by nothing at K = V."""
    inputs = batch_for(ADPA, ADPA.params())
    params = ADPA.params(missing_reference="exact")
    views = {n.part: view_of(inputs[n.part], n, k) for n in ADPA.needs}
    signal = views["rollout"].signal
    moved = dataclasses.replace(signal, difference=signal.difference + 3)
    views["moved"] = dataclasses.replace(views["rollout"], signal=moved)
    x = inputs["rollout"]
    grads = [
        torch.autograd.grad(
            ADPA.terms({"chosen": views["chosen"], "rollout": views[one]}, params)[1].values.sum(), x.logits,
            retain_graph=True,
        )[0]
        for one in ("moved", "rollout")
    ]  # fmt: skip
    pi = x.logits.detach().softmax(-1)
    inside = torch.zeros_like(pi).scatter(-1, x.aligned.topk(k, dim=-1).indices, 1.0)
    mass = (pi * inside).sum(-1, keepdim=True)
    torch.testing.assert_close(grads[0] - grads[1], -3 * pi * (inside - mass))


def test_it_is_the_expected_gradient_of_policy_improvement_on_answers_of_one_token():
    """T = 1, K = V: the mean over drawn tokens a of A(a) times the gradient of -log π(a) (Williams 1992)."""
    x = batch_for(ADPA, ADPA.params())["rollout"]
    term, _ = advantage_term({"chosen": x, "rollout": x}, ADPA.params(missing_reference="exact"), k=9)
    grad = torch.autograd.grad(term.values.sum(), x.logits)[0]
    pi = x.logits.detach().softmax(-1)
    a = (x.aligned.log_softmax(-1) - x.reference.log_softmax(-1))[..., None]
    score = pi[..., None, :] - torch.eye(9, dtype=torch.float64)
    torch.testing.assert_close(grad, (pi[..., None] * a * score).sum(-2))


@pytest.mark.parametrize(("which", "sign"), [("reference", -1), ("aligned", 1)])
def test_a_student_equal_to_a_teacher(which, sign):
    """pi = reference: -KL(reference || aligned); pi = aligned: KL(aligned || reference), as expected advantage."""
    inputs = batch_for(ADPA, ADPA.params())
    x = inputs["rollout"]
    inputs["rollout"] = dataclasses.replace(x, logits=getattr(x, which).clone().requires_grad_())
    term, _ = advantage_term(inputs, ADPA.params(missing_reference="exact"), k=9)
    a, r = x.aligned.log_softmax(-1), x.reference.log_softmax(-1)
    kl = (r.exp() * (r - a)).sum(-1) if which == "reference" else (a.exp() * (a - r)).sum(-1)
    torch.testing.assert_close(-term.values, sign * kl)


def test_coarse_divergences_with_a_bucket():
    """Ids and one class outside, exact: the expected advantage is KL(pi || reference) - KL(pi || aligned) on those."""
    inputs = batch_for(ADPA, ADPA.params())
    params = ADPA.params(missing_reference="exact", student_tail="bucket")
    term, _ = advantage_term(inputs, params, k=4)
    x = inputs["rollout"]
    ids = x.aligned.topk(4, dim=-1).indices
    p, r, q = (t.softmax(-1) for t in (x.aligned, x.reference, x.logits))
    coarse = [torch.cat([t.gather(-1, ids), 1 - t.gather(-1, ids).sum(-1, keepdim=True)], -1) for t in (p, r, q)]
    p, r, q = coarse
    torch.testing.assert_close(-term.values, (q * (q / r).log()).sum(-1) - (q * (q / p).log()).sum(-1))


def test_expected_advantage_lies_between_its_extremes():
    inputs = batch_for(ADPA, ADPA.params())
    term, view = advantage_term(inputs, ADPA.params(missing_reference="exact"), k=4)
    a = view.signal.difference
    assert (-term.values >= a.amin(-1).clamp_max(0) - 1e-12).all()
    assert (-term.values <= a.amax(-1).clamp_min(0) + 1e-12).all()


def test_the_paper_rule_never_exceeds_the_exact_ratio():
    inputs = batch_for(ADPA, ADPA.params())
    paper, _ = advantage_term(inputs, ADPA.params(), k=4)
    exact, _ = advantage_term(inputs, ADPA.params(missing_reference="exact"), k=4)
    assert (paper.values >= exact.values - 1e-12).all()
    assert (paper.values > exact.values + 1e-6).any()


def test_without_the_end_token_it_adds_nothing_there_but_still_counts():
    inputs = batch_for(ADPA, ADPA.params())
    x = inputs["rollout"]
    on, _ = advantage_term(inputs, ADPA.params(), k=4)
    off, _ = advantage_term(inputs, ADPA.params(kd_on_eos=False), k=4)
    assert not off.values[x.end].any()
    assert torch.equal(off.values[~x.end], on.values[~x.end])
    rows = [sum(v for v, e in zip(o[m], e[m], strict=True) if not e) / m.sum()
            for o, m, e in zip(on.values, x.mask, x.end, strict=True)]  # fmt: skip
    torch.testing.assert_close(reduced(off.values, x.mask, "seqmean"), sum(rows) / 4)


def test_release_preset_against_the_released_formula():
    """One example per micro-batch, in plain floats: token-mean CE - 1.6 mean over tokens of sum of q * clamp(margin).

    Margins come from probabilities floored at 1e-7; a token that the reference's list lacks takes the least of the
    aligned list on that side; the end token keeps a zero margin and stays in the mean.
    """
    preset = ADPA.presets["release"]
    assert (preset["lr"], preset["epochs"], preset["max_length"]) == (5e-7, 3, 1024)
    assert (preset["select"], preset["keep"]) == ("best", "all")
    params = make(ADPA.params, {k: v for k, v in preset.items() if k in ADPA.params.__dataclass_fields__})
    for seed, scale in ((0, 1.5), (1, 6.0), (2, 12.0)):
        inputs = batch_for(ADPA, params, seed=seed, rows=2, scale=scale)
        inputs = {k: x.apply(lambda t: t[:1]) for k, x in inputs.items()}
        loss, grads = value_and_gradients(ADPA, params, inputs)
        want, slopes = released(inputs["chosen"], inputs["rollout"])
        assert loss.item() == pytest.approx(want, abs=1e-9)
        for got, slope in zip(grads["rollout"][0].tolist(), slopes, strict=True):
            assert got == pytest.approx(slope, abs=1e-9)


def released(chosen: Inputs, rollout: Inputs, k: int = 4) -> tuple[float, list[list[float]]]:
    """The loss, and its gradient for the logits of the student's answer: -1.6 q (margin - mean margin) / length."""

    def probabilities(logits):
        return logits.detach()[0].softmax(-1).tolist()

    def top(p):
        return {i: p[i] for i in sorted(range(len(p)), key=lambda i: -p[i])[:k]}

    at = [t for t in range(6) if chosen.mask[0, t]]
    nll = sum(-LOG(probabilities(chosen.logits)[t][chosen.labels[0, t]]) for t in at) / len(at)
    at = [t for t in range(6) if rollout.mask[0, t]]
    q, p, r = (probabilities(x) for x in (rollout.logits, rollout.aligned, rollout.reference))
    total, slopes = 0.0, [[0.0] * 9 for _ in range(6)]
    for t in at:
        if rollout.end[0, t]:
            continue
        ours, theirs = top(p[t]), top(r[t])
        margins = [0.0] * 9
        for i, v in ours.items():
            margin = LOG(max(v, 1e-7) / max(theirs.get(i, min(ours.values())), 1e-7))
            margins[i] = min(max(margin, 1e-8), 1 - 1e-8)
        mean = sum(a * b for a, b in zip(q[t], margins, strict=True))
        slopes[t] = [-1.6 * a * (b - mean) / len(at) for a, b in zip(q[t], margins, strict=True)]
        total += mean
    return nll - 1.6 * total / len(at), slopes


def test_clamp_reads_two_numbers_and_nothing_else():
    assert bounds("none") is None
    assert bounds("release") == (1e-8, 1 - 1e-8)
    assert bounds("-2,2.5") == (-2.0, 2.5)
    for bad in ("", "1", "2,1", "a,b", "nan,1", "1,2,3"):
        with pytest.raises(UsageError, match="clamp must be"):
            ADPA.params(clamp=bad)


@pytest.mark.parametrize("change", [shuffled, with_absent_id])
@pytest.mark.parametrize("tail", ["zero", "bucket", "floor"])
@pytest.mark.parametrize("missing", ["kth", "aligned", "exact"])
def test_neither_the_order_of_the_ids_nor_an_absent_one_matters(change, tail, missing):
    for clamp in ("none", "release", "0.2,0.5"):
        params = ADPA.params(student_tail=tail, missing_reference=missing, clamp=clamp)
        assert_same_terms(ADPA, params, change)
