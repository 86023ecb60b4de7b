"""What only a GPU can show; skipped without one."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.models.llama import modeling_llama

from adpa_cli.engine.layout.batch import collate, views
from adpa_cli.engine.layout.row_layout import packer_of
from adpa_cli.engine.models import hidden_states, load_checked
from adpa_cli.engine.training.optimizer import RoundingAdamW, tune
from adpa_cli.engine.training.student import Student, critic_of
from adpa_cli.errors import AdpaError
from adpa_cli.spec import Dtype, Runtime
from support.packed_samples import NEEDS, ROWS
from support.tiny_models import END, tiny_llama
from support.tuned_models import check_equal, computed, made, spec

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


@pytest.mark.parametrize("heads", [4, 2])
def test_packed_rows_equal_padded_ones(heads: int) -> None:
    model = tiny_llama(0, hidden_size=64, num_attention_heads=4, num_key_value_heads=heads, initializer_range=0.1)
    student = Student(model.cuda(), "bfloat16")
    seen, gradients = [], []
    for packer in (None, packer_of(model, "bfloat16", 32)):
        assert (packer is None) == (not seen), "the trial failed"
        batch = collate(ROWS, NEEDS, END, lambda example, part: None, {}, packer=packer).to(torch.device("cuda"))
        found = views(batch, *student(batch.layouts, batch.ids))
        model.zero_grad()
        sum(view.logps[view.mask].mean() for view in found.values()).backward()
        seen.append(torch.cat([view.logps[view.mask] for view in found.values()]).detach())
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    torch.testing.assert_close(*seen, rtol=0, atol=5e-2)
    assert torch.cosine_similarity(*gradients, dim=0) > 0.999


@pytest.mark.skipif(importlib.util.find_spec("liger_kernel") is None, reason="needs liger-kernel")
def test_fused_layers_compute_the_same_in_this_model_only() -> None:
    ours, theirs = made().cuda(), made().cuda()
    before = dict(vars(modeling_llama))
    assert set(tune(ours, spec(), Runtime(liger="on"))) == {"liger"}
    assert dict(vars(modeling_llama)) == before
    assert {type(made().model.norm)} == {type(theirs.model.norm)} == {modeling_llama.LlamaRMSNorm}
    assert "forward" not in vars(theirs.model.norm)
    check_equal(computed(ours), computed(theirs))
    copied: Any = critic_of(ours, "float32").body
    assert copied.norm.forward.__self__ is copied.norm
    with pytest.raises(AdpaError, match="does not know GPT2"):
        tune(made("gpt2").cuda(), spec(), Runtime(liger="on"))


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.filterwarnings("default")  # torch's compiler uses what torch warns of
def test_compiled_layers_compute_the_same(recompute: bool) -> None:
    ours, theirs = made().cuda(), made().cuda()
    assert tune(ours, spec(), Runtime(compile=True, recompute=recompute, liger="off"))["compile"]
    check_equal(computed(ours), computed(theirs))


def test_bfloat16_weights_step_on_a_gpu_as_on_a_cpu_on_average() -> None:
    found = []
    for device in ("cpu", "cuda"):
        weight = torch.nn.Parameter(torch.full((2**16,), 0.7, dtype=torch.bfloat16, device=device))
        stepped = RoundingAdamW([{"params": [weight], "lr": 1e-3}], betas=(0.9, 0.999), weight_decay=0.1, seed=0)
        for _ in range(3):
            weight.grad = torch.full_like(weight, 0.3)
            stepped.step()
        found.append(weight.detach().double().mean().item())
    assert found[1] == pytest.approx(found[0], abs=1e-4)


@pytest.mark.parametrize("dtype", ["float16", "tf32"])
def test_few_bits_on_a_card_are_those_of_a_cpu(dtype: Dtype, tmp_path: Path) -> None:
    """Weights are held in the same bits, and states differ by the order of sums, which may move a float16 by a step."""
    tiny_llama(0, hidden_size=64, initializer_range=0.1).save_pretrained(tmp_path)
    there, here = (load_checked(tmp_path, dtype=dtype, device=device) for device in ("cuda", "cpu"))
    held = here.state_dict()
    assert all(torch.equal(weight.cpu(), held[name]) for name, weight in there.state_dict().items())
    ids = torch.randint(5, 37, (3, 20), generator=torch.Generator().manual_seed(0))
    states = [hidden_states(model, ids.to(model.device), None, dtype=dtype).float().cpu() for model in (there, here)]
    torch.testing.assert_close(*states, rtol=0, atol=4 * 2.0**-11 * float(states[1].abs().max()))
