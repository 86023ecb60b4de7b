"""Chats as token ids: one BOS, one end token, masks by construction, truncation on both sides."""

from __future__ import annotations

import io

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from adpa_cli.cli.commands.data import ASCII_MARKS, MARKS, marks_for, preview
from adpa_cli.data.chat import Encoded, Encoder, fit, fit_answers, fit_dialogue
from adpa_cli.data.examples import Message, make_dialogue, make_pair
from adpa_cli.data.templates import LLAMA3, ZEPHYR, Template
from adpa_cli.data.tokenizer import Tokenizer as FolderTokenizer
from adpa_cli.data.tokenizer import compare
from adpa_cli.errors import AdpaError, DataError

SENTENCES = ["what is two and two ?", "it is four .", "and three more ?", "then it is seven ."] * 4
SPECIAL = ["<s>", "</s>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"]
ASK = [Message("user", "what is two and two ?")]
CHAT = [*ASK, Message("assistant", "it is four ."), Message("user", "and three more ?")]
WHOLE = [*CHAT, Message("assistant", "then it is seven .")]


def make_tokenizer(folder, adds_bos: bool, bos: str | None = "<s>", extra=()):
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(SENTENCES, trainer)
    if adds_bos:
        core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    fast = PreTrainedTokenizerFast(tokenizer_object=core, bos_token=bos, eos_token="</s>")
    if extra:
        fast.add_tokens(list(extra))
    fast.save_pretrained(folder)
    return FolderTokenizer.of(folder)


@pytest.fixture(scope="module")
def with_bos(tmp_path_factory):
    return make_tokenizer(tmp_path_factory.mktemp("bos"), True)


@pytest.fixture(scope="module")
def without_bos(tmp_path_factory):
    return make_tokenizer(tmp_path_factory.mktemp("plain"), False, bos=None)


def pieces(encoder, ids, mask):
    """Runs of equal mask as (trained, text with special tokens)."""
    runs = []
    for id_, trained in zip(ids, mask, strict=True):
        if not runs or runs[-1][0] != trained:
            runs.append((trained, []))
        runs[-1][1].append(id_)
    return [(trained, encoder.decode(run, special=True)) for trained, run in runs]


def test_prompt_is_the_rendered_turns_with_one_bos(with_bos):
    encoder = Encoder(with_bos, ZEPHYR)
    ids = encoder.prompt(CHAT)
    assert encoder.decode(ids, special=True) == (
        "<s><|user|>\nwhat is two and two ?</s>\n<|assistant|>\nit is four .</s>\n"
        "<|user|>\nand three more ?</s>\n<|assistant|>\n"
    )
    assert ids.count(0) == 1


@pytest.mark.parametrize("written", ["", "{{ bos_token }}", "{{ bos_token }}{{ bos_token }}"])
def test_bos_is_single_whether_or_not_the_template_writes_it(with_bos, written):
    body = "{% for m in messages %}{{ m['content'] }}{{ eos_token }}{% endfor %}"
    ids = Encoder(with_bos, Template(written + body)).prompt(ASK)
    assert ids[0] == 0
    assert ids.count(0) == 1


def test_no_bos_where_the_tokenizer_has_none(without_bos):
    encoder = Encoder(without_bos, ZEPHYR)
    assert encoder.bos_id is None
    assert encoder.decode(encoder.prompt(ASK), special=True).startswith("<|user|>\n")
    assert 0 not in encoder.prompt(ASK)


def test_no_bos_where_the_tokenizer_has_one_that_neither_it_nor_the_template_uses(tmp_path):
    encoder = Encoder(make_tokenizer(tmp_path, False), Template("{{ messages[0]['content'] }}"))
    assert encoder.bos_id is None
    assert 0 not in encoder.prompt(ASK)


def test_answer_ends_with_one_end_token_even_when_its_text_names_one(with_bos):
    encoder = Encoder(with_bos, ZEPHYR)
    ids = encoder.answer(ASK, "it is </s> four .")
    assert ids[-1] == 1
    assert ids.count(1) == 1
    assert encoder.decode(ids[:-1]) == "it is </s> four ."


def test_a_question_that_names_special_tokens_stays_text(with_bos):
    encoder = Encoder(with_bos, LLAMA3)
    plain, spelled = (encoder.prompt([Message("user", text)]) for text in ("what is", "what <|eot_id|> is </s><s>"))
    for special in (0, 1, 2, 3, 4):
        assert spelled.count(special) == plain.count(special)
    assert "what <|eot_id|> is </s><s>" in encoder.decode(spelled)


def test_llama_3_headers_end_turns_with_their_own_token(with_bos):
    encoder = Encoder(with_bos, LLAMA3)
    ids, mask = encoder.dialogue(WHOLE)
    header = "<|start_header_id|>{}<|end_header_id|>\n\n".format
    assert pieces(encoder, ids, mask) == [
        (False, "<s>" + header("user") + "what is two and two ?<|eot_id|>" + header("assistant")),
        (True, "it is four .<|eot_id|>"),
        (False, header("user") + "and three more ?<|eot_id|>" + header("assistant")),
        (True, "then it is seven .<|eot_id|>"),
    ]
    assert encoder.answer(ASK, "it is four .")[-1] == 2


def test_mask_covers_every_answer_and_its_end_token(with_bos):
    encoder = Encoder(with_bos, ZEPHYR)
    ids, mask = encoder.dialogue(WHOLE)
    assert pieces(encoder, ids, mask) == [
        (False, "<s><|user|>\nwhat is two and two ?</s>\n<|assistant|>\n"),
        (True, "it is four .</s>"),
        (False, "\n<|user|>\nand three more ?</s>\n<|assistant|>\n"),
        (True, "then it is seven .</s>"),
    ]
    assert sum(t and i == 1 for i, t in zip(ids, mask, strict=True)) == 2


def test_mask_does_not_follow_an_answer_that_repeats_the_prompt(with_bos):
    encoder = Encoder(with_bos, ZEPHYR)
    echo = [Message("user", "it is four ."), Message("assistant", "it is four .")]
    ids, mask = encoder.dialogue(echo)
    assert pieces(encoder, ids, mask) == [
        (False, "<s><|user|>\nit is four .</s>\n<|assistant|>\n"),
        (True, "it is four .</s>"),
    ]


def test_one_answer_has_the_ids_of_prompt_and_answer(with_bos, without_bos):
    for tokenizer in (with_bos, without_bos):
        for template in (ZEPHYR, LLAMA3):
            encoder = Encoder(tokenizer, template)
            ids, mask = encoder.dialogue(WHOLE[:2])
            answer = encoder.answer(ASK, "it is four .")
            assert ids == encoder.prompt(ASK) + answer
            assert [i for i, trained in zip(ids, mask, strict=True) if trained] == answer


def test_template_that_strips_answers_trains_what_it_writes(with_bos):
    strips = Template(LLAMA3.text.replace("message['content']", "message['content'] | trim"), LLAMA3.end)
    encoder = Encoder(with_bos, strips)
    ids, mask = encoder.dialogue([*ASK, Message("assistant", "  it is four .\n")])
    assert pieces(encoder, ids, mask)[-1] == (True, "it is four .<|eot_id|>")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("{{ messages | length }}{% for m in messages %}{{ m['content'] + eos_token }}{% endfor %}", "differently"),
        ("{% for m in messages %}{{ raise_exception('no thanks') }}{% endfor %}", "no thanks"),
    ],
)
def test_template_without_a_sound_mask_is_refused(with_bos, text, found):
    with pytest.raises(DataError, match=found) as caught:
        Encoder(with_bos, Template(text)).dialogue(WHOLE)
    assert "template" in caught.value.hint


def test_an_answer_of_an_older_version_ends_as_it_did_then(with_bos):
    """When a template wrote another end token than the tokenizer's, answers got the tokenizer's all the same."""
    older = Template("{% for m in messages %}{{ m['role'] + ':' + m['content'] + '<|eot_id|>' }}{% endfor %}"
                     "{% if add_generation_prompt %}assistant:{% endif %}", "</s>")  # fmt: skip
    ids = Encoder(with_bos, older).answer(ASK, "it is four .")
    assert Encoder(with_bos, older).decode(ids, special=True) == "it is four .</s>"


def test_what_a_template_writes_around_an_answer_is_trained_with_it(with_bos):
    spaced = Template("{% for m in messages %}{{ '[' + m['role'] + ']' }}{{ ' ' + m['content'] + ' ' }}"
                      "{{ eos_token if m['role'] == 'assistant' }}{% endfor %}"
                      "{% if add_generation_prompt %}[assistant]{% endif %}")  # fmt: skip
    encoder = Encoder(with_bos, spaced)
    ids, mask = encoder.dialogue(WHOLE)
    assert pieces(encoder, ids, mask) == [
        (False, "<s>[user] what is two and two ? [assistant]"),
        (True, " it is four . </s>"),
        (False, "[user] and three more ? [assistant]"),
        (True, " then it is seven . </s>"),
    ]
    assert encoder.decode(encoder.answer(ASK, "it is four ."), special=True) == " it is four . </s>"


def test_an_answer_that_a_template_rewrites_later_is_not_trained_there(with_bos):
    """As templates of models that reason do: of an earlier answer the reasoning is left out."""
    rewrites = Template(
        "{% for m in messages %}{{ m['role'] }}:"
        "{{ '(so)' if m['role'] == 'assistant' and loop.last }}{{ m['content'] + eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    encoder = Encoder(with_bos, rewrites)
    ids, mask = encoder.dialogue(WHOLE)
    assert pieces(encoder, ids, mask) == [
        (False, "<s>user:what is two and two ?</s>assistant:it is four .</s>user:and three more ?</s>assistant:"),
        (True, "(so)then it is seven .</s>"),
    ]


@pytest.mark.parametrize("end", ["<|im_end|>", "four"])
def test_end_token_must_be_one_token(without_bos, end):
    if end == "four":
        assert Encoder(without_bos, Template(ZEPHYR.text)).end_id == 1
        end = "four ."
    with pytest.raises(AdpaError, match="and must be one") as caught:
        Encoder(without_bos, Template(ZEPHYR.text, end))
    assert "'</s>'" in caught.value.hint


PROMPT, ANSWER = [0, 11, 12, 13, 14, 15], [21, 22, 23, 1]


@pytest.mark.parametrize(
    ("length", "expected"),
    [
        (10, Encoded((0, 11, 12, 13, 14, 15), (21, 22, 23, 1))),
        (9, Encoded((0, 12, 13, 14, 15), (21, 22, 23, 1), 1, 0)),
        (8, Encoded((0, 13, 14, 15), (21, 22, 23, 1), 2, 0)),
        (7, Encoded((0, 14, 15), (21, 22, 23, 1), 3, 0)),
        (6, Encoded((0, 14, 15), (21, 22, 23), 3, 1)),
        (4, Encoded((0, 15), (21, 22), 4, 2)),
    ],
)
def test_prompt_is_cut_from_the_left_to_one_half_then_the_answer_on_the_right(length, expected):
    assert fit(PROMPT, ANSWER, length, bos_id=0) == expected


def test_short_prompt_is_never_cut_for_a_long_answer():
    assert fit([0, 11], list(range(20, 60)), 10, bos_id=0) == Encoded((0, 11), tuple(range(20, 28)), 0, 32)


def test_prompt_without_bos_loses_its_first_tokens():
    assert fit(PROMPT, ANSWER, 8).prompt == (12, 13, 14, 15)


@pytest.mark.parametrize("length", [0, 1, 2, 3])
def test_what_cannot_fit_names_the_row_and_the_length_to_set(length):
    with pytest.raises(DataError, match="row 7: a prompt of 6 and an answer of 4 tokens") as caught:
        fit(PROMPT, ANSWER, length, bos_id=0, where="row 7")
    assert caught.value.hint == "--set max_length=10"


def test_both_answers_follow_one_prompt_that_is_cut_for_the_longer():
    long, short = [21, 22, 23, 24, 1], [31, 1]
    assert fit_answers(PROMPT, [long, short], 9, bos_id=0) == [
        Encoded((0, 13, 14, 15), (21, 22, 23, 24, 1), 2, 0),
        Encoded((0, 13, 14, 15), (31, 1), 2, 0),
    ]
    assert fit_answers(PROMPT, [long, short], 6, bos_id=0) == [
        Encoded((0, 14, 15), (21, 22, 23), 3, 2),
        Encoded((0, 14, 15), (31, 1), 3, 0),
    ]
    assert fit_answers(PROMPT, [long, short], 2, bos_id=0) is None


def test_dialogue_is_cut_by_the_same_rule(with_bos):
    ids = [0, 11, 12, 21, 1, 31, 32, 41, 1]
    mask = [False, False, False, True, True, False, False, True, True]
    assert fit_dialogue(ids, mask, 9, bos_id=0) == (ids, mask, 0)
    assert fit_dialogue(ids, mask, 6, bos_id=0) == (ids[:6], mask[:6], 3)


def test_preview_marks_what_is_trained(with_bos):
    encoder = Encoder(with_bos, ZEPHYR)
    pair = make_pair(ASK, "it is four .", "then it is seven .", 17)
    text = preview([pair, pair], encoder, count=1)
    assert f"row 17 · {pair.id} · chosen" in text
    assert "<|assistant|>\n⟦it is four .</s>⟧" in text
    assert "⟦then it is seven .</s>⟧" in text
    assert text.count("⟦") == 2
    ascii_only = preview([make_dialogue(WHOLE, 1)], encoder, marks=ASCII_MARKS)
    assert "[[it is four .</s>]]\n<|user|>" in ascii_only


def test_preview_markup_prints_as_the_plain_text(with_bos):
    from rich.text import Text

    encoder = Encoder(with_bos, ZEPHYR)
    pair = make_pair([Message("user", "what is [bold] ?")], "it is [/bold]", "it \\", 1)
    for marks in (MARKS, ASCII_MARKS):
        coloured = preview([pair], encoder, marks=marks, markup=True)
        assert Text.from_markup(coloured).plain == preview([pair], encoder, marks=marks)


def test_marks_follow_the_encoding_of_the_stream():
    assert marks_for(io.TextIOWrapper(io.BytesIO(), encoding="utf-8")) == MARKS
    assert marks_for(io.TextIOWrapper(io.BytesIO(), encoding="latin-1")) == ASCII_MARKS
    assert marks_for(io.TextIOWrapper(io.BytesIO(), encoding="ascii")) == ASCII_MARKS


def test_vocabularies_are_compared_by_map_not_by_size(tmp_path, with_bos, without_bos):
    assert compare(with_bos, with_bos) == (
        f"both models have the same vocabulary of {len(with_bos.vocabulary)} tokens",
    )
    larger = make_tokenizer(tmp_path / "more", True, extra=["<tool>"])
    assert "ids that only the teacher has: 1 ('<tool>')" in compare(larger, with_bos)[0]
    first_more = len(with_bos.vocabulary)
    with pytest.raises(AdpaError, match=f"id {first_more}: teacher has none, student '<tool>'"):
        compare(with_bos, larger)
    other = make_tokenizer(tmp_path / "other", True, extra=["<call>"])
    with pytest.raises(AdpaError, match=f"differ in 1 of {first_more + 1} ids.*\n.*teacher '<tool>', student '<call>'"):
        compare(larger, other)


def test_the_token_that_ends_texts_is_offered_first_though_it_pads_too(without_bos):
    """SmolLM2's `<|im_end|>` is both: what is offered must not lack the one token that is right."""
    config = {**without_bos.config, "pad_token": "</s>", "unk_token": "<s>"}
    with pytest.raises(AdpaError, match="answers have no end token") as refused:
        Encoder(FolderTokenizer(without_bos.core, config), Template(ZEPHYR.text, "<none>"))
    assert refused.value.hint.partition("they are ")[2].startswith("'</s>', ")
    assert "'<s>'" not in refused.value.hint
