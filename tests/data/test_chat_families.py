"""The published templates of the families of chat models, each with a small tokenizer of its kind.

The expected ids are those that `tokenizers` gives for what transformers renders; what is trained is worked out by hand.
"""

from __future__ import annotations

import datetime
import functools
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken
from tokenizers import Tokenizer as Core
from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

from adpa_cli.data.chat import Encoder
from adpa_cli.data.examples import TOOLS, Message, turn_dict
from adpa_cli.data.rendering import knows_tools, refusal, thinking_words
from adpa_cli.data.templates import Template
from adpa_cli.data.tokenizer import Tokenizer
from adpa_cli.errors import DataError
from adpa_cli.planning.chat_templates import TemplateChoice, template_in
from support.chat_families import FAMILIES, METASPACE, Family

U, A, S = (functools.partial(Message, role) for role in ("user", "assistant", "system"))
FUNCTION = {"name": "weather", "description": "Today's.", "parameters": {"type": "object", "properties": {}}}
CALL = {"id": "abcdefghi", "type": "function", "function": {"name": "weather", "arguments": {"city": "Bern"}}}
ROWS: dict[str, list[Message]] = {
    "one turn": [U("What is two and two?"), A("It is four.")],
    "several turns": [
        U("What is it?"),
        A("It is it."),
        U("And?"),
        A("And so on."),
        U("Thanks!"),
        A("You are welcome."),
    ],
    "system": [S("You are brief."), U("What is two and two?"), A("Four.")],
    "system, several turns": [S("You are brief."), U("Two?"), A("Two."), U("Three?"), A("Three.")],
    "empty system": [S(""), U("What is it?"), A("It.")],
    "spaces around": [U("  What is it? \n\n"), A(" It is it. \n"), U("\tAnd?  "), A(" So.   ")],
    "line breaks": [U("\n\nFirst\n\n\nsecond\n"), A("Three lines.\n\n\n\nOne more.\n\n"), U(".\r\n"), A("So.\r\n")],
    "scripts": [U("Ça va? e\u0301 你好，世界 😀👩‍👩‍👧 שלום"), A("Привет\u00a0\u200bмир ﬁ\u2028🇨🇭 नमस्ते")],
    "code": [
        U("Indent:\n\tif x:\n\t\treturn  1"),
        A("def add(a, b):\n        return a + b  # so\n\n    x = {'a': [1]}"),
    ],
    "numbers": [U("1234567 * 3.14159 = ?"), A("3,878,503.4 (2024-07-26, 0x1F, ½)")],
    "user twice": [U("What is it?"), U("Are you there?"), A("Yes.")],
}
TOOL_ROW = [
    Message(TOOLS, json.dumps([{"type": "function", "function": FUNCTION}])), U("Weather?"),
    Message("assistant", "", json.dumps({"tool_calls": [CALL]})),
    Message("tool", '{"c": 9}', json.dumps({"tool_call_id": "abcdefghi", "name": "weather"})), A("9 °C in Bern."),
]  # fmt: skip
ALL_ROWS = {**ROWS, "tools": TOOL_ROW}
REASONED = [U("Why?"), A("<think>\nhm\n</think>\n\nSo."), U("And?"), A("<think>\nok, go\n</think>\n\nBye.")]


class Case:
    """A family's folder, what the tool makes of it, and what transformers and tokenizers make of it."""

    def __init__(self, family: Family, folder: Path) -> None:
        self.family, self.folder = family, family.save(folder)
        self.core = Core.from_file(str(self.folder / "tokenizer.json"))
        self.theirs: Any = PreTrainedTokenizerFast(tokenizer_object=self.core, **family.named)
        self.tokenizer = Tokenizer.of(self.folder)
        self.template = self.under(None)
        self.encoder = Encoder(self.tokenizer, self.template)

    def under(self, thinking: str | None) -> Template:
        """The template under a rule for reasoning."""
        found = template_in(self.folder, TemplateChoice.of(None, None, thinking))
        assert found is not None
        return found

    def rendered(self, messages: Sequence[Message], ask: bool, text: str = "", **more: Any) -> str:
        """What transformers renders of some turns, under the published template or another text."""
        turns = [turn_dict(message) for message in messages if message.role != TOOLS]
        tools = json.loads(messages[0].content) if messages[0].role == TOOLS else None
        return str(
            self.theirs.apply_chat_template(
                turns,
                chat_template=text or self.family.text,
                tools=tools,
                tokenize=False,
                add_generation_prompt=ask,
                **more,
            )
        )

    def ids(self, text: str) -> list[int]:
        """What tokenizer.json gives for a rendering, after the BOS of a tokenizer whose template leaves it to it."""
        bos = [self.core.token_to_id(self.family.named["bos_token"])] if self.adds_unwritten_bos else []
        return bos + list(self.core.encode(text, add_special_tokens=False).ids)

    @property
    def adds_unwritten_bos(self) -> bool:
        return self.family.adds_bos and not self.family.writes_bos

    def dialogue(self, messages: Sequence[Message]) -> str:
        """The rendering of some turns up to and with the end of the last answer."""
        text, end = self.rendered(messages, ask=False), self.family.end
        return text[: text.rindex(end) + len(end)]

    def trained(self, ids: Sequence[int], mask: Sequence[bool]) -> list[str]:
        """The texts of the runs of trained tokens, special tokens included."""
        edges = [n for n in range(len(ids) + 1) if (n and mask[n - 1]) != (n < len(ids) and mask[n])]
        starts, ends = edges[::2], edges[1::2]
        decode = functools.partial(self.core.decode, skip_special_tokens=False)
        return [decode(ids[:end])[len(decode(ids[:start])) :] for start, end in zip(starts, ends, strict=True)]


@pytest.fixture(scope="module", params=FAMILIES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return made(request.param, tmp_path_factory.getbasetemp())


@functools.cache
def made(name: str, folder: Path) -> Case:
    return Case(FAMILIES[name], folder / "families" / name)


@pytest.fixture(scope="module", autouse=True)
def fixed_day() -> Any:
    """Transformers prints today's date, which here is the day that is always printed."""

    class Day(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> Day:
            return cls(2024, 7, 26)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chat_template_utils, "datetime", Day)
        yield


TAKEN = [
    (family, row)
    for family, facts in FAMILIES.items()
    for row in ALL_ROWS
    if row not in facts.refuses and (row != "tools" or facts.tools)
]
of_every_kind_that_is_taken = pytest.mark.parametrize(("case", "name"), TAKEN, indirect=["case"])


def test_the_end_of_an_answer_is_the_familys(case: Case) -> None:
    assert case.template.end == case.family.end
    assert case.encoder.end_id == case.core.token_to_id(case.family.end)
    assert knows_tools(case.family.text) == case.family.tools


@of_every_kind_that_is_taken
def test_a_dialogue_has_the_ids_of_the_rendering(case: Case, name: str) -> None:
    messages = ALL_ROWS[name]
    ids, mask = case.encoder.dialogue(messages)
    assert ids == case.ids(case.dialogue(messages))
    assert mask[-1]
    assert not mask[0]


@of_every_kind_that_is_taken
def test_a_prompt_has_the_ids_of_the_rendering_that_asks_and_an_answer_follows_it(case: Case, name: str) -> None:
    *prompt, answer = ALL_ROWS[name]
    ids, (said, other) = case.encoder.answered(prompt, answer.content, "Another one.")
    text = case.rendered(prompt, ask=True, text=case.template.text)
    assert ids == case.encoder.prompt(prompt) == case.ids(text)
    whole, mask = case.encoder.dialogue([*prompt, answer])
    assert ids + said == whole
    assert mask[len(ids) :] == [True] * len(said)
    assert said == case.encoder.answer(prompt, answer.content)
    assert [said.count(case.encoder.end_id), other.count(case.encoder.end_id)] == [1, 1]
    assert other == case.encoder.answer(prompt, "Another one.")
    assert case.encoder.decode(said).strip() == case.core.decode(said).strip()
    assert "Another one." in case.encoder.decode(other)


@pytest.mark.parametrize("ask", [False, True])
@of_every_kind_that_is_taken
def test_turns_are_rendered_as_transformers_renders_them(case: Case, name: str, ask: bool) -> None:
    messages = ALL_ROWS[name][: -1 if ask else None]
    names = {"eos_token": case.template.end}
    assert case.encoder.render(messages, ask) == case.rendered(messages, ask, case.template.text, **names)
    if case.template.text == case.family.text and not ask:
        assert case.encoder.render(messages, ask).startswith(case.dialogue(messages))


def test_what_is_trained_is_what_the_template_writes_for_the_answers(case: Case) -> None:
    ids, mask = case.encoder.dialogue(ROWS["several turns"])
    answers = [case.family.trained.format(text) for text in ("It is it.", "And so on.", "You are welcome.")]
    assert case.trained(ids, mask) == answers[0 if case.family.earlier else 2 :]


def test_turns_that_a_template_does_not_take_are_refused(case: Case) -> None:
    for name, reason in case.family.refuses.items():
        assert reason in refusal(case.template.text, ROWS[name]), name
        with pytest.raises(DataError, match="chat template") as caught:
            case.encoder.dialogue(ROWS[name])
        assert "--template" in caught.value.hint
    if not case.family.tools:
        assert "cannot write tools" in refusal(case.template.text, TOOL_ROW)
    for name in (*ROWS, *(["tools"] if case.family.tools else [])):
        if name not in case.family.refuses:
            assert refusal(case.template.text, ALL_ROWS[name]) == "", name


BORDERS = {"line breaks": "\n\nThree lines.", "indented": "    def add(a, b):", "spaces": "   So.", "mark": "\u0301a"}


@pytest.mark.parametrize("name", BORDERS)
def test_no_token_reaches_over_the_border_between_prompt_and_answer(case: Case, name: str) -> None:
    prompt, text = ROWS["one turn"][:1], BORDERS[name]
    ids, (answer,) = case.encoder.answered(prompt, text)
    assert ids == case.ids(case.rendered(prompt, ask=True, text=case.template.text))
    assert case.encoder.dialogue([*prompt, A(text)]) == (ids + answer, [False] * len(ids) + [True] * len(answer))
    whole = case.ids(case.dialogue([*prompt, A(text)]))
    if whole[: len(ids)] == ids:
        assert ids + answer == whole
    else:
        written, asked = (case.core.decode(each, skip_special_tokens=False) for each in (whole, ids))
        assert case.core.decode(ids + answer, skip_special_tokens=False) == written
        assert written.startswith(asked)


PLACE = "QZplaceQZ"


def spelled_ids(case: Case, text: str, spelled: str) -> list[int]:
    """Ids of a rendering in which the control tokens in `spelled`, for which PLACE stands, are text."""
    core = Core.from_file(str(case.folder / "tokenizer.json"))
    core.encode_special_tokens = True
    tokens = {token.content: token for token in case.family.tokens if token.special}
    ids, strips = case.ids(""), False
    for part in re.split("(" + "|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) + ")", text):
        if part in tokens:
            ids.append(core.token_to_id(part))
        elif part := (part.lstrip() if strips else part).replace(PLACE, spelled):
            lead = "\n" if case.family.kind == METASPACE else ""  # it puts a space before the first word of a text
            ids += core.encode(lead + part, add_special_tokens=False).ids[2 * len(lead) :]
        strips = part in tokens and tokens[part].rstrip
    return ids


def test_names_of_special_tokens_in_turns_are_text(case: Case) -> None:
    """Only these are other ids than those of the rendering, which would parse them."""
    named = [token.content for token in case.family.tokens if token.special]
    spelled = "so " + " ".join(named) + "," + named[-1] + " it"
    turns = [U(f"What {PLACE}?"), A(f"It {PLACE}."), U(f"{PLACE}?"), A(f"{PLACE}!")]
    row = [Message(m.role, m.content.replace(PLACE, spelled)) for m in turns]
    *prompt, answer = row
    ids, (said,) = case.encoder.answered(prompt, answer.content)
    assert ids == spelled_ids(case, case.rendered(turns[:3], ask=True, text=case.template.text), spelled)
    whole, mask = case.encoder.dialogue(row)
    assert whole == ids + said == spelled_ids(case, case.dialogue(turns), spelled)
    assert spelled in case.encoder.decode(said)
    assert said.count(case.encoder.end_id) == 1
    texts = [f"It {spelled}.", f"{spelled}!"][0 if case.family.earlier else 1 :]
    assert case.trained(whole, mask) == [case.family.trained.format(text) for text in texts]


def test_the_documentation_names_the_end_of_every_family() -> None:
    rows = (
        (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8").split("### Tested templates")[1]
    )
    for name, family in FAMILIES.items():
        assert f"`{family.end}`".replace("|", "\\|") in rows, name


THINKERS = ["qwen3", "qwq-32b", "r1-distill", "smollm3", "granite-3.3"]


@pytest.mark.parametrize("rule", ["off", "keep", None])
@pytest.mark.parametrize("name", THINKERS)
def test_a_rule_for_reasoning_holds_in_training_and_when_the_saved_folder_is_asked(
    tmp_path_factory: pytest.TempPathFactory, name: str, rule: str | None
) -> None:
    case = made(name, tmp_path_factory.getbasetemp())
    template = case.under(rule)
    encoder = Encoder(case.tokenizer, template)
    saved = case.tokenizer.saved_files(template.text, template.end)["chat_template.jinja"].decode()
    for prompt in (REASONED[:1], REASONED[:3], [S("Be brief."), *REASONED[:1]]):
        if encoder.thinking == "off":
            prompt = [Message(m.role, m.content.rpartition("</think>")[2].lstrip("\n")) for m in prompt]
        assert encoder.prompt(prompt) == case.ids(case.rendered(prompt, True, saved))
    assert thinking_words(template.text).startswith({"off": "thinking off", "keep": "thinking kept", None: ""}[rule])


@pytest.mark.parametrize(
    ("name", "rule", "trained"),
    [
        ("qwen3", "off", ["Bye.<|im_end|>"]),
        ("qwen3", "keep", ["<think>\nok, go\n</think>\n\nBye.<|im_end|>"]),
        ("qwen3", None, ["<think>\nok, go\n</think>\n\nBye.<|im_end|>"]),
        ("qwq-32b", "off", ["So.<|im_end|>", "Bye.<|im_end|>"]),
        ("qwq-32b", "keep", ["ok, go\n</think>\n\nBye.<|im_end|>"]),
        ("qwq-32b", None, ["So.<|im_end|>", "Bye.<|im_end|>"]),
        ("r1-distill", "off", ["So.<｜end▁of▁sentence｜>", "Bye.<｜end▁of▁sentence｜>"]),
        ("r1-distill", "keep", ["ok, go\n</think>\n\nBye.<｜end▁of▁sentence｜>"]),
        ("r1-distill", None, ["So.<｜end▁of▁sentence｜>", "Bye.<｜end▁of▁sentence｜>"]),
        ("smollm3", "off", ["So.<|im_end|>", "Bye.<|im_end|>"]),
        ("smollm3", "keep", ["<think>\nhm\n</think>\n\nSo.<|im_end|>", "<think>\nok, go\n</think>\n\nBye.<|im_end|>"]),
        ("granite-3.3", "off", ["So.<|end_of_text|>", "Bye.<|end_of_text|>"]),
        (
            "granite-3.3", "keep",
            ["<think>\nhm\n</think>\n\nSo.<|end_of_text|>", "<think>\nok, go\n</think>\n\nBye.<|end_of_text|>"],
        ),
    ],
)  # fmt: skip
def test_what_is_trained_of_reasoning(
    tmp_path_factory: pytest.TempPathFactory, name: str, rule: str | None, trained: list[str]
) -> None:
    case = made(name, tmp_path_factory.getbasetemp())
    encoder = Encoder(case.tokenizer, case.under(rule))
    assert case.trained(*encoder.dialogue(REASONED)) == trained
    prompt, (answer,) = encoder.answered(REASONED[:3], REASONED[3].content)
    assert case.trained(prompt + answer, [False] * len(prompt) + [True] * len(answer)) == trained[-1:]


SPELLED = st.sampled_from(sorted({token.content for family in FAMILIES.values() for token in family.tokens}))
TEXT = (
    st.lists(st.one_of(st.text(st.characters(exclude_categories=["Cs"]), max_size=20), SPELLED), min_size=1, max_size=4)
    .map("".join)
    .filter(lambda text: bool(text.strip()))
)
QUICK = settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


@QUICK
@given(first=TEXT, second=TEXT, question=TEXT, answer=TEXT)
def test_any_text_is_fed_as_it_is_rendered(case: Case, first: str, second: str, question: str, answer: str) -> None:
    encoder, prompt = case.encoder, [U(first), A(second), U(question)]
    ids, (said,) = encoder.answered(prompt, answer)
    assert ids == encoder.prompt(prompt)
    assert said[-1] == encoder.end_id
    assert said.count(encoder.end_id) == 1
    assert ids.count(encoder.end_id) == encoder.prompt([U("a"), A("b"), U("c")]).count(encoder.end_id)
    fed, mask = encoder.dialogue([*prompt, A(answer)])
    assert mask[-len(said) :] == [True] * len(said)
    assert fed[-len(said) :] == said
    named = [token.content for token in case.family.tokens if token.special]
    if not any(token in text for token in named for text in (first, second, question, answer)):
        whole = case.ids(case.dialogue([*prompt, A(answer)]))
        if whole[: len(ids)] == ids:
            assert ids + said == whole


def test_an_end_token_that_is_parsed_after_a_space_only_ends_every_answer(tmp_path: Path) -> None:
    """As in early files of Llama 2, whose special tokens are matched in the text that SentencePiece has prepared."""
    for name in ("llama-2", "zephyr"):
        tokens = [AddedToken(token.content, special=True, normalized=True) for token in FAMILIES[name].tokens]
        case = Case(replace(FAMILIES[name], tokens=tokens), tmp_path / name)
        for row in ("one turn", "several turns", "system"):
            ids, mask = case.encoder.dialogue(ROWS[row])
            ends = [n for n in range(len(ids)) if mask[n] and (n + 1 == len(ids) or not mask[n + 1])]
            assert [ids[n] for n in ends] == [case.encoder.end_id] * len(ends)
            if name == "llama-2":
                assert ids == case.ids(case.dialogue(ROWS[row]))
