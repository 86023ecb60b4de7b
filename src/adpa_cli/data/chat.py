"""From turns to token ids: one template, one BOS, one end token, and a mask that is built, never searched for.

A prompt is rendered and tokenised whole. An answer is tokenised apart and ended with one end token, so that the same
answer has the same ids after any prompt: teacher and student, training and cache, see identical tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from adpa_cli.data.examples import Message
from adpa_cli.errors import AdpaError, DataError

FIXED_DAY = {
    "%d": "26", "%b": "Jul", "%B": "July", "%m": "07", "%Y": "2024", "%y": "24", "%a": "Fri", "%A": "Friday",
    "%H": "00", "%M": "00", "%S": "00",
}  # fmt: skip
CLOCK = (
    "{%- macro strftime_now(format) -%}{{ format"
    + "".join(f"|replace('{mark}', '{text}')" for mark, text in FIXED_DAY.items())
    + " }}{%- endmacro -%}"
)
"""Put before templates that print today's date: or a prompt would be another one tomorrow."""


@dataclass(frozen=True)
class Template:
    """A chat template (Jinja) and the token that ends a turn of the assistant; "" means the tokenizer's EOS."""

    text: str
    end: str = ""


BOS = "{% if bos_token %}{{ bos_token }}{% endif %}"
ZEPHYR = Template(
    BOS + "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\\n' + message['content'] + eos_token + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
LLAMA3 = Template(
    BOS + "{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] + '<|eot_id|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}",
    "<|eot_id|>",
)
DEFAULT_TEMPLATES = {"zephyr": ZEPHYR, "llama-3": LLAMA3}


@dataclass(frozen=True)
class Encoded:
    """Token ids of a prompt and an answer that fit together, and how many tokens of each were cut away."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    cut_prompt: int = 0
    cut_answer: int = 0


class Encoder:
    """A tokenizer under one template. Raises AdpaError when the end token is not one token of the vocabulary.

    `bos_id` is None when the tokenizer does not begin a text with one; `template.end` is always spelled out.
    """

    def __init__(self, tokenizer: Any, template: Template) -> None:
        self.tokenizer = tokenizer
        self.template = replace(template, end=template.end or tokenizer.eos_token or "")
        self.end_id = single_token(tokenizer, self.template.end)
        self.bos_id: int | None = None
        bos = tokenizer.bos_token_id
        if bos is not None and tokenizer("a", add_special_tokens=True)["input_ids"][:1] == [bos]:
            self.bos_id = bos
        self._line_break = self._plain("\n")

    @property
    def pad_id(self) -> int:
        """The id that fills up shorter rows."""
        return pad_id(self.tokenizer, self.end_id)

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Ids of the turns and of the header that asks for an answer, with one BOS if the tokenizer uses one."""
        return self._begin(self.render(messages, ask=True))

    def answer(self, text: str) -> list[int]:
        """Ids of an answer and one end token. Names of special tokens inside the text are read as plain text."""
        alone = self._plain(text)
        # SentencePiece tokenizers put a space before the first word of a text; after a line break they do not.
        after = self._plain("\n" + text)
        inside = after[: len(self._line_break)] == self._line_break
        return [*(after[len(self._line_break) :] if inside else alone), self.end_id]

    def dialogue(self, messages: Sequence[Message]) -> tuple[list[int], list[bool]]:
        """Ids of a dialogue up to its last answer, and True on every answer token, the end tokens included.

        Raises DataError when the template renders a beginning differently from the whole, or ends turns otherwise.
        """
        full = self.render(messages, ask=False)
        ids: list[int] = []
        mask: list[bool] = []
        position = 0
        for index, message in enumerate(messages):
            if message.role != "assistant":
                continue
            before = self.render(messages[:index], ask=True)
            said = self._said(full, before, position, message.content, index)
            lead = self._begin(before) if not ids else self._ids(before[position:])
            answer = self.answer(said)
            ids += lead + answer
            mask += [False] * len(lead) + [True] * len(answer)
            position = len(before) + len(said) + len(self.template.end)
        return ids, mask

    def decode(self, ids: Sequence[int], special: bool = False) -> str:
        """The text of some ids, with or without the special tokens."""
        text = self.tokenizer.decode(list(ids), skip_special_tokens=not special, clean_up_tokenization_spaces=False)
        return str(text)

    def render(self, messages: Sequence[Message], ask: bool) -> str:
        """The text of the turns, with the header that asks for an answer if `ask`."""
        import jinja2

        turns = [{"role": message.role, "content": message.content} for message in messages]
        try:
            text = self.tokenizer.apply_chat_template(
                turns,
                chat_template=(CLOCK if "strftime_now" in self.template.text else "") + self.template.text,
                add_generation_prompt=ask,
                tokenize=False,
                eos_token=self.template.end,  # a base model's own is another one, until it is trained and saved
            )
        except jinja2.TemplateError as error:
            roles = ", ".join(message.role for message in messages)
            hint = "leave such rows out, or choose a template that takes them"
            raise DataError(f"the chat template refuses these turns ({roles}): {error}", hint) from error
        return str(text)

    def _said(self, full: str, before: str, position: int, content: str, index: int) -> str:
        """The answer as the template writes it (as it is, or stripped), which the end token must follow."""
        if full.startswith(before) and len(before) >= position:
            rest = full[len(before) :]
            for said in (content, content.strip()):
                if rest.startswith(said + self.template.end):
                    return said
            fault = f"writes {rest[: len(content) + 20]!r} where the answer and {self.template.end!r} belong"
        else:
            fault = "renders the beginning of a dialogue differently from the whole"
        message = f"no mask can be made: the chat template {fault} (turn {index + 1})"
        raise DataError(message, "choose a template that writes each turn once and ends it with the end token")

    def _plain(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _begin(self, text: str) -> list[int]:
        """Ids of a rendered beginning; templates that write BOS and those that do not give the same."""
        ids = self._ids(text)
        bos = self.tokenizer.bos_token_id
        written = 0
        while bos is not None and ids[written : written + 1] == [bos]:
            written += 1
        return ([bos] if written or self.bos_id is not None else []) + ids[written:]


def pad_id(tokenizer: Any, end_id: int) -> int:
    """The padding of a tokenizer, or `end_id` where it has none."""
    padding: int | None = tokenizer.pad_token_id
    return end_id if padding is None else padding


def single_token(tokenizer: Any, end: str) -> int:
    """The id of an end token. Raises AdpaError when the tokenizer does not hold it as one token."""
    ids = tokenizer(end, add_special_tokens=False)["input_ids"] if end else []
    if len(ids) == 1 and tokenizer.convert_ids_to_tokens(ids[0]) == end:
        return int(ids[0])
    fault = f"{end!r} is {len(ids)} tokens of this tokenizer" if end else "the tokenizer has no end token"
    known = ", ".join(repr(token) for token in tokenizer.all_special_tokens) or "none"
    raise AdpaError(f"no end of turn: {fault}, not one", f"choose one of its special tokens as end token: {known}")


def fit(
    prompt: Sequence[int], answer: Sequence[int], max_length: int, *, bos_id: int | None = None, where: str = "a row"
) -> Encoded:
    """A prompt and an answer within `max_length` tokens together.

    Only when the whole is too long is the prompt cut from the left (after a leading BOS), down to half of `max_length`
    at most; then the answer is cut on the right, and loses its end token. Raises DataError when nothing useful is left.
    """
    keep = min(len(prompt), max(max_length - len(answer), max_length // 2))
    lead = 1 if bos_id is not None and prompt[:1] and prompt[0] == bos_id else 0
    room = max_length - keep
    if (answer and room < 1) or (len(prompt) > lead and keep <= lead):
        message = f"{where}: prompt of {len(prompt)} and answer of {len(answer)} tokens do not fit into {max_length}"
        raise DataError(message, f"--set max_length={len(prompt) + len(answer)}")
    tail = prompt[len(prompt) - (keep - lead) :] if keep < len(prompt) else prompt[lead:]
    kept = answer[:room]
    return Encoded((*prompt[:lead], *tail), tuple(kept), len(prompt) - keep, len(answer) - len(kept))


def fit_dialogue(
    ids: Sequence[int], mask: Sequence[bool], max_length: int, *, bos_id: int | None = None, where: str = "a row"
) -> tuple[list[int], list[bool], int]:
    """A dialogue within `max_length` tokens by the rule of `fit`, its first prompt and the rest; and the tokens cut."""
    lead = list(mask).index(True)
    fitted = fit(ids[:lead], ids[lead:], max_length, bos_id=bos_id, where=where)
    kept = [False] * len(fitted.prompt) + list(mask[lead : lead + len(fitted.answer)])
    return [*fitted.prompt, *fitted.answer], kept, fitted.cut_prompt + fitted.cut_answer
