"""What only a GPU can show; skipped without one."""

from __future__ import annotations

import pytest
import torch

from adpa_cli.engine.batch import collate, views
from adpa_cli.engine.packed import packer_of
from adpa_cli.engine.student import Student
from test_engine_packed import NEEDS, ROWS
from tiny_models import END, tiny_llama

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


@pytest.mark.parametrize("heads", [4, 2])
def test_packed_rows_equal_padded_ones(heads: int) -> None:
    model = tiny_llama(0, hidden_size=64, num_attention_heads=4, num_key_value_heads=heads, initializer_range=0.1)
    student = Student(model.cuda(), "bfloat16")
    seen, gradients = [], []
    for packer in (None, packer_of(model, "bfloat16", 32)):
        assert (packer is None) == (not seen), "the trial failed"
        batch = collate(ROWS, NEEDS, END, lambda example, part: None, {}, packer=packer).to(torch.device("cuda"))
        found = views(batch, *student(batch.pieces, batch.ids))
        model.zero_grad()
        sum(view.logps[view.mask].mean() for view in found.values()).backward()
        seen.append(torch.cat([view.logps[view.mask] for view in found.values()]).detach())
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    torch.testing.assert_close(*seen, rtol=0, atol=5e-2)
    assert torch.cosine_similarity(*gradients, dim=0) > 0.999
