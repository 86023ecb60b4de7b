"""What the values of a row say, as turns: lists of turns, JSON, transcripts or plain text; tools and the calls of them.

A value that cannot be used raises a `Problem` that names its field.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import json
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from adpa_cli.data.examples import TOOLS, Message, Problem, Prompt, Row

ROLES = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "model": "assistant", "bot": "assistant",
    "ai": "assistant", "function_call": "assistant",
    "tool": "tool", "function": "tool", "observation": "tool", "ipython": "tool", "environment": "tool",
}  # fmt: skip
CALLED = "function_call"
"""LLaMA-Factory's role of a turn whose text is a call, and OpenAI's older name for the call of a turn."""
WORDS = ("tool_call_id", "name", "reasoning_content")
"""What templates read of a turn besides role, content and tool_calls; each is text."""
TEXT_PARTS = ("text", "input_text", "output_text")
HUMAN = re.compile(r"\n\n(Human|Assistant):[ ]?")
STRIPPED = (
    re.compile(r"(?:\A\s*|\r?\n\r?\n)(Human|Assistant):[ ]?"), re.compile(r"(?:\A\s*|\r?\n)(Human|Assistant):[ ]?")
)  # fmt: skip
"""Transcripts that lost the empty line before the first question, or all of them: they begin with one and answer it."""
EXTRA = re.compile(r"\n?<extra_id_1>(User|Assistant)(?:\n|$)")
WRITTEN_TURNS = re.compile(r"""\s*(?:(?:np\.|numpy\.)?array\(\s*)?\[\s*\{\s*(['"])(role|from|content|value)\1\s*:""")
BETWEEN_TURNS = re.compile(r"""\}\s+\{(?=['"](?:role|from|content|value)['"]\s*:)""")
"""What NumPy prints between the objects of an array, where Python's own lists have a comma."""


def value_of(row: Row, field: str) -> Any:
    """The value of a field that must be there."""
    value = row.get(field)
    if value is None:
        raise Problem(f"missing {field}", field, "the column is missing or empty", f"add {field} to the row")
    return value


def says_none(value: object) -> bool:
    """Whether a column says nothing: null, empty, white space, or what pandas and Python write for that."""
    if isinstance(value, str):
        return value.strip().lower() in ("", "nan", "none", "null")
    return value is None or value in ([], {}) or value != value


def text_of(row: Row, field: str) -> str:
    """The string in a field."""
    return checked(value_of(row, field), field)


def checked(value: object, field: str) -> str:
    """The value itself when it is a string that UTF-8 can hold."""
    if not isinstance(value, str):
        raise Problem(
            f"{field}: wrong type", field, f"its type is {type(value).__name__}, and text is needed", "write a string"
        )
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise Problem(
            f"{field}: broken characters",
            field,
            "the text has half of a surrogate pair, which is not valid Unicode",
            "fix or remove that character",
        ) from error
    return value


def number_of(row: Row, field: str, low: float, high: float) -> float:
    """The number in a field (CSV holds it as text), between two bounds."""
    value = value_of(row, field)
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if isinstance(value, bool) or not low <= number <= high:
        raise Problem(
            f"{field}: not a rating", field, f"{value!r} is not a rating", f"write a number from {low:g} to {high:g}"
        )
    return number


def turns_of(value: object, field: str) -> Prompt:
    """The turns of a list of {role, content} or {from, value}, of one of them, of such a list as JSON or as Python
    prints it, or of a transcript; other text is one user turn."""
    if isinstance(value, str):
        text = checked(value, field)
        value = written_turns(text, field)
        if value is None:
            return transcript(text) or (Message("user", text),)
    if isinstance(value, Mapping):
        return (_turn(value, field, field),)
    if not isinstance(value, list) or not value:
        content = (
            "the list is empty" if value == [] else f"its type is {type(value).__name__}, and text or turns are needed"
        )
        raise Problem(f"{field}: wrong type", field, content, "write a string, or a list of {role, content}")
    return tuple(_turn(turn, f"{field}[{index}]", field) for index, turn in enumerate(value))


def written_turns(text: str, field: str) -> Any:
    """The list, or the one turn, that a text spells; None for any other text.

    Raises Problem for a text that begins as turns do and cannot be read; words may follow after turns in a text.
    """
    value = _literal(text)
    if isinstance(value, list) and value and all(map(_is_turn, value)):
        return value
    if _is_turn(value) and str(value.get("role", value.get("from"))).lower() in ROLES:
        return value
    if value is None and WRITTEN_TURNS.match(text) and _literal(text[: text.rfind("]") + 1]) is None:
        raise Problem(
            f"{field}: broken turns",
            field,
            f"{text[:40]!r}… looks like a list of turns and is not valid JSON",
            "fix the JSON",
        )
    return None


@functools.lru_cache(maxsize=16)
def _literal(text: str) -> Any:
    """The value of a text that is JSON or a Python literal of a list or an object; None when it is neither."""
    inside = text.strip()
    if inside[:1] + inside[-1:] not in ("[]", "{}"):
        return None
    with contextlib.suppress(ValueError, RecursionError):
        return json.loads(inside)
    with contextlib.suppress(ValueError, SyntaxError, MemoryError, RecursionError), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of escapes that Python does not know
        return ast.literal_eval(inside)
    with contextlib.suppress(ValueError, SyntaxError, MemoryError, RecursionError), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ast.literal_eval(BETWEEN_TURNS.sub("}, {", inside))
    return None


def _is_turn(value: object) -> bool:
    return isinstance(value, Mapping) and (
        ("role" in value and ("content" in value or "tool_calls" in value)) or ("from" in value and "value" in value)
    )


def transcript(text: str) -> Prompt:
    """Turns of `\\n\\nHuman: …\\n\\nAssistant: …` or of `…<extra_id_1>Assistant…`; () when the text is neither.

    An empty assistant turn at the end is the cue to answer, not a turn.
    """
    first, *rest = _mark_of(text).split(text)
    if not rest:
        return ()
    names = {"Human": "user", "User": "user", "Assistant": "assistant"}
    turns = [Message("user", first)] if first.strip() else []
    turns += [Message(names[who], said.strip()) for who, said in zip(rest[::2], rest[1::2], strict=True)]
    if turns[-1] == Message("assistant", ""):
        turns.pop()
    return tuple(turns)


def _mark_of(text: str) -> re.Pattern[str]:
    """What stands before each turn of a transcript."""
    if HUMAN.match(text):
        return HUMAN
    if text.lstrip().startswith("Human:"):
        return next((mark for mark in STRIPPED if "Assistant" in mark.findall(text)), EXTRA)
    return EXTRA


def earlier_turns(value: object, field: str) -> Prompt:
    """The turns of a dialogue that came before: [[question, answer], …], turns, or either as JSON."""
    if isinstance(value, str):
        value = _literal(checked(value, field))
        if value is None:
            raise Problem(
                f"{field}: wrong type",
                field,
                "it is text, and a list of turns is needed",
                "write [[question, answer], …]",
            )
    if not isinstance(value, list) or not all(isinstance(each, list | tuple) for each in value):
        return turns_of(value, field) if value else ()
    turns: list[Message] = []
    for index, each in enumerate(value):
        place = f"{field}[{index}]"
        if len(each) != 2:
            content = f"it has {len(each)} texts, and a question and its answer are needed"
            raise Problem(f"{field}: wrong type", place, content, "write [[question, answer], …]")
        turns += (Message("user", checked(each[0], place)), Message("assistant", checked(each[1], place)))
    return tuple(turns)


def tools_of(value: object, field: str) -> Prompt:
    """The tools that may be called, as the turn that stands in front of a dialogue; () for none.

    They are a list of functions, or JSON of one; a function that is not wrapped as {type, function} is.
    """
    tools = _list_of(value, field)
    wrapped = [tool if "function" in tool or "name" not in tool else _function(tool) for tool in tools]
    return (Message(TOOLS, _json(wrapped, field)),) if wrapped else ()


def parts_text(value: Sequence[object], place: str, field: str) -> str:
    """The text of content that is given as a list of parts. Raises Problem for a part that is no text."""
    said = []
    for index, part in enumerate(value):
        kind = part.get("type", "text" if "text" in part else None) if isinstance(part, Mapping) else None
        if isinstance(part, str):
            said.append(part)
        elif isinstance(part, Mapping) and kind in TEXT_PARTS:
            said.append(checked(part.get("text"), f"{place}[{index}].text"))
        else:
            content = f"its type is {kind or type(part).__name__}, and only text can be read"
            fix = "remove the row, or describe the part in words"
            raise Problem(f"{field}: not text", f"{place}[{index}]", content, fix)
    return "".join(checked(text, place) for text in said)


TRAINED = ("weight", "train", "training")
"""Keys that say, where they are 0 or false, that an answer is not trained on."""
TURN_KEYS = {"role", "content", "from", "value", "tool_calls", CALLED, *WORDS}


def unread_keys(value: object) -> Iterator[tuple[str, Any, bool]]:
    """The keys of turns that nothing reads, with what they hold, and whether that says not to train on an answer; of a
    value that holds no turns none."""
    if isinstance(value, str):
        value = _literal(value)
    for turn in value if isinstance(value, list) else [value]:
        if isinstance(turn, Mapping) and not turn.keys() <= TURN_KEYS and _is_turn(turn):
            is_answer = ROLES.get(str(turn.get("role", turn.get("from"))).lower()) == "assistant"
            for key, held in turn.items():
                if key not in TURN_KEYS and held not in (None, "", [], {}):
                    yield key, held, is_answer and key in TRAINED and held in (0, False)


def _turn(turn: object, place: str, field: str) -> Message:
    given, turn = turn, _literal(turn) if isinstance(turn, str) else turn
    if not isinstance(turn, Mapping):
        kind = f"its type is {type(given).__name__}, and an object with role and content is needed"
        raise Problem(f"{field}: wrong type", place, kind, "write a list of {role, content}")
    _check_one(turn, place, field)
    name, said = ("from", "value") if is_sharegpt(turn) else ("role", "content")
    role = turn.get(name)
    if not isinstance(role, str) or role.lower() not in ROLES:
        raise Problem(
            f"{field}: unknown role",
            f"{place}.{name}",
            f"{role!r} is not a known role",
            "use system, user, assistant or tool",
        )
    content, calls = turn.get(said), turn.get("tool_calls") or turn.get(CALLED)
    if role.lower() == CALLED:
        content, calls = None, content
    more: dict[str, Any] = {}
    if len(turn) > 2:
        more = {key: checked(turn[key], f"{place}.{key}") for key in WORDS if turn.get(key)}
    if calls:
        called = [_call(call, f"{place}.tool_calls") for call in _list_of(calls, f"{place}.tool_calls")]
        more |= {"tool_calls": called} if called else {}
    if content is None and "tool_calls" in more:
        content = ""
    if content is None:
        missing = "the key is missing or null"
        raise Problem(f"{field}: missing {said}", f"{place}.{said}", missing, "add the turn's text")
    if isinstance(content, list):
        content = parts_text(content, f"{place}.{said}", field)
    beside = _json(dict(sorted(more.items())), place) if more else ""
    return Message(ROLES[role.lower()], checked(content, f"{place}.{said}"), beside)


def is_sharegpt(turn: Mapping[str, Any]) -> bool:
    """Whether a turn is {from, value}; Arrow gives it the empty keys of other rows, and `from` may be metadata."""
    return "from" in turn and (turn.get("role") is None or None not in (turn["from"], turn.get("value")))


def _check_one(turn: Mapping[str, Any], place: str, field: str) -> None:
    """Raise Problem for a turn that is written in two ways which differ."""
    if None in (turn.get("role"), turn.get("content"), turn.get("from"), turn.get("value")):
        return
    first, second = (ROLES.get(str(turn[name]).lower()) for name in ("role", "from"))
    if first != second or turn["content"] != turn["value"]:
        content = "role and content say something else than from and value"
        raise Problem(f"{field}: two turns in one", place, content, "keep one of the two")


def _call(call: Mapping[str, Any], place: str) -> dict[str, Any]:
    """One call of a tool as {type, function: {name, arguments}}; arguments that are JSON of an object are that object,
    as templates expect them."""
    inside = call.get("function", call)
    if not isinstance(inside, Mapping) or not isinstance(inside.get("name"), str):
        raise Problem(
            "tool_calls: no name", place, "a tool call has no function name", "write {function: {name, arguments}}"
        )
    function = {key: value for key, value in inside.items() if value is not None}
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        read = _literal(arguments) if arguments.strip() else {}
        function["arguments"] = read if isinstance(read, dict) else arguments
    if "function" not in call:
        return _function(function)
    return {key: function if key == "function" else value for key, value in call.items() if value is not None}


def _function(function: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "function", "function": dict(function)}


def _list_of(value: object, field: str) -> list[Mapping[str, Any]]:
    """A list of objects: as it is, or one of them, or as JSON; None, empty texts and empty lists are empty."""
    if says_none(value):
        return []
    listed = _literal(value) if isinstance(value, str) else value
    listed = [listed] if isinstance(listed, Mapping) else listed
    items = [_literal(each) if isinstance(each, str) else each for each in listed] if isinstance(listed, list) else None
    if items is None or not all(isinstance(each, Mapping) for each in items):
        raise Problem(
            f"{field}: wrong type", field, "it is not a list of objects", "write a list of objects, or the JSON of one"
        )
    return [each for each in items if isinstance(each, Mapping)]


def _json(value: object, field: str) -> str:
    """Compact JSON with keys in the row's own order, which templates write them in."""
    try:
        text = json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise Problem(
            f"{field}: no JSON",
            field,
            f"it cannot be written as JSON: {error}",
            "use text, numbers, true, false, null, lists and objects",
        ) from error
    return checked(text, field)
