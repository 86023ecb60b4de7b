"""Chat templates: Jinja that writes turns as the text a model reads. One renderer serves plans, training and answers.

It renders as the transformers library does, without importing it, and a date is always the same one. What a template
does with an answer is found out by rendering: the token that follows one, and whether reasoning before it is kept.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile
from typing import Any, Literal

from adpa_cli.data.examples import TOOLS, Message, turn_dict
from adpa_cli.errors import DataError, UsageError

FIXED_DAY = {
    "%-d": "26", "%e": "26", "%d": "26", "%b": "Jul", "%B": "July", "%-m": "7", "%m": "07", "%Y": "2024", "%y": "24",
    "%a": "Fri", "%A": "Friday", "%j": "208", "%F": "2024-07-26", "%H": "00", "%I": "12", "%p": "AM", "%M": "00",
    "%S": "00",
}  # fmt: skip
CLOCK = (
    "{%- macro strftime_now(format) -%}{{ format"
    + "".join(f"|replace('{mark}', '{text}')" for mark, text in FIXED_DAY.items())
    + " }}{%- endmacro -%}"
)
"""Put before templates that print today's date where they are saved: or a prompt would be another one tomorrow."""
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
REASONING = "reasoning_content"
"""What turns have their reasoning in, where it stands beside their text."""
OPENED = re.compile(r"<think>\s*\Z")
BLOCK = re.compile(r"<think>\s*(</think>\s*)?\Z")
"""A block of reasoning that a prompt opens, or opens and closes, so that none is written."""
TOKEN_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""The tokens that a configuration names, as chat templates call them."""
NO_TOKENS = dict.fromkeys(TOKEN_NAMES, "")
ASKED, SAID, NAMED, RESULT, RULED = (f"QZ{letter}QZ" for letter in "uatrs")
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
            "the chat template cannot write tools, and these turns contain tools or tool calls, which would be lost",
            "skip such rows (--skip-bad-rows), or use a template that supports tools: --template FILE",
        )
    if _takes_parts_only(text):
        turns = [{**turn, "content": _parts(turn["content"])} for turn in turns]
    try:
        return _rendered(text, turns, tools, ask, names)
    except (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
        roles = ", ".join(turn["role"] for turn in turns)
        raise DataError(
            f"the chat template refuses these turns ({roles}): {error}",
            "skip such rows (--skip-bad-rows), or use a template that accepts them: --template FILE",
        ) from error


def _rendered(text: str, turns: Sequence[Any], tools: Any, ask: bool, names: Mapping[str, str]) -> str:
    """What `render` of the template gives; that looks through all globals twice, which takes longer than the turns."""
    from jinja2.runtime import new_context

    template, given = _compiled(text)
    given = {**given, "messages": turns, "tools": tools, "documents": None, "add_generation_prompt": ask, **names}
    context = new_context(template.environment, template.name, template.blocks, given, shared=True)
    return str(template.environment.concat(template.root_render_func(context)))


def _strftime_now(form: str) -> str:
    """The fixed day as CLOCK writes it."""
    for mark, text in FIXED_DAY.items():
        form = form.replace(mark, text)
    return form


def dated(text: str) -> str:
    """A template as it is saved: one that prints today's date brings the fixed one."""
    return text if "strftime_now" not in text or _begun(CLOCK) in text else _led(CLOCK, text)


def _led(lead: str, text: str) -> str:
    """A template behind blocks that write nothing and leave it the spaces that it begins with."""
    return f"{_begun(lead)}%}}\n{text}" if text[:1].isspace() else lead + text


def _begun(lead: str) -> str:
    return lead.removesuffix("-%}")


@functools.lru_cache(maxsize=64)
def _compiled(text: str) -> tuple[Any, dict[str, Any]]:
    """A template, compiled as the transformers library does, and its globals."""
    import jinja2
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` marks what an assistant says, and writes nothing itself."""

        tags = {"generation"}  # noqa: RUF012  as jinja2 declares it

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(value: Any, ensure_ascii: bool = False, **more: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **more)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = _strftime_now
    template = environment.from_string(text)
    return template, dict(template.globals)


def _parts(content: str) -> list[dict[str, str]]:
    """A text as the only part of a turn."""
    return [{"type": "text", "text": content}]


@functools.lru_cache(maxsize=64)
def _takes_parts_only(text: str) -> bool:
    """Whether a template writes what is said where it comes as parts, and not where it is a text."""

    def written(content: Any) -> str:
        try:
            return _rendered(text, [{"role": "user", "content": content}], None, True, NO_TOKENS)
        except Exception:  # a template may raise anything
            return ""

    return ASKED not in written(ASKED) and ASKED in written(_parts(ASKED))


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
    try:
        offered = _rendered(text, asked, [{"type": "function", "function": function}], True, NO_TOKENS)
        done = _rendered(text, called, None, False, NO_TOKENS)
    except Exception:  # a template may raise anything
        return False
    return NAMED in offered and NAMED in done and RESULT in done


def refusal(text: str, messages: Sequence[Message]) -> str:
    """Why a template refuses turns with these roles, whatever they say; "" where it takes them.

    It also refuses turns whose last answer it does not write after what it writes when it asks for that answer.
    """
    shape = tuple(
        (m.role, _more_alike(m), m.content if m.role == TOOLS else SAID if m.content.strip() else "") for m in messages
    )
    return _refusal(text, shape)


def _more_alike(message: Message) -> str:
    """What else a turn has, with the same values for all turns that have such keys."""
    if not message.more:
        return ""
    call = {"type": "function", "id": "QZcallQZ1", "function": {"name": NAMED, "arguments": {}}}
    same = {"tool_calls": [call], "tool_call_id": "QZcallQZ1"}
    return json.dumps({key: same.get(key, NAMED) for key in sorted(json.loads(message.more))})


@functools.lru_cache(maxsize=4096)
def _refusal(text: str, shape: tuple[tuple[str, str, str], ...]) -> str:
    turns = [
        Message(role, f"{said}{number}" if said == SAID else said, more)
        for number, (role, more, said) in enumerate(shape)
    ]
    try:
        full = render(text, turns, False, NO_TOKENS)
        if turns and turns[-1].role == "assistant":
            answer_part(render(text, turns[:-1], True, NO_TOKENS), full)
    except DataError as error:
        return error.message
    return ""


def answer_part(before: str, full: str) -> tuple[str, bool]:
    """What of a finished dialogue follows `before`, which asks for its last answer; and whether a block is left open.

    Such a block of reasoning stands in `before` and not in the dialogue, as may one that is closed at once. Raises
    DataError where the template writes the dialogue differently once it is answered.
    """
    if full.startswith(before):
        return full[len(before) :], False
    block = BLOCK.search(before)
    if block and full.startswith(before[: block.start()]):
        return full[block.start() :], not block[1]
    at = sum(1 for _ in takewhile(lambda both: both[0] == both[1], zip(full, before, strict=False)))
    raise DataError(
        "the chat template writes the prompt differently once the answer follows: before the answer it writes "
        f"{before[at : at + 40]!r}, with the answer {full[at : at + 40]!r}",
        "skip such rows (--skip-bad-rows), or use a template whose earlier turns stay the same: --template FILE",
    )


def answer_end(text: str, names: Mapping[str, str], tokens: Iterable[str]) -> str:
    """The token that a template writes after an answer, of those that the tokenizer parses; "" where it writes none.

    Spaces between the answer and the token belong to the answer. Of several tokens in a row it is the last that also
    follows an answer to which another question is put.
    """
    known = sorted({token for token in (*tokens, *names.values()) if token.strip()}, key=len, reverse=True)
    token = re.compile("|".join(map(re.escape, known)) or r"(?!)")
    last = _leading(token, behind_answer(text, names))
    if len(last) < 2:
        return last[0] if last else ""
    try:
        earlier = _leading(token, behind_answer(text, names, Message("user", ASKED)))
    except DataError:
        earlier = []
    shared = [one for one, _ in takewhile(lambda both: both[0] == both[1], zip(last, earlier, strict=False))]
    return shared[-1] if shared else last[0]


def behind_answer(text: str, names: Mapping[str, str], *more: Message) -> str:
    """What a template writes behind an answer, after which more turns may follow; "" where it leaves out the answer."""
    said = _written(text, names, False, *more)
    return said.rpartition(SAID)[2] if SAID in said else ""


def left_out(text: str, names: Mapping[str, str]) -> str:
    """Which turn a template leaves out of what it writes, "question" or "answer"; "" where it writes both."""
    said = _written(text, names, False)
    return "question" if ASKED not in said else "answer" if SAID not in said else ""


def _leading(token: re.Pattern[str], text: str) -> list[str]:
    """The tokens that a text begins with, after spaces and line breaks."""
    text, tokens = text.lstrip(), []
    while found := token.match(text):
        tokens.append(found[0])
        text = text[found.end() :]
    return tokens


def _written(text: str, names: Mapping[str, str], ask: bool, *more: Message) -> str:
    """What a template writes for a question and its answer, or for the question and the header that asks.

    Where it refuses that, a system turn stands before the question.
    """
    question = (Message("user", ASKED),)
    turns = question if ask else (*question, Message("assistant", SAID), *more)
    try:
        return render(text, turns, ask, names)
    except DataError:
        try:
            return render(text, (Message("system", RULED), *turns), ask, names)
        except DataError:
            pass
        raise


def with_thinking(text: str, names: Mapping[str, str], rule: Thinking | None) -> str:
    """A template under one rule for reasoning (`<think>…</think>`) before an answer, in training and when asked.

    "keep" lets the model reason, and keeps reasoning in answers that have it. "off" asks for an answer at once, and
    takes reasoning out of answers. Without a rule the template stays as it is, but where it opens a block of reasoning
    that it never writes in a finished dialogue, as R1's does: there it is "off". Raises UsageError for a rule where
    the template knows no reasoning.
    """
    if thinking_of(text):
        return text
    if not SWITCHES.search(text):
        if rule is not None:
            raise UsageError(
                f"--thinking {rule} has no effect: the chat template does not mention reasoning ({CLOSED})",
                "remove --thinking",
            )
        return text
    opens = opens_only(text, names)
    if rule == "off" or (rule is None and opens):
        ruled = _led(RULES["off"], text)
        return _led(RULES["off"], _unopened(text, names)) if OPENED.search(_written(ruled, names, True)) else ruled
    kept = _led(RULES["keep"], text)
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
        "--thinking off does not work with this chat template: it opens the reasoning in a way that cannot be removed",
        "use --thinking keep, or a template without reasoning: --template FILE",
    )


def thinking_of(text: str) -> Thinking | None:
    """The rule that a template was put under; None without one."""
    return next((rule for rule, lead in RULES.items() if _begun(lead) in text), None)


def answered_at_once(message: Message) -> Message:
    """An assistant's turn without the reasoning before its answer, whether that stands in the text or beside it."""
    said, more = message.content, turn_dict(message)
    said = said.rpartition(CLOSED)[2].lstrip("\n") if CLOSED in said else said
    kept = {key: more[key] for key in more if key not in ("role", "content", REASONING)}
    return Message(message.role, said, json.dumps(kept, separators=(",", ":"), ensure_ascii=False) if kept else "")


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
