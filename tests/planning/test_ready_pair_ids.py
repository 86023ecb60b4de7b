"""The headline pair, Llama 3.2 and Tulu 3, with small tokenizers of its kind: every fed id, by `tokenizers` itself.

Tulu 3 ends an answer with `<|end_of_text|>` after lines that name the roles in plain text, has one token more than the
base models (`<pad>`), and embeddings of eight rows more.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

from adpa_cli.data import tokenizer as reading
from adpa_cli.data.chat import Encoder
from adpa_cli.data.examples import Message
from adpa_cli.data.rendering import render
from adpa_cli.data.templates import TEMPLATES, Template
from adpa_cli.engine.models import save
from adpa_cli.families import published
from adpa_cli.planning import lineage
from adpa_cli.planning.chat_templates import NO_CHOICE, template_in
from adpa_cli.planning.resolve_inputs import Names
from adpa_cli.store.store import Store
from support.tiny_models import tiny_llama

BOS, END, EOT = "<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"
SPECIALS = (BOS, END, "<|start_header_id|>", "<|end_header_id|>", EOT)
TULU = TEMPLATES["tulu"]
DIALOGUES = (
    (Message("user", "What is 2 + 2?"), Message("assistant", "It is 4.")),
    (
        Message("user", "Hi"),
        Message("assistant", " Yo \n"),
        Message("user", "And\n\nthen?"),
        Message("assistant", "No."),
    ),
    (Message("system", "Be brief."), Message("user", "naïve 你好"), Message("assistant", "é")),
)
SPLIT = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def llama_tokenizer(path: Path, more: tuple[str, ...] = (), template: str = "") -> Path:
    """A folder with a byte-level BPE as Llama 3 has it: its pre-tokenizer, BOS put before a text, no padding token."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("u", "s"), ("us", "e"), ("use", "r"), ("Ġ", "i"), ("|", ">"), ("|>", "Ċ"), ("Ċ", "Ċ")]
    vocabulary = {token: n for n, token in enumerate([*letters, *("".join(pair) for pair in merges)])}
    core = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=True))
    core.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(SPLIT), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False),
    ])  # fmt: skip
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in (*SPECIALS, *more)])
    bos = core.token_to_id(BOS)
    core.post_processor = processors.TemplateProcessing(f"{BOS} $A", f"{BOS} $A {BOS} $B", [(BOS, bos)])
    path.mkdir()
    core.save(str(path / "tokenizer.json"))
    named = {"bos_token": BOS, "eos_token": END, **({"pad_token": more[0]} if more else {})}
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **named,
        **({"chat_template": template} if template else {}),
    }
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    return path


@pytest.fixture(params=["", "{{ bos_token }}"], ids=["without BOS in the text", "with it"])
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path, Template]:
    """The folders of a teacher and a student, and the teacher's template."""
    text = f"{request.param}{TULU.text}"
    return (
        llama_tokenizer(tmp_path / "tulu", ("<pad>",), text), llama_tokenizer(tmp_path / "llama"), Template(text, END)
    )  # fmt: skip


@pytest.mark.parametrize("dialogue", DIALOGUES, ids=["one turn", "several turns", "system"])
def test_teacher_and_student_are_fed_the_ids_of_what_the_template_writes(
    pair: tuple[Path, Path, Template], dialogue: tuple[Message, ...]
) -> None:
    teacher, student, template = pair
    by_library = Tokenizer.from_file(str(teacher / "tokenizer.json"))
    names = {"bos_token": BOS, "eos_token": END}
    written = render(template.text, dialogue, False, names).removeprefix(BOS)
    asked = render(template.text, dialogue[:-1], True, names).removeprefix(BOS)
    expected = by_library.encode(BOS + written, add_special_tokens=False).ids
    for folder in (teacher, student):
        encoder = Encoder(reading.Tokenizer.of(folder), template)
        prompt, answer = encoder.prompt(dialogue[:-1]), encoder.answer(dialogue[:-1], dialogue[-1].content)
        assert prompt == by_library.encode(asked).ids, "one BOS, whoever writes it"
        assert prompt + answer == expected
        assert by_library.id_to_token(answer[-1]) == END
        ids, mask = encoder.dialogue(dialogue)
        assert ids == expected
        assert [n for n, is_trained in enumerate(mask) if is_trained][-len(answer) :] == [
            *range(len(prompt), len(expected))
        ]
        assert sum(ids[n] == answer[-1] for n, is_trained in enumerate(mask) if is_trained) == sum(
            message.role == "assistant" for message in dialogue
        ), "every end of an answer is trained"


def test_the_end_is_what_the_template_writes_and_the_roles_are_text(pair: tuple[Path, Path, Template]) -> None:
    teacher, student, template = pair
    assert template_in(teacher, NO_CHOICE) == template
    assert template_in(student, NO_CHOICE) is None, "a base model, which gets the teacher's"
    encoder = Encoder(reading.Tokenizer.of(student), template)
    shown = [encoder.tokenizer.token_of(id_) for id_ in encoder.prompt(DIALOGUES[0][:-1])]
    assert shown[0] == BOS
    assert not set(shown[1:]) & set(SPECIALS)
    assert EOT not in encoder.template.text


def test_a_signal_for_the_student_leaves_the_teacher_s_own_token_out(
    pair: tuple[Path, Path, Template], tmp_path: Path
) -> None:
    teacher, student, template = pair
    count = len(reading.Tokenizer.of(student).vocabulary)
    for folder, rows in ((teacher, count + 8), (student, count)):
        save(tiny_llama(vocabulary=rows), reading.Tokenizer.of(folder), folder, template.text, END)
    names = Names(Store.find(tmp_path / "adpa-store", create=True))
    models_ = [names.folder(folder) for folder in (student, teacher)]
    assert lineage.smaller_vocabulary(*models_, names.store) == count
    rows = published()
    assert rows["tulu-3-8b"].size.vocabulary - rows["llama-3.2-1b"].size.vocabulary == 8
