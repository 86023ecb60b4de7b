"""Where the head keeps what its second sweep needs, and what it does with scaled and capped logits."""

import math

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from adpa_cli.tensors.head import selected_logps
from adpa_cli.tensors.tiles import GPU_ALIGNED, GPU_TILE_CELLS, Kept, Tile, row_slices, rows_inside, tile_shape


def problem(rows=12, width=6, vocabulary=23, chosen=3):
    g = torch.Generator().manual_seed(0)
    shapes = (rows, width), (vocabulary, width), (vocabulary,)
    hidden, weight, bias = (torch.randn(*s, generator=g, dtype=torch.float64).requires_grad_() for s in shapes)
    ids = torch.randint(-1, vocabulary, (rows, chosen), generator=g)
    ids[:, -1] = ids[:, 0]
    pulls = torch.randn(rows, chosen, generator=g, dtype=torch.float64), torch.randn(rows, generator=g).double()
    return hidden, weight, bias, ids, pulls


def loss_of(logps, rest, pulls):
    return (logps * pulls[0]).sum() + (rest * pulls[1]).sum()


def dense(hidden, weight, bias, ids, scale=1.0, softcap=None):
    """Log-probs at the ids and of the mass outside them, by autograd through all logits."""
    logits = F.linear(hidden, weight, bias) * scale
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    logps = logits.log_softmax(1)
    inside = torch.zeros_like(logps).scatter_add(1, ids.clamp_min(0), (ids >= 0).double()) > 0
    return torch.where(ids < 0, 0.0, logps.gather(1, ids.clamp_min(0))), logps.masked_fill(inside, -math.inf).logsumexp(
        1
    )


class Products(TorchDispatchMode):
    """Counts matrix products."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("rows", "frozen", "budget", "products"),
    [
        (6, False, 0, 3),  # all fit into the memory of the gradient
        (12, False, 0, 2 * 3 + 1),  # half of them do: two tiles of rows, one is computed again
        (48, False, 0, 4),  # too few do
        (48, False, 48 * 23 * 8, 3),  # all fit beside it
        (6, True, 0, 2),  # a frozen head never needs them
        (6, True, 6 * 23 * 8, 2),
    ],
)
def test_products_are_computed_again_only_where_nothing_keeps_them(rows, frozen, budget, products):
    hidden, weight, _, ids, pulls = problem(rows)
    weight.requires_grad_(not frozen)
    with Products() as seen:
        out = selected_logps(hidden, weight, ids, budget=budget)
        loss_of(out.logps, out.rest, pulls).backward()
    assert seen.count == products


def test_a_budget_is_filled_and_never_exceeded():
    hidden, weight, _, ids, _ = problem(48)
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel() * 8) or t, lambda t: t):
        selected_logps(hidden, weight, ids, budget=0)
        without = sum(sizes)
        sizes.clear()
        selected_logps(hidden, weight, ids, budget=48 * 10 * 8, tile=(48, 4))
    assert sum(sizes) - without == 2 * 48 * 4 * 8, "two tiles of four columns fit into ten"


@pytest.mark.parametrize("rows", [6, 12, 48])
@pytest.mark.parametrize("budget", [0, 500, 2**20])
@pytest.mark.parametrize("tile", [None, (5, 4)])
def test_a_second_backward_gives_the_same_though_the_first_used_up_what_was_kept(rows, budget, tile):
    hidden, weight, bias, ids, pulls = problem(rows)
    out = selected_logps(hidden, weight, ids, bias, budget=budget, tile=tile)
    loss = loss_of(out.logps, out.rest, pulls)
    first = torch.autograd.grad(loss, (hidden, weight, bias), retain_graph=True)
    before = [grad.clone() for grad in first]
    second = torch.autograd.grad(loss, (hidden, weight, bias))
    torch.testing.assert_close(second, first)
    assert all(torch.equal(a, b) for a, b in zip(before, first, strict=True)), "the first result was written over"


@pytest.mark.parametrize("tile", [None, (5, 4)])
@pytest.mark.parametrize(("scale", "softcap"), [(1.0, None), (0.3, 2.0)])
def test_a_frozen_head_gives_the_gradient_of_hidden_states_in_one_sweep(tile, scale, softcap):
    hidden, weight, bias, ids, pulls = problem()
    shape = {"scale": scale, "softcap": softcap}
    want = dense(hidden, weight, bias, ids, **shape)
    out = selected_logps(hidden, weight.detach(), ids, bias.detach(), budget=0, tile=tile, **shape)
    torch.testing.assert_close((out.logps, out.rest), want)
    got = torch.autograd.grad(loss_of(out.logps, out.rest, pulls), hidden)
    torch.testing.assert_close(got, torch.autograd.grad(loss_of(*want, pulls), hidden))


def test_a_frozen_head_whose_every_token_is_chosen():
    hidden, weight, _, _, pulls = problem(chosen=23)
    ids = torch.arange(23).expand(12, 23)
    out = selected_logps(hidden, weight.detach(), ids, budget=0, tile=(5, 4))
    got = torch.autograd.grad((out.logps * pulls[0]).sum(), hidden)
    want = F.linear(hidden, weight.detach()).log_softmax(1)
    torch.testing.assert_close(got, torch.autograd.grad((want * pulls[0]).sum(), hidden))


class Casts(TorchDispatchMode):
    """Counts cells that are turned from float32 into bfloat16 while it is on."""

    cells = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket in (torch.ops.aten._to_copy, torch.ops.aten.copy_) and out.dtype == torch.bfloat16:
            self.cells += out.numel()
        return out


@pytest.mark.parametrize(("rows", "again"), [(6, 1), (12, 2)])
def test_a_weight_is_turned_to_bfloat16_once_where_the_gradient_has_room_for_it(rows, again):
    """Of 12 bfloat16 places in a row of the gradient, 6 hold the weight, which leaves room for 6 products."""
    inputs = problem(rows)
    hidden, weight = (t.detach().float().requires_grad_() for t in inputs[:2])
    with Casts() as seen:
        with torch.autocast("cpu", torch.bfloat16):
            out = selected_logps(hidden, weight, inputs[3], budget=0, tile=(rows, 10))
        torch.autograd.grad(out.logps.sum(), weight)
    # both sweeps turn the hidden states, and the second one what it made of each product
    assert seen.cells == again * weight.numel() + 2 * hidden.numel() + rows * len(weight)


@pytest.mark.parametrize("budget", [0, 2**20])
@pytest.mark.parametrize("tile", [None, (5, 4)])
@pytest.mark.parametrize(("scale", "softcap"), [(0.25, None), (1.0, 1.5), (4.0, 3.0)])
def test_scaled_and_capped_logits_equal_dense_ones(scale, softcap, budget, tile):
    hidden, weight, bias, ids, pulls = problem()
    shape = {"scale": scale, "softcap": softcap}
    out = selected_logps(hidden, weight, ids, bias, budget=budget, tile=tile, **shape)
    want = dense(hidden, weight, bias, ids, **shape)
    torch.testing.assert_close((out.logps, out.rest), want)
    got = torch.autograd.grad(loss_of(out.logps, out.rest, pulls), (hidden, weight, bias))
    torch.testing.assert_close(got, torch.autograd.grad(loss_of(*want, pulls), (hidden, weight, bias)))


class Made(TorchDispatchMode):
    """Shapes of the tensors that are made while it is on, views left out."""

    def __init__(self):
        super().__init__()
        self.shapes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.shapes += [] if func.is_view else [out.shape] if isinstance(out, torch.Tensor) else []
        return out


@pytest.mark.parametrize("grad", [False, True])
def test_memory_for_a_gradient_is_made_only_where_one_can_be_asked_for(grad):
    hidden, weight, _, ids, _ = problem()
    with torch.set_grad_enabled(grad), Made() as made:
        selected_logps(hidden, weight, ids, budget=0)
    assert (weight.shape in made.shapes) == grad


@pytest.mark.parametrize(("total", "step", "first"), [(0, 3, 0), (7, 3, 0), (7, 3, 2), (7, 9, 7), (7, 3, 7)])
def test_rows_are_cut_without_gaps(total, step, first):
    cut = row_slices(total, step, first)
    assert [i for s in cut for i in range(s.start, s.stop)] == list(range(total))
    assert len(cut) >= 1
    assert all(s.stop - s.start <= step for s in cut)


def test_the_products_of_a_tile_lie_within_the_gradient_of_its_columns():
    gradient = torch.zeros(10, 6)
    rows = rows_inside(gradient, torch.bfloat16, 12, 0)
    assert rows == 12, "two bfloat16 products take the place of one float32 gradient"
    kept = Kept(torch.bfloat16, gradient, rows)
    kept.make(Tile(slice(0, 12), slice(4, 7)), gradient).fill_(1.0)
    assert gradient[4:7].ne(0).all()
    assert gradient[:4].eq(0).all()
    assert gradient[7:].eq(0).all()


@pytest.mark.parametrize("rows", [1, 33, 512, 7300, 8192, 9000])
def test_tiles_of_a_gpu_are_as_wide_as_matrix_products_like(rows):
    height, width = tile_shape(rows, 128_256, "cuda")
    assert width == 128_256 or (width % GPU_ALIGNED == 0 and width > 0)
    assert height * width <= GPU_TILE_CELLS
    assert min(rows, 8192) == height
