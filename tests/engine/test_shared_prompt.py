"""A prompt that answers share is computed once, and each token has the state it has behind a prompt of its own."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)  # fmt: skip

from adpa_cli.engine.capture import aligned_pass, reference_pass
from adpa_cli.engine.layout import shared_prompt
from adpa_cli.engine.layout.shared_prompt import answer_rows, answer_states, can_share, states
from adpa_cli.signal.rows import SignalRows
from support.answers import named_answer
from support.tiny_models import VOCABULARY, tiny_llama

ANSWERS = [
    named_answer("a", [2, 7, 9], [11, 12, 4]), named_answer("a", [2, 7, 9], [8, 8, 20, 21, 22, 4]),
    named_answer("b", [2, 30], [33]),
    named_answer("c", [2, 5, 6, 7, 8, 9, 10], [31, 4]), named_answer("c", [2, 5, 6, 7, 8, 9, 10], [30]),
    named_answer("c", [2, 5, 6, 7, 8, 9, 10], [31, 5, 4]),
]  # fmt: skip
SMALL = {"vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
DENSE = {**SMALL, "intermediate_size": 32, "initializer_range": 0.4}


def test_a_hand_worked_layout() -> None:
    layout = answer_rows(ANSWERS[:3], share=True)
    assert layout.ids.tolist() == [[2, 7, 9, 11, 12, 8, 8, 20, 21, 22], [2, 30, 0, 0, 0, 0, 0, 0, 0, 0]]
    assert layout.owners.tolist() == [[0, 0, 0, 1, 1, 2, 2, 2, 2, 2], [0, 0, -1, -1, -1, -1, -1, -1, -1, -1]]
    assert layout.positions is not None
    assert layout.positions.tolist()[0] == [0, 1, 2, 3, 4, 3, 4, 5, 6, 7]
    assert layout.where.tolist() == [2, 3, 4, 2, 5, 6, 7, 8, 9, 11]


@pytest.mark.parametrize(
    "model",
    [
        lambda: tiny_llama(),
        lambda: MistralForCausalLM(MistralConfig(**DENSE, num_key_value_heads=1, sliding_window=None)),
        lambda: Qwen2ForCausalLM(Qwen2Config(**DENSE, num_key_value_heads=2)),
        lambda: Qwen3ForCausalLM(Qwen3Config(**DENSE, num_key_value_heads=2, head_dim=8)),
        lambda: Phi3ForCausalLM(Phi3Config(**DENSE, pad_token_id=0)),
        lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**DENSE)),
        lambda: GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2)),
    ],
)
def test_states_are_those_behind_a_prompt_of_ones_own(model: Any) -> None:
    torch.manual_seed(0)
    made = model().eval()
    assert can_share(made, 64)
    layouts = [answer_rows(ANSWERS, share) for share in (False, True)]
    one, other = (states(made, layout)[layout.where] for layout in layouts)
    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("share", "shapes"), [(True, [(2, 10), (1, 10)]), (False, [(2, 8), (3, 8), (1, 9)])])
def test_rows_go_through_a_model_a_few_at_a_time(
    share: bool, shapes: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of 10, 2 and 10 tokens where prompts are shared, else of 5, 8, 2, 8, 7 and 9, in runs of at least 11."""
    model, seen = tiny_llama(), list[tuple[int, ...]]()
    model.model.embed_tokens.register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape)))
    layout = answer_rows(ANSWERS, share)
    together = states(model, layout)[layout.where]
    assert torch.equal(answer_states(model, ANSWERS, share), together)  # of a small model all go together
    assert seen == [tuple(layout.ids.shape)] * 2
    seen.clear()
    body = sum(weight.numel() for name, weight in model.model.named_parameters() if "embed" not in name)
    monkeypatch.setattr(shared_prompt, "RUN_WORK", 11 * body)
    torch.testing.assert_close(answer_states(model, ANSWERS, share), together, atol=1e-5, rtol=1e-4)
    assert seen == shapes


def test_models_that_look_through_a_window_or_are_no_attention_do_not_share() -> None:
    torch.manual_seed(0)
    windowed = MistralForCausalLM(MistralConfig(**DENSE, num_key_value_heads=1, sliding_window=32)).eval()
    assert can_share(windowed, 32)
    assert not can_share(windowed, 33)
    assert not can_share(MambaForCausalLM(MambaConfig(vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=2)), 8)
    eager = tiny_llama()
    eager.config._attn_implementation = "eager"
    assert not can_share(eager, 8)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_pass_that_shares_gives_the_rows_of_one_that_does_not(dtype: Any) -> None:
    aligned, reference = tiny_llama(0), tiny_llama(1)

    def both(share: bool) -> list[SignalRows]:
        settings: Any = {"teacher": "T", "dtype": dtype, "share": share}
        return reference_pass(reference, ANSWERS, aligned_pass(aligned, ANSWERS, VOCABULARY, **settings), **settings)

    for one, other in zip(both(False), both(True), strict=True):
        at = [row.ids.argsort(1) for row in (one, other)]
        for field in fields(SignalRows):
            values = [getattr(row, field.name) for row in (one, other)]
            if values[0] is None:
                continue
            if values[0].ndim == 2:  # ids that are equally likely, but for rounding, may change places
                values = [np.take_along_axis(v, a, 1) for v, a in zip(values, at, strict=True)]
            np.testing.assert_allclose(*values, rtol=0, atol=1e-5 if dtype == "float32" else 0.15)
