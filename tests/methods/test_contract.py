"""What every method keeps, whatever its equation; a file added to the folder is tested here without a change."""

import dataclasses
import subprocess
import sys
from typing import get_args

import pytest
import torch

from adpa_cli import methods
from adpa_cli.errors import UsageError
from adpa_cli.methods import Part, Reduction, Signal, View
from adpa_cli.spec import TrainSpec, make
from adpa_cli.tensors.divergence import reduce
from adpa_cli.tensors.head import selected_logps
from support.dense_batches import Inputs, batch_for, loss_of, value_and_gradients, view_of


def variants():
    """Each method at its defaults, at its presets, and with each choice and switch changed alone."""
    for name in methods.names():
        method = methods.load(name)
        fields = {f.name: f for f in dataclasses.fields(method.params)}
        settings = [{}] + [{k: v for k, v in preset.items() if k in fields} for preset in method.presets.values()]
        for f in fields.values():
            options = f.metadata["choices"] or ((True, False) if isinstance(f.default, bool) else ())
            settings += [{f.name: option} for option in options if option != f.default]
        for values in settings:
            yield pytest.param(method, make(method.params, values), id=f"{name}-{values or 'default'}")


every = pytest.mark.parametrize(("method", "params"), list(variants()))
each_file = pytest.mark.parametrize("method", [methods.load(n) for n in methods.names()], ids=methods.names())


@each_file
def test_describes_itself(method):
    assert method.version >= 1
    assert all((method.source, method.summary, method.formula))
    assert "\n" not in method.summary
    parts = [need.part for need in method.needs]
    assert len(set(parts)) == len(parts) > 0
    assert set(parts) <= set(get_args(Part))
    assert method.needs_for(method.params()) == method.needs
    for f in dataclasses.fields(method.params):
        assert f.metadata["doc"], f.name
        assert f.metadata["origin"] in ("paper", "release", "ours")
        assert make(method.params, {f.name: str(f.default)}) == method.params(), "the default is not a legal value"


@each_file
def test_presets_set_only_known_values(method):
    known = {f.name for f in dataclasses.fields(method.params)}
    for values in method.presets.values():
        assert set(values) <= known | {f.name for f in dataclasses.fields(TrainSpec)}
        make(method.params, {k: v for k, v in values.items() if k in known})


@every
def test_terms_are_named_shaped_and_belong_to_a_needed_part(method, params):
    inputs = batch_for(method, params)
    needs = method.needs_for(params)
    terms = method.terms({n.part: view_of(inputs[n.part], n, 4) for n in needs}, params)
    assert len({t.name for t in terms}) == len(terms) > 0
    for t in terms:
        assert t.part in {n.part for n in needs}
        assert tuple(t.values.shape) in {(4,), (4, 6)}
        assert t.values.isfinite().all()
        assert t.reduction in get_args(Reduction)
        assert t.values.dim() == 1 or t.reduction == getattr(params, "reduction", t.reduction)


def pad(x: torch.Tensor) -> torch.Tensor:
    """Three more positions at the right: unmasked nowhere, arbitrary elsewhere."""
    extra = x.flip(1)[:, :3]
    return torch.cat([x, torch.zeros_like(extra) if x.dtype == torch.bool else extra], 1).detach()


@every
def test_padding_changes_nothing(method, params):
    inputs = batch_for(method, params)
    loss, grads = value_and_gradients(method, params, inputs)
    padded_loss, padded = value_and_gradients(method, params, {k: x.apply(pad) for k, x in inputs.items()})
    torch.testing.assert_close(padded_loss, loss)
    for part, grad in padded.items():
        torch.testing.assert_close(grad[:, :6], grads[part])
        assert not grad[:, 6:].any()


@every
def test_row_order_changes_nothing(method, params):
    inputs = batch_for(method, params)
    order = torch.tensor([2, 0, 3, 1])
    loss, grads = value_and_gradients(method, params, inputs)
    other, moved = value_and_gradients(method, params, {k: x.apply(lambda t: t[order]) for k, x in inputs.items()})
    torch.testing.assert_close(other, loss)
    torch.testing.assert_close(moved, {k: g[order] for k, g in grads.items()})


@every
@pytest.mark.parametrize("cuts", [(1, 1, 1, 1), (1, 3)])
def test_any_split_into_micro_batches_adds_up_to_the_whole(method, params, cuts):
    inputs = batch_for(method, params)
    needs = method.needs_for(params)
    whole, grads = value_and_gradients(method, params, inputs)
    views = {n.part: view_of(inputs[n.part], n, 4) for n in needs}
    tokens = {part: int(view.mask.sum()) for part, view in views.items()}
    total = torch.zeros((), dtype=torch.float64)
    for at, size in zip(torch.tensor((0, *cuts[:-1])).cumsum(0).tolist(), cuts, strict=True):
        piece = {n.part: slice_rows(inputs[n.part], at, size) for n in needs}
        micro = {n.part: view_of(piece[n.part], n, 4) for n in needs}
        for t in method.terms(micro, params):
            sizes = {"batch_rows": 4, "batch_tokens": tokens[t.part]}
            total = total + t.weight * reduce(t.values, micro[t.part].mask, t.reduction, **sizes)
    torch.testing.assert_close(total, whole)
    got = torch.autograd.grad(total, [x.logits for x in inputs.values()], materialize_grads=True)
    torch.testing.assert_close(dict(zip(inputs, got, strict=True)), grads)


def slice_rows(x: Inputs, at: int, size: int) -> Inputs:
    """Some rows, still connected to the whole batch's logits."""
    return Inputs(*(getattr(x, f.name)[at : at + size] for f in dataclasses.fields(x)))


@every
def test_masked_positions_are_inert(method, params):
    inputs = batch_for(method, params)
    loss, grads = value_and_gradients(method, params, inputs)

    def edit(x: Inputs) -> Inputs:
        off = ~x.mask
        noise = torch.where(off[..., None], torch.randn_like(x.logits) * 5, 0.0)
        labels = torch.where(off, (x.labels + 3) % x.logits.shape[-1], x.labels)
        return Inputs(
            (x.logits + noise).detach().requires_grad_(), x.aligned - noise, x.reference + noise, x.start - noise,
            labels, x.mask, x.end | off,
        )  # fmt: skip

    edited_loss, edited = value_and_gradients(method, params, {k: edit(x) for k, x in inputs.items()})
    torch.testing.assert_close(edited_loss, loss)
    torch.testing.assert_close(edited, grads)
    for part, grad in edited.items():
        assert not grad[~inputs[part].mask].any()


@every
def test_gradients_sum_to_zero_over_the_vocabulary(method, params):
    """A softmax ignores a constant added to all logits, so any loss over it does."""
    loss, grads = value_and_gradients(method, params, batch_for(method, params))
    assert loss != 0
    assert any(g.abs().max() > 1e-6 for g in grads.values())
    for grad in grads.values():
        assert grad.sum(-1).abs().max() < 1e-12


@every
def test_finite_at_extreme_logits(method, params):
    loss, grads = value_and_gradients(method, params, batch_for(method, params, dtype=torch.float32, scale=1e4))
    assert loss.isfinite()
    assert all(g.isfinite().all() for g in grads.values())


@every
@pytest.mark.parametrize("k", [1, 9])
def test_one_id_and_the_whole_vocabulary_are_fine(method, params, k):
    loss, grads = value_and_gradients(method, params, batch_for(method, params), k)
    assert loss.isfinite()
    assert all(g.isfinite().all() for g in grads.values())


@every
def test_through_the_head_it_equals_the_dense_softmax(method, params):
    """The same loss with views made by `selected_logps`: value and gradient of hidden states and head."""
    g = torch.Generator().manual_seed(7)
    weight = torch.randn(9, 5, generator=g, dtype=torch.float64, requires_grad=True)
    needs = method.needs_for(params)
    dense, views, hiddens = {}, {}, []
    for i, need in enumerate(needs):
        hidden = torch.randn(4, 6, 5, generator=g, dtype=torch.float64, requires_grad=True)
        x = dataclasses.replace(batch_for(method, params)[need.part], logits=hidden @ weight.T)
        dense[need.part], hiddens = x, [*hiddens, hidden]
        views[need.part] = through_head(hidden, weight, view_of(x, need, 4), x, budget=(0, 2**20)[i % 2])
    want = loss_of(method, params, dense)
    got = sum(
        t.weight * reduce(
            t.values, views[t.part].mask, t.reduction, batch_rows=4, batch_tokens=int(views[t.part].mask.sum())
        )
        for t in method.terms(views, params)
    )  # fmt: skip
    torch.testing.assert_close(got, want)
    leaves = [weight, *hiddens]
    torch.testing.assert_close(
        torch.autograd.grad(got, leaves, materialize_grads=True),
        torch.autograd.grad(want, leaves, materialize_grads=True),
    )


def through_head(hidden, weight, view: View, x: Inputs, budget: int) -> View:
    """`view` with the student's numbers taken from the chunked head, at answer positions only."""
    ids = x.labels[..., None]
    if view.signal is not None:
        ids = torch.cat([ids, x.aligned.log_softmax(-1).topk(4, dim=-1).indices], -1)
    out = selected_logps(hidden[x.mask], weight, ids[x.mask], stats=True, budget=budget, tile=(5, 4))
    logps = torch.zeros(ids.shape, dtype=torch.float64).masked_scatter(x.mask[..., None].expand(ids.shape), out.logps)
    rest = torch.zeros(x.mask.shape, dtype=torch.float64).masked_scatter(x.mask, out.rest)
    changed = {"logps": logps[..., 0]}
    if view.signal is not None:
        changed |= {"topk_logps": logps[..., 1:], "rest_logps": rest}
    if view.log_sum_squares is not None:
        squares = torch.zeros(x.mask.shape, dtype=torch.float64).masked_scatter(x.mask, out.stats.log_sum_squares)
        changed |= {"log_sum_squares": squares}
    return dataclasses.replace(view, **changed)


def test_teachers_that_carry_a_gradient_are_refused():
    live = torch.zeros(1, 2, 3, requires_grad=True)
    flat = torch.zeros(1, 2)
    with pytest.raises(TypeError, match=r"Signal\.logps is a constant"):
        Signal(live, flat, flat)
    with pytest.raises(TypeError, match=r"View\.start_logps is a constant"):
        View(flat, flat > 0, flat > 0, start_logps=live[..., 0])


def test_reading_all_methods_imports_no_torch():
    code = (
        "import sys; from adpa_cli import methods; [methods.load(n) for n in methods.names()];"
        "print('torch' in sys.modules, len(methods.names()))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert out[0] == "False"
    assert int(out[1]) >= 4


def test_an_unknown_method_suggests_the_nearest():
    with pytest.raises(UsageError) as e:
        methods.load("adpaa")
    assert "did you mean adpa?" in e.value.hint


@pytest.mark.parametrize("name", ["rest_logps", "signal", "topk_logps"])
def test_a_batch_without_the_declared_signal_is_a_bug_with_a_name(name):
    method = methods.load("adpa")
    inputs = batch_for(method, method.params())
    views = {n.part: view_of(inputs[n.part], n, 4) for n in method.needs}
    views["rollout"] = dataclasses.replace(views["rollout"], **{name: None})
    with pytest.raises(TypeError, match="NEEDS"):
        method.terms(views, method.params())
