"""Ollama's template must write the very prompt that the chat template writes: checked with a small Go interpreter."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from adpa_cli.data.examples import Message
from adpa_cli.data.templates import LLAMA3, ZEPHYR
from adpa_cli.errors import DataError
from adpa_cli.interchange.export import Render, go_template

LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}"
    "{% set system = '<<SYS>>\\n' + messages[0]['content'] + '\\n<</SYS>>\\n\\n' %}"
    "{% set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}"
    "{% for m in messages %}{% if m['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + (system if loop.index0 == 0 else '') + m['content'].strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
QWEN = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\nYou are {{kind}}.<|im_end|>\\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
NO_SYSTEM = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "{{ '<' + m['role'] + '>' + m['content'] + '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
PHI = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\\n' + m['content'] + '<|end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}"
)
LAST_ONLY = "{{ 'Q: ' + messages[-1]['content'] }}{% if add_generation_prompt %}{{ '\\nA:' }}{% endif %}"
TWICE = "{% for m in messages %}{{ m['content'] + m['content'] }}{% endfor %}"
FIRST = [Message("user", "hi {there}")]
SECOND = [*FIRST, Message("assistant", "a\nb"), Message("user", "and?")]
SYSTEM = [Message("system", "Be brief.")]


def renderer(template: str) -> Render:
    def refuse(text: str) -> str:
        raise jinja2.TemplateError(text)

    # the settings of transformers
    surroundings = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    surroundings.filters["tojson"] = lambda value, **_: json.dumps(value)
    compiled = surroundings.from_string(template)

    def render(turns: Sequence[Message], asked: bool) -> str:
        try:
            return compiled.render(
                messages=[vars(turn) for turn in turns], add_generation_prompt=asked, bos_token="<s>",
                eos_token="</s>", raise_exception=refuse, strftime_now=lambda _: "26 Jul 2024",
            )  # fmt: skip
        except jinja2.TemplateError as error:
            raise DataError(str(error)) from error

    return render


class Go:
    """The part of Go's text/template that Ollama's templates need, written from its documentation."""

    def __init__(self, text: str) -> None:
        self.parts = re.split(r"(\{\{.*?\}\})", text)
        self.variables: dict[str, Any] = {}

    def run(self, root: Mapping[str, Any]) -> str:
        self.root = root
        text, at, _ = self._block(0, root, True)
        assert at == len(self.parts)
        return text

    def _block(self, at: int, dot: Any, live: bool) -> tuple[str, int, str]:
        """Text up to the `end` or `else` that closes the block at hand, where that is, and what it says."""
        said = ""
        while at < len(self.parts):
            part = self.parts[at]
            at += 1
            if not part.startswith("{{"):
                said += part if live else ""
                continue
            word = part[2:-2].strip()
            if word == "end" or word.startswith("else"):
                return said, at, word
            if word.startswith("if "):
                inner, at = self._if(word[3:], at, dot, live)
                said += inner
            elif word.startswith("range "):
                start, items = at, self._value(word[6:], dot) if live else []
                _, at, _ = self._block(start, dot, False)
                said += "".join(self._block(start, item, True)[0] for item in items)
            elif match := re.fullmatch(r"(\$\w+) :?= (\w+)", word):
                if live:
                    self.variables[match[1]] = match[2] == "true"
            elif live:
                said += str(self._value(word, dot))
        return said, at, ""

    def _if(self, condition: str, at: int, dot: Any, live: bool) -> tuple[str, int]:
        holds = live and bool(self._value(condition, dot))
        said, at, closing = self._block(at, dot, holds)
        if closing.startswith("else if "):
            other, at = self._if(closing[8:], at, dot, live and not holds)
            return said + other, at
        if closing == "else":
            other, at, closing = self._block(at, dot, live and not holds)
            said += other
        assert closing == "end"
        return said, at

    def _value(self, word: str, dot: Any) -> Any:
        if word.startswith("eq "):
            left, right = word[3:].split(" ")
            return self._value(left, dot) == self._value(right, dot)
        if word.startswith('"'):
            return word[1:-1]
        if word.startswith("$."):
            return self.root[word[2:]]
        if word.startswith("."):
            return dot[word[1:]]
        return self.variables[word]


def ollama(template: str, turns: Sequence[Message]) -> str:
    """What Ollama sends to the model for a conversation."""
    system = "\n\n".join(turn.content for turn in turns if turn.role == "system")
    messages = [{"Role": turn.role, "Content": turn.content} for turn in turns]
    prompt = next(turn.content for turn in reversed(turns) if turn.role == "user")
    return Go(template).run({"System": system, "Messages": messages, "Prompt": prompt, "Response": ""})


@pytest.mark.parametrize("template", [ZEPHYR.text, LLAMA3.text, LLAMA2, QWEN, PHI])
@pytest.mark.parametrize("turns", [FIRST, SECOND, SYSTEM + FIRST, SYSTEM + SECOND])
def test_every_conversation_is_written_as_the_chat_template_writes_it(template: str, turns: list[Message]) -> None:
    translated, several = go_template(renderer(template))
    assert several
    assert ollama(translated, turns) == renderer(template)(turns, True)


def test_a_template_that_takes_no_system_message_still_takes_turns() -> None:
    translated, several = go_template(renderer(NO_SYSTEM))
    assert several
    assert ollama(translated, SECOND) == "<user>hi {there}</s><assistant>a\nb</s><user>and?</s><assistant>"
    assert "System" not in translated


@pytest.mark.parametrize(
    "name", ["llama3_2", "qwen2_5", "qwen3", "gemma3", "phi3_5", "gptoss", "deepseekv3", "cohere2"]
)
def test_templates_of_known_models_are_written_as_they_write_them(name: str) -> None:
    path = Path(str(resources.files("trl"))) / "chat_templates" / f"{name}.jinja"
    if not path.exists():
        pytest.skip(f"this trl brings no {name}.jinja")
    render = renderer(path.read_text(encoding="utf-8"))
    translated, several = go_template(render)
    assert several
    for turns in (FIRST, SECOND, SYSTEM + FIRST, SYSTEM + SECOND):
        assert ollama(translated, turns) == render(turns, True)


def test_one_bos_is_left_to_ollama() -> None:
    assert ollama(go_template(renderer(ZEPHYR.text), "<s>")[0], FIRST) == "<|user|>\nhi {there}</s>\n<|assistant|>\n"
    assert ollama(go_template(renderer(ZEPHYR.text), "<s>")[0], SYSTEM + FIRST).startswith("<|system|>\nBe brief.")


def test_a_template_of_one_question_is_written_for_one_question() -> None:
    translated, several = go_template(renderer(LAST_ONLY))
    assert not several
    assert ollama(translated, FIRST) == "Q: hi {there}\nA:"


def test_a_template_that_changes_its_turns_is_refused() -> None:
    with pytest.raises(DataError, match="cannot be written as a Go template"):
        go_template(renderer(TWICE))
