"""What products read and write in each dtype, beside roundings that are made by hand in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from adpa_cli.engine.arithmetic import computing, path_of, to_float16, to_tf32
from adpa_cli.spec import Dtype

CPU = torch.device("cpu")


def values(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def product(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """The exact product of the operands as they are rounded."""
    return to_float16(first).double() @ to_float16(second).double()


def test_tf32_has_the_bits_of_float16_in_the_range_of_float32() -> None:
    normal = values(10_000)
    normal = normal[normal.abs() > 2.0**-14]
    away = to_tf32(normal) != to_float16(normal)
    halfway = (normal.view(torch.int32) & 0x1FFF) == 0x1000  # ties go to the even number there, and away from 0 here
    assert not bool((away & ~halfway).any())
    assert to_tf32(torch.tensor([1e30, 1e-30, 0.0])).tolist() == pytest.approx([1e30, 1e-30, 0.0], rel=2.0**-11)
    assert to_tf32(torch.tensor([float("inf"), float("-inf")])).tolist() == [float("inf"), float("-inf")]
    of_cards = torch.tensor([0x7FFFFFFF, -1], dtype=torch.int32).view(torch.float32)
    assert bool(to_tf32(of_cards).isnan().all())


FORMS: dict[str, Any] = {
    "linear": lambda x, w: nn.functional.linear(x, w.T),
    "matmul": lambda x, w: x @ w,
    "mm": torch.mm,
    "bmm": lambda x, w: torch.bmm(x[None], w[None])[0],
    "addmm": lambda x, w: torch.addmm(torch.zeros(w.shape[1]), x, w),
    "baddbmm": lambda x, w: torch.baddbmm(torch.zeros(1, 1, 1), x[None], w[None])[0],
    "einsum": lambda x, w: torch.einsum("ij,jk->ik", x, w),
    "einsum of a list": lambda x, w: torch.einsum("ij,jk->ik", [x, w]),
    "a product that autocast alone knows": lambda x, w: torch.chain_matmul(x, w),
}


@pytest.mark.filterwarnings("ignore:torch.chain_matmul is deprecated")
@pytest.mark.parametrize("form", FORMS)
def test_a_product_of_float16_is_the_float32_one_of_what_float16_keeps(form: str) -> None:
    x, w = values(7, 33), values(33, 5, seed=1)
    with computing("float16", CPU):
        found = FORMS[form](x, w)
    assert found.dtype == torch.float16
    exact = product(x, w)
    assert torch.allclose(found.double(), exact, rtol=2.0**-11 * 1.01, atol=1e-6)


@pytest.mark.parametrize("form", [name for name in FORMS if "alone" not in name])
def test_a_product_of_tf32_is_not_rounded_again(form: str) -> None:
    x, w = values(7, 33), values(33, 5, seed=1)
    with computing("tf32", CPU):
        found = FORMS[form](x, w)
    assert found.dtype == torch.float32
    exact = to_tf32(x).double() @ to_tf32(w).double()
    assert torch.allclose(found.double(), exact, rtol=1e-6, atol=1e-6)


def test_weights_that_are_held_are_read_as_they_are() -> None:
    weight = values(5, 33).half()
    for dtype in ("float16", "tf32"):
        with computing(dtype, CPU):
            found = nn.functional.linear(values(7, 33, seed=2), weight)
        read: Any = to_float16 if dtype == "float16" else to_tf32
        assert torch.allclose(found.double(), read(values(7, 33, seed=2)).double() @ weight.double().T, rtol=1e-3)


def test_float16_overflows_and_tf32_does_not() -> None:
    x = torch.full((1, 4), 300.0)
    found = {}
    for dtype in ("float16", "tf32"):
        with computing(dtype, CPU):
            found[dtype] = float(x @ x.T)
    assert found == {"float16": float("inf"), "tf32": 360_000.0}


def test_where_a_model_asks_for_float32_it_is_float32() -> None:
    """As rotary embeddings do, whose positions beyond 2,048 have no float16."""
    positions = torch.arange(4096.0)[:, None]
    for dtype in ("float16", "tf32", "bfloat16"):
        with computing(dtype, CPU), torch.autocast("cpu", enabled=False):
            found = positions @ torch.ones(1, 1)
        assert torch.equal(found, positions)


@pytest.mark.parametrize("causal", [True, False])
def test_attention_rounds_its_operands_and_no_mask(causal: bool) -> None:
    query, key, content = (values(1, 2, 6, 8, seed=seed) for seed in range(3))
    mask = None if causal else torch.zeros(6, 6).masked_fill(torch.ones(6, 6).triu(1).bool(), torch.finfo().min)
    with computing("float16", CPU):
        found = nn.functional.scaled_dot_product_attention(query, key, content, mask, is_causal=causal)
    q, k, v = (to_float16(x).double() for x in (query, key, content))
    scores = (q @ k.mT / 8**0.5).masked_fill(torch.ones(6, 6).triu(1).bool(), float("-inf"))
    assert found.dtype == torch.float16
    assert torch.allclose(found.double(), scores.softmax(-1) @ v, rtol=1e-3, atol=1e-3)


def test_a_device_with_units_for_float16_takes_another_path() -> None:
    assert path_of("float16", torch.device("cuda")) == "float16"
    assert path_of("float16", CPU) == "float32 around float16 roundings"
    assert path_of("tf32", CPU) == path_of("tf32", torch.device("cuda")) == "tf32"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_others_are_as_ever(dtype: Dtype) -> None:
    x, w = values(7, 33), values(33, 5, seed=1)
    with computing(dtype, CPU):
        found = x @ w
    expected = x @ w if dtype == "float32" else x.bfloat16() @ w.bfloat16()
    assert torch.equal(found, expected)
