"""The named templates write what the published ones of their families write, worked out by hand."""

from __future__ import annotations

import pytest

from adpa_cli.data.examples import Message
from adpa_cli.data.rendering import render
from adpa_cli.data.templates import GEMMA3, LLAMA3, TEMPLATES, ZEPHYR, Template, write_alike
from adpa_cli.errors import DataError

ASKED, SAID, AGAIN = Message("user", "Hi"), Message("assistant", "Yo"), Message("user", "And?")
SYSTEM = Message("system", "Be brief.")
SMOLLM = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
QWEN = "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
CHATML = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


def written(name: str, *turns: Message, ask: bool = True) -> str:
    return render(TEMPLATES[name].text, turns, ask, {"bos_token": "<B>", "eos_token": "<E>"})


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("zephyr", "<B><|user|>\nHi<E>\n<|assistant|>\n"),
        ("llama-3", "<B><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
                    "<|start_header_id|>assistant<|end_header_id|>\n\n"),
        ("zephyr-release", "<B><|system|>\n<E>\n<|user|>\nHi<E>\n<|assistant|>\n"),
        ("llama-3-release", "<B><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
                            "<|start_header_id|>assistant<|end_header_id|>\n\n"),
        ("chatml", CHATML),
        ("smollm2", SMOLLM + CHATML),
        ("qwen2.5", QWEN + CHATML),
        ("gemma", "<B><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n"),
        ("gemma-3", "<B><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n"),
        ("tulu", "<|user|>\nHi\n<|assistant|>\n"),
        ("olmo-2", "<B><|user|>\nHi\n<|assistant|>\n"),
    ],
)  # fmt: skip
def test_a_question_is_written_as_the_family_writes_it(name: str, expected: str) -> None:
    assert written(name, ASKED) == expected


def test_the_release_strips_what_is_said_and_keeps_a_system_turn_that_is_there() -> None:
    loose = (Message("user", " Hi\n"), Message("assistant", "\nYo "))
    tight = written("llama-3", ASKED, SAID, ask=False)
    assert written("llama-3-release", *loose, ask=False) == tight != written("llama-3", *loose, ask=False)
    assert written("zephyr-release", SYSTEM, ASKED) == written("zephyr", SYSTEM, ASKED)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("smollm2", f"{SMOLLM}{CHATML}Yo<|im_end|>\n<|im_start|>user\nAnd?<|im_end|>\n<|im_start|>assistant\n"),
        ("gemma-3", "<B><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\nYo<end_of_turn>\n"
                    "<start_of_turn>user\nAnd?<end_of_turn>\n<start_of_turn>model\n"),
        ("tulu", "<|user|>\nHi\n<|assistant|>\nYo<E>\n<|user|>\nAnd?\n<|assistant|>\n"),
        ("olmo-2", "<B><|user|>\nHi\n<|assistant|>\nYo<E>\n<|user|>\nAnd?\n<|assistant|>\n"),
    ],
)  # fmt: skip
def test_several_turns_are(name: str, expected: str) -> None:
    assert written(name, ASKED, SAID, AGAIN) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("smollm2", f"<|im_start|>system\nBe brief.<|im_end|>\n{CHATML}"),
        ("qwen2.5", f"<|im_start|>system\nBe brief.<|im_end|>\n{CHATML}"),
        ("gemma-3", "<B><start_of_turn>user\nBe brief.\n\nHi<end_of_turn>\n<start_of_turn>model\n"),
        ("tulu", "<|system|>\nBe brief.\n<|user|>\nHi\n<|assistant|>\n"),
        ("olmo-2", "<B><|system|>\nBe brief.\n<|user|>\nHi\n<|assistant|>\n"),
    ],
)
def test_a_system_turn_is(name: str, expected: str) -> None:
    assert written(name, SYSTEM, ASKED) == expected


@pytest.mark.parametrize("name", TEMPLATES)
def test_an_answer_follows_what_asks_for_it_and_its_end_follows_the_answer(name: str) -> None:
    asked, said = written(name, ASKED), written(name, ASKED, SAID, ask=False)
    assert said.startswith(f"{asked}Yo{TEMPLATES[name].end or '<E>'}")


def test_the_last_answer_of_tulu_and_olmo_has_no_line_break_after_its_end() -> None:
    for name in ("tulu", "olmo-2"):
        assert written(name, ASKED, SAID, ask=False).endswith("\nYo<E>")


@pytest.mark.parametrize("name", ["gemma", "gemma-3"])
def test_gemma_takes_question_and_answer_in_turn_only(name: str) -> None:
    with pytest.raises(DataError, match="must alternate"):
        written(name, ASKED, ASKED)
    if name == "gemma":
        with pytest.raises(DataError, match="System role not supported"):
            written(name, SYSTEM, ASKED)
    assert "Hi<end_of_turn>" in written(name, Message("user", "  Hi \n"))


def test_templates_that_differ_in_dates_and_tools_write_alike() -> None:
    dated = Template("{{ strftime_now('%d %b %Y') }}{% if tools %}{{ tools }}{% endif %}" + LLAMA3.text, LLAMA3.end)
    fixed = Template("26 Jul 2024" + LLAMA3.text, LLAMA3.end)
    assert write_alike(dated, fixed)
    assert not write_alike(fixed, LLAMA3)
    assert not write_alike(LLAMA3, Template(LLAMA3.text, "<|end|>"))
    trims = Template(LLAMA3.text.replace("message['content']", "message['content'] | trim"), LLAMA3.end)
    assert not write_alike(LLAMA3, trims)
    takes_system = Template(GEMMA3.text.replace("raise_exception", "bos_token + "), GEMMA3.end)
    assert not write_alike(GEMMA3, takes_system), "what one refuses and the other writes is not alike"


def test_the_paper_s_templates_have_not_moved() -> None:
    """Their texts are part of the ids of all that was made with them."""
    import hashlib

    digests = [hashlib.sha256(template.text.encode()).hexdigest()[:12] for template in (ZEPHYR, LLAMA3)]
    assert digests == ["517dd3713685", "dc3a33522f2d"]
    assert (ZEPHYR.end, LLAMA3.end) == ("", "<|eot_id|>")
