"""The GPU's kernels against the plain operations on the same tiles.

They need a GPU, or Triton's interpreter: `TRITON_INTERPRET=1 pytest tests/tensors/test_fused.py`.
"""

import os

import pytest
import torch

from adpa_cli.tensors.head import selected_logps
from adpa_cli.tensors.output import Head
from adpa_cli.tensors.sums import Sums
from adpa_cli.tensors.sweeps import Plain
from adpa_cli.tensors.tiles import Tile

pytest.importorskip("triton", reason="PyTorch brings Triton along only where it may find a GPU")
if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("neither a GPU nor TRITON_INTERPRET=1", allow_module_level=True)

from adpa_cli.tensors.fused import Fused

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ROWS, COLUMNS, VOCABULARY = 6, 5000, 12_000


@pytest.mark.filterwarnings(
    "ignore:invalid value encountered"
)  # numpy, of the interpreter, at columns that are overwritten
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("bias", "scale", "softcap"), [(False, 1.0, None), (True, 1.0, None), (True, 0.7, 3.0)])
@pytest.mark.parametrize("stats", [False, True])
@pytest.mark.parametrize("count", [0, 1, 5])
def test_both_kernels_do_what_the_plain_operations_do(dtype, bias, scale, softcap, stats, count):
    torch.manual_seed(0)
    ids = torch.randint(-1, VOCABULARY, (ROWS, count), device=DEVICE)
    if count > 3:
        ids[:, 3] = ids[:, 0]
        ids[:3, 1] = torch.tensor([0, COLUMNS - 1, COLUMNS], device=DEVICE)
    kinds = Plain(ROWS * COLUMNS, dtype, DEVICE, apart=True), Fused(ROWS * COLUMNS, dtype, DEVICE)
    chosen = [torch.zeros(ROWS, count, device=DEVICE) for _ in kinds]
    sums = [Sums.start(torch.zeros(ROWS, device=DEVICE), stats) for _ in kinds]
    values, shift, push = (torch.randn(*shape, device=DEVICE) for shape in ((ROWS, count), (ROWS,), (ROWS,)))
    for start in range(0, VOCABULARY, COLUMNS):
        tile = Tile(slice(0, ROWS), slice(start, min(start + COLUMNS, VOCABULARY)))
        products = (3 * torch.randn(tile.shape, device=DEVICE)).to(dtype)
        offsets = torch.randn(tile.shape[1], device=DEVICE) if bias else None
        head = Head(torch.empty(tile.shape[1], 1, device=DEVICE), offsets, scale, softcap)
        grads = []
        for kind, found, gathered in zip(kinds, chosen, sums, strict=True):
            own = products.clone()
            kind.absorb(own, head, ids, tile, found, gathered)
            grads.append(kind.gradient(own, head, ids, tile, values, shift, push).clone())
        torch.testing.assert_close(*grads, rtol=3e-5 if dtype == torch.float32 else 1e-2, atol=2e-5)
    torch.testing.assert_close(*chosen)
    for name in ("top", "total", "spread", "squares") if stats else ("top", "total"):
        plain, fused = (getattr(one, name) for one in sums)
        torch.testing.assert_close(plain, fused, rtol=2e-5, atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("rows", [33, 600])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("kind", ["float32", "bfloat16", "autocast"])
def test_the_head_on_a_gpu_equals_float64_on_the_cpu(kind, frozen, rows):
    torch.manual_seed(0)
    hidden, weight = torch.randn(rows, 256), torch.randn(20_000, 256) / 16
    ids, pulls = torch.randint(-1, 20_000, (rows, 9)), (torch.randn(rows, 9), torch.randn(rows))
    results = []
    for device, dtype in (("cpu", torch.float64), ("cuda", torch.bfloat16 if kind == "bfloat16" else torch.float32)):
        inputs = [t.to(device, dtype).requires_grad_(t is hidden or not frozen) for t in (hidden, weight)]
        with torch.autocast("cuda", torch.bfloat16, enabled=kind == "autocast"):
            out = selected_logps(*inputs, ids.to(device), budget=0)
        loss = (out.logps * pulls[0].to(device)).sum() + (out.rest * pulls[1].to(device)).sum()
        grads = torch.autograd.grad(loss, inputs[: 2 - frozen])
        results.append([t.detach().cpu().double() for t in (out.logps, out.rest, *grads)])
    limit = 1e-5 if kind == "float32" else 2e-2
    (logps, rest, *grads), wanted = reversed(results)
    # Nats, of sums over the vocabulary: nearly all mass is outside the ids, and the log of that near 0.
    torch.testing.assert_close([logps, rest], wanted[:2], rtol=limit, atol=limit)
    for got, want in zip(grads, wanted[2:], strict=True):
        assert (got - want).norm() < limit * want.norm()
