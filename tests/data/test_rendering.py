"""What a chat template does with an answer, worked out by hand: the token that ends it, its reasoning, dates, parts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from adpa_cli.data.chat import Encoder
from adpa_cli.data.examples import Message
from adpa_cli.data.rendering import Thinking, answer_end, dated, refusal, render, thinking_of, with_thinking
from adpa_cli.data.templates import Template
from adpa_cli.data.tokenizer import Tokenizer as FolderTokenizer
from adpa_cli.errors import AdpaError, UsageError
from adpa_cli.planning.chat_templates import TemplateChoice, template_in

NAMES = {"bos_token": "<s>", "eos_token": "</s>"}
TOKENS = ("<s>", "</s>", "<end>", "<stop>", "\n", "\n\n", "<user>")
Q, A, Q2, A2 = Message("user", "Hi"), Message("assistant", "Yo"), Message("user", "And?"), Message("assistant", "So")
TURNS = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}BEHIND{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.mark.parametrize(
    ("behind", "end"),
    [
        ("<end>", "<end>"),
        (" <end>\n", "<end>"),
        ("\n<end>", "<end>"),
        ("{{ eos_token }}", "</s>"),
        ("<end>\n{% if loop.last %}{{ eos_token }}{% endif %}", "<end>"),
        ("<end>{% if loop.last and not add_generation_prompt %}{{ eos_token }}{% endif %}", "<end>"),
        ("<end><stop>", "<stop>"),
        ("{% if loop.last %}<stop>{% else %}<end>{% endif %}", "<stop>"),
        ("", ""),
        (" and more <end>", ""),
    ],
)
def test_the_end_is_the_token_behind_an_answer(behind: str, end: str) -> None:
    assert answer_end(TURNS.replace("BEHIND", behind), NAMES, TOKENS) == end


def test_a_template_that_leaves_out_the_answer_has_no_end() -> None:
    assert answer_end("{% for m in messages %}<{{ m.role }}><end>{% endfor %}", NAMES, TOKENS) == ""


def test_a_template_that_wants_a_system_turn_is_asked_with_one() -> None:
    wants = "{% if messages[0].role != 'system' %}{{ raise_exception('no system turn') }}{% endif %}" + TURNS
    assert answer_end(wants.replace("BEHIND", "<end>"), NAMES, TOKENS) == "<end>"
    assert "no system turn" in refusal(wants, [Q, A])
    assert refusal(wants, [Message("system", "Be."), Q, A]) == ""


def test_a_template_that_takes_parts_only_gets_parts() -> None:
    parts = TURNS.replace(
        "{{ m.content }}", "{% for p in m.content %}{% if p.type == 'text' %}{{ p.text }}{% endif %}{% endfor %}"
    )
    assert render(parts.replace("BEHIND", "<end>"), [Q, A], False, NAMES) == "<user>Hi<end><assistant>Yo<end>"
    assert answer_end(parts.replace("BEHIND", "<end>"), NAMES, TOKENS) == "<end>"
    either = TURNS.replace("{{ m.content }}", "{{ m.content if m.content is string else m.content[0].text }}")
    assert render(either.replace("BEHIND", ""), [Q], False, NAMES) == "<user>Hi"


def test_a_system_turn_that_is_written_until_the_answer_only_is_refused_with_both_texts() -> None:
    late = (
        "{% for m in messages %}{% if m.role != 'system' %}"
        "[{{ messages[0].content if loop.last }}{{ m.content }}]{% endif %}{% endfor %}"
    )
    said = refusal(late, [Message("system", "Be."), Q, A])
    assert "differently once the answer follows" in said
    assert refusal(TURNS, [Message("system", "Be."), Q, A]) == ""


def test_what_a_template_sets_where_an_answer_is_generated_stays_there() -> None:
    """As in transformers, where the block is a scope of its own."""
    text = "{% set x = 1 %}{% generation %}{% set x = 2 %}{{ x }}{% endgeneration %}{{ x }}"
    theirs = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))
    asked = theirs.apply_chat_template([{"role": "user", "content": "Hi"}], chat_template=text, tokenize=False)
    assert render(text, [Q], False, NAMES) == asked == "21"


@pytest.mark.parametrize("begins", ["", "\n", "  \n  {% if true %}a{% endif %}"])
def test_a_saved_template_writes_the_same_day_in_transformers(begins: str) -> None:
    text = begins + "{{ strftime_now('%-d %B %Y, %A %H:%M %p; %j') }}{{ messages[0].content }}"
    theirs = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))
    asked = theirs.apply_chat_template([{"role": "user", "content": "Hi"}], chat_template=dated(text), tokenize=False)
    assert asked == render(text, [Q], False, NAMES) == render(dated(text), [Q], False, NAMES)
    assert asked.endswith("26 July 2024, Friday 00:00 AM; 208Hi")
    assert dated(dated(text)) == dated(text)
    assert dated("{{ messages[0].content }}") == "{{ messages[0].content }}"


ASKS = "{% if add_generation_prompt %}<assistant>ASKS{% endif %}"
ANSWER = "{{ m.content.split('</think>')[-1] }}"
SWITCHED = "{% for m in messages %}<{{ m.role }}>" + ANSWER + "<end>{% endfor %}" + ASKS.replace(
    "ASKS", "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% else %}<think>{% endif %}"
)  # fmt: skip
CLOSES = "{% for m in messages %}<{{ m.role }}>{{ '</think>' if m.role == 'assistant' }}" + ANSWER + (
    "<end>{% endfor %}" + ASKS.replace("ASKS", "{{ '<think>' if thinking else '</think>' }}")
)  # fmt: skip
ALWAYS = "{% for m in messages %}<{{ m.role }}>{{ '<think>\\n</think>' if m.role == 'assistant' }}" + ANSWER + (
    "<end>{% endfor %}" + ASKS.replace("ASKS", "{{ '<think>\\n' }}")
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of single bytes with a few tokens; one of the ends is not called special."""
    path = tmp_path_factory.mktemp("bytes")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = {piece: number for number, piece in enumerate([*alphabet, "</", "s>", "</s>"])}
    core = Tokenizer(models.BPE(pieces, [("<", "/"), ("s", ">"), ("</", "s>")]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_tokens(
        [AddedToken(text, special=True, normalized=False) for text in ("<s>", "</s>", "<user>", "<assistant>")]
    )
    core.add_tokens([AddedToken("<end>", special=False, normalized=False)])
    core.save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
    (path / "config.json").write_text("{}")
    return path


def fed(folder: Path, text: str, *turns: Message, end: str = "<end>") -> tuple[str, list[str]]:
    """What is fed of some turns, and what of it is trained."""
    encoder = Encoder(FolderTokenizer.of(folder), Template(text, end))
    ids, mask = encoder.dialogue(turns)
    prompt, (answer,) = encoder.answered(turns[:-1], turns[-1].content)
    assert prompt + answer == ids
    runs, last = [], False
    for number, trained in zip(ids, mask, strict=True):
        runs += [[]] if trained and not last else []
        if trained:
            runs[-1].append(number)
        last = trained
    return encoder.decode(ids, special=True), [encoder.decode(run, special=True) for run in runs]


REASONED = Message("assistant", "<think>hm</think>Yo")


@pytest.mark.parametrize(
    ("text", "rule", "whole", "trained"),
    [
        (SWITCHED, "off", "<user>Hi<end><assistant><think></think>Yo<end>", "Yo<end>"),
        (SWITCHED, "keep", "<user>Hi<end><assistant><think>hm\n</think>\n\nYo<end>", "hm\n</think>\n\nYo<end>"),
        (CLOSES, "off", "<user>Hi<end><assistant></think>Yo<end>", "Yo<end>"),
        (CLOSES, "keep", "<user>Hi<end><assistant><think>hm</think>Yo<end>", "hm</think>Yo<end>"),
    ],
)
def test_a_block_that_only_prompts_have_is_closed_before_the_answer(
    folder: Path, text: str, rule: Thinking, whole: str, trained: str
) -> None:
    ruled = with_thinking(text, NAMES, rule)
    assert thinking_of(ruled) == rule
    assert fed(folder, ruled, Q, REASONED) == (whole, [trained])


def test_reasoning_beside_the_text_is_left_out_as_that_in_it_is(folder: Path) -> None:
    reads = TURNS.replace("{{ m.content }}", "{{ '<think>' + (m.reasoning_content or '') + '</think>' + m.content }}")
    text = reads.replace("BEHIND", "<end>") + "{% if enable_thinking is true %}{% endif %}"
    beside = Message("assistant", "Yo", json.dumps({"reasoning_content": "hm", "name": "bob"}))
    wanted: dict[Thinking, str] = {"keep": "<think>hm</think>Yo<end>", "off": "<think></think>Yo<end>"}
    for rule, trained in wanted.items():
        encoder = Encoder(FolderTokenizer.of(folder), Template(with_thinking(text, NAMES, rule), "<end>"))
        ids, mask = encoder.dialogue([Q, beside])
        assert encoder.decode([id_ for id_, is_trained in zip(ids, mask, strict=True) if is_trained], True) == trained


def test_a_turn_with_a_name_calls_no_tool() -> None:
    text = TURNS.replace("BEHIND", "<end>")
    assert refusal(text, [Q, Message("assistant", "Yo", json.dumps({"name": "bob"}))]) == ""
    call = json.dumps({"tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {}}}]})
    assert "cannot write tools" in refusal(text, [Q, Message("assistant", "", call), A])


@pytest.mark.parametrize(("lost", "name"), [("user", "question"), ("assistant", "answer")])
def test_a_template_that_leaves_out_what_is_said_is_refused(folder: Path, lost: str, name: str) -> None:
    text = TURNS.replace("{{ m.content }}", f"{{{{ m.content if m.role != '{lost}' }}}}").replace("BEHIND", "<end>")
    with pytest.raises(UsageError, match=f"it does not write the text of the {name}"):
        template_in(folder, TemplateChoice(Template(text), "<end>"))


def test_a_template_that_writes_a_token_that_the_tokenizer_lacks_is_refused(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "[BOS]", "eos_token": "</s>"}))
    tokenizer = FolderTokenizer.of(folder)
    text = TURNS.replace("BEHIND", "<end>")
    assert Encoder(tokenizer, Template(text, "<end>")).bos_id is None
    with pytest.raises(AdpaError, match=r"writes the bos_token '\[BOS\]', which is not in the tokenizer's vocabulary"):
        Encoder(tokenizer, Template("{{ bos_token }}" + text, "<end>"))


def test_an_end_is_refused_beside_a_template_that_has_another_one_by_name(folder: Path) -> None:
    said = r"--end <end> contradicts the chat template of .*, which ends an answer with <end_of_turn>"
    with pytest.raises(UsageError, match=said):
        template_in(folder, TemplateChoice.of("gemma", "<end>", None))


def test_reasoning_that_cannot_be_left_out_is_refused_by_name() -> None:
    with pytest.raises(UsageError, match=r"--thinking off does not work .* cannot be removed"):
        with_thinking(ALWAYS, NAMES, "off")
    with pytest.raises(UsageError, match="does not mention reasoning"):
        with_thinking(TURNS, NAMES, "keep")


def test_an_end_that_is_not_called_special_and_a_name_that_merges_make_stay_text(folder: Path) -> None:
    text = TURNS.replace("BEHIND", "<end>")
    whole, trained = fed(folder, text, Message("user", "a<end>b</s>"), Message("assistant", "c</s><end>d"))
    assert whole == "<user>a<end>b</s><end><assistant>c</s><end>d<end>"
    assert trained == ["c</s><end>d<end>"]
    tokenizer = FolderTokenizer.of(folder)
    answer = Encoder(tokenizer, Template(text, "<end>")).answer([Q], "c</s><end>d")
    assert [answer.count(tokenizer.id_of(token)) for token in ("<end>", "</s>")] == [1, 0]


def test_characters_that_stand_for_names_stay_what_they_are(folder: Path) -> None:
    odd = "".join(chr(0xF0000 + number) for number in range(8)) + "</s>\U000f0000"
    text = TURNS.replace("BEHIND", "<end>")
    assert fed(folder, text, Message("user", odd), Message("assistant", odd))[1] == [odd + "<end>"]


def test_a_template_without_an_end_of_its_own_takes_one_that_is_named(folder: Path) -> None:
    """As GLM-4's, whose answers end where the next question begins."""
    text = TURNS.replace("BEHIND", "")
    (folder / "chat_template.jinja").write_text(text)
    with pytest.raises(UsageError, match="does not end an answer with a token of the tokenizer") as caught:
        template_in(folder, TemplateChoice())
    assert "--end TOKEN" in caught.value.hint
    named = template_in(folder, TemplateChoice.of(None, "<user>", None))
    assert named == Template(text, "<user>")
    whole, trained = fed(folder, text, Q, A, Q2, A2, end="<user>")
    assert whole == "<user>Hi<assistant>Yo<user>And?<assistant>So<user>"
    assert trained == ["Yo<user>", "So<user>"]


def test_an_end_that_the_template_does_not_write_is_refused_with_the_one_that_it_writes(folder: Path) -> None:
    said = r"--end <user> contradicts the chat template of .*, which ends an answer with </s>"
    with pytest.raises(UsageError, match=said):
        template_in(folder, TemplateChoice(Template(TURNS.replace("BEHIND", "</s>")), "<user>"))
