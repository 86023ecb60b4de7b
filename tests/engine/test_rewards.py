"""A reward model's score is its one logit at the end of the dialogue, however rows are batched."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from adpa_cli.data.examples import Message
from adpa_cli.engine.rewards.reward_model import reward_scores, sequence_rewards
from adpa_cli.errors import AdpaError, NotFound
from adpa_cli.hub import Located
from support.tiny_models import PAD, TEMPLATE, VOCABULARY, pretrained_tokenizer

DIALOGUES = [
    ([("user", "w1 w2")], "w3"),
    ([("user", "w4")], "w5 w6 w7 w8 w9"),
    ([("user", "w1"), ("assistant", "w2"), ("user", "w3 w4 w5")], "w6 w6"),
    ([("user", "w30 w31 w29 w28 w27 w26")], "w25 w24 w23"),
    ([("user", "w4")], "w5 w6 w7 w8"),
]


def config(labels: int = 1, pad: int | None = None) -> Any:
    settings: dict[str, Any] = {"num_labels": labels, "pad_token_id": pad, "eos_token_id": 4, "initializer_range": 0.4}
    return LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=64, **settings,
    )  # fmt: skip


def made(folder: Path, labels: int = 1, pad: int | None = None, tokenizer: Any = None) -> Any:
    """A random reward model saved in `folder`."""
    torch.manual_seed(0)
    model = LlamaForSequenceClassification(config(labels, pad)).eval()
    model.save_pretrained(folder)
    (tokenizer or pretrained_tokenizer()).save_pretrained(folder)
    return model


def plain(model: Any, dialogues: Any, most: int = 1000, prefix: tuple[int, ...] = ()) -> list[float]:
    """One row at a time, without padding: each turn's words and the end token, by the template's own words."""
    tokenizer, found = pretrained_tokenizer(), []
    for turns, answer in dialogues:
        text = " ".join(f"{content} <end>" for _, content in (*turns, ("assistant", answer)))
        ids = [*prefix, *tokenizer.convert_tokens_to_ids(text.split())[-(most - len(prefix)) :]]
        with torch.no_grad():
            found.append(float(model(input_ids=torch.tensor([ids])).logits[0, 0]))
    return found


def rewards(folder: Path, tokens: int = 16384, **settings: Any) -> list[float]:
    """What the model in `folder` gives to the dialogues, under a stage's spec with these settings."""
    dialogues = [([Message(role, text) for role, text in turns], answer) for turns, answer in DIALOGUES]
    spec = SimpleNamespace(**{"template": TEMPLATE, "max_length": 64, "dtype": "float32", **settings})
    return reward_scores(Located("model", "", "", (str(folder),)), dialogues, spec, tokens)


@pytest.mark.parametrize("pad", [None, PAD])
@pytest.mark.parametrize("budget", [1, 24, 8192])
def test_rewards_equal_a_plain_forward(pad: int | None, budget: int, tmp_path: Path) -> None:
    model = made(tmp_path, pad=pad)
    found = rewards(tmp_path, tokens=budget)
    assert found == pytest.approx(plain(model, DIALOGUES), abs=1e-5)
    assert len({round(value, 4) for value in found}) == len(DIALOGUES)


def test_without_a_pad_token_the_end_token_is_still_read(tmp_path: Path) -> None:
    tokenizer = pretrained_tokenizer()
    tokenizer.pad_token = None
    tokenizer.eos_token = "<end>"
    model = made(tmp_path, tokenizer=tokenizer)
    found = rewards(tmp_path)
    assert found == pytest.approx(plain(model, DIALOGUES), abs=1e-5)


def test_the_models_own_template_comes_first(tmp_path: Path) -> None:
    tokenizer = pretrained_tokenizer()
    tokenizer.chat_template = TEMPLATE
    model = made(tmp_path, tokenizer=tokenizer)
    other = "{% for message in messages %}w0 {% endfor %}"
    found = rewards(tmp_path, template=other)
    assert found == pytest.approx(plain(model, DIALOGUES), abs=1e-5)


def within(folder: Path, context: int) -> None:
    """Makes the saved model one that takes so many tokens at most."""
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "max_position_embeddings": context}))


def test_dialogues_beyond_the_context_of_the_judge_keep_their_end(tmp_path: Path) -> None:
    """How long a student's rows may be says nothing of its judge."""
    model = made(tmp_path)
    assert rewards(tmp_path, max_length=4) == pytest.approx(plain(model, DIALOGUES), abs=1e-5)
    within(tmp_path, 4)
    found = rewards(tmp_path)
    assert found == pytest.approx(plain(model, DIALOGUES, most=4), abs=1e-5)
    assert found[1] != pytest.approx(plain(model, DIALOGUES)[1], abs=1e-3)


def starting_tokenizer() -> Any:
    """One that puts <s> before a text."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = pretrained_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 2)])
    return tokenizer


@pytest.mark.parametrize("template", [TEMPLATE, "<s> " + TEMPLATE])
def test_dialogues_beyond_it_keep_their_first_token(tmp_path: Path, template: str) -> None:
    model = made(tmp_path, tokenizer=starting_tokenizer())
    within(tmp_path, 5)
    found = rewards(tmp_path, template=template)
    assert found == pytest.approx(plain(model, DIALOGUES, most=5, prefix=(2,)), abs=1e-5)


def test_a_tokenizer_that_adds_a_start_token_adds_one(tmp_path: Path) -> None:
    model = made(tmp_path, tokenizer=starting_tokenizer())
    expected = plain(model, DIALOGUES, prefix=(2,))
    assert rewards(tmp_path) == pytest.approx(expected, abs=1e-5)
    twice = rewards(tmp_path, template="<s> " + TEMPLATE)
    assert twice == pytest.approx(expected, abs=1e-5)


def test_bfloat16_is_near(tmp_path: Path) -> None:
    model = made(tmp_path)
    found = rewards(tmp_path, dtype="bfloat16")
    assert found == pytest.approx(plain(model, DIALOGUES), abs=0.15)
    assert found != pytest.approx(plain(model, DIALOGUES), abs=1e-6)


@pytest.mark.parametrize("labels", [2, 5])
def test_a_classifier_of_several_classes_is_refused(labels: int, tmp_path: Path) -> None:
    made(tmp_path, labels=labels)
    with pytest.raises(AdpaError, match=f"{labels} outputs") as caught:
        rewards(tmp_path)
    assert "--reward-model" in caught.value.hint


def test_a_language_model_is_no_reward_model(tmp_path: Path) -> None:
    LlamaForCausalLM(config(labels=1)).save_pretrained(tmp_path)
    pretrained_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(AdpaError, match=r"score\.weight"):
        rewards(tmp_path)


def test_a_damaged_folder_is_said_to_be(tmp_path: Path) -> None:
    made(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(AdpaError, match="cannot be loaded"):
        rewards(tmp_path)


def test_a_reward_that_is_no_number_names_its_row(tmp_path: Path) -> None:
    model = made(tmp_path)
    with torch.no_grad():
        model.score.weight.fill_(3e38)
    model.save_pretrained(tmp_path)
    with pytest.raises(AdpaError, match=r"row 1 the reward (-?inf|nan)"):
        rewards(tmp_path)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    LlamaForSequenceClassification(config()).save_pretrained(tmp_path)
    with pytest.raises(NotFound, match="tokenizer"):
        rewards(tmp_path)


def test_a_reward_model_that_leaves_the_range_of_float16_names_its_layer(tmp_path: Path) -> None:
    model = made(tmp_path)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.fill_(6e4)
    model.save_pretrained(tmp_path)
    encoded = [[5, 6, 7], [8, 9, 10, 11]]
    with pytest.raises(AdpaError, match=r"gives row 2 the reward nan: layers\.0\.mlp\.up_proj exceeds") as raised:
        sequence_rewards(tmp_path, encoded, "float16", "cpu", 4, "eval")
    assert "--set eval.dtype=tf32" in raised.value.hint
    assert len(sequence_rewards(tmp_path, encoded, "tf32", "cpu", 4, "eval")) == 2
