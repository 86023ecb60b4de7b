"""From turns to token ids: one template, one BOS, one end token, and a mask that is built, never searched for.

The template says what is fed: the ids of a prompt and of its answer are those of what it writes for both, so that
teacher and student, training, cache and a server that is asked see identical tokens.
"""

from __future__ import annotations

import functools
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from functools import cached_property

from adpa_cli.data.examples import Message
from adpa_cli.data.rendering import (
    CLOSED,
    REASONING,
    answer_part,
    answered_at_once,
    behind_answer,
    render,
    thinking_of,
    thought,
)
from adpa_cli.data.templates import Template
from adpa_cli.data.tokenizer import Tokenizer
from adpa_cli.errors import AdpaError, DataError

GUARD = "\U000f0000"
"""What begins the marks that stand for special tokens which turns name; no script has it."""
GUARDED = re.compile(f"{GUARD}(.)", re.DOTALL)
HEADER = 256
"""Characters at the end of a prompt in which the last special token before an answer is looked for."""


@dataclass(frozen=True)
class Encoded:
    """Token ids of a prompt and an answer that fit together, and how many tokens of each were cut away."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    cut_prompt: int = 0
    cut_answer: int = 0


class Encoder:
    """A tokenizer under one template. Raises AdpaError when the end token is not one token of the vocabulary.

    What is fed of a finished dialogue (prompt, answer, end token) are the ids of what the template writes for it.
    They differ only where people wrote the name of a special token, which stays text, and where a token would reach
    over the border between prompt and answer, which a model that is asked never sees.

    `bos_id` is None when the tokenizer does not begin a text with one; `template.end` is always spelled out.
    """

    def __init__(self, tokenizer: Tokenizer, template: Template) -> None:
        self.tokenizer = tokenizer
        self.template = replace(template, end=template.end or tokenizer.named.get("eos_token", ""))
        self.end_id = single_token(tokenizer, self.template.end)
        self.bos_id = tokenizer.named_id("bos_token") if tokenizer.begins_with_bos else None
        self.thinking = thinking_of(template.text)
        # Of a base model the own end token is another one, until it is trained and saved.
        self._names = {**tokenizer.named, "eos_token": self.template.end}
        _check_names(tokenizer, template.text, self._names)
        # Reasoning is part of what people write: its marks are parsed on both sides.
        controls = [
            token
            for token in tokenizer.added
            if "think" not in token.lower()
            and (token in tokenizer.specials or token in tokenizer.named.values() or token == self.template.end)
        ]
        self._marks = {name: GUARD + chr(ord(GUARD) + number) for number, name in enumerate([GUARD, *controls])}
        self._spelled = re.compile("|".join(map(re.escape, self._marks)))
        self.controls = controls
        """The special tokens, whose names stay text where people write them."""
        self._controls = re.compile("|".join(map(re.escape, controls)) or r"(?!)")
        self._header_ids = functools.lru_cache(64)(self._ids)  # of what most prompts end with

    @property
    def pad_id(self) -> int:
        """The id that fills up shorter rows."""
        return pad_id(self.tokenizer, self.end_id)

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Ids of the turns and of the header that asks for an answer, with one BOS if the tokenizer uses one."""
        return self._begin(self._guarded(messages, ask=True))

    def answer(self, prompt: Sequence[Message], text: str) -> list[int]:
        """Ids of the answer to a prompt as the template writes it, and one end token."""
        return self.answered(prompt, text)[1][0]

    def answered(self, prompt: Sequence[Message], *texts: str) -> tuple[list[int], list[list[int]]]:
        """Ids of a prompt, and of each of some answers to it with its end token. Raises as `dialogue` does."""
        before = self._guarded(prompt, ask=True)
        ids = self._begin(before)
        said = (self._said((*prompt, Message("assistant", text)), before) for text in texts)
        return ids, [self._answer_ids(ids, before, each) for each in said]

    def dialogue(self, messages: Sequence[Message], behind: bool = False) -> tuple[list[int], list[bool]]:
        """Ids of a dialogue up to its last answer, and True on every token that is trained, end tokens included.
        With what the template writes `behind` the last end token, if that is asked for.

        An answer is trained where the template writes it after the header that asked for it, as it would if it were
        the last one. Others only stand before it: such as those whose reasoning is left out as soon as another
        question follows. Raises DataError when the template refuses the turns, or renders their beginning otherwise.
        """
        places = [place for place, message in enumerate(messages) if message.role == "assistant"]
        messages = messages[: places[-1] + 1]
        before = self._guarded(messages[:-1], ask=True)
        whole = before + self._said(messages, before) + self.template.end
        earlier = (self._span(messages[: place + 1], before) for place in places[:-1])
        ids, mask = self._masked(whole, [*(span for span in earlier if span), (len(before), len(whole))])
        full = self._guarded(messages, ask=False) if behind else ""
        more = self._following(self.template.end, full[len(whole) :]) if full.startswith(whole) else []
        return ids + more, mask + [False] * len(more)

    def controls_in(self, messages: Sequence[Message]) -> list[str]:
        """The names of special tokens that people wrote in some turns: text, not tokens."""
        return [name for message in messages for name in self._controls.findall(message.content)]

    def unwritten_reasoning(self, messages: Sequence[Message]) -> bool:
        """Whether some turns have reasoning beside their text that the template does not write, and nobody took out."""
        is_read = self.thinking == "off" or REASONING in self.template.text
        return not is_read and any(f'"{REASONING}"' in message.more for message in messages)

    def decode(self, ids: Sequence[int], special: bool = False) -> str:
        """The text of some ids, with or without the special tokens."""
        return self.tokenizer.decode(ids, special)

    def render(self, messages: Sequence[Message], ask: bool) -> str:
        """The text of the turns, with the header that asks for an answer if `ask`. Raises DataError."""
        if self.thinking == "off":
            messages = [answered_at_once(m) if m.role == "assistant" else m for m in messages]
        return render(self.template.text, messages, ask, self._names)

    def _guarded(self, messages: Sequence[Message], ask: bool) -> str:
        """The text of the turns, in which marks that nobody writes stand for each special token that a turn names."""
        marked = [(self._marked(m.content), m) for m in messages]
        return self.render([m if said == m.content else replace(m, content=said) for said, m in marked], ask)

    def _marked(self, content: str) -> str:
        return (
            self._spelled.sub(lambda name: self._marks[name[0]], content) if self._spelled.search(content) else content
        )

    def _span(self, messages: Sequence[Message], text: str) -> tuple[int, int] | None:
        """Where a text goes on with the last of some messages and its end token; None where it has it otherwise."""
        try:
            before = self._guarded(messages[:-1], ask=True)
            answer = self._said(messages, before) + self.template.end
        except DataError:
            return None
        return (len(before), len(before) + len(answer)) if text.startswith(before + answer) else None

    def _said(self, messages: Sequence[Message], before: str) -> str:
        """The last answer as the template writes it, where `before` is what it writes when it asks for it."""
        full = self._guarded(messages, ask=False)
        try:
            rest, opens = answer_part(before, full)
        except DataError:
            answer_part(self._shown(before), self._shown(full))
            raise
        said, ended, _ = rest.partition(self.template.end)
        if not ended:  # by a template that writes none, or made by an older version, which ended answers otherwise
            control = self._controls.search(rest)
            said = rest[: control.start()].rstrip() if control else rest.removesuffix(self._behind_answers)
        if not opens:
            return said
        # A block of reasoning that only a prompt opens is closed before the answer, by the template or here.
        inside = thought(self._marked(messages[-1].content))
        return inside + said if said.startswith(CLOSED) else f"{inside}\n{CLOSED}\n\n" + said.lstrip("\n")

    def _answer_ids(self, prompt: list[int], before: str, said: str) -> list[int]:
        """Ids of an answer with its end token, after a prompt that is known as ids and as text."""
        controls = self._last_controls(before)
        if controls:  # special tokens are cut out first: what follows one does not depend on what precedes it
            header = before[controls[-1].start() :]
            answer = self._behind(prompt, self._header_ids(header), self._ids(header + said + self.template.end))
        else:
            answer = None
        answer = answer or self._behind(prompt, prompt, self._begin(before + said + self.template.end))
        return answer or self._after(before, said)

    def _behind(self, prompt: list[int], header: list[int], whole: list[int]) -> list[int] | None:
        """What of `whole` follows the header that a prompt ends with; None where they do not fit together."""
        fits = prompt[-len(header) :] == header and whole[: len(header)] == header and whole[-1:] == [self.end_id]
        return whole[len(header) :] if fits else None

    def _last_controls(self, text: str) -> list[re.Match[str]]:
        """The special tokens near the end of a text, in their order."""
        return [*self._controls.finditer(text, max(len(text) - HEADER, 0))]

    def _masked(self, text: str, spans: Sequence[tuple[int, int]]) -> tuple[list[int], list[bool]]:
        """Ids of a text, and which of them are in some spans of its characters."""
        places = self._places(text, [edge for span in spans for edge in span])
        if places is None:
            return self._piecewise(text, spans)
        ids, edges = places
        if any(ids[end - 1] != self.end_id for end in edges[1::2]):
            return self._piecewise(text, spans)
        mask = [False] * len(ids)
        for start, end in zip(edges[::2], edges[1::2], strict=True):
            mask[start:end] = [True] * (end - start)
        return ids, mask

    def _places(self, text: str, edges: Sequence[int]) -> tuple[list[int], list[int]] | None:
        """Ids of a text, and where the token begins that follows each of some places of its characters.

        None where a token reaches over one of them.
        """
        tokenizer, plain = self._read(text)
        ids, offsets = tokenizer.ids_and_offsets(plain)
        found, token, covered = [], 0, 0
        for place in edges:
            edge = place if plain == text else len(self._unmarked(text[:place]))
            while token < len(ids) and offsets[token][0] < edge:
                covered = max(covered, offsets[token][1])
                token += 1
            if covered != edge:  # some special tokens take the spaces that follow, wherever these end
                before = tokenizer.ids(plain[:edge])
                if ids[: len(before)] != before:
                    return None
                token = len(before)
            found.append(token)
        begun = self._with_bos(ids)
        return begun, [each + len(begun) - len(ids) for each in found]

    def _piecewise(self, text: str, spans: Sequence[tuple[int, int]]) -> tuple[list[int], list[bool]]:
        """Ids of a text whose prompts and answers are cut into tokens one by one, and which are in the spans."""
        ids: list[int] = []
        mask: list[bool] = []
        position = 0
        for start, end in spans:
            prompt = self._begin(text[:start])
            answer = self._answer_ids(prompt, text[:start], text[start : end - len(self.template.end)])
            lead = self._following(self.template.end, text[position:start]) if ids else prompt
            ids += lead + answer
            mask += [False] * len(lead) + [True] * len(answer)
            position = end
        return ids, mask

    def _after(self, before: str, said: str) -> list[int]:
        """Ids of an answer and its end token that are cut into tokens apart from the text before."""
        last = [control[0] for control in self._last_controls(before) if control.end() == len(before)]
        ids = self._following("".join(last), said + self.template.end)
        # Some tokenizers parse an end token after a space only.
        return ids if ids[-1] == self.end_id else [*self._following("".join(last), said), self.end_id]

    def _following(self, last: str, text: str) -> list[int]:
        """Ids of a rendered text after a special token, or inside of a text where `last` is empty.

        SentencePiece tokenizers put a space before the first word of a text, and some after each special token too.
        """
        for lead in (last,) if last else ("\n", "a", ":", "]", "."):
            head, whole = self._ids(lead), self._ids(lead + text)
            if whole[: len(head)] == head:
                return whole[len(head) :]
        return self._ids(text)

    def _ids(self, text: str) -> list[int]:
        """Ids of a rendered text, in which a name that a turn wrote is text and one that the template wrote a token."""
        tokenizer, plain = self._read(text)
        return tokenizer.ids(plain)

    def _read(self, text: str) -> tuple[Tokenizer, str]:
        """A rendered text with the names that turns wrote, and the tokenizer that reads these as text."""
        if GUARD not in text:
            return self.tokenizer, text
        return self._renamed, self._unmarked(text)

    def _unmarked(self, text: str) -> str:
        """A rendered text with names for marks, and other names for the special tokens that the template wrote."""
        return self._both.sub(self._swapped, text)

    def _swapped(self, found: re.Match[str]) -> str:
        """The other name of a special token that the template wrote, and the name for a mark."""
        return self._names_of_marks.get(found[0]) or self._other_names.get(found[0], found[0])

    @cached_property
    def _behind_answers(self) -> str:
        """What a template writes behind the last answer that writes no end token."""
        return behind_answer(self.template.text, self._names)

    @cached_property
    def _names_of_marks(self) -> dict[str, str]:
        return {mark: name for name, mark in self._marks.items()}

    @cached_property
    def _both(self) -> re.Pattern[str]:
        return re.compile(f"{GUARDED.pattern}|{self._controls.pattern}", re.DOTALL)

    @cached_property
    def _renamed(self) -> Tokenizer:
        """The tokenizer in which special tokens go by other names: made for the first turn that names one."""
        return self.tokenizer.renamed(self._other_names)

    @cached_property
    def _other_names(self) -> dict[str, str]:
        nonce = secrets.token_hex(8)  # what nobody knows no turn can spell
        return {name: f"{GUARD}{nonce}{mark}" for name, mark in self._marks.items() if name != GUARD}

    def _begin(self, text: str) -> list[int]:
        """Ids of a rendered beginning; templates that write BOS and those that do not give the same."""
        return self._with_bos(self._ids(text))

    def _with_bos(self, ids: list[int]) -> list[int]:
        """Ids that begin with one BOS where the tokenizer or the template wants it."""
        bos = self.tokenizer.named_id("bos_token")
        written = 0
        while bos is not None and ids[written : written + 1] == [bos]:
            written += 1
        return ([bos] if bos is not None and (written or self.bos_id is not None) else []) + ids[written:]

    def _shown(self, text: str) -> str:
        """A rendered text with the names that the turns wrote."""
        return GUARDED.sub(lambda mark: self._names_of_marks.get(mark[0], mark[0]), text)


def pad_id(tokenizer: Tokenizer, end_id: int) -> int:
    """The padding of a tokenizer, or `end_id` where it has none."""
    padding = tokenizer.named_id("pad_token")
    return end_id if padding is None else padding


def _check_names(tokenizer: Tokenizer, template: str, names: Mapping[str, str]) -> None:
    """Raise AdpaError where a template writes a token that is named and that the tokenizer lacks.

    Any other library would add it, with an id that no model has a row for.
    """
    for name, token in names.items():
        if name in template and tokenizer.id_of(token) is None:
            raise AdpaError(
                f"the chat template writes the {name} {token!r}, which is not in the tokenizer's vocabulary",
                f"set a {name} in tokenizer_config.json that tokenizer.json has, or use a template without it: "
                "--template FILE|NAME",
            )


def single_token(tokenizer: Tokenizer, end: str) -> int:
    """The id of an end token. Raises AdpaError when the tokenizer does not hold it as one token."""
    ids = tokenizer.ids(end) if end else []
    if len(ids) == 1 and ids[0] == tokenizer.id_of(end):
        return ids[0]
    fault = f"{end!r} is {len(ids)} tokens in this tokenizer, and must be one" if end else "the tokenizer has none"
    if len(ids) == 1:
        fault = f"{end!r} is not in the vocabulary of this tokenizer"
    own = tokenizer.named.get("eos_token", "")  # which may fill up shorter rows too
    never = {text for text in tokenizer.named.values() if text != own}  # such as <bos> and <pad>
    offered = sorted((token for token in tokenizer.specials if token not in never), key=lambda token: token != own)
    known = ", ".join(map(repr, offered)) or "none"
    hint = (
        f"choose one of its special tokens: --end TOKEN; they are {known}\n or: another template: --template FILE|NAME"
    )
    raise AdpaError(f"answers have no end token: {fault}", hint)


def fit(
    prompt: Sequence[int], answer: Sequence[int], max_length: int, *, bos_id: int | None = None, where: str = "a row"
) -> Encoded:
    """A prompt and an answer within `max_length` tokens together.

    Only when the whole is too long is the prompt cut from the left (after a leading BOS), down to half of `max_length`
    at most; then the answer is cut on the right, and loses its end token. Raises DataError when nothing useful is left.
    """
    fitted = fit_answers(prompt, [answer], max_length, bos_id=bos_id)
    if fitted is None:
        asked = f"a prompt of {len(prompt)} and an answer of {len(answer)} tokens"
        message = f"{where}: {asked} do not fit into {max_length} tokens"
        raise DataError(message, f"--set max_length={len(prompt) + len(answer)}")
    return fitted[0]


def fit_answers(
    prompt: Sequence[int], answers: Sequence[Sequence[int]], max_length: int, *, bos_id: int | None = None
) -> list[Encoded] | None:
    """Several answers to one prompt, each within `max_length` tokens with it, by the rule of `fit`.

    The prompt is cut once, by the longest answer, so that all of them follow the same one. None when nothing useful is
    left.
    """
    keep = min(len(prompt), max(max_length - max(map(len, answers)), max_length // 2))
    lead = 1 if bos_id is not None and prompt[:1] and prompt[0] == bos_id else 0
    room = max_length - keep
    if (room < 1 and any(answers)) or (len(prompt) > lead and keep <= lead):
        return None
    tail = prompt[len(prompt) - (keep - lead) :] if keep < len(prompt) else prompt[lead:]
    kept = (*prompt[:lead], *tail)
    return [Encoded(kept, tuple(answer[:room]), len(prompt) - keep, max(0, len(answer) - room)) for answer in answers]


def fit_dialogue(
    ids: Sequence[int], mask: Sequence[bool], max_length: int, *, bos_id: int | None = None
) -> tuple[list[int], list[bool], int] | None:
    """A dialogue within `max_length` tokens by the rule of `fit`, its first prompt and the rest; and the tokens cut.

    None when nothing useful is left.
    """
    lead = list(mask).index(True)
    fitted = fit_answers(ids[:lead], [ids[lead:]], max_length, bos_id=bos_id)
    if fitted is None:
        return None
    ((prompt, answer, cut_prompt, cut_answer),) = map(astuple, fitted)
    return [*prompt, *answer], [False] * len(prompt) + list(mask[lead : lead + len(answer)]), cut_prompt + cut_answer
