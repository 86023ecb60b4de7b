"""The base models in the package: plain transformers folders, small, template-less, and worth tuning."""

import json
import math
from itertools import islice
from pathlib import Path

import pytest

from adpa_cli.lab import BASES, END, SPECIAL, TEMPLATE, pretrain, world

NAMES = ("teacher", "student")


@pytest.fixture(scope="module")
def words():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(BASES / "student")


def _ids(words, text: str) -> list[int]:
    return words.encode(text, add_special_tokens=False)


def test_both_bases_share_one_tokenizer() -> None:
    files = ("tokenizer.json", "tokenizer_config.json")
    first, second = ([(BASES / name / file).read_text() for file in files] for name in NAMES)
    assert first == second


def test_ids_are_special_tokens_then_the_sorted_words(words) -> None:
    assert words.convert_ids_to_tokens(range(len(words))) == [*SPECIAL, *world.vocabulary()]
    assert (words.bos_token, words.eos_token, words.pad_token, words.unk_token) == (
        "<|bos|>",
        END,
        "<|pad|>",
        "<|unk|>",
    )
    assert words.chat_template is None


def test_decoding_an_encoded_text_gives_it_back(words) -> None:
    texts = list(islice(world.pretraining(5), 500))
    texts += [turn["content"] for row in world.demonstrations("test") for turn in row["messages"]]
    assert [words.decode(_ids(words, text)) for text in texts] == texts
    assert all(len(_ids(words, text)) == len(text.split()) for text in texts)


def test_the_template_gives_one_bos_and_one_end_token_a_turn(words) -> None:
    turns = [
        {"role": "user", "content": "sort the letters b a ."},
        {"role": "assistant", "content": "the answer is a b ."},
    ]
    text = words.apply_chat_template(turns, chat_template=TEMPLATE, tokenize=False)
    rendered = words.apply_chat_template(turns, chat_template=TEMPLATE, return_dict=False)
    assert " ".join(words.convert_ids_to_tokens(rendered)) == (
        "<|bos|> <|user|> sort the letters b a . <|end|> <|assistant|> the answer is a b . <|end|>"
    )
    assert words(text)["input_ids"] == _ids(words, text) == rendered
    opened = words.apply_chat_template(turns[:1], chat_template=TEMPLATE, add_generation_prompt=True, return_dict=False)
    assert rendered[: len(opened)] == opened
    assert words.convert_ids_to_tokens(opened[-1]) == "<|assistant|>"


@pytest.mark.parametrize("name", NAMES)
def test_a_base_loads_as_the_float32_model_it_says_it_is(name: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM, LlamaForCausalLM

    model = AutoModelForCausalLM.from_pretrained(BASES / name)
    size = pretrain.SIZES[name]
    assert isinstance(model, LlamaForCausalLM)
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    assert model.lm_head.weight is model.model.embed_tokens.weight
    shape = (model.config.hidden_size, model.config.num_hidden_layers, model.config.max_position_embeddings)
    assert shape == (size.width, size.layers, 256)


@pytest.mark.parametrize("name", NAMES)
def test_a_base_has_read_its_world(name: str, words) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(BASES / name).eval()
    batch = words(
        [f"<|bos|>{text}{END}" for text in islice(world.pretraining(1), 64)], padding=True, return_tensors="pt"
    )
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    with torch.inference_mode():
        loss = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels).loss.item()
    assert loss < math.log(len(words)) / 3


def test_the_bases_are_small() -> None:
    files = [path for path in Path(BASES).rglob("*") if path.is_file()]
    names = {"config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json", "model.safetensors"}
    assert {path.name for path in files} == names
    assert sum(path.stat().st_size for path in files) < 1_200_000


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_stored_in_float16(name: str) -> None:
    data = (BASES / name / "model.safetensors").read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    header.pop("__metadata__", None)
    assert {tensor["dtype"] for tensor in header.values()} == {"F16"}


def test_pretraining_gives_the_shape_and_words_of_the_shipped_base(words, monkeypatch, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    monkeypatch.setitem(pretrain.SIZES, "student", pretrain.Size(48, 2, 2, 1e-3))
    assert pretrain.main([str(tmp_path), "student"]) == 0
    assert (tmp_path / "student/tokenizer.json").read_text() == (BASES / "student/tokenizer.json").read_text()
    made, shipped = (
        AutoModelForCausalLM.from_pretrained(folder / "student").state_dict() for folder in (tmp_path, BASES)
    )
    assert {name: weight.shape for name, weight in made.items()} == {name: w.shape for name, w in shipped.items()}


def test_an_unknown_base_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        pretrain.main([str(tmp_path), "giant"])
    assert "no base model giant; there are teacher, student" in capsys.readouterr().err
