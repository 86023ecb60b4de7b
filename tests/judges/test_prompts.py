"""Templates of judges: ours, FastChat's and AlpacaEval's, filled in one pass."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from adpa_cli.data.examples import Message
from adpa_cli.errors import DataError, NotFound, UsageError
from adpa_cli.judges.prompts import chosen, question_words, read_templates, stored, templates_of
from support.cli_samples import write_rows

PAIR = {"name": "pair", "type": "pairwise", "system_prompt": "Say [[A]], [[B]] or [[C]].", "prompt_template":
        "{question}\n{answer_a}\n{answer_b}\n{}", "output_format": "[[A]]"}  # fmt: skip
MATH = {**PAIR, "name": "pair-math", "prompt_template": "{question}{ref_answer_1}{answer_a}{answer_b}"}
GRADE = {"name": "one", "type": "single", "system_prompt": "", "prompt_template": "{question} {answer}"}


def test_what_is_filled_in_is_text(tmp_path: Path) -> None:
    """Braces of the template that name nothing, and fields inside of answers, stay as they are."""
    (template,) = templates_of(write_rows(tmp_path / "p.jsonl", [PAIR]))
    messages = template.filled({"question": "{answer_a}", "answer_a": "{answer_b} {x}", "answer_b": "\\1 {{}}"})
    assert messages == [
        {"role": "system", "content": "Say [[A]], [[B]] or [[C]]."},
        {"role": "user", "content": "{answer_a}\n{answer_b} {x}\n\\1 {{}}\n{}"},
    ]
    assert template.marks == ("[[A]]", "[[B]]", "[[C]]")


def test_the_template_of_a_kind_is_chosen(tmp_path: Path) -> None:
    templates = templates_of(write_rows(tmp_path / "p.jsonl", [MATH, PAIR, GRADE]))
    assert chosen(templates, "pairwise").name == "pair"
    assert chosen(templates, "pairwise", reference=True).name == "pair-math"
    assert chosen(templates, "single").turns == (("user", "{question} {answer}"),)
    with pytest.raises(UsageError, match="single of two turns"):
        chosen(templates, "single", two_turns=True)


def test_ours_are_of_every_kind_and_read_again_as_they_are_stored() -> None:
    for kind, two, reference in (
        ("pairwise", False, False),
        *(("single", a, b) for a in (False, True) for b in (False, True)),
    ):
        template = chosen(templates_of(None), kind, two, reference)
        assert template.name[-2:] == "-1"
        assert read_templates(stored([template])) == (template,)
    assert chosen(templates_of(None), "pairwise").marks == ("A", "B")


def test_a_template_of_alpaca_eval(tmp_path: Path) -> None:
    path = tmp_path / "clf.txt"
    path.write_text(
        "<|im_start|>system\nJudge.\n<|im_end|>\n<|im_start|>user\n"
        '{\n "i": """{instruction}""",\n "m": """{output_1}""",\n'
        ' "M": """{output_2}"""}\nName the best: m or M.\n<|im_end|>\n'
    )
    (template,) = templates_of(path)
    assert template.marks == ("m", "M")
    system, user = template.filled({"question": "Why?", "answer_a": "So.", "answer_b": "{output_1}"})
    assert system == {"role": "system", "content": "Judge."}
    assert user["content"].startswith('{\n "i": """Why?""",\n "m": """So.""",\n "M": """{output_1}"""}')


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty file"),
        ("{", "row 1 is not a judge prompt"),
        (json.dumps({**PAIR, "type": "listwise"}), "has the type 'listwise'"),
        (json.dumps({**PAIR, "system_prompt": "Say which."}), "the judge how to name"),
        ("<|im_start|>user\n{instruction}<|im_end|>", "no place for an answer"),
    ],
)
def test_what_is_no_template(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(text)
    with pytest.raises(DataError, match=words):
        templates_of(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no such file"):
        templates_of(tmp_path / "none.txt")


def test_a_prompt_of_several_turns_is_shown_with_its_speakers() -> None:
    assert question_words((Message("user", "Hi"),)) == "Hi"
    both = question_words((Message("system", "Be brief."), Message("user", "Hi")))
    assert both == "[system]\nBe brief.\n\n[user]\nHi"
