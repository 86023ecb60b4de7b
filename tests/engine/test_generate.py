"""Tokens are drawn from the right distribution, and a row's tokens depend on the row alone."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel

from adpa_cli.engine.generation.generate import Generated, generate_block
from adpa_cli.engine.generation.sampling import Decoding, Sampling, gumbel, nucleus, row_key
from adpa_cli.errors import AdpaError, UsageError
from support.tiny_models import END, PAD, VOCABULARY, tiny_llama

PROMPTS = [[2, 7, 9], [2, 30], [2, 5, 6, 7, 8, 9, 10], [2, 21, 22]]
ROWS = ["a", "b", "c", "d"]


def generate(model: Any, prompts: list[list[int]], rows: list[str], sampling: Sampling, context: int = 64) -> Any:
    return generate_block(model, prompts, rows, Decoding(sampling, (END,), PAD, context))


def splitmix64(state: int) -> int:
    """The output function in exact integers, from the published C."""
    wrap = 2**64 - 1
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & wrap
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & wrap
    return state ^ (state >> 31)


def test_the_noise_equals_an_integer_reference() -> None:
    golden, wrap = 0x9E3779B97F4A7C15, 2**64 - 1
    keys = [row_key(0, "a"), row_key(3, "b"), -1, 2**63 - 1]
    actual = gumbel(torch.tensor(keys), torch.tensor(7), vocabulary=5)
    for row, key in enumerate(keys):
        step = splitmix64((key + 7 * golden) & wrap)
        for token in range(5):
            bits = splitmix64((step + (token + 1) * golden) & wrap) >> 12
            uniform = (bits + 0.5) / 2**52
            assert float(actual[row, token]) == pytest.approx(-math.log(-math.log(uniform)), abs=1e-6)


def test_splitmix64_gives_its_published_first_value() -> None:
    assert splitmix64(0x9E3779B97F4A7C15) == 0xE220A8397B1DCDAF


def chi_square(counts: torch.Tensor, probs: torch.Tensor) -> float:
    expected = probs * counts.sum()
    return float(((counts - expected) ** 2 / expected).sum())


def chi_square_limit(degrees: int) -> float:
    """The 0.999 quantile, by Wilson and Hilferty."""
    return degrees * (1 - 2 / (9 * degrees) + 3.09 * math.sqrt(2 / (9 * degrees))) ** 3


@pytest.mark.parametrize("across", ["rows", "positions", "seeds"])
def test_argmax_of_noisy_scores_is_a_draw_from_the_softmax(across: str) -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, 0.5, -3.0])
    draws = 8000
    if across == "rows":
        noise = gumbel(torch.tensor([row_key(0, f"row-{row}") for row in range(draws)]), torch.tensor(0), 6)
    elif across == "seeds":
        noise = gumbel(torch.tensor([row_key(seed, "row") for seed in range(draws)]), torch.tensor(0), 6)
    else:
        key = torch.tensor([row_key(0, "row")])
        noise = torch.cat([gumbel(key, torch.tensor(position), 6) for position in range(draws)])
    counts = torch.bincount((logits + noise).argmax(-1), minlength=6).double()
    assert chi_square(counts, logits.double().softmax(-1)) < chi_square_limit(5)


def test_noise_of_neighbouring_positions_is_not_correlated() -> None:
    keys = torch.tensor([row_key(0, "row")])
    noise = torch.stack([gumbel(keys, torch.tensor(position), 2000)[0] for position in range(6)]).double()
    for one, next_one in pairwise(noise):
        assert abs(float(torch.corrcoef(torch.stack([one, next_one]))[0, 1])) < 0.1
    assert float(noise.mean()) == pytest.approx(0.5772, abs=0.06)  # Euler's constant
    assert float(noise.var()) == pytest.approx(math.pi**2 / 6, rel=0.1)


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 1.0), (1.3, 0.8)])
def test_generated_tokens_match_the_known_next_token_distribution(temperature: float, top_p: float) -> None:
    model, rows = tiny_llama(initializer_range=0.15), 3000
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([PROMPTS[0]])).logits[0, -1].double()
    probs = (logits / temperature).softmax(-1)
    order = probs.argsort(descending=True)
    before = torch.cat([torch.zeros(1), probs[order].cumsum(0)[:-1]])
    kept = order[before < top_p]
    expected = torch.zeros_like(probs)
    expected[kept] = probs[kept] / probs[kept].sum()

    sampling = Sampling(temperature=temperature, top_p=top_p, max_new_tokens=1)
    drawn = generate(model, [PROMPTS[0]] * rows, [f"row-{row}" for row in range(rows)], sampling)
    counts = torch.bincount(torch.tensor([answer.ids[0] for answer in drawn]), minlength=VOCABULARY).double()
    assert counts[expected == 0].sum() == 0
    assert len(kept) > 6
    assert chi_square(counts[kept], expected[kept]) < chi_square_limit(len(kept) - 1)


def test_the_nucleus_by_hand() -> None:
    logits = torch.tensor([[0.1, 0.5, 0.15, 0.25], [0.25, 0.25, 0.25, 0.25]]).log()
    kept = [row.isfinite().tolist() for row in nucleus(logits, 0.7)]
    assert kept == [[False, True, False, True], [True, True, True, False]]
    assert nucleus(logits, 0.01).isfinite().sum(-1).tolist() == [1, 1]
    assert torch.equal(nucleus(logits, 1.0), logits)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_alone_and_in_any_batch_gets_the_same_tokens(temperature: float) -> None:
    model = tiny_llama()
    sampling = Sampling(temperature=temperature, top_p=0.95, max_new_tokens=20, seed=5)
    together = generate(model, PROMPTS, ROWS, sampling)
    alone = [generate(model, [prompt], [row], sampling)[0] for prompt, row in zip(PROMPTS, ROWS, strict=True)]
    assert alone == together
    assert generate(model, PROMPTS[::-1], ROWS[::-1], sampling) == together[::-1]
    assert len({tuple(answer.ids) for answer in together}) > 1


def test_the_seed_and_the_row_id_change_the_draw() -> None:
    model = tiny_llama(initializer_range=0.15)
    draw = [
        generate(model, [PROMPTS[0]], [row], Sampling(temperature=1.0, max_new_tokens=12, seed=seed))[0].ids
        for row, seed in [("a", 0), ("b", 0), ("a", 1), ("a", 0)]
    ]
    assert draw[0] == draw[3]
    assert draw[0] != draw[1]
    assert draw[0] != draw[2]


def plain_greedy(model: Any, prompt: list[int], limit: int) -> Generated:
    """Argmax of a full forward pass per token: no cache, no padding, no generate."""
    ids = list(prompt)
    for _ in range(limit):
        with torch.no_grad():
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == END:
            break
    return Generated(ids[len(prompt) :], cut=ids[-1] != END)


def test_greedy_equals_a_plain_argmax_loop() -> None:
    model = tiny_llama(seed=2)
    with torch.no_grad():
        model.lm_head.weight[END] += 0.5 * model.lm_head.weight.abs().mean()
    answers = generate(model, PROMPTS, ROWS, Sampling(max_new_tokens=30))
    assert answers == [plain_greedy(model, prompt, 30) for prompt in PROMPTS]


def test_the_end_token_is_kept_and_a_cut_answer_gets_none() -> None:
    class Stopping(torch.nn.Module):
        """A head that gives the end token once the third new token is due."""

        def forward(self, states: torch.Tensor) -> torch.Tensor:
            logits = torch.zeros(*states.shape[:-1], VOCABULARY)
            calls.append(1)
            logits[..., END if len(calls) == 3 else 9] = 1.0
            return logits

    calls: list[int] = []
    model = tiny_llama()
    model.lm_head = Stopping()
    assert generate(model, PROMPTS[:2], ROWS[:2], Sampling(max_new_tokens=9)) == [Generated([9, 9, END], cut=False)] * 2
    calls.clear()
    assert generate(model, PROMPTS[:2], ROWS[:2], Sampling(max_new_tokens=2)) == [Generated([9, 9], cut=True)] * 2


@pytest.mark.parametrize("positions", ["rotary", "table"])
def test_answers_fill_the_room_left_in_the_context_and_no_more(positions: str) -> None:
    model: Any = tiny_llama()
    if positions == "table":
        torch.manual_seed(0)
        model = GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=1, n_head=2, n_positions=10,
                                           bos_token_id=2, eos_token_id=4)).eval()  # fmt: skip
    decoding = Decoding(Sampling(max_new_tokens=6), (VOCABULARY,), PAD, 10)
    answers = generate_block(model, PROMPTS, ROWS, decoding)
    assert [len(answer.ids) for answer in answers] == [6, 6, 3, 6]
    assert all(answer.cut for answer in answers)
    alone = generate_block(model, PROMPTS[1:2], ROWS[1:2], decoding)
    assert alone == answers[1:2]


def test_nothing_leaks_from_the_models_generation_config() -> None:
    model = tiny_llama()
    sampling = Sampling(max_new_tokens=12)
    expected = generate(model, PROMPTS, ROWS, sampling)
    hostile = GenerationConfig(
        do_sample=True, temperature=5.0, top_k=2, repetition_penalty=9.0, no_repeat_ngram_size=1, max_new_tokens=2,
        min_new_tokens=11, eos_token_id=[expected[0].ids[0], 9], pad_token_id=3, suppress_tokens=[expected[0].ids[0]],
        begin_suppress_tokens=[expected[0].ids[0]], forced_eos_token_id=5, max_time=0.0,
    )  # fmt: skip
    model.generation_config = hostile
    assert generate(model, PROMPTS, ROWS, sampling) == expected
    assert model.generation_config is hostile


def test_logits_that_are_not_finite_name_the_row() -> None:
    model = tiny_llama()
    with torch.no_grad():
        model.model.embed_tokens.weight[30] = float("nan")  # only row b reads this token
    with pytest.raises(AdpaError, match="row 'b' are not finite"):
        generate(model, PROMPTS, ROWS, Sampling(max_new_tokens=2))


@pytest.mark.parametrize("prompt", [[], [2] * 10, [2] * 11])
def test_a_prompt_without_room_names_the_row(prompt: list[int]) -> None:
    with pytest.raises(AdpaError, match=f"row 'b': a prompt of {len(prompt)} tokens"):
        generate(tiny_llama(), [PROMPTS[0], prompt], ["a", "b"], Sampling(), context=10)


@pytest.mark.parametrize(
    "settings",
    [{"temperature": -1.0}, {"temperature": float("nan")}, {"top_p": 0.0}, {"top_p": 1.1}, {"max_new_tokens": 0}],
)
def test_settings_without_meaning_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(settings))):
        Sampling(**settings)


def test_no_prompts_give_no_answers() -> None:
    assert generate(tiny_llama(), [], [], Sampling()) == []
