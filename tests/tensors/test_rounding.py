"""Rounding to two bytes: what is representable stays, the mean is exact, and the noise is of the name and the place."""

from __future__ import annotations

import pytest
import torch

from adpa_cli.tensors.rounding import NOISE_BITS, noise, rounded, stochastic

EVERY_NOISE = torch.arange(2**NOISE_BITS, dtype=torch.int32)
KINDS = [torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", KINDS)
def test_every_number_of_the_dtype_stays_whatever_the_noise(dtype: torch.dtype) -> None:
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    every = every[torch.isfinite(every)]
    most = torch.full(every.shape, 2**NOISE_BITS - 1)
    assert torch.equal(rounded(every.float(), most, dtype), every)
    assert torch.equal(stochastic(every.float(), dtype, "a"), every)


@pytest.mark.parametrize(
    ("value", "dtype", "below", "above"),
    [
        (1 + 2.0**-12, torch.float16, 1.0, 1 + 2.0**-10),
        (1 + 2.0**-9, torch.bfloat16, 1.0, 1 + 2.0**-7),
        (-0.3, torch.float16, -0.300048828125, -0.2998046875),
        (5.5 * 2.0**-24, torch.float16, 5 * 2.0**-24, 6 * 2.0**-24),  # below the normal numbers of float16
        (2.0**-27, torch.float16, 0.0, 2.0**-24),
    ],
)
def test_the_mean_over_every_noise_is_the_value(value: float, dtype: torch.dtype, below: float, above: float) -> None:
    found = rounded(torch.full((2**NOISE_BITS,), value), EVERY_NOISE, dtype).double()
    assert set(found.tolist()) == {below, above}
    assert float(found.mean()) == pytest.approx(torch.tensor(value).double().item(), abs=(above - below) * 2.0**-12)


def test_what_float16_cannot_hold_is_infinite() -> None:
    assert torch.isinf(stochastic(torch.tensor([65536.0, -1e6]), torch.float16, "a")).all()
    assert stochastic(torch.tensor([65504.0]), torch.float16, "a").tolist() == [65504.0]


@pytest.mark.parametrize("dtype", KINDS)
def test_what_is_no_number_stays_none_whatever_its_bits(dtype: torch.dtype) -> None:
    every = torch.tensor([0x7FFFFFFF, -1, 0x7FC00000, 0x7F800001], dtype=torch.int32).view(torch.float32)
    assert bool(rounded(every, torch.full(every.shape, 2**NOISE_BITS - 1), dtype).isnan().all())
    assert bool(stochastic(every, dtype, "a").isnan().all())


def test_noise_is_of_the_name_and_the_place_in_the_whole_tensor() -> None:
    whole = noise("layers.0.weight", 0, 1000, "cpu")
    for start, stop in ((0, 7), (3, 11), (129, 1000)):
        assert torch.equal(noise("layers.0.weight", start, stop - start, "cpu"), whole[start:stop])
    assert not torch.equal(noise("layers.1.weight", 0, 1000, "cpu"), whole)
    many = noise("layers.0.weight", 0, 2**18, "cpu").double()
    assert float(many.min()) >= 0
    assert float(many.max()) < 2**16
    counts = torch.bincount((many / 2**12).long(), minlength=16).double()
    assert float(((counts - 2**14) ** 2 / 2**14).sum()) < 40  # χ² of 16 bins; 37.7 is exceeded once in a thousand


def test_a_shard_is_rounded_as_it_is_in_the_whole() -> None:
    values = torch.randn(64, 33, generator=torch.Generator().manual_seed(0))
    whole = stochastic(values, torch.float16, "w")
    assert torch.equal(stochastic(values[20:41], torch.float16, "w", start=20 * 33), whole[20:41])


def test_a_difference_too_small_for_the_dtype_is_there_in_the_mean() -> None:
    """The case it exists for: an update of a fifth of a step, of which rounding to the nearest keeps nothing."""
    start = torch.full((2**20,), 1.0)
    update = torch.full_like(start, 2.0**-10 / 5)
    nearest = (start + update).half() - start.half()
    random = stochastic(start + update, torch.float16, "w").float() - stochastic(start, torch.float16, "w").float()
    assert float(nearest.abs().max()) == 0.0
    assert float(random.mean()) == pytest.approx(2.0**-10 / 5, rel=0.01)
