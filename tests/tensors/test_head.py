"""Selected log-probs through the head against the dense softmax: values, every gradient, memory."""

import math

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from adpa_cli.tensors.head import selected_logps, tile_shape

TILES = [None, (7, 1), (2, 3), (100, 4), (3, 100), (1, 1)]


def dense(hidden, weight, ids, bias=None):
    """The same five tensors from all logits at once, by plain autograd."""
    logits = F.linear(hidden, weight, bias)
    logps = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(1)
    inside = torch.zeros_like(logps, dtype=torch.bool)
    for row, chosen in enumerate(ids.tolist()):
        for i in chosen:
            if i >= 0:
                inside[row, i] = True
    selected = torch.where(ids < 0, 0.0, logps.gather(1, ids.clamp_min(0)))
    everything = inside.all(1)
    rest = torch.where(everything, -math.inf, logps.masked_fill(inside & ~everything[:, None], -math.inf).logsumexp(1))
    return selected, rest, -(logps * logps.exp()).sum(1), (2 * logps).logsumexp(1)


def problem(rows=7, width=5, vocabulary=11, chosen=4, dtype=torch.float64, seed=0):
    g = torch.Generator().manual_seed(seed)
    shapes = (rows, width), (vocabulary, width), (vocabulary,)
    hidden, weight, bias = (torch.randn(*shape, generator=g, dtype=dtype) for shape in shapes)
    ids = torch.randint(-1, vocabulary, (rows, chosen), generator=g)
    pulls = torch.randn(rows, chosen, generator=g, dtype=dtype), torch.randn(rows, generator=g, dtype=dtype)
    return [t.requires_grad_() for t in (hidden, weight, bias)], ids, pulls


def gradients(logps, rest, pulls, inputs):
    rest = torch.where(rest == -math.inf, 0.0, rest)
    return torch.autograd.grad((logps * pulls[0]).sum() + (rest * pulls[1]).sum(), inputs)


def test_three_tokens_by_hand():
    """Softmax of (log 2, 0, 0) is (1/2, 1/4, 1/4); token 1 is chosen, the rest is 3/4."""
    hidden = torch.tensor([[1.0, 0.0, 0.0]], requires_grad=True)
    weight = torch.tensor([[math.log(2), 0, 0], [0, 0, 0], [0, 0, 0]], requires_grad=True)
    out = selected_logps(hidden, weight, torch.tensor([[1]]), stats=True)
    assert out.logps.item() == pytest.approx(math.log(1 / 4))
    assert out.rest.item() == pytest.approx(math.log(3 / 4))
    assert out.stats.entropy.item() == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(4))
    assert out.stats.log_sum_squares.item() == pytest.approx(math.log(1 / 4 + 1 / 16 + 1 / 16))
    # d logp_1 / dz = onehot_1 - p; hidden is the first unit vector, so column 0 of the head's gradient is d/dz.
    by_logp = torch.autograd.grad(out.logps.sum(), weight, retain_graph=True)[0]
    assert by_logp[:, 0].tolist() == pytest.approx([-1 / 2, 3 / 4, -1 / 4])
    # d rest / dz_k = p_k / (3/4) - p_k outside, -p_1 at token 1.
    by_rest = torch.autograd.grad(out.rest.sum(), weight)[0]
    assert by_rest[:, 0].tolist() == pytest.approx([2 / 3 - 1 / 2, -1 / 4, 1 / 3 - 1 / 4])


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("budget", [0, 2**26])
@pytest.mark.parametrize("with_bias", [False, True])
def test_equals_dense_for_any_tile_and_budget(tile, budget, with_bias):
    inputs, ids, pulls = problem()
    inputs = inputs[: 3 if with_bias else 2]
    bias = inputs[2] if with_bias else None
    out = selected_logps(*inputs[:2], ids, bias, stats=True, budget=budget, tile=tile)
    want = dense(*inputs[:2], ids, bias)
    torch.testing.assert_close((out.logps, out.rest, out.stats.entropy, out.stats.log_sum_squares), want)
    torch.testing.assert_close(gradients(out.logps, out.rest, pulls, inputs), gradients(*want[:2], pulls, inputs))
    assert not out.stats.entropy.requires_grad
    assert not out.stats.log_sum_squares.requires_grad


def test_gradient_agrees_with_finite_differences():
    inputs, ids, _ = problem(rows=3, width=2, vocabulary=5, chosen=2)
    torch.autograd.gradcheck(
        lambda h, w, b: tuple(vars(selected_logps(h, w, ids, b, tile=(2, 2), budget=0)).values())[:2], inputs
    )


def test_repeated_ids_count_once_outside_and_twice_in_the_gradient():
    inputs, _, pulls = problem(chosen=4)
    once = torch.tensor([[3, 8]]).expand(7, 2)
    twice = torch.tensor([[3, 8, 3, 3]]).expand(7, 4)
    out, single = selected_logps(*inputs[:2], twice), selected_logps(*inputs[:2], once)
    torch.testing.assert_close(out.rest, single.rest)
    folded = torch.stack([pulls[0][:, 0] + pulls[0][:, 2] + pulls[0][:, 3], pulls[0][:, 1]], 1)
    torch.testing.assert_close(
        gradients(out.logps, out.rest, pulls, inputs[:2]),
        gradients(single.logps, single.rest, (folded, pulls[1]), inputs[:2]),
    )


def test_absent_ids_give_zero_and_no_gradient():
    inputs, ids, pulls = problem()
    padded = torch.cat([ids.clamp_min(0), torch.full((7, 2), -1)], 1)
    out, plain = selected_logps(*inputs[:2], padded), selected_logps(*inputs[:2], ids.clamp_min(0))
    assert torch.equal(out.logps[:, 4:], torch.zeros(7, 2, dtype=torch.float64))
    torch.testing.assert_close(out.rest, plain.rest)
    wide = torch.cat([pulls[0], torch.full((7, 2), 1e6, dtype=torch.float64)], 1), pulls[1]
    torch.testing.assert_close(
        gradients(out.logps, out.rest, wide, inputs[:2]), gradients(plain.logps, plain.rest, pulls, inputs[:2])
    )


@pytest.mark.parametrize("budget", [0, 2**26])
def test_nothing_outside_when_every_token_is_chosen(budget):
    inputs, _, pulls = problem(chosen=11)
    ids = torch.stack([torch.randperm(11) for _ in range(7)])
    out = selected_logps(*inputs[:2], ids, budget=budget, tile=(3, 4))
    assert torch.equal(out.rest, torch.full((7,), -math.inf, dtype=torch.float64))
    got = torch.autograd.grad((out.logps * pulls[0]).sum() + (out.rest * pulls[1]).sum(), inputs[:2])
    torch.testing.assert_close(got, gradients(*dense(*inputs[:2], ids)[:2], pulls, inputs[:2]))


@pytest.mark.parametrize("scale", [1e2, 1e4, 1e6])
def test_extreme_logits_stay_finite_and_equal_the_dense_ones(scale):
    inputs, ids, pulls = problem(dtype=torch.float32)
    ids = ids.clamp_min(0)
    hidden, weight = (t.detach().clone().requires_grad_() for t in (inputs[0] * scale, inputs[1]))
    out = selected_logps(hidden, weight, ids, stats=True, tile=(3, 4))
    want = dense(hidden.double(), weight.double(), ids)
    for got, ref in zip((out.logps, out.rest, out.stats.entropy, out.stats.log_sum_squares), want, strict=True):
        assert got.isfinite().all()
        torch.testing.assert_close(got.double(), ref, rtol=1e-4, atol=1e-6 * scale)
    for got in gradients(out.logps, out.rest, pulls, (hidden, weight)):
        assert got.isfinite().all()


def test_a_far_tail_keeps_its_log_and_its_gradient():
    """Token 0 has all but e^-200 of the mass: 1 - sum would be 0 in float32, the masked logsumexp is not."""
    hidden = torch.tensor([[1.0]], requires_grad=True)
    weight = torch.tensor([[200.0], [0.0], [math.log(3)]], requires_grad=True)
    out = selected_logps(hidden, weight, torch.tensor([[0]]))
    assert out.rest.item() == pytest.approx(math.log(4) - 200, rel=1e-6)
    out.rest.sum().backward()
    assert weight.grad[:, 0].tolist() == pytest.approx([-1.0, 1 / 4, 3 / 4])


def test_tied_head_adds_both_gradients():
    """The head's weight is the embedding: its gradient is the sum of both uses."""
    table = torch.randn(9, 4, dtype=torch.float64, requires_grad=True)
    tokens, ids = torch.tensor([1, 5, 5, 8]), torch.tensor([[0, 1], [5, 5], [3, -1], [8, 2]])
    pulls = torch.randn(4, 2, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    out = selected_logps(table[tokens].tanh(), table, ids)
    want = dense(table[tokens].tanh(), table, ids)
    torch.testing.assert_close(gradients(out.logps, out.rest, pulls, [table]), gradients(*want[:2], pulls, [table]))


@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16])
def test_bfloat16_hidden_states(weight_dtype):
    inputs, ids, pulls = problem(rows=16, width=32, vocabulary=50, dtype=torch.float32)
    hidden = inputs[0].detach().bfloat16().requires_grad_()
    weight = inputs[1].detach().to(weight_dtype).requires_grad_()
    out = selected_logps(hidden, weight, ids, tile=(5, 17))
    assert out.logps.dtype == out.rest.dtype == torch.float32
    want = dense(hidden, weight.bfloat16(), ids)
    torch.testing.assert_close((out.logps, out.rest), want[:2], rtol=0.02, atol=0.02)
    got = gradients(out.logps, out.rest, pulls, (hidden, weight))
    assert [g.dtype for g in got] == [torch.bfloat16, weight_dtype]
    for g, w in zip(got, gradients(*want[:2], pulls, (hidden, weight)), strict=True):
        assert (g.float() - w.float()).norm() < 0.02 * w.float().norm()


@pytest.mark.parametrize("budget", [0, 2**26])
def test_inside_autocast_it_computes_as_a_linear_layer_does(budget):
    inputs, ids, pulls = problem(rows=16, width=32, vocabulary=50, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = selected_logps(*inputs[:2], ids, inputs[2], budget=budget)
        want = dense(*inputs[:2], ids, inputs[2])
    exact = dense(*inputs[:2], ids, inputs[2])
    assert (out.logps - exact[0]).abs().max() > 1e-4, "the product did not run in bfloat16"
    torch.testing.assert_close((out.logps, out.rest), want[:2], rtol=0.02, atol=0.05)
    got = gradients(out.logps, out.rest, pulls, inputs)
    assert {g.dtype for g in got} == {torch.float32}
    for g, w in zip(got, gradients(*exact[:2], pulls, inputs), strict=True):
        assert (g - w).norm() < 0.02 * w.norm()


def test_backward_inside_autocast_gives_the_same_bytes():
    inputs, ids, pulls = problem(rows=16, width=32, vocabulary=50, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = selected_logps(*inputs[:2], ids, budget=0)
        inner = torch.autograd.grad((out.logps * pulls[0]).sum(), inputs[:2], retain_graph=True)
    outer = torch.autograd.grad((out.logps * pulls[0]).sum(), inputs[:2])
    assert all(torch.equal(a, b) for a, b in zip(inner, outer, strict=True))


@pytest.mark.parametrize("frozen", [0, 1, 2])
def test_a_frozen_input_gets_no_gradient_and_changes_no_other(frozen):
    inputs, ids, pulls = problem()
    whole = gradients(*dense(*inputs[:2], ids, inputs[2])[:2], pulls, inputs)
    inputs[frozen].requires_grad_(False)
    live = [i for i in range(3) if i != frozen]
    out = selected_logps(*inputs[:2], ids, inputs[2])
    got = gradients(out.logps, out.rest, pulls, [inputs[i] for i in live])
    torch.testing.assert_close(got, tuple(whole[i] for i in live))


class Largest(TorchDispatchMode):
    """The most elements of any tensor made while it is on."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for t in out if isinstance(out, tuple | list) else [out]:
            if isinstance(t, torch.Tensor):
                self.elements = max(self.elements, t.numel())
        return out


@pytest.mark.parametrize("frozen_head", [False, True])
def test_the_logits_never_exist_beyond_the_budget(frozen_head):
    hidden, weight = torch.randn(64, 4, requires_grad=True), torch.randn(3000, 4, requires_grad=not frozen_head)
    with Largest() as seen:
        out = selected_logps(hidden, weight, torch.randint(0, 3000, (64, 5)), budget=64 * 3000 * 4 - 1, tile=(64, 100))
        (out.logps.sum() + out.rest.sum()).backward()
    assert seen.elements <= (64 * 101 if frozen_head else weight.numel())


@pytest.mark.parametrize("keep", [False, True])
def test_logits_are_kept_for_the_backward_only_within_the_budget(keep):
    hidden, weight = torch.randn(64, 4, requires_grad=True), torch.randn(3000, 4)
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
        budget = 64 * 3000 * 4 - (not keep)
        selected_logps(hidden, weight, torch.randint(0, 3000, (64, 5)), budget=budget, tile=(64, 100))
    assert (sum(sizes) >= 64 * 3000) == keep


def test_no_positions_and_no_ids():
    weight = torch.randn(5, 3, requires_grad=True)
    out = selected_logps(torch.zeros(0, 3, requires_grad=True), weight, torch.zeros(0, 2, dtype=torch.long), stats=True)
    assert out.logps.shape == (0, 2)
    out.logps.sum().backward()
    assert torch.equal(weight.grad, torch.zeros(5, 3))
    none = selected_logps(torch.randn(4, 3), weight, torch.zeros(4, 0, dtype=torch.long))
    torch.testing.assert_close(none.rest, torch.zeros(4))


@pytest.mark.parametrize(("rows", "vocabulary"), [(1, 100), (100, 100), (4096, 151936), (10**6, 151936), (0, 7)])
def test_tiles_follow_from_the_sizes(rows, vocabulary):
    height, width = tile_shape(rows, vocabulary)
    assert 1 <= height <= max(rows, 1)
    assert 1 <= width <= vocabulary
    assert height * width <= 2**23
