"""Chat templates: Jinja that writes turns as the text a model reads. One renderer serves plans, training and answers.

It renders as the transformers library does, without importing it, and a date is always the same one. What a template
does with an answer is found out by rendering: the token that follows one, and whether reasoning before it is kept.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from adpa_cli.data.examples import TOOLS, Message, turn_dict
from adpa_cli.errors import DataError, UsageError

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
DAY = "26 Jul 2024"
Thinking = Literal["off", "keep"]
RULES: Mapping[Thinking, str] = {
    "off": "{%- set enable_thinking = false -%}{%- set thinking = false -%}",
    "keep": "{%- set enable_thinking = true -%}{%- set thinking = true -%}",
}
"""What is put before a template of a thinking model, so that it is asked the same way wherever it is used."""
CLOSED = "</think>"
SWITCHES = re.compile(r"</think>|enable_thinking|\bif thinking\b|\bthinking is defined\b")
"""What only templates of models that reason hold."""
OPENED = re.compile(r"<think>\s*\Z")
ASKED, SAID, NAMED, RESULT = (f"QZ{letter}QZ" for letter in "uatr")
"""Texts that no template holds."""


def render(text: str, messages: Sequence[Message], ask: bool, names: Mapping[str, str]) -> str:
    """The text that a template writes for some turns, with the header that asks for an answer if `ask`.

    `names` are the special tokens as templates call them, such as `bos_token`. Raises DataError where the template
    refuses the turns, does not write the tools or the calls among them, or is no Jinja.
    """
    import jinja2

    tools = json.loads(messages[0].content) if messages and messages[0].role == TOOLS else None
    turns = [turn_dict(message) for message in messages if message.role != TOOLS]
    if (tools or any(turn["role"] == "tool" or turn.get("tool_calls") for turn in turns)) and not knows_tools(text):
        raise DataError(
            "the chat template does not write tools: these turns have tools or calls of them, which would be lost",
            "leave such rows out (--skip-bad-rows), or give a template that writes them: --template FILE",
        )
    try:
        return _rendered(text, turns, tools, ask, names)
    except (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
        roles = ", ".join(turn["role"] for turn in turns)
        raise DataError(
            f"the chat template refuses these turns ({roles}): {error}",
            "leave such rows out (--skip-bad-rows), or give a template that takes them: --template FILE",
        ) from error


def _rendered(text: str, turns: Sequence[Any], tools: Any, ask: bool, names: Mapping[str, str]) -> str:
    template = _compiled((CLOCK if "strftime_now" in text else "") + text)
    return str(template.render(messages=turns, tools=tools, documents=None, add_generation_prompt=ask, **names))


@functools.lru_cache(maxsize=64)
def _compiled(text: str) -> Any:
    """A template, compiled as the transformers library does."""
    import jinja2
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` marks what an assistant says, and writes nothing itself."""

        tags = {"generation"}  # noqa: RUF012  as jinja2 declares it

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(value: Any, ensure_ascii: bool = False, **more: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **more)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    return environment.from_string(text)


@functools.lru_cache(maxsize=64)
def knows_tools(text: str) -> bool:
    """Whether a template writes the tools that a model may call, its calls, and their results."""
    function = {"name": NAMED, "description": NAMED, "parameters": {"type": "object", "properties": {}}}
    call = {"id": "QZcallQZ1", "type": "function", "function": {"name": NAMED, "arguments": {"a": "b"}}}
    asked = [{"role": "user", "content": ASKED}]
    called = [
        *asked,
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": RESULT, "name": NAMED, "tool_call_id": "QZcallQZ1"},
        {"role": "assistant", "content": SAID},
    ]
    names = {"bos_token": "", "eos_token": ""}
    try:
        offered = _rendered(text, asked, [{"type": "function", "function": function}], True, names)
        done = _rendered(text, called, None, False, names)
    except Exception:  # a template may raise anything
        return False
    return NAMED in offered and NAMED in done and RESULT in done


def refusal(text: str, messages: Sequence[Message]) -> str:
    """Why a template refuses turns with these roles, whatever they say; "" where it takes them."""
    shape = tuple((m.role, bool(m.more), m.content if m.role == TOOLS else "") for m in messages)
    return _refusal(text, shape)


@functools.lru_cache(maxsize=4096)
def _refusal(text: str, shape: tuple[tuple[str, bool, str], ...]) -> str:
    call = {"type": "function", "id": "QZcallQZ1", "function": {"name": NAMED, "arguments": {}}}
    more = {"assistant": json.dumps({"tool_calls": [call]}), "tool": json.dumps({"tool_call_id": "QZcallQZ1"})}
    turns = [Message(role, said or ASKED, more.get(role, "") if has_more else "") for role, has_more, said in shape]
    try:
        render(text, turns, False, {"bos_token": "", "eos_token": ""})
    except DataError as error:
        return error.message
    return ""


def answer_end(text: str, names: Mapping[str, str], tokens: Iterable[str]) -> str:
    """The token that a template writes after an answer, of those that the tokenizer parses; "" where it writes none.

    Spaces between the answer and the token belong to the answer.
    """
    after = _written(text, names, ask=False).rpartition(SAID)[2]
    known = sorted({*tokens, *names.values()} - {""}, key=len, reverse=True)
    found = re.search("|".join(map(re.escape, known)), after) if known else None
    return found[0] if found and not after[: found.start()].strip() else ""


def _written(text: str, names: Mapping[str, str], ask: bool) -> str:
    """What a template writes for a question and its answer, or for the question and the header that asks."""
    turns = [Message("user", ASKED), Message("assistant", SAID)]
    return render(text, turns[:1] if ask else turns, ask, names)


def with_thinking(text: str, names: Mapping[str, str], rule: Thinking | None) -> str:
    """A template under one rule for reasoning (`<think>…</think>`) before an answer, in training and when asked.

    "keep" lets the model reason, and keeps reasoning in answers that have it. "off" asks for an answer at once, and
    takes reasoning out of answers. Without a rule the template stays as it is, but where it opens a block of reasoning
    that it never writes in a finished dialogue, as R1's does: there it is "off". Raises UsageError for a rule where
    the template knows no reasoning.
    """
    if text.startswith(tuple(RULES.values())):
        return text
    if not SWITCHES.search(text):
        if rule is not None:
            raise UsageError(
                f"--thinking {rule}: the chat template knows no reasoning ({CLOSED})", "leave out --thinking"
            )
        return text
    opens = opens_only(text, names)
    if rule == "off" or (rule is None and opens):
        return RULES["off"] + (_unopened(text, names) if opens else text)
    kept = RULES["keep"] + text
    return kept if rule == "keep" and (opens or not _alike(text, kept, names)) else text


def _alike(one: str, other: str, names: Mapping[str, str]) -> bool:
    """Whether two templates write the same."""
    return all(_written(one, names, ask) == _written(other, names, ask) for ask in (True, False))


def opens_only(text: str, names: Mapping[str, str]) -> bool:
    """Whether a template asks for an answer by an opened block of reasoning that finished dialogues do not have."""
    asked = _written(text, names, ask=True)
    return bool(OPENED.search(asked)) and not _written(text, names, ask=False).startswith(asked)


def _unopened(text: str, names: Mapping[str, str]) -> str:
    """A template that no longer opens a block of reasoning when it asks. Raises UsageError where that is not seen."""
    wanted = OPENED.sub("", _written(text, names, ask=True)), _written(text, names, ask=False)
    for opening in ("<think>\\n\\n", "<think>\\n", "<think>\n", "<think>"):
        changed = text.replace(opening, "")
        if (_written(changed, names, ask=True), _written(changed, names, ask=False)) == wanted:
            return changed
    raise UsageError(
        "--thinking off: the chat template opens a block of reasoning in a way that cannot be taken out",
        "use --thinking keep, or give a template without it: --template FILE",
    )


def thinking_of(text: str) -> Thinking | None:
    """The rule that a template was put under; None without one."""
    return next((rule for rule, lead in RULES.items() if text.startswith(lead)), None)


def without_thinking(said: str) -> str:
    """An answer without the reasoning before it."""
    return said.rpartition(CLOSED)[2].lstrip("\n") if CLOSED in said else said


def thought(said: str) -> str:
    """The reasoning of an answer, as it follows an opened block; "" where it has none."""
    before, closed, _ = said.rpartition(CLOSED)
    return before.rpartition("<think>")[2].strip("\n") if closed else ""


def thinking_words(text: str) -> str:
    """What is said of the rule for reasoning of a template; "" where it knows none."""
    rule = thinking_of(text)
    if rule == "off":
        return "thinking off: answers are asked for at once, and reasoning (<think>…</think>) is taken out of them"
    if rule == "keep" or SWITCHES.search(text):
        return "thinking kept: reasoning (<think>…</think>) before an answer is trained as the chat template writes it"
    return ""
