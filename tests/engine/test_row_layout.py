"""A packed row gives every answer position the state, and every weight the gradient, of rows by themselves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    OlmoConfig,
    Phi3Config,
    PhiConfig,
    Qwen2Config,
    Qwen3Config,
)

from adpa_cli.engine.layout.batch import collate, views
from adpa_cli.engine.layout.examples import Example
from adpa_cli.engine.layout.row_layout import NAME, Packer, _flash, moved, packer_of, row_layouts
from adpa_cli.engine.layout.shared_prompt import can_share
from adpa_cli.engine.training.student import Student
from support.packed_samples import NEEDS, PARTS, ROWS, pairs
from support.tiny_models import END, VOCABULARY, tiny_llama

SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 64, "initializer_range": 0.4, "pad_token_id": 1,
    "bos_token_id": 2, "eos_token_id": 3,
}  # fmt: skip
CLOSE = {"rtol": 1e-4, "atol": 2e-5}


def gradients(model: Any, rows: list[Example], packer: Packer | None) -> tuple[dict[str, torch.Tensor], Any, Any]:
    """The mean log-prob's gradients by parameter, the views, and the batch."""
    student = Student(model, "float32")
    batch = collate(rows, NEEDS, END, lambda example, part: None, {}, packer=packer)
    seen = views(batch, *student(batch.layouts, batch.ids))
    model.zero_grad()
    sum((i + 1) * (view.logps[view.mask] ** 2).mean() for i, view in enumerate(seen.values())).backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}, seen, batch


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("heads", [4, 2])
def test_log_probs_and_gradients_equal_those_of_padded_rows(share: bool, heads: int) -> None:
    model = tiny_llama(0, num_attention_heads=4, num_key_value_heads=heads)
    want, padded, _ = gradients(model, ROWS, None)
    assert packer_of(model, "float32", 32) is not None
    found, packed, batch = gradients(model, ROWS, Packer(16, share))
    assert len(batch.layouts) == 1
    for name, view in padded.items():
        torch.testing.assert_close(packed[name].logps[view.mask], view.logps[view.mask], **CLOSE)
    assert found.keys() == want.keys()
    for name, gradient in want.items():
        torch.testing.assert_close(found[name], gradient, msg=lambda m, n=name: f"{n}: {m}", rtol=1e-3, atol=1e-5)


def test_a_shared_prompt_is_computed_once_and_nothing_is_padded() -> None:
    sequences = [e.parts[part] for e in ROWS for part in PARTS]
    starts = np.cumsum([0, *(s.tokens for s in sequences)])
    for share in (True, False):
        (layout,) = row_layouts(sequences, starts, Packer(16, share))
        prompts = sum(len(e.parts["chosen"]) - e.parts["chosen"].tokens for e in ROWS)
        answers = sum(s.tokens - 1 for s in sequences)
        assert layout.input_ids.shape == (1, answers + prompts * (1 if share else 2))
        assert layout.packing.bounds.tolist() == [0, *np.cumsum(layout.packing.lengths)]
        assert sorted(layout.where.tolist()) == list(range(starts[-1]))


def test_a_short_prompt_before_long_answers_is_not_shared() -> None:
    """1 token saved of a layer of width 16 is 12 * 16; attention under a mask would cost 40² for each answer."""
    (layout,) = row_layouts([e.parts[p] for e in pairs([(1, 40, 40)]) for p in PARTS], [0, 40, 80], Packer(16, True))
    assert layout.packing.follows == (-1, -1)
    (layout,) = row_layouts([e.parts[p] for e in pairs([(30, 40, 40)]) for p in PARTS], [0, 40, 80], Packer(16, True))
    assert layout.packing.follows == (-1, 0, 0)
    assert layout.packing.positions[0].tolist() == [*range(30), *range(30, 69), *range(30, 69)]


def test_a_packed_batch_moves_whole() -> None:
    (layout,) = row_layouts([e.parts[p] for e in ROWS for p in PARTS], np.arange(11) * 4, Packer(16, True))
    other = moved(layout, torch.device("meta"))
    assert other.packing.positions.device.type == other.packing.bounds.device.type == "meta"
    assert {mask.device.type for mask in other.packing.masks if mask is not None} == {"meta"}
    assert other.packing.lengths == layout.packing.lengths


@pytest.mark.parametrize(
    ("config", "served"),
    [
        (LlamaConfig(**SMALL, num_key_value_heads=2), True),
        (Qwen2Config(**SMALL, num_key_value_heads=2), True),
        (Qwen3Config(**SMALL, num_key_value_heads=2, head_dim=8), True),
        (MistralConfig(**SMALL, num_key_value_heads=2, sliding_window=None), True),
        (MistralConfig(**SMALL, num_key_value_heads=2, sliding_window=64), True),
        (MistralConfig(**SMALL, num_key_value_heads=2, sliding_window=16), False),
        (Phi3Config(**SMALL, num_key_value_heads=2, sliding_window=None), True),
        (PhiConfig(**SMALL), True),
        (OlmoConfig(**SMALL), True),
        (GPTNeoXConfig(**SMALL), True),
        (GPT2Config(vocab_size=VOCABULARY, n_positions=64, n_embd=16, n_layer=2, n_head=4), True),
        (MambaConfig(vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=2, state_size=4), False),
    ],
    ids=lambda value: getattr(value, "model_type", str(value)),
)
def test_models_that_take_packed_rows_are_found_by_trying(config: Any, served: bool) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa" if served else None).eval()
    before = model.config._attn_implementation
    found = packer_of(model, "float32", 32)
    assert (found is not None) == served
    assert model.config._attn_implementation == (NAME if served else before)
    if served:
        want, padded, _ = gradients(model, ROWS, None)
        got, packed, _ = gradients(model, ROWS, found)
        for name, view in padded.items():
            torch.testing.assert_close(packed[name].logps[view.mask], view.logps[view.mask], **CLOSE)
        for name, gradient in want.items():
            torch.testing.assert_close(got[name], gradient, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("heads", [4, 2])
def test_the_kernel_of_a_gpu_takes_what_it_is_given(heads: int) -> None:
    """On tensors without data: their kernel looks at shapes and arguments only."""
    (layout,) = row_layouts([e.parts[p] for e in ROWS for p in PARTS], np.arange(11) * 4, Packer(16, False))
    packing, tokens = moved(layout.packing, torch.device("meta")), layout.input_ids.shape[1]
    query = torch.empty(1, 4, tokens, 8, device="meta")
    key, value = (torch.empty(1, heads, tokens, 8, device="meta", dtype=kind) for kind in (torch.float, torch.bfloat16))
    found = _flash(query, key, value, 0.5, packing)
    assert found.shape == (1, tokens, 4, 8)
    assert found.dtype == torch.bfloat16


def test_bfloat16_rows_are_packed_too() -> None:
    model = tiny_llama(0, num_attention_heads=4, num_key_value_heads=2, initializer_range=0.1)
    student = Student(model, "bfloat16")
    seen = []
    for packer in (None, packer_of(model, "bfloat16", 32)):
        batch = collate(ROWS, NEEDS, END, lambda example, part: None, {}, packer=packer)
        found = views(batch, *student(batch.layouts, batch.ids))
        seen.append(torch.cat([view.logps[view.mask] for view in found.values()]))
    assert packer is not None
    torch.testing.assert_close(*seen, rtol=0, atol=5e-2)


def test_the_window_of_a_text_part_counts() -> None:
    text = {**SMALL, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 8}
    torch.manual_seed(0)
    model = Gemma3ForConditionalGeneration(
        Gemma3Config(
            text_config=text,
            vision_config={"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
                           "image_size": 28, "patch_size": 14},
            mm_tokens_per_image=4,
        )
    )  # fmt: skip
    model.set_attn_implementation("sdpa")
    assert packer_of(model, "float32", 40) is None
    assert not can_share(model, 40)


def test_small_models_on_short_rows_are_padded_on_a_cpu() -> None:
    """Calling attention for each stretch would take longer than what padding costs them."""
    assert packer_of(tiny_llama(0), "float32", 32, mean=30.0) is None
    assert packer_of(tiny_llama(0, hidden_size=256), "float32", 32, mean=7.0) is None
    assert packer_of(tiny_llama(0, hidden_size=256), "float32", 32, mean=30.0) is not None


def test_a_packed_model_still_pads_generates_and_saves_as_before(tmp_path: Any) -> None:
    model, other = tiny_llama(0), tiny_llama(0)
    packer_of(model, "float32", 32)
    ids = torch.tensor([[1, 1, 7, 9], [5, 6, 7, 8]])
    mask = (ids != 1).long()
    inputs = {"input_ids": ids, "attention_mask": mask}
    torch.testing.assert_close(model(**inputs).logits, other(**inputs).logits)
    drawn = [m.generate(**inputs, max_new_tokens=5, do_sample=False, pad_token_id=1) for m in (model, other)]
    assert torch.equal(*drawn)
    model.save_pretrained(tmp_path)
    assert NAME not in (tmp_path / "config.json").read_text()
    assert AutoConfig.from_pretrained(tmp_path)._attn_implementation != NAME
