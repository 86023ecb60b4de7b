"""What is trained on: turns, preference pairs and dialogues, their identity, and which of them are held out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Row = Mapping[str, Any]
HELD_OUT_SHARE = 20  # one prompt in twenty
HELD_OUT_MOST = 500


@dataclass(frozen=True)
class Message:
    """One turn: who speaks ("system", "user", "assistant" or "tool"), what is said, and what else templates read of it.

    `more` is compact JSON of such keys as `tool_calls`, "" without any. The tools that may be called stand in front of
    a dialogue, as a turn whose role is `TOOLS` and whose content is compact JSON of their list. Objects in either keep
    the order of their keys, in which templates write them.
    """

    role: str
    content: str
    more: str = ""


TOOLS = "tools"


def turn_dict(message: Message) -> dict[str, Any]:
    """A turn as chat templates take it."""
    return {"role": message.role, "content": message.content, **(json.loads(message.more) if message.more else {})}


Prompt = tuple[Message, ...]


class Problem(Exception):
    """A row that cannot be used: the kind that is counted, the field, what is in it, and what would do."""

    def __init__(self, kind: str, field: str, content: str, fix: str) -> None:
        super().__init__(kind)
        self.kind, self.field, self.content, self.fix = kind, field, content, fix


class Passed(Exception):
    """A sound row that holds no example (a tie, a response without a partner); counted, never an error."""

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.kind = kind


class Tie(Passed):
    """Two answers to a prompt of which none is the better: no pair, but a prompt that a model can be measured on."""

    def __init__(self, prompt: Prompt) -> None:
        super().__init__("tie")
        self.prompt = prompt


def plain(messages: Sequence[Message]) -> list[list[str]]:
    """Messages as JSON values, for hashing."""
    return [[m.role, m.content, *([m.more] if m.more else ())] for m in messages]


@dataclass(frozen=True)
class Pair:
    """A prompt with a better and a worse answer; `id` is 16 hex of their content, `row` where they stood."""

    id: str
    prompt: Prompt
    chosen: str
    rejected: str
    row: int


@dataclass(frozen=True)
class Dialogue:
    """Turns that end with an answer; `id` is 16 hex of their content, `row` where they stood."""

    id: str
    messages: Prompt
    row: int


Item = TypeVar("Item", bound=Pair | Dialogue)


def sha256(value: object) -> str:
    """sha256 over canonical JSON, in hex."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def make_pair(prompt: Sequence[Message], chosen: str, rejected: str, row: int = 0) -> Pair:
    """A pair with the id of its content. Raises Problem where it cannot be trained on."""
    _check_prompt(prompt)
    for name, answer in (("chosen", chosen), ("rejected", rejected)):
        if not answer.strip():
            raise Problem(f"empty {name}", name, "the answer is empty", "write an answer")
    if chosen == rejected:
        raise Problem(
            "chosen equals rejected", "rejected", "both answers are the same text", "give two different answers"
        )
    return Pair(sha256([plain(prompt), chosen, rejected])[:16], tuple(prompt), chosen, rejected, row)


def make_prompt(prompt: Sequence[Message], row: int = 0) -> Pair:
    """A prompt without a better and a worse answer, as a pair of empty ones. Raises Problem where nobody asks."""
    _check_prompt(prompt)
    return Pair(sha256([plain(prompt)])[:16], tuple(prompt), "", "", row)


def _check_prompt(prompt: Sequence[Message]) -> None:
    """Raise Problem where nobody asks at the end of a prompt."""
    if not prompt or prompt[-1].role not in ("user", "tool"):
        last = f"ends with the {prompt[-1].role}'s turn" if prompt else "nothing before the answer"
        raise Problem("prompt does not end with the user", "prompt", last, "end the prompt with a turn of the user")
    if prompt[-1].role == "user" and not prompt[-1].content.strip():
        raise Problem("empty prompt", "prompt", "the last turn of the prompt is empty", "write what the user asks")


def make_dialogue(messages: Sequence[Message], row: int = 0) -> Dialogue:
    """A dialogue with the id of its content. Raises Problem where it cannot be trained on."""
    roles = [message.role for message in messages]
    if "user" not in roles:
        raise Problem("no prompt", "messages", "the dialogue has no turn of the user", "begin with a turn of the user")
    if roles[-1] != "assistant":
        raise Problem(
            "no answer",
            "messages",
            f"the dialogue ends with the {roles[-1]}'s turn",
            "end with an answer of the assistant",
        )
    first = roles.index("user")
    if not messages[first].content.strip():
        raise Problem(
            "empty prompt", f"messages[{first}]", "this turn of the user is empty", "write what the user asks"
        )
    for index, message in enumerate(messages):
        if message.role == "assistant" and not message.content.strip() and "tool_calls" not in turn_dict(message):
            raise Problem(
                "empty answer", f"messages[{index}]", "this turn of the assistant is empty", "write an answer"
            )
    return Dialogue(sha256(plain(messages))[:16], tuple(messages), row)


def dialogue_of(item: Pair | Dialogue) -> Prompt:
    """The turns of a dialogue, or of a pair with its chosen answer."""
    if isinstance(item, Dialogue):
        return item.messages
    return (*item.prompt, Message("assistant", item.chosen))


def as_dialogue(item: Pair | Dialogue) -> Dialogue:
    """A pair as the dialogue that ends with its chosen answer; a dialogue as it is."""
    if isinstance(item, Dialogue):
        return item
    return make_dialogue(dialogue_of(item), item.row)


def trimmed(messages: Prompt) -> Prompt:
    """A dialogue without what has no part in training: answers before the first question, questions after the last."""
    roles = ("system", TOOLS)
    lead = next((index for index, message in enumerate(messages) if message.role not in roles), len(messages))
    first = next((index for index, message in enumerate(messages) if message.role == "user"), lead)
    last = max((index for index, message in enumerate(messages) if message.role == "assistant"), default=len(messages))
    return messages[:lead] + messages[first : last + 1]


def win(margin: float) -> float:
    """1 where a margin prefers the chosen side, one half at a tie, else 0: the mean is how often it is preferred."""
    return 1.0 if margin > 0 else 0.5 if margin == 0 else 0.0


def prompt_key(item: Pair | Dialogue) -> str:
    """sha256 of what data are split by: the prompt of a pair, a dialogue up to its first user turn."""
    if isinstance(item, Pair):
        return sha256(plain(item.prompt))
    first = next(index for index, message in enumerate(item.messages) if message.role == "user")
    return sha256(plain(item.messages[: first + 1]))


HALVES = ("validation", "report")
"""Of the held-out prompts: by the first checkpoints and settings are selected, on the other is measured what was."""


def in_half(keys: NDArray[np.uint64], half: str) -> NDArray[np.bool_]:
    """[n] which held-out prompts, by the first 64 bits of their `prompt_key`, are of a half; all are of "all"."""
    import numpy as np

    return keys % 2 == HALVES.index(half) if half in HALVES else np.ones(len(keys), bool)


def held_out_keys(keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Keys of the prompts held out: 5 %, at most 500, at least one of two; the smallest, whatever the order of rows."""
    import numpy as np

    prompts = np.unique(keys)
    count = min(HELD_OUT_MOST, max(len(prompts) // HELD_OUT_SHARE, 1), max(len(prompts) - 1, 0))
    return prompts[:count]
