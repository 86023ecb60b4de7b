"""Chat templates by name, for base models that bring none and for `--template NAME`.

Each writes what the published template of its family writes for turns of text, so that a base model that is fine-tuned
here and the family's own instruct model read the same tokens. `zephyr` and `llama-3` are the paper's: they write BOS
and strip nothing. A text is part of the ids of all that was made with it, so it stays; another text is another name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from adpa_cli.data.examples import Message
from adpa_cli.data.rendering import render
from adpa_cli.errors import DataError


@dataclass(frozen=True)
class Template:
    """A chat template (Jinja) and the token that ends a turn of the assistant; "" means the tokenizer's EOS."""

    text: str
    end: str = ""


BOS = "{% if bos_token %}{{ bos_token }}{% endif %}"
ALTERNATE = (
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
)
"""Put into the loop over the turns of templates that take questions and answers in turn only."""

ZEPHYR = Template(
    BOS + "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\\n' + message['content'] + eos_token + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
ZEPHYR_RELEASE = Template(
    BOS
    + "{% if messages[0]['role'] != 'system' %}{{ '<|system|>\\n' + eos_token + '\\n' }}{% endif %}"
    + ZEPHYR.text.removeprefix(BOS)
)
"""Zephyr's as the alignment-handbook writes it, on whose scripts the released ADPA rests: a dialogue without a system
turn begins with an empty one."""
LLAMA3 = Template(
    BOS + "{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] + '<|eot_id|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}",
    "<|eot_id|>",
)
LLAMA3_RELEASE = Template(LLAMA3.text.replace("message['content']", "message['content'] | trim"), LLAMA3.end)
"""Llama 3's as the released ADPA has it in its recipe of fine-tuning: what is said is stripped."""
CHATML = Template(
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
    "<|im_end|>",
)


def _with_system(words: str) -> Template:
    """ChatML that begins with these words where a dialogue has no system turn."""
    begin = f"{{{{ '<|im_start|>system\\n{words}<|im_end|>\\n' }}}}"
    return Template(f"{{% if messages[0]['role'] != 'system' %}}{begin}{{% endif %}}{CHATML.text}", CHATML.end)


SMOLLM2 = _with_system("You are a helpful AI assistant named SmolLM, trained by Hugging Face")
QWEN25 = _with_system("You are Qwen, created by Alibaba Cloud. You are a helpful assistant.")

_GEMMA_TURN = (
    "{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\\n' }}"
    "{% if loop.first %}{{ before }}{% endif %}"
    "{{ message['content'] | trim + '<end_of_turn>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)
GEMMA = Template(
    "{{ bos_token }}"
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}" + ALTERNATE + _GEMMA_TURN,
    "<end_of_turn>",
)
"""Of Gemma 1 and 2, which know no system turn."""
GEMMA3 = Template(
    "{{ bos_token }}"
    "{% set turns = messages %}{% set before = '' %}"
    "{% if messages[0]['role'] == 'system' %}"
    "{% set turns = messages[1:] %}{% set before = messages[0]['content'] + '\\n\\n' %}"
    "{% endif %}"
    "{% for message in turns %}" + ALTERNATE + _GEMMA_TURN,
    "<end_of_turn>",
)
"""Of Gemma 3, which writes a system turn into the first question."""

TULU = Template(
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\\n' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% if message['role'] != 'assistant' or not loop.last %}{{ '\\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
"""Of Tulu 3; its tokenizer puts BOS before the text."""
OLMO2 = Template("{{ bos_token }}" + TULU.text)

TEMPLATES: Mapping[str, Template] = {
    "zephyr": ZEPHYR,
    "zephyr-release": ZEPHYR_RELEASE,
    "llama-3": LLAMA3,
    "llama-3-release": LLAMA3_RELEASE,
    "chatml": CHATML,
    "smollm2": SMOLLM2,
    "qwen2.5": QWEN25,
    "gemma": GEMMA,
    "gemma-3": GEMMA3,
    "tulu": TULU,
    "olmo-2": OLMO2,
}

_ASKED, _SAID, _RULED = Message("user", " a\n"), Message("assistant", " b\n"), Message("system", " c\n")
_DIALOGUES = (
    (_ASKED,), (_ASKED, _SAID), (_ASKED, _SAID, _ASKED, _SAID), (_RULED, _ASKED, _SAID), (_ASKED, _ASKED), (_RULED,)
)  # fmt: skip


def write_alike(one: Template, other: Template) -> bool:
    """Whether two templates end turns alike and write the same for one turn, several, a system turn, and odd ones.

    So do the templates of siblings that differ in tools or in how they name a day.
    """
    return one.end == other.end and all(
        _written(one, turns, ask) == _written(other, turns, ask) for turns in _DIALOGUES for ask in (True, False)
    )


def _written(template: Template, turns: tuple[Message, ...], ask: bool) -> str | None:
    """What a template writes for some turns; None where it refuses them."""
    try:
        # Whether a template writes BOS makes no difference: there is one where the tokenizer puts it, in either case.
        return render(template.text, turns, ask, {"bos_token": "", "eos_token": template.end})
    except DataError:
        return None
