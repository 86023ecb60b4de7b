"""Answers by continuous batching are those of a row alone, for each family of models; ended rows take no step."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM

from adpa_cli.engine.arithmetic import HELD_IN
from adpa_cli.engine.generation import continuous_batching, generate, kv_cache
from adpa_cli.engine.generation.continuous_batching import PartialAnswer, kept_rows
from adpa_cli.engine.generation.generate import Generated, generate_block, generate_share, generate_statically
from adpa_cli.engine.generation.kv_cache import supports_kv_cache
from adpa_cli.engine.generation.sampling import Decoding, Sampling, row_key
from adpa_cli.engine.models import load
from adpa_cli.engine.ranks import Ranks
from adpa_cli.errors import AdpaError
from support.tiny_models import END, PAD, VOCABULARY, tiny_llama

NEW, CONTEXT = 24, 60
LONGEST = 12 + NEW  # of the prompts below


def prompts() -> list[list[int]]:
    draw = random.Random(5)
    return [[draw.randrange(5, VOCABULARY) for _ in range(length)] for length in (3, 2, 9, 4, 12, 1, 6, 5)]


def alone(model: Any, prompt: list[int]) -> Generated:
    """Argmax of a full forward pass per token: no cache and no padding."""
    ids = list(prompt)
    for _ in range(NEW):
        with torch.no_grad():
            ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
        if ids[-1] == END:
            break
    return Generated(ids[len(prompt) :], cut=ids[-1] != END)


GREEDY = Sampling(max_new_tokens=NEW)


def answered(model: Any, together: int, sampling: Sampling = GREEDY) -> list[Generated]:
    names = [str(row) for row in range(len(prompts()))]
    return generate_block(model, prompts(), names, Decoding(sampling, (END,), PAD, CONTEXT), together * LONGEST)


def family(name: str, **settings: Any) -> Any:
    usual = {
        "vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": CONTEXT,
        "initializer_range": 0.4, "pad_token_id": PAD, "bos_token_id": 2, "eos_token_id": END,
    }  # fmt: skip
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**{**usual, **settings})
    return AutoModelForCausalLM.from_config(config).eval()


GPT = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": CONTEXT}
WINDOW = {"head_dim": 8, "sliding_window": 5}


@pytest.mark.parametrize(
    ("name", "settings", "is_supported"),
    [
        ("Llama", {}, True), ("Qwen2", {}, True), ("Qwen3", {"head_dim": 8}, True), ("GPT2", GPT, True),
        ("GPTNeoX", {}, True), ("Phi", {}, True), ("OPT", {"ffn_dim": 32, "word_embed_proj_dim": 16}, True),
        ("Falcon", {"alibi": True}, True), ("Mistral", WINDOW, True),
        ("Gemma2", {**WINDOW, "query_pre_attn_scalar": 8}, True),
        ("Gemma3Text", {**WINDOW, "layer_types": ["sliding_attention", "full_attention"]}, True),
        ("Bloom", {"n_layer": 2, "n_head": 2}, False), ("Mamba", {"state_size": 4}, False),
        ("Lfm2", {"layer_types": ["conv", "full_attention"]}, False),
        ("Llama4Text", {"head_dim": 8, "num_local_experts": 2, "attention_chunk_size": 8}, False),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_a_row_is_supported_is_the_row_alone(name: str, settings: dict[str, Any], is_supported: bool) -> None:
    model = family(name, **settings)
    expected = [alone(model, prompt) for prompt in prompts()]
    assert supports_kv_cache(model) is is_supported
    assert answered(model, 3) == expected
    assert len({tuple(answer.ids) for answer in expected}) > 3


def model_that_ends() -> Any:
    """Answers end at different lengths."""
    model = tiny_llama(seed=2)
    with torch.no_grad():
        model.lm_head.weight[END] += 0.5 * model.lm_head.weight.abs().mean()
    return model


@pytest.mark.parametrize("sampling", [Sampling(0.0, 1.0, NEW), Sampling(1.0, 0.9, NEW, 3)], ids=["greedy", "drawn"])
@pytest.mark.parametrize("together", [1, 3, 8])
def test_answers_are_those_of_plain_generate(sampling: Sampling, together: int) -> None:
    model = model_that_ends()
    rows = [PartialAnswer(str(n), prompt, row_key(sampling.seed, str(n)), NEW) for n, prompt in enumerate(prompts())]
    with torch.no_grad():
        generate_statically(model, rows, Decoding(sampling, (END,), PAD, CONTEXT))
    assert [answer.ids for answer in answered(model, together, sampling)] == [row.answer for row in rows]
    assert len({len(row.answer) for row in rows}) > 3


def test_steps_are_spent_on_rows_that_go_on_alone() -> None:
    """And no row sees more columns than the longest of them needs."""
    model, seen = model_that_ends(), []

    def watch(_module: Any, _args: Any, given: dict[str, Any]) -> None:
        seen.append((given["input_ids"].shape, given["attention_mask"]))

    model.register_forward_pre_hook(watch, with_kwargs=True)
    answers = answered(model, 3)
    steps = [(shape, mask) for shape, mask in seen if shape[1] == 1 and mask.shape[1] > 1]
    assert sum(shape[0] for shape, _ in steps) == sum(len(answer.ids) - 1 for answer in answers)
    assert max(shape[0] for shape, _ in seen) == 3
    assert all(mask.any(0).all() for _, mask in seen)
    read = sum(len(mask) for shape, mask in seen) - sum(shape[0] for shape, _ in steps)
    assert read == len(prompts()), "each prompt is read once"


@pytest.mark.parametrize("name", ["looks", "columns", "prompts"])
def test_answers_depend_on_no_size_that_work_is_cut_by(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_that_ends()
    expected = answered(model, 3)
    if name == "looks":
        monkeypatch.setitem(continuous_batching.LOOK_EVERY, "cpu", 5)
    elif name == "columns":
        monkeypatch.setattr(kv_cache, "SPARE_COLUMNS", 1)
    else:
        monkeypatch.setattr(continuous_batching, "PREFILL_TOKENS", 10)
    assert answered(model, 3) == expected


class Rounded(TorchDispatchMode):
    """Counts what is cast to another dtype, by shape."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: Counter[tuple[int, ...]] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        if function is torch.ops.aten._to_copy.default and given.get("dtype") is not None:
            self.shapes[tuple(args[0].shape)] += 1
        return function(*args, **given)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "tf32"])
def test_weights_are_cast_once_a_block_not_once_a_token(dtype: Any, tmp_path: Path) -> None:
    model_that_ends().save_pretrained(tmp_path)
    model: Any = load(tmp_path, dtype=dtype)
    names = [str(row) for row in range(len(prompts()))]
    layers = [layer for layer in model.modules() if isinstance(layer, torch.nn.Linear)]
    held = [layer.weight.clone() for layer in layers]
    with Rounded() as seen:
        generate_block(model, prompts(), names, Decoding(GREEDY, (END,), PAD, CONTEXT, dtype))
    products = Counter(tuple(layer.weight.shape) for layer in layers)
    assert all(seen.shapes[shape] <= 2 * count for shape, count in products.items())
    assert all(torch.equal(layer.weight, before) for layer, before in zip(layers, held, strict=True))
    assert {layer.weight.dtype for layer in layers[:-1]} == {HELD_IN[dtype]}


def test_the_last_rows_move_into_the_gaps() -> None:
    assert kept_rows(6, [1, 4]) == [0, 5, 2, 3]
    assert kept_rows(4, [2, 3]) == [0, 1]
    assert kept_rows(3, [0, 1, 2]) == []
    draw = random.Random(0)
    for _ in range(200):
        count = draw.randrange(1, 12)
        gone = draw.sample(range(count), draw.randrange(count + 1))
        kept = kept_rows(count, gone)
        assert sorted(kept) == sorted(set(range(count)) - set(gone))
        assert all(row == place or place in gone for place, row in enumerate(kept))


def test_fewer_rows_at_once_where_memory_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tried = model_that_ends(), []
    names = [str(row) for row in range(len(prompts()))]

    def cramped(*given: Any, room: int = 2 * LONGEST) -> Any:
        tried.append(given[-1])
        if given[-1] > room:
            raise torch.OutOfMemoryError
        return generate_block(*given)

    monkeypatch.setattr(generate, "generate_block", cramped)
    given = (model, dict(zip(names, prompts(), strict=True)), str, Decoding(GREEDY, (END,), PAD, CONTEXT))
    shares = generate_share(*given, Ranks.here())
    assert [shares[name] for name in names] == answered(model, 8)
    assert tried == [8 * LONGEST, 4 * LONGEST, 2 * LONGEST]
    monkeypatch.setattr(generate, "generate_block", lambda *given: cramped(*given, room=0))
    with pytest.raises(AdpaError, match="an answer of 24 tokens does not fit"):
        generate_share(*given, Ranks.here())
