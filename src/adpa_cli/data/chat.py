"""From turns to token ids: one template, one BOS, one end token, and a mask that is built, never searched for.

The template says what is fed: the ids of a prompt and of its answer are those of what it writes for both, so that
teacher and student, training, cache and a server that is asked see identical tokens.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace
from itertools import takewhile

from adpa_cli.data.examples import Message
from adpa_cli.data.rendering import CLOSED, OPENED, render, thinking_of, thought, without_thinking
from adpa_cli.data.templates import Template
from adpa_cli.data.tokenizer import Tokenizer
from adpa_cli.errors import AdpaError, DataError

GUARD = 0xF0000
"""The first of the characters that stand for special tokens which turns name; no script has them."""
GUARDED = re.compile("[\U000f0000-\U000fffff]")


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
        self._guards = {
            token: chr(GUARD + n) for n, token in enumerate(tokenizer.specials) if "think" not in token.lower()
        }
        self._spelled = re.compile("|".join(map(re.escape, self._guards)) or r"(?!)")
        self._special = {token: tokenizer.vocabulary[token] for token in tokenizer.specials}
        self._controls = re.compile(f"({'|'.join(map(re.escape, self._special)) or r'(?!)'})")

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

    def dialogue(self, messages: Sequence[Message]) -> tuple[list[int], list[bool]]:
        """Ids of a dialogue up to its last answer, and True on every token that is trained, end tokens included.

        An answer is trained where the template writes it after the header that asked for it, as it would if it were
        the last one. Others only stand before it: such as those whose reasoning is left out as soon as another
        question follows. Raises DataError when the template refuses the turns, or writes no end token after the last.
        """
        places = [place for place, message in enumerate(messages) if message.role == "assistant"]
        messages = messages[: places[-1] + 1]
        full = self._guarded(messages, ask=False)
        spans: list[tuple[int, int]] = []
        for place in places[:-1]:
            before, said = self._last(messages[: place + 1])
            if full.startswith(before + said + self.template.end):
                spans.append((len(before), len(before) + len(said) + len(self.template.end)))
        before, said = self._last(messages)
        whole = before + said + self.template.end
        if not full.startswith(whole):
            prompt = self._begin(before)
            answer = self._answer_ids(prompt, before, said)
            return prompt + answer, [False] * len(prompt) + [True] * len(answer)
        return self._masked(whole, [*spans, (len(before), len(whole))])

    def decode(self, ids: Sequence[int], special: bool = False) -> str:
        """The text of some ids, with or without the special tokens."""
        return self.tokenizer.decode(ids, special)

    def render(self, messages: Sequence[Message], ask: bool) -> str:
        """The text of the turns, with the header that asks for an answer if `ask`. Raises DataError."""
        if self.thinking == "off":
            messages = [
                replace(m, content=without_thinking(m.content)) if m.role == "assistant" else m for m in messages
            ]
        return render(self.template.text, messages, ask, self._names)

    def _guarded(self, messages: Sequence[Message], ask: bool) -> str:
        """The text of the turns, in which a character that nobody writes stands for each special token in a turn."""
        turns = [replace(m, content=self._spelled.sub(lambda name: self._guards[name[0]], m.content)) for m in messages]
        return self.render(turns, ask)

    def _last(self, messages: Sequence[Message]) -> tuple[str, str]:
        """What the template writes before the last answer when it asks for it, and the answer as it writes it."""
        before = self._guarded(messages[:-1], ask=True)
        return before, self._said(messages, before)

    def _said(self, messages: Sequence[Message], before: str) -> str:
        """The last answer as the template writes it, where `before` is what it writes when it asks for it."""
        full = self._guarded(messages, ask=False)
        lead, reasoning = before, ""
        if not full.startswith(before) and (opened := OPENED.search(before)):
            # A block of reasoning is opened that finished dialogues do not have: it is closed before the answer.
            lead, inside = before[: opened.start()], thought(messages[-1].content)
            reasoning = f"{inside}\n{CLOSED}\n\n"
        if not full.startswith(lead):
            at = sum(1 for _ in takewhile(lambda both: both[0] == both[1], zip(full, before, strict=False)))
            raise DataError(
                "the chat template renders a dialogue differently once it is answered: it asks with "
                f"{self._shown(before[at:])} and then writes {self._shown(full[at:])}",
                "give a template that writes each turn once: --template FILE",
            )
        rest = full[len(lead) :]
        said, ended, _ = rest.partition(self.template.end)
        if not ended:
            said = rest.rstrip()
            if self._specials_in(rest):
                raise DataError(
                    f"the chat template ends an answer with {self._shown(rest[-40:])} and not with the end token "
                    f"{self.template.end!r}",
                    "give the token that it writes: --end TOKEN, or another template: --template FILE",
                )
        return reasoning + said

    def _answer_ids(self, prompt: list[int], before: str, said: str) -> list[int]:
        """Ids of an answer with its end token, after a prompt that is known as ids and as text."""
        whole = self._begin(before + said + self.template.end)
        if whole[: len(prompt)] == prompt and whole[-1:] == [self.end_id]:
            return whole[len(prompt) :]
        return [*self._following(said), self.end_id]

    def _masked(self, text: str, spans: Sequence[tuple[int, int]]) -> tuple[list[int], list[bool]]:
        """Ids of a text, and which of them are in some spans of its characters."""
        places = self._places(text, [edge for span in spans for edge in span])
        if places is None:
            return self._piecewise(text, spans)
        ids, edges = places
        mask = [False] * len(ids)
        for start, end in zip(edges[::2], edges[1::2], strict=True):
            mask[start:end] = [True] * (end - start)
        return ids, mask

    def _places(self, text: str, edges: Sequence[int]) -> tuple[list[int], list[int]] | None:
        """Ids of a text, and where the token begins that follows each of some places of its characters.

        None where a token reaches over one of them, or where turns name special tokens.
        """
        if GUARDED.search(text):
            return None
        ids, offsets = self.tokenizer.ids_and_offsets(text)
        found, token = [], 0
        for edge in edges:
            while token < len(ids) and offsets[token][0] < edge:
                if offsets[token][1] > edge:
                    return None
                token += 1
            found.append(token)
        begun = self._with_bos(ids)
        return begun, [place + len(begun) - len(ids) for place in found]

    def _piecewise(self, text: str, spans: Sequence[tuple[int, int]]) -> tuple[list[int], list[bool]]:
        """Ids of a text whose prompts and answers are cut into tokens one by one, and which are in the spans."""
        ids: list[int] = []
        mask: list[bool] = []
        position = 0
        for start, end in spans:
            lead = self._begin(text[:start]) if not ids else self._ids(text[position:start])
            answer = [*self._following(text[start : end - len(self.template.end)]), self.end_id]
            ids += lead + answer
            mask += [False] * len(lead) + [True] * len(answer)
            position = end
        return ids, mask

    def _ids(self, text: str) -> list[int]:
        """Ids of a rendered text, in which a name that a turn wrote is text and one that the template wrote a token."""
        return self._following(text) if GUARDED.search(text) else self.tokenizer.ids(text)

    def _following(self, text: str) -> list[int]:
        """Ids of a rendered text that follows another one."""
        ids: list[int] = []
        for part in self._controls.split(text):
            if part in self._special:
                ids.append(self._special[part])
            elif part:
                ids += self._plain(self._shown_plainly(part))
        return ids

    def _plain(self, text: str) -> list[int]:
        """Ids of a text that follows another one, in which names of special tokens are text as any other."""
        line_break, after = self.tokenizer.plain_ids("\n"), self.tokenizer.plain_ids("\n" + text)
        # SentencePiece tokenizers put a space before the first word of a text; after a line break they do not.
        inside = after[: len(line_break)] == line_break
        return after[len(line_break) :] if inside else self.tokenizer.plain_ids(text)

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

    def _shown_plainly(self, text: str) -> str:
        """A rendered text with the names that the turns wrote."""
        names = {guard: name for name, guard in self._guards.items()}
        return GUARDED.sub(lambda guard: names.get(guard[0], guard[0]), text)

    def _shown(self, text: str) -> str:
        return repr(self._shown_plainly(text[:40]))

    def _specials_in(self, text: str) -> bool:
        return any(token in text for token in self.tokenizer.specials)


def pad_id(tokenizer: Tokenizer, end_id: int) -> int:
    """The padding of a tokenizer, or `end_id` where it has none."""
    padding = tokenizer.named_id("pad_token")
    return end_id if padding is None else padding


def single_token(tokenizer: Tokenizer, end: str) -> int:
    """The id of an end token. Raises AdpaError when the tokenizer does not hold it as one token."""
    ids = tokenizer.ids(end) if end else []
    if len(ids) == 1 and tokenizer.token_of(ids[0]) == end:
        return ids[0]
    fault = f"{end!r} is {len(ids)} tokens of this tokenizer" if end else "the tokenizer has no end token"
    never = {text for name, text in tokenizer.named.items() if name != "eos_token"}  # such as <bos> and <pad>
    known = ", ".join(repr(token) for token in tokenizer.specials if token not in never) or "none"
    raise AdpaError(f"no end of turn: {fault}, not one", f"name one of its special tokens: --end TOKEN; it has {known}")


def fit(
    prompt: Sequence[int], answer: Sequence[int], max_length: int, *, bos_id: int | None = None, where: str = "a row"
) -> Encoded:
    """A prompt and an answer within `max_length` tokens together.

    Only when the whole is too long is the prompt cut from the left (after a leading BOS), down to half of `max_length`
    at most; then the answer is cut on the right, and loses its end token. Raises DataError when nothing useful is left.
    """
    fitted = fit_answers(prompt, [answer], max_length, bos_id=bos_id)
    if fitted is None:
        message = f"{where}: prompt of {len(prompt)} and answer of {len(answer)} tokens do not fit into {max_length}"
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
